"""The budget is a promise: peak resident memory of real processes, at budgets that are tight."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

MIB = 1 << 20


def report_of(done: Any) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def smallest(done: Any) -> int:
    """The MiB that a refusal names."""
    assert done.returncode == 2, done.stdout + done.stderr
    found = re.search(r"smallest budget that would do is (\d+)MiB", done.stderr)
    assert found is not None, done.stderr
    return int(found[1])


@pytest.mark.slow
def test_the_smallest_budget_named_is_enough_and_kept(prophet_process: Any) -> None:
    words = [
        "run",
        "reference-moe",
        "-p",
        "It was a dark and stormy night, " * 12,
        "-n",
        "24",
        "--json",
        "-q",
    ]
    least = smallest(prophet_process(*words, "--budget", "64MiB"))
    report = report_of(prophet_process(*words, "--budget", f"{least}MiB"))
    assert report["budget_bytes"] == least * MIB
    assert report["peak_rss_bytes"] <= least * MIB
    assert report["expert_slots"] >= 4


@pytest.mark.slow
def test_the_budget_bounds_a_long_prefill(prophet_process: Any, medium_model: Path) -> None:
    prompt = ",".join(str(i * 37 % 8000) for i in range(500))
    words = ["run", str(medium_model), "--prompt-ids", prompt, "-n", "6", "--json", "-q"]
    least = smallest(prophet_process(*words, "--budget", "64MiB"))
    for more, exact in ((0, []), (96, ["--exact"])):
        report = report_of(prophet_process(*words, *exact, "--budget", f"{least + more}MiB"))
        assert report["peak_rss_bytes"] <= (least + more) * MIB, report
        assert report["expert_slots"] < report["experts_total"]


@pytest.mark.slow
def test_auto_keeps_its_own_budget_when_all_fit(prophet_process: Any, medium_model: Path) -> None:
    prompt = ",".join(str(i * 37 % 8000) for i in range(300))
    report = report_of(
        prophet_process("run", str(medium_model), "--prompt-ids", prompt, "-n", "4", "--json", "-q")
    )
    assert report["expert_slots"] == report["experts_total"]
    assert report["peak_rss_bytes"] <= report["budget_bytes"]


@pytest.mark.slow
def test_each_run_of_a_bench_keeps_the_budget(prophet_process: Any, medium_model: Path) -> None:
    """Whatever the run before has left behind."""
    done = prophet_process(
        "bench",
        str(medium_model),
        "-n",
        "4",
        "--prompt-tokens",
        "64",
        "--systems",
        "lru,lfu",
        "--budget",
        "640MiB",
        "--json",
        "-q",
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == 3, done.stderr
    assert all(report["peak_rss_bytes"] <= 640 * MIB for report in reports)


@pytest.mark.slow
def test_ctrl_c_reports_what_was_done(tmp_path: Path) -> None:
    words = ["run", "reference-moe", "-p", "It was a dark", "-n", "900", "--json", "--exact"]
    with subprocess.Popen(
        [sys.executable, "-m", "prophet_moe.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        told = ""
        while len(told.split()) < 12:  # the text, told on stderr beside --json
            piece = child.stderr.readline()
            assert piece, told
            told += piece
        child.send_signal(signal.SIGINT)
        out, rest = child.communicate(timeout=60)
    assert child.returncode == 130, rest
    assert "interrupted after" in rest
    assert "Traceback" not in rest
    report = json.loads(out)
    assert 0 < report["new_tokens"] < 900
    assert len(report["token_ids"]) == report["new_tokens"]
