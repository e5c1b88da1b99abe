"""Requests side by side: simulated and measured ones in the same words."""

import json
from pathlib import Path
from typing import Any

import pytest

from prophet_moe.errors import InvalidArgument
from prophet_moe.results_page import crowd, told
from prophet_moe.results_page.answers import LackingError
from prophet_moe.results_page.load import Load, loads
from prophet_moe.results_page.sources import read_all
from prophet_moe.sim.results import Line

Reports = list[dict[str, Any]]


@pytest.fixture
def simulated(served_lines: list[Line]) -> Load:
    (found,) = loads(served_lines, [])
    return found


@pytest.fixture
def measured(reports: Reports) -> Load:
    (found,) = loads([], reports)
    return found


def test_counts_of_requests_are_one_load(simulated: Load, served_lines: list[Line]) -> None:
    assert simulated.at_once == (1, 4, 16)
    assert simulated.slots == (24, 48)
    assert simulated.systems == ("on-demand", "expected-next-use", "prophet", "belady")
    assert simulated.simulated
    assert "--concurrency 1,4,16" in simulated.command
    other = [line | {"machine": "h100-pcie5", "cell": "h" + line["cell"]} for line in served_lines]
    assert len(loads([*served_lines, *other], [])) == 2
    assert loads([line | {"serving": None} for line in served_lines], []) == []


def test_points_are_what_the_lines_say(simulated: Load, served_lines: list[Line]) -> None:
    line = next(one for one in served_lines if one["system"] == "prophet" and one["slots"] == "25%")
    (point, *_) = simulated.at("prophet", 24)
    assert point.tpot == line["tpot_ms"]
    assert point.hit_rate == pytest.approx(line["hits"]["resident"] / line["accesses"])
    assert point.union == line["serving"]["union"]
    assert point.wasted == pytest.approx(
        line["bytes"]["prefetch_wasted"] / sum(v for k, v in line["bytes"].items() if k != "per_token")
    )
    assert simulated.at("on-demand", 24)[0].wasted is None


def test_rounds_become_medians_with_their_spread(measured: Load) -> None:
    assert not measured.simulated
    (point, four) = measured.at("prophet", 96)
    assert point.tpot["mean"] == pytest.approx(6.0 * 1.1)
    assert point.spread == pytest.approx((6.0, 7.2))
    assert four.at_once == 4
    assert "medians of 2 rounds" in measured.subtitle
    assert "/folder" not in measured.title + measured.command, "where the model lies is nobody's concern"
    best = measured.best(96, 4)
    assert best is not None
    assert best.system == "prophet"


def test_the_best_is_a_real_system(simulated: Load) -> None:
    best = simulated.best(24, 16)
    assert best is not None
    assert best.system == "prophet", "belady is faster and no real system"
    assert simulated.best(7, 16) is None


def test_figures_have_a_curve_for_each_system_and_size(simulated: Load, measured: Load) -> None:
    figures = {one.key: one for one in crowd.drawings(simulated)}
    assert all(one.figure is not None for one in figures.values())
    tpot = figures["tpot"].figure
    assert tpot is not None
    assert [trace.name for trace in tpot.data] == list(simulated.systems) * 2
    assert [trace.visible for trace in tpot.data] == [True] * 4 + [False] * 4
    assert list(tpot.data[0].x) == [1, 4, 16]
    paying = figures["paying"].figure
    assert paying is not None
    assert list(paying.data[0].y) == [1.0, 1.0, 1.0], "on-demand over itself"
    rounds = {one.key: one for one in crowd.drawings(measured)}["tpot"].figure
    assert rounds is not None
    assert rounds.data[2].error_y.array == pytest.approx([0.6, 1.2])
    assert rounds.data[2].error_y.arrayminus == pytest.approx([0.6, 1.2])


def test_what_is_lacking_is_named(served_lines: list[Line]) -> None:
    nothing = {"mean": None, "p50": None, "p99": None}
    lines = [
        line | {"serving": line["serving"] | {"ttft_ms": nothing}}
        for line in served_lines
        if line["system"] == "prophet" and line["serving"]["concurrency"] == 4
    ]
    (load,) = loads(lines, [])
    figures = {one.key: one for one in crowd.drawings(load)}
    assert "--prompt-tokens" in figures["ttft"].missing
    assert "on-demand was not run" in figures["paying"].missing
    assert figures["union"].figure is not None
    with pytest.raises(LackingError, match="one count of requests"):
        told.shared(load)
    assert crowd.part(load, "load1").sentences == []


def test_answers_name_the_numbers(simulated: Load, measured: Load) -> None:
    said = told.served(simulated)
    point = simulated.best(24, 16)
    assert point is not None
    assert point.tpot["mean"] is not None
    assert f"16 at once: prophet, {point.tpot['mean']:.2f} ms between tokens" in said
    share = 4.0 * 4**0.8 / 16
    assert f"({share:.0%} of what they would be" in told.shared(measured)
    assert "2.00x as long" in told.shared(measured)


def test_tables_say_who_is_faster(simulated: Load) -> None:
    first, second = crowd.part(simulated, "load1").tables
    assert [row.cells[:2] for row in first.rows][:4] == [
        ["1", "belady"], ["1", "prophet"], ["1", "expected-next-use"], ["1", "on-demand"],
    ]  # fmt: skip
    assert first.rows[0].bound
    assert first.rows[3].cells[3] == "1.00x"
    assert "50 %" in second.title


def test_lines_of_bench_are_told_from_others(tmp_path: Path, reports: Reports) -> None:
    path = tmp_path / "served.json"
    path.write_text("".join(json.dumps(one) + "\n" for one in reports) + '{"model": "cut')
    assert read_all([path]).served == reports
    path.write_text(json.dumps(reports[0]) + "\n" + '{"model": "other"}\n')
    with pytest.raises(InvalidArgument, match=r"served\.json, line 2, is no report of prophet bench --serve"):
        read_all([path])
