"""prophet bench --serve: its flags, its rows, and one real run of few requests."""

import json
from typing import Any

import pytest

from prophet_moe.cli.bench_serve import HEADINGS, concurrencies, domain_prompts, rows, told
from prophet_moe.models.inspect import inspect
from prophet_moe.runreport import Hits, Spread
from prophet_moe.serving_run import ServingReport, Waits


def report(system: str, concurrency: int, tpot: float) -> ServingReport:
    return ServingReport(
        model="m", backend="cpu", system=system, concurrency=concurrency, requests=2, expert_slots=4,
        experts_total=8, expert_bytes=100, prompt_tokens=6, new_tokens=8, seconds=1.0, tokens_per_second=8.0,
        ttft_ms=Waits(5.0, 5.0, 6.0), tpot_ms=Spread(tpot, tpot, tpot, tpot, tpot), stalled=0.5,
        bytes_per_token=2.0**20, hits=Hits(3, 0, 1), hit_rate=0.75, union=4.5, streamed=0.0,
        peak_rss_bytes=1,
    )  # fmt: skip


def test_rows_are_medians_over_rounds_by_concurrency() -> None:
    reports = [report("b", 4, 9.0), report("a", 4, 3.0), report("b", 1, 2.0), report("b", 4, 7.0)]
    table = rows(reports)
    assert [row[:3] for row in table] == [["b", "1", "2.0"], ["b", "4", "8.0"], ["a", "4", "3.0"]]
    assert all(len(row) == len(HEADINGS) for row in table)


def test_the_verdict_is_of_medians() -> None:
    found = [report("on-demand", 4, ms) for ms in (10.0, 30.0, 20.0)] + [report("lru", 4, 19.0)]
    assert told(found)[0].startswith("from concurrency 4 on, expert caching by lru stops paying")


@pytest.mark.parametrize("text", ["", "0,1", "four", "1,-2", "1.5"])
def test_concurrency_must_be_numbers_above_zero(text: str) -> None:
    with pytest.raises(ValueError, match="1,4,16"):
        concurrencies(text)
    assert concurrencies("16, 1,4,4") == [1, 4, 16]


def test_prompts_go_round_the_domains() -> None:
    prompts = domain_prompts(inspect("reference-moe"), 13, 9)
    assert len(prompts) == 13
    assert all(0 < len(prompt) <= 9 for prompt in prompts)
    assert len({tuple(prompt) for prompt in prompts}) == 13
    many = domain_prompts(inspect("reference-moe"), 500, 4)
    assert len(many) == 500


def test_requests_side_by_side_are_measured(prophet: Any) -> None:
    done = prophet(
        "bench", "reference-moe", "--serve", "--concurrency", "1,3", "--requests", "4", "-n", "4",
        "--prompt-tokens", "8", "--slots", "25%", "--systems", "on-demand,expected-next-use", "--json", "-q",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(line["system"], line["concurrency"]) for line in lines] == [
        ("on-demand", 1), ("on-demand", 3), ("expected-next-use", 1), ("expected-next-use", 3),
    ]  # fmt: skip
    for line in lines:
        hits = line["hits"]
        assert line["new_tokens"] == 16
        assert line["tpot_ms"]["mean"] > 0
        assert line["ttft_ms"]["mean"] > 0
        # Every expert that was not here was read whole, with what alignment adds.
        wanted = (hits["miss"] + hits["in_flight"]) * line["expert_bytes"]
        assert wanted <= line["bytes_per_token"] * 16 < 1.1 * wanted
    assert lines[0]["hit_rate"] == 0 < lines[2]["hit_rate"]
    assert lines[1]["union"] > lines[0]["union"]


def test_serve_refuses_what_is_of_single_requests(prophet: Any) -> None:
    done = prophet("bench", "reference-moe", "--serve", "--stock")
    assert done.exit_code != 0
    assert "--stock and --cold" in done.stderr
