"""The trace that Perfetto opens: its shape, and that no two events of a track overlap by half."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prophet_moe.timeline import COLUMNS, chrome_trace, write_timeline

KINDS = ["layer_step", "miss", "stall", "compute", "read_demand", "read_prefetch"]
Row = tuple[int, int, int, int, int, int]


def columns(rows: list[Row]) -> dict[str, Any]:
    table = np.array(rows, dtype=np.int64).reshape(-1, len(COLUMNS))
    return dict(zip(COLUMNS, table.T, strict=True))


def test_shape() -> None:
    rows = [
        (5000, 9000, 0, 2, -1, 0),
        (5500, 7500, 4, 2, 7, 4096),
        (6000, 7000, 4, 2, 8, 4096),
        (5400, 5400, 1, 2, 7, 9),
    ]
    trace = chrome_trace(columns(rows), KINDS, "model")
    json.dumps(trace)
    events = trace["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    assert list(names.values()) == ["layer_step", "read_demand 1", "read_demand 2", "miss"]
    spans = [event for event in events if event["ph"] == "X"]
    assert spans[0] == {
        "ph": "X",
        "dur": 4.0,
        "pid": 1,
        "tid": 0,
        "name": "layer_step layer 2",
        "cat": "layer_step",
        "ts": 0.0,
        "args": {"layer": 2},
    }
    assert [span["tid"] for span in spans[1:]] == [1, 2]
    assert spans[1]["args"] == {"layer": 2, "expert": 7, "bytes": 4096}
    instants = [event for event in events if event["ph"] == "i"]
    assert len(instants) == 1
    assert "dur" not in instants[0]


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50), st.integers(0, len(KINDS) - 1))))
def test_events_of_a_track_do_not_overlap(drawn: list[tuple[int, int, int]]) -> None:
    rows = [(begin, begin + length, kind, 0, 0, 1) for begin, length, kind in drawn]
    events = [e for e in chrome_trace(columns(rows), KINDS, "m")["traceEvents"] if e["ph"] in "Xi"]
    assert len(events) == len(rows)
    tracks: dict[int, list[Any]] = {}
    for event in events:
        tracks.setdefault(event["tid"], []).append(event)
    for track in tracks.values():
        assert len({event["cat"] for event in track}) == 1
        for one, other in itertools.pairwise(track):
            assert one["ts"] + one.get("dur", 0) <= other["ts"] + 1e-9


def test_an_empty_timeline_is_a_valid_trace() -> None:
    assert len(chrome_trace(columns([]), KINDS, "m")["traceEvents"]) == 1


def test_a_missing_column_and_an_unknown_kind_are_refused() -> None:
    table = columns([(0, 1, 9, 0, 0, 0)])
    with pytest.raises(ValueError, match="kind 9"):
        chrome_trace(table, KINDS, "m")
    del table["bytes"]
    with pytest.raises(ValueError, match="no column 'bytes'"):
        chrome_trace(table, KINDS, "m")


def test_written_file(tmp_path: Path) -> None:
    class Engine:
        def timeline(self) -> dict[str, Any]:
            return columns([(0, 10, 3, 0, 1, 0)])

        def timeline_kinds(self) -> list[str]:
            return KINDS

    assert write_timeline(tmp_path / "t.json", Engine(), "m") == 1
    assert json.loads((tmp_path / "t.json").read_text())["displayTimeUnit"] == "ms"
