"""The files that a page is made of, told apart by what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument
from prophet_moe.sim.results import Line, read_results

Facts = Mapping[str, Any]
ANALYSIS = ("popularity", "cross_layer", "reuse", "sizes")  # keys of prophet analyze --json
SCORE = ("predictor", "eviction", "ahead")  # keys of prophet score --json


@dataclass
class Sources:
    """What prophet simulate, analyze and score wrote."""

    lines: list[Line] = field(default_factory=list)
    analyses: list[Facts] = field(default_factory=list)
    scores: list[Facts] = field(default_factory=list)


def read_all(paths: Sequence[Path]) -> Sources:
    """Raises InvalidArgument: nothing to draw, a file of another kind or version; OSError."""
    found = Sources()
    for path in paths:
        whole = _object(path)
        if whole is not None and all(key in whole for key in ANALYSIS):
            found.analyses.append(whole)
        elif whole is not None and all(key in whole for key in SCORE):
            found.scores.append(whole)
        else:
            found.lines += read_results(path)
    if not (found.lines or found.analyses or found.scores):
        raise InvalidArgument(
            f"there is no result in {', '.join(map(str, paths))}: make some by prophet simulate -o FILE."
        )
    return found


def _object(path: Path) -> Facts | None:
    """The one JSON object that a file is, or None."""
    try:
        found = json.loads(path.read_bytes())
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
