"""The engine's timeline as a Chrome trace, which Perfetto, chrome://tracing and prophet report open.

Events that overlap in time share no track, because the format draws a track as a stack: a kind of
event that runs in parallel (reads at depth 16) is spread over as many tracks as it needs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prophet_moe.errors import InvalidArgument

COLUMNS = ("begin", "end", "kind", "layer", "expert", "bytes")
# The order of tracks from top to bottom, by what a kind's name contains; others follow.
_ORDER = ("layer", "stall", "compute", "demand", "prefetch", "read")


@dataclass(frozen=True)
class Timeline:
    """A trace read back: columns as those of Engine.timeline(), in nanoseconds from the first event on."""

    title: str
    about: Mapping[str, Any]  # of the run: system, expert_slots, ...; empty where the file says nothing
    kinds: tuple[str, ...]
    columns: Mapping[str, NDArray[np.int64]]

    def rows(self, kind: str) -> dict[str, NDArray[np.int64]]:
        """The columns of one kind's events; empty where there are none."""
        number = self.kinds.index(kind) if kind in self.kinds else -1
        chosen = self.columns["kind"] == number
        return {name: values[chosen] for name, values in self.columns.items()}


def _rank(kind: str) -> int:
    return next((rank for rank, word in enumerate(_ORDER) if word in kind), len(_ORDER))


def tracks(begins: NDArray[np.int64], ends: NDArray[np.int64]) -> list[int]:
    """For each event (sorted by begin) the first track that is free by then."""
    free: list[int] = []
    out: list[int] = []
    for begin, end in zip(begins.tolist(), ends.tolist(), strict=True):
        track = next((i for i, until in enumerate(free) if until <= begin), len(free))
        if track == len(free):
            free.append(end)
        else:
            free[track] = end
        out.append(track)
    return out


def chrome_trace(
    columns: Mapping[str, NDArray[np.int64]],
    kinds: Sequence[str],
    title: str,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The trace object of Engine.timeline() and Engine.timeline_kinds().

    columns: begin, end (nanoseconds), kind (an index into `kinds`), layer, expert (negative: none),
    bytes; all of one length. about: plain facts of the run, kept as the format's otherData. Raises
    ValueError when a column is missing or a kind has no name.
    """
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        raise ValueError(f"the timeline has no column {missing[0]!r}: it needs {', '.join(COLUMNS)}.")
    kind = columns["kind"]
    if kind.size and not 0 <= int(kind.min()) <= int(kind.max()) < len(kinds):
        raise ValueError(f"the timeline names kind {int(kind.max())}, and only {len(kinds)} kinds are known.")
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": 1, "tid": 0, "name": "process_name", "args": {"name": title}},
    ]
    zero = int(columns["begin"].min()) if kind.size else 0
    tid = 0
    for number in sorted(range(len(kinds)), key=lambda index: (_rank(kinds[index]), index)):
        rows = np.flatnonzero(kind == number)
        rows = rows[np.argsort(columns["begin"][rows], kind="stable")]
        if not rows.size:
            continue
        places = tracks(columns["begin"][rows], columns["end"][rows])
        for track in range(max(places) + 1):
            name = kinds[number] if max(places) == 0 else f"{kinds[number]} {track + 1}"
            named = {"ph": "M", "pid": 1, "tid": tid + track}
            events.append({**named, "name": "thread_name", "args": {"name": name}})
            events.append({**named, "name": "thread_sort_index", "args": {"sort_index": tid + track}})
        for row, track in zip(rows.tolist(), places, strict=True):
            events.append(_event(columns, row, kinds[number], tid + track, zero))
        tid += max(places) + 1
    return {"displayTimeUnit": "ms", "otherData": dict(about or {}), "traceEvents": events}


def _event(
    columns: Mapping[str, NDArray[np.int64]], row: int, kind: str, tid: int, zero: int
) -> dict[str, Any]:
    begin, end = int(columns["begin"][row]), int(columns["end"][row])
    layer, expert, size = (int(columns[name][row]) for name in ("layer", "expert", "bytes"))
    args = {key: value for key, value in (("layer", layer), ("expert", expert)) if value >= 0}
    if size > 0:
        args["bytes"] = size
    where = " ".join(f"{key} {args[key]}" for key in ("layer", "expert") if key in args)
    shape = {"ph": "X", "dur": (end - begin) / 1000} if end > begin else {"ph": "i", "s": "t"}
    return {
        **shape,
        "pid": 1,
        "tid": tid,
        "name": f"{kind} {where}".strip(),
        "cat": kind,
        "ts": (begin - zero) / 1000,  # microseconds, as the format wants
        "args": args,
    }


def write_timeline(
    path: str | os.PathLike[str], engine: Any, title: str, about: Mapping[str, Any] | None = None
) -> int:
    """Writes the trace of an engine made with timeline=True; the number of events written."""
    columns = engine.timeline()
    trace = chrome_trace(columns, engine.timeline_kinds(), title, about)
    Path(path).write_text(json.dumps(trace))
    return int(columns["begin"].size)


def read_timeline(trace: Mapping[str, Any], name: str) -> Timeline:
    """What chrome_trace made. Raises InvalidArgument, naming `name`: another program's trace, or no event."""
    try:
        title = next((e["args"]["name"] for e in trace["traceEvents"] if e["name"] == "process_name"), "")
        events = [event for event in trace["traceEvents"] if event["ph"] in ("X", "i")]
        kinds = tuple(dict.fromkeys(str(event["cat"]) for event in events))
        number = {kind: place for place, kind in enumerate(kinds)}
        table = np.array([_row(event, number) for event in events], np.int64).reshape(-1, len(COLUMNS))
    except (KeyError, TypeError, ValueError, OverflowError):
        raise InvalidArgument(
            f"{name} is no timeline of prophet run --timeline, but another trace."
        ) from None
    if "layer_step" not in number:
        raise InvalidArgument(f"{name} holds no step of a layer: write one by prophet run --timeline.")
    table = table[np.argsort(table[:, 0], kind="stable")]
    columns = dict(zip(COLUMNS, table.T, strict=True))
    return Timeline(str(title), trace.get("otherData") or {}, kinds, columns)


def _row(event: Mapping[str, Any], number: Mapping[str, int]) -> tuple[int, ...]:
    begin, args = round(event["ts"] * 1000), event["args"]
    end = begin + round(event.get("dur", 0) * 1000)
    layer, expert, size = args.get("layer", -1), args.get("expert", -1), args.get("bytes", 0)
    return begin, end, number[event["cat"]], layer, expert, size
