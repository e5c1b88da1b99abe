"""prophet demo: equal tokens by every system, and the bound that none of them can beat."""

import dataclasses
import json
from typing import Any

import pytest

from prophet_moe.cli.demo import BOUND, HEADINGS, RUNS, Row, machine_of, same_tokens
from prophet_moe.generate import decode
from prophet_moe.models.load import load
from prophet_moe.models.offload import offload_of
from prophet_moe.runreport import Mark, RunReport, Spread, build_report
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.own_run import replay_own, routes_of
from prophet_moe.systems import system_named

SIMPLE = Machine("a test", bytes_per_second=1e9, layer_ns=100_000)


def test_same_tokens() -> None:
    assert same_tokens([1, 2], [1, 2]) == "yes"
    assert same_tokens([1, 3], [1, 2]) == "no, from token 2"
    assert same_tokens([1], [1, 2]) == "no, from token 2"


@pytest.fixture(scope="module")
def lines() -> list[dict[str, Any]]:
    """What --json prints for 8 tokens."""
    from typer.testing import CliRunner

    from prophet_moe.cli import app

    done = CliRunner().invoke(app, ["demo", "-n", "8", "--json", "-q", "-t", "1"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_one_table_within_80_columns(prophet: Any) -> None:
    done = prophet("demo", "-n", "4", env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if not line.startswith("prophet:"))
    assert done.stdout.count(" yes ") == len(RUNS)
    for system in {system for _, system in RUNS}:
        assert f" {system} " in done.stdout
    bound = next(line for line in done.stdout.splitlines() if f"{BOUND} bound" in line)
    assert " yes " not in bound
    assert bound.count("~") == 2, "simulated times are marked"
    assert done.stderr.count("It was a dark and stormy night") == len(RUNS)


def test_json_is_a_run_report_a_line_the_bound_last(lines: list[dict[str, Any]]) -> None:
    keys = list(RunReport.__dataclass_fields__)
    assert all(list(line) == keys for line in lines)
    assert [(line["expert_slots"], line["system"]) for line in lines] == [
        (384, "expected-next-use"),
        (192, "expected-next-use"),
        (96, "on-demand"),
        (96, "expected-next-use"),
        (96, "prophet"),
        (96, BOUND),
    ]
    assert {line["backend"] for line in lines[:-1]} == {"cpu"}
    assert (lines[-1]["backend"], lines[-1]["exact"], lines[-1]["peak_rss_bytes"]) == ("sim", None, None)
    assert {line["new_tokens"] for line in lines} == {8}
    assert len({line["prompt_tokens"] for line in lines}) == 1


def test_no_run_reads_less_than_the_bound(lines: list[dict[str, Any]]) -> None:
    bound = lines[-1]
    asked = sum(bound["hits"].values())
    for line in lines[2:-1]:
        assert sum(line["hits"].values()) == asked, "of the very routes of the run"
        assert line["bytes"]["per_token"] >= bound["bytes"]["per_token"]
    assert 0 < bound["bytes"]["per_token"] < lines[2]["bytes"]["per_token"]


def test_parts_sum_to_what_moved(lines: list[dict[str, Any]]) -> None:
    """On demand nothing comes early, so that nothing is on its way when the run ends."""
    read = lines[2]["bytes"]["demand"] // lines[2]["hits"]["miss"]
    assert lines[2]["expert_bytes"] <= read < lines[2]["expert_bytes"] + 8192, (
        "with the slack of aligned reads"
    )
    for line in (*lines[:4], lines[-1]):
        parts = sum(value for key, value in line["bytes"].items() if key != "per_token")
        assert parts == line["hits"]["miss"] * read
    assert lines[4]["foresight"]["predictor"]
    assert [line["foresight"] for line in lines[:4]] == [None] * 4


@pytest.mark.parametrize("system", ["on-demand", "lru"])
def test_the_replay_of_a_runs_own_routes_counts_what_the_run_counted(system: str) -> None:
    """The prompt's pass too, which asks for each expert once, however many of its tokens need it."""
    model = load("reference-moe", system=system, slots="25%", timeline=True, exact=True)
    offload = offload_of(model)
    info, engine = offload.info, offload.engine
    try:
        recording = decode(model, [5, 9, 200, 31, 77, 6], max_new_tokens=7, counters=engine.counters).whole()
        routes = routes_of(engine.timeline(), engine.timeline_kinds(), info.layers, info.top_k, 6)
        counted = engine.counters()
    finally:
        offload.close()
    assert routes.decoded.shape == (6, info.layers, info.top_k)
    assert len(recording.marks) == 7
    found = replay_own(
        routes,
        system_named(system),
        SIMPLE,
        experts_per_layer=info.experts_per_layer,
        slots=offload.plan.slots,
        expert_bytes=info.expert_bytes,
    )
    assert (found.hits.resident, found.hits.miss) == (counted["hits_resident"], counted["misses"])
    assert found.evictions == counted["evictions"]
    assert found.bytes.moved == counted["misses"] * info.expert_bytes


def report_of(**changes: Any) -> RunReport:
    facts: dict[str, Any] = {
        "model": "m",
        "backend": "cpu",
        "system": "lru",
        "exact": True,
        "budget_bytes": 1,
        "expert_slots": 2,
        "experts_total": 4,
        "expert_bytes": 10,
        "prompt_tokens": 3,
        "text": None,
        "peak_rss_bytes": 5 << 20,
        "token_ids": [1, 2, 3],
    }
    marks = [
        Mark(0, {}),
        Mark(4_000_000, {"bytes_moved": 2000, "stall_ns": 1_000_000}),
        Mark(8_000_000, {"bytes_moved": 4000, "stall_ns": 2_000_000}),
    ]
    return dataclasses.replace(build_report(Mark(0, {}), marks, **facts), **changes)


def test_the_machine_is_what_the_runs_measured() -> None:
    slower = report_of(tpot_ms=Spread(9.0, 9.0, 9.0, 9.0, 9.0))
    found = machine_of([slower, report_of()], report_of(), 3)
    assert found.bytes_per_second == pytest.approx(2e6), "2000 bytes in a stall of 1 ms"
    assert found.layer_ns == 1_000_000, "3 ms of computing in 3 layers"
    nothing = build_report(
        Mark(0, {}), [Mark(1, {})], model="m", backend="cpu", system="lru", exact=True, budget_bytes=1,
        expert_slots=2, experts_total=4, expert_bytes=10, prompt_tokens=3, token_ids=[1], text=None,
        peak_rss_bytes=5,
    )  # fmt: skip
    assert machine_of([nothing], nothing, 3).bytes_per_second > 0


def test_a_row_says_what_was_not_measured() -> None:
    real = Row("25%", report_of(), 0.25, "yes").cells()
    assert len(real) == len(HEADINGS)
    assert real[1:5] == ["lru", "yes", "4.0", "25%"]
    bound = Row("25%", report_of(system=BOUND, peak_rss_bytes=None), 0.0, None).cells()
    assert bound[1:5] == ["clairvoyant bound", "", "~4.0", "~0%"]
    assert bound[-1] == "-"
    assert Row("25%", report_of(), None, None).cells()[4] == "-"
