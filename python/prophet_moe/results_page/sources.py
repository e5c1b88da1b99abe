"""The files that a page is made of, told apart by what they hold."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument
from prophet_moe.sim.results import Line, read_results
from prophet_moe.timeline import Timeline, read_timeline

Facts = Mapping[str, Any]
ANALYSIS = ("popularity", "cross_layer", "reuse", "sizes")  # keys of prophet analyze --json
SCORE = ("predictor", "eviction", "ahead")  # keys of prophet score --json
SERVED = (
    "concurrency",
    "requests",
    "union",
    "streamed",
    "ttft_ms",
    "tpot_ms",
)  # of prophet bench --serve --json
TIMELINE = "traceEvents"  # of a Chrome trace


@dataclass
class Sources:
    """What prophet simulate, analyze, score, bench --serve and run --timeline wrote."""

    lines: list[Line] = field(default_factory=list)
    analyses: list[Facts] = field(default_factory=list)
    scores: list[Facts] = field(default_factory=list)
    served: list[Facts] = field(default_factory=list)
    timelines: list[tuple[str, Timeline]] = field(default_factory=list)  # and the names of their files

    def __bool__(self) -> bool:
        return any((self.lines, self.analyses, self.scores, self.served, self.timelines))


def read_all(paths: Sequence[Path]) -> Sources:
    """Raises InvalidArgument: nothing to draw, a file of another kind or version; OSError."""
    found = Sources()
    for path in paths:
        _read(path, found)
    if not found:
        raise InvalidArgument(
            f"there is no result in {', '.join(map(str, paths))}: make some by prophet simulate -o FILE."
        )
    return found


def _read(path: Path, into: Sources) -> None:
    data = path.read_bytes()
    whole, first = _object(data), _object(data.partition(b"\n")[0])
    if _has(whole, ANALYSIS):
        into.analyses.append(whole)
    elif _has(whole, SCORE):
        into.scores.append(whole)
    elif TIMELINE in whole:
        into.timelines.append((path.name, read_timeline(whole, str(path))))
    elif _has(first, SERVED):
        into.served += _served(path, data)
    else:
        into.lines += read_results(path)


def _served(path: Path, data: bytes) -> list[Facts]:
    """Of each whole line its report; a last line that was cut off is left out."""
    found: list[Facts] = []
    for number, text in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), 1):
        report = _object(text)
        if not _has(report, SERVED):
            raise InvalidArgument(
                f"{path}, line {number}, is no report of prophet bench --serve --json, as the first line is."
            )
        found.append(report)
    return found


def _has(found: Facts, keys: Sequence[str]) -> bool:
    return all(key in found for key in keys)


def _object(data: bytes) -> dict[str, Any]:
    """The one JSON object that this is; empty where it is something else."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
