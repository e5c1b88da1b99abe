"""The verbs at work on the reference model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prophet_moe.cli.bench import HEADINGS, as_markdown, notes, parse_systems, rows, schedule, spread
from prophet_moe.cli.console import end_of_run
from prophet_moe.generate import Recording, end_tokens, fixed_tokens
from prophet_moe.models.inspect import inspect
from prophet_moe.models.stock import load_stock, load_tokenizer
from prophet_moe.runreport import Mark, RunReport, build_report

PROMPT = "It was a dark and stormy night"
KEYS = list(RunReport.__dataclass_fields__)


@pytest.fixture(scope="module")
def expected() -> list[int]:
    """Twelve greedy tokens of stock transformers."""
    torch.set_num_threads(1)
    tokenizer = load_tokenizer("reference-moe")
    prompt = tokenizer(PROMPT, return_tensors="pt")
    out = load_stock("reference-moe").generate(**prompt, max_new_tokens=12, do_sample=False)
    return [int(token) for token in out[0, prompt["input_ids"].shape[1] :]]


@pytest.mark.parametrize(
    "how", [("--slots", "25%"), ("--slots", "100%"), ("--system", "on-demand", "--slots", "8")]
)
def test_run_gives_stocks_tokens_and_one_report(
    prophet: Any, expected: list[int], how: tuple[str, ...]
) -> None:
    done = prophet("run", "reference-moe", "-p", PROMPT, "-n", "12", "--exact", "--json", "-t", "1", *how)
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert len(lines) == 1
    report = json.loads(lines[0])
    assert list(report) == KEYS
    assert report["token_ids"] == expected
    assert report["text"] == load_tokenizer("reference-moe").decode(expected)
    assert report["new_tokens"] == 12
    assert report["exact"] is True
    asked = report["hits"]["resident"] + report["hits"]["in_flight"] + report["hits"]["miss"]
    assert asked >= 12 * 11 * 4
    if "on-demand" in how:
        # Every decode step reads top-k experts of every layer, and nothing else; alignment excepted.
        ideal = 12 * 4 * report["expert_bytes"]
        assert ideal <= report["bytes"]["per_token"] < ideal * 1.2
        assert report["system"] == "on-demand"
    if "100%" in how:
        assert report["evictions"] == 0
        assert report["bytes"]["demand"] <= 384 * report["expert_bytes"] * 1.2


def test_the_summary_can_be_pasted_into_an_issue(prophet: Any) -> None:
    done = prophet("run", "reference-moe", "-p", PROMPT, "-n", "3", "--slots", "96")
    assert done.exit_code == 0
    names = [line.split()[0] for line in done.stderr.splitlines() if line[:1].isalpha()]
    assert names[-9:] == [
        "mode",
        "model",
        "memory",
        "slots",
        "prefill",
        "decode",
        "experts",
        "disk",
        "stalled",
    ]
    assert "streaming, cpu, system" in done.stderr
    assert "96 of 384 (25%)" in done.stderr


def test_quiet_leaves_only_the_text(prophet: Any, tmp_path: Path) -> None:
    (tmp_path / "prompt").write_text(PROMPT)
    done = prophet(
        "run",
        "reference-moe",
        "--prompt-file",
        str(tmp_path / "prompt"),
        "-n",
        "4",
        "-q",
        "--seed",
        "1",
        "--temperature",
        "0.5",
    )
    assert done.exit_code == 0
    assert done.stderr == ""
    assert done.stdout.endswith("\n")
    assert len(done.stdout) > 1


def test_a_prompt_from_stdin(prophet: Any, expected: list[int]) -> None:
    words = ("run", "reference-moe", "--prompt-file", "-", "-n", "12", "--exact", "--json", "-q")
    assert json.loads(prophet(*words, input=PROMPT).stdout)["token_ids"] == expected


def test_timeline_file(prophet: Any, tmp_path: Path) -> None:
    file = tmp_path / "trace.json"
    done = prophet(
        "run", "reference-moe", "-p", PROMPT, "-n", "3", "--slots", "50%", "--timeline", str(file), "-q"
    )
    assert done.exit_code == 0, done.stderr
    events = json.loads(file.read_text())["traceEvents"]
    kinds = {event.get("cat") for event in events}
    assert {"layer_step", "read_demand", "miss"} <= kinds
    assert all(event["ts"] >= 0 for event in events if "ts" in event)


def test_chat_answers_each_line(prophet: Any) -> None:
    lines = "Hello\n\n/clear\nHow are you?\n/quit\nnot read\n"
    done = prophet("chat", "reference-moe", "-n", "4", "--context", "128", "--seed", "1", input=lines)
    assert done.exit_code == 0, done.output
    assert done.stderr.count("tok/s") == 2
    assert "plain turns" in done.stderr


def test_chat_says_when_the_context_is_full(prophet: Any) -> None:
    done = prophet("chat", "reference-moe", "-n", "4", "--context", "16", "-q", input="word " * 40 + "\n")
    assert done.exit_code == 0
    assert "context of 16 tokens is full" in done.stderr


def test_plan_answers_without_loading(prophet: Any) -> None:
    done = prophet("plan", "reference-moe", "--slots", "25%", "--json", "-q")
    assert done.exit_code == 0, done.output
    seen = json.loads(done.stdout)
    assert seen["fits"] is True
    assert seen["bytes_per_token_zero_cache"] == 12 * 4 * 73728
    assert seen["bytes_per_token_expected"] == 12 * 4 * 73728 * 3 // 4
    assert sum(item["bytes"] for item in seen["account"]) <= seen["budget_bytes"]
    assert seen["disk_bytes_per_second"] > 0
    assert seen["memory_bytes_per_second"] > 0
    assert 0 < seen["tpot_ms_expected"] < seen["tpot_ms_zero_cache"]
    told = prophet("plan", "reference-moe", "--no-measure", "-q").stdout
    assert "fits: all experts stay in memory" in told
    assert "uniform routing" in told
    assert "not measured" in told


def test_plan_says_what_does_not_fit_and_exits_with_1(prophet: Any) -> None:
    done = prophet("plan", "reference-moe", "--budget", "100MiB", "--no-measure", "-q")
    assert done.exit_code == 1
    assert "does not fit: a budget of 100 MiB" in done.stdout
    seen = json.loads(
        prophet("plan", "reference-moe", "--budget", "100MiB", "--no-measure", "--json", "-q").stdout
    )
    assert seen["fits"] is False
    assert seen["minimum_bytes"] > 100 << 20
    assert seen["tpot_ms_expected"] is None


def test_bench_interleaves_and_feeds_the_same_tokens(prophet: Any) -> None:
    done = prophet(
        "bench",
        "reference-moe",
        "--systems",
        "on-demand,lru",
        "--slots",
        "25%",
        "-n",
        "4",
        "--stock",
        "--prompt-tokens",
        "3",
        "--cold",
        "--json",
        "-t",
        "1",
    )
    assert done.exit_code == 0, done.output
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert [report["system"] for report in reports] == ["on-demand", "lru", "stock", "on-demand"]
    info = inspect("reference-moe")
    fed = fixed_tokens(7, info.vocab_size, end_tokens(info))
    for report in reports:
        assert list(report) == KEYS
        assert report["prompt_tokens"] == 3
        assert report["token_ids"] == fed[3:]
    assert (
        reports[0]["bytes"]["per_token"]
        == reports[3]["bytes"]["per_token"]
        > reports[1]["bytes"]["per_token"]
    )
    assert reports[2]["bytes"]["demand"] == 0


def test_bench_prints_a_table(prophet: Any) -> None:
    done = prophet("bench", "reference-moe", "--slots", "25%", "-n", "3", "--repeat", "2", "--markdown", "-q")
    assert done.exit_code == 0, done.output
    lines = done.stdout.splitlines()
    assert lines[0] == "| " + " | ".join(HEADINGS) + " |"
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[1:3] == ["2", "96/384"]
    assert "±" in cells[4]
    shown = prophet(
        "bench", "reference-moe", "--systems", "lru,lfu", "--slots", "25%", "-n", "2", "-q"
    ).stdout
    assert all(any(heading in line for line in shown.splitlines()) for heading in HEADINGS)
    assert "expected" not in shown


def test_bench_and_run_say_when_foresight_held_back_and_when_it_failed() -> None:
    facts: dict[str, Any] = {
        "model": "m", "backend": "cpu", "exact": False, "budget_bytes": 1, "expert_slots": 2,
        "experts_total": 4, "expert_bytes": 10, "prompt_tokens": 3, "token_ids": [1], "text": None,
        "peak_rss_bytes": 5,
    }  # fmt: skip
    seen = {"foresight_steps": 40, "prefetch_held_steps": 10}
    plain = build_report(Mark(0, {}), [Mark(1, {})], system="lru", **facts)
    calm = build_report(
        Mark(0, {}), [Mark(1, {"foresight_steps": 40})], system="a", predictor="bank", **facts
    )
    held = build_report(Mark(0, {}), [Mark(1, seen)], system="b", predictor="bank", **facts)
    failed = build_report(
        Mark(0, {}), [Mark(1, {})], system="c", predictor="bank", foresight_failure="a NaN", **facts
    )
    told = notes([plain, calm, held, failed])
    assert len(told) == 2
    assert told[0].startswith("b: foresight held back")
    assert "prefetching in 25% of 40 layer steps" in told[0]
    assert "eviction" not in told[0]
    assert told[1] == "c: the predictor was switched off (a NaN)."
    assert notes([]) == []
    recording = Recording(3, Mark(0, {}), [Mark(1, seen)], [1])
    assert end_of_run(held, recording, "float32")[-1] == told[0].removeprefix("b: ").removesuffix(".")
    assert not any("held back" in line for line in end_of_run(calm, recording, "float32"))


def test_bench_helpers() -> None:
    assert schedule(["a", "b"], 2) == ["a", "b", "a", "b", "a"]
    assert schedule(["a"], 3) == ["a"] * 3
    assert parse_systems(" lru , lfu", ["lru", "lfu"]) == ["lru", "lfu"]
    assert spread([1.0, 3.0]) == "2.0 ± 1.4"
    assert spread([None]) == "-"
    assert rows([]) == []
    assert as_markdown([["x"] * len(HEADINGS)]).count("\n") == 2


def test_pack_and_run_what_was_packed(prophet: Any, tmp_path: Path, expected: list[int]) -> None:
    out = tmp_path / "packed"
    assert prophet("pack", "reference-moe", str(out), "--dry-run").exit_code == 0
    assert not out.exists()
    assert prophet("pack", "reference-moe", str(out)).exit_code == 0
    done = prophet("run", str(out), "-p", PROMPT, "-n", "12", "--exact", "--json", "--slots", "25%", "-q")
    assert json.loads(done.stdout)["token_ids"] == expected
    assert prophet("pack", "reference-moe", str(out)).exit_code == 2
