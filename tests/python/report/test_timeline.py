"""A timeline by hand: its steps, shares, stays and figures say what was put in."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_lines import MS, make_timeline

from prophet_moe.errors import InvalidArgument
from prophet_moe.results_page import lanes, told
from prophet_moe.results_page.answers import LackingError
from prophet_moe.results_page.sources import read_all
from prophet_moe.results_page.steps import Steps
from prophet_moe.timeline import Timeline, read_timeline


@pytest.fixture
def steps(timeline: Timeline) -> Steps:
    return Steps(timeline)


def test_what_was_written_is_read_back(timeline: Timeline) -> None:
    assert timeline.title == "folder/toy"
    assert timeline.about["system"] == "lru"
    reads = timeline.rows("read_demand")
    assert reads["expert"].tolist() == [0, 0, 1, 1, 2, 2, 0, 0, 1, 1, 2, 2]
    assert set((reads["end"] - reads["begin"]).tolist()) == {2 * MS, 6 * MS}
    assert not len(timeline.rows("read_prefetch")["begin"])
    assert np.all(np.diff(timeline.columns["begin"]) >= 0)


def test_a_step_is_one_pass_through_the_layers(steps: Steps) -> None:
    assert len(steps) == 6
    assert steps.ns.tolist() == [10 * MS, 10 * MS, 10 * MS, 14 * MS, 10 * MS, 10 * MS]
    assert steps.decoded.tolist() == [1, 2, 3, 4, 5], "the first step is the prompt's"
    assert steps.slowest(1) == [3]
    assert steps.ns[steps.typical] == 10 * MS


def test_parts_of_a_step_sum_to_it(steps: Steps) -> None:
    sums = {name: steps.by_step(of) for name, of in steps.window_parts.items()}
    assert sums["stall"].tolist() == [2 * MS, 2 * MS, 2 * MS, 6 * MS, 2 * MS, 2 * MS]
    assert sums["compute"].tolist() == [2 * MS] * 6
    assert sums["outside"].tolist() == [6 * MS] * 6
    assert sum(sums.values()).tolist() == steps.ns.tolist()
    assert sum(steps.shares().values()) == pytest.approx(1)
    assert steps.shares(np.array([3]))["stall"] == pytest.approx(6 / 14)
    assert steps.by_layer(steps.window_parts["stall"]) == {0: MS, 1: pytest.approx((4 * 1 + 5) / 5 * MS)}
    assert steps.by_step(steps.window_bytes["demand"]).tolist() == [2_000_000] * 6


def test_time_with_a_read_in_flight_counts_overlaps_once() -> None:
    trace = make_timeline(steps=2)
    reads = [event for event in trace["traceEvents"] if event.get("cat") == "read_demand"]
    trace["traceEvents"] += [read | {"ts": read["ts"] + 500} for read in reads]  # half a millisecond later
    assert Steps(read_timeline(trace, "t")).reading_ns() == 2 * 2.5 * MS


def test_stays_are_from_the_end_of_a_read_to_the_eviction(steps: Steps) -> None:
    stays = steps.stays()
    assert len(stays.turns) == 2 * 4, "what came in steps 0 to 3 left in steps 2 to 5"
    assert set(stays.turns.tolist()) == {2}
    begins = steps.begin
    first = begins[2] - (begins[0] + 2 * MS)
    assert stays.ns.min() == first
    assert stays.still_there == 4


def test_leases_have_no_length_of_their_own() -> None:
    """Where the caller computes, a layer step is a moment; what it waited is still not outside of experts."""
    trace = make_timeline()
    for event in trace["traceEvents"]:
        if event.get("cat") == "layer_step":
            event.update(ph="i")
            event.pop("dur")
    steps = Steps(read_timeline(trace, "t"))
    sums = {name: steps.by_step(of) for name, of in steps.window_parts.items()}
    assert sum(sums.values()).tolist() == steps.ns.tolist()
    assert sums["stall"].tolist()[3] == 6 * MS


def test_one_step_alone_is_drawn() -> None:
    steps = Steps(read_timeline(make_timeline(steps=1), "t"))
    part = lanes.part(steps, "t", "t.json")
    figures = {one.key: one for one in part.drawings}
    assert figures["lanes"].figure is not None
    assert figures["residence"].missing
    with pytest.raises(LackingError, match="fewer than eight"):
        told.measured_series(steps)


def test_figures_hold_the_spans(steps: Steps) -> None:
    part = lanes.part(steps, "timeline1", "toy.json")
    assert part.title == "Timeline of toy, lru"
    assert "prophet run toy --timeline toy.json --system lru --slots 2" in part.command
    figures = {one.key: one.figure for one in part.drawings}
    assert list(figures) == ["lanes", "steps", "layers", "bytes", "residence"]
    assert all(one is not None for one in figures.values())
    shown = {trace.name: trace for trace in figures["lanes"].data if trace.visible}
    assert list(shown["reads, demanded"].x) == [2.0] * 4, "two steps of two layers, in ms"
    assert list(shown["waiting for bytes"].base) == [0.0, 5.0, 10.0, 15.0]
    hidden = [t for t in figures["lanes"].data if not t.visible and t.name == "waiting for bytes"]
    assert max(hidden[0].x) == 5.0, "the slowest step has a view of its own"
    stacked = {trace.name: list(trace.y) for trace in figures["steps"].data}
    assert stacked["waiting for bytes"] == [2.0, 2.0, 6.0, 2.0, 2.0]
    assert list(figures["residence"].data[0].x) == ["0–1", "2–3"]
    assert list(figures["residence"].data[0].y) == [0, 8]
    (table,) = part.tables
    assert table.rows[1].cells[:3] == ("3", "14.00", "1.40x")
    assert table.rows[1].cells[-1] == "layer 1, 5.00 ms"


def test_sentences_say_the_shares(steps: Steps) -> None:
    said = " ".join(lanes.sentences(steps))
    assert "10.00 ms (median of 5)" in said
    assert f"{14 / 54:.0%} waiting for bytes" in said
    assert "11.11%" not in told.measured_overlap(steps)
    assert "the slowest, step 3, took 14.00 ms, 6.00 of them waiting" in told.measured_tails(steps)


def test_reads_in_flight_together_lie_beside_each_other() -> None:
    trace = make_timeline()
    reads = [event for event in trace["traceEvents"] if event.get("cat") == "read_demand"]
    trace["traceEvents"] += [read | {"ts": read["ts"] + 500} for read in reads]
    figure = lanes.lanes(Steps(read_timeline(trace, "t"))).figure
    assert figure is not None
    rows = next(trace for trace in figure.data if trace.visible and trace.name == "reads, demanded")
    assert len(set(rows.y)) == 2


@pytest.mark.parametrize(
    "trace",
    [
        {"traceEvents": [{"ph": "X", "name": "x", "ts": 0}]},
        {"traceEvents": [{"ph": "X", "name": "x", "cat": "layer_step", "ts": "soon", "args": {}}]},
        {"traceEvents": [{"ph": "X", "name": "x", "cat": "layer_step", "ts": 1e300, "args": {}}]},
        {"traceEvents": [{"ph": "X", "name": "x", "cat": "layer_step", "ts": 0, "args": {"layer": "one"}}]},
        {"traceEvents": 3},
        {"traceEvents": [7]},
    ],
)
def test_other_traces_are_refused(tmp_path: Path, trace: Any) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(trace))
    with pytest.raises(InvalidArgument, match=r"other\.json is no timeline of prophet run"):
        read_all([path])


def test_a_timeline_without_layers_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "empty.json"
    path.write_text(json.dumps({"traceEvents": []}))
    with pytest.raises(InvalidArgument, match="holds no step of a layer"):
        read_all([path])
