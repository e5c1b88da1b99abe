"""Results of simulations: JSON lines, each a run report with what was replayed on what (docs/formats.md)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument
from prophet_moe.runreport import RunReport

VERSION = 2
READ = (1, VERSION)
BACKEND = "sim"
RUN_KEYS = tuple(field.name for field in fields(RunReport))
# What a simulation adds to a run report, in this order.
OWN_KEYS = (
    "results_version",
    "cell",
    "trace",
    "machine",
    "slots",
    "weights",
    "lane",
    "link_scale",
    "pool",
    "cold",
    "sequences",
    "held_out",
    "predictor",
    "predictor_seen",
    "options",
    "times",
    "resident_ms",
    "fits",
    "accesses",
    "layer_misses",
    "residence",
    "flops_per_token",
    "domains",
    "serving",
    "wall_s",
)

Line = dict[str, Any]


def read_results(path: Path) -> list[Line]:
    """All lines of a results file; a last line that was cut off is left out.

    Raises InvalidArgument: no results, or of another version of this schema; OSError.
    """
    return list(_lines(path, path.read_bytes()))


def _lines(path: Path, data: bytes) -> Iterator[Line]:
    whole, _, _ = data.rpartition(b"\n")
    for number, text in enumerate(whole.split(b"\n") if whole else [], 1):
        try:
            line = json.loads(text)
        except (ValueError, UnicodeDecodeError):
            line = None
        if not isinstance(line, dict) or "results_version" not in line:
            raise InvalidArgument(
                f"{path}, line {number}, is no result of prophet simulate: give a file that it wrote by -o."
            )
        if line["results_version"] not in READ:
            raise InvalidArgument(
                f"{path}, line {number}, is of results version {line['results_version']}; this release knows "
                f"{' and '.join(map(str, READ))}. Simulate again into another file, or use the release that "
                "wrote it."
            )
        if line["results_version"] == 1:
            line.setdefault("serving", None)  # before there were requests side by side
            line["residence"] = line["host_pool"] = None
        if missing := [key for key in (*RUN_KEYS, *OWN_KEYS) if key not in line]:
            raise InvalidArgument(f"{path}, line {number}, has no {missing[0]!r}: simulate again.")
        yield line


class ResultsFile:
    """A results file that grows by whole lines, so that an interrupted simulation can go on."""

    def __init__(self, path: Path) -> None:
        """Reads what is there and cuts off a line that was never finished."""
        self._path = path
        self.lines: list[Line] = []
        if path.exists():
            data = path.read_bytes()
            self.lines = list(_lines(path, data))
            if len(data) > (end := data.rfind(b"\n") + 1):
                with path.open("r+b") as file:
                    file.truncate(end)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()

    def append(self, line: Line) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(to_json(line) + "\n")
        self.lines.append(line)


def to_json(line: Line) -> str:
    """One line of JSON, keys in the order of the schema."""
    ordered = {key: line[key] for key in (*RUN_KEYS, *OWN_KEYS)}
    return json.dumps(ordered, ensure_ascii=False, allow_nan=False)
