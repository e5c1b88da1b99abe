"""prophet trace by several workers, as typed, and prophet trace merge."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_models import build

from prophet_moe import machine
from prophet_moe.cli.trace_workers import Crew
from prophet_moe.formats.trace import TraceReader
from prophet_moe.record.shards import shards_of

PROMPTS = 24


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    build("qwen3_moe").save_pretrained(folder / "model")
    rows = [{"ids": [5, 6 + i, 7], "domain": f"d{i % 3}"} for i in range(PROMPTS)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def words(tiny: Path, out: Path, *more: str) -> list[str]:
    prompts = str(tiny / "prompts.jsonl")
    return ["trace", str(tiny / "model"), "--prompts", prompts, "-n", "30", "-o", str(out), "-t", "1", *more]


def test_ctrl_c_and_on_with_another_number_of_workers(prophet: Any, tiny: Path, tmp_path: Path) -> None:
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert prophet(*words(tiny, alone, "-q")).exit_code == 0
    command = [sys.executable, "-m", "prophet_moe.cli", *words(tiny, out, "--workers", "2")]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        shards = shards_of(out)
        # Until something is complete; the process' own end would end the wait, too.
        while process.poll() is None and not any(shards.glob("0*.safetensors")):
            os.sched_yield()
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 130, said
    assert f"what is complete is in {shards}: go on with --resume." in said
    assert "Traceback" not in said
    refused = prophet(*words(tiny, out))
    assert refused.exit_code == 2
    assert "several workers began: go on by --workers" in refused.stderr
    done = prophet(*words(tiny, out, "--workers", "1", "--resume", "--json"))
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["sequences"] == PROMPTS
    assert out.read_bytes() == alone.read_bytes()
    assert sorted(os.listdir(tmp_path)) == ["alone", "out"]


def test_a_lost_model_is_told_by_the_worker_that_missed_it(prophet: Any, tiny: Path, tmp_path: Path) -> None:
    """The order goes to the workers unseen: here with too small a budget."""
    done = prophet(*words(tiny, tmp_path / "out", "--workers", "1", "--budget", "1MiB"))
    assert done.exit_code == 2
    assert "error: worker-0 (process" in done.stderr
    assert "gave up (a budget of 1 MiB cannot hold" in done.stderr
    assert f"0 of {PROMPTS} sequences are complete" in done.stderr


def test_workers_share_budget_and_processors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    free = machine.Memory(total=100 << 30, available=80 << 30, limit=None, used=None)
    monkeypatch.setattr(machine, "memory", lambda: free)
    monkeypatch.setattr(machine, "cpu_count", lambda: 8)
    order = Crew(4, None, "8GiB", None).order("org/name", "name", {"tokens": 3}, {"slots": None})
    assert order.load == {"slots": None, "budget": 2 << 30, "threads": 2}
    assert order.model == "org/name"
    assert Crew(4, None, "auto", 3).order(str(tmp_path), "n", {}, {}).load == {
        "budget": int((80 << 30) * 0.8) // 4,
        "threads": 3,
    }
    monkeypatch.chdir(tmp_path)
    assert Crew(1, None, "auto", 1).order(".", "n", {}, {}).model == str(tmp_path.resolve())


def test_merge(prophet: Any, tiny: Path, tmp_path: Path) -> None:
    one = tmp_path / "one.safetensors"
    assert prophet(*words(tiny, one, "--per-domain", "1", "-q")).exit_code == 0
    out = tmp_path / "both.safetensors"
    done = prophet("trace", "merge", str(one), str(one), "-o", str(out), "--json")
    assert done.exit_code == 0, done.stderr
    assert json.loads(done.stdout)["sequences"] == 2 * TraceReader(one).sequences == 6
    assert json.loads(done.stdout)["about"]["merged"] == "2 traces"
    again = prophet("trace", "merge", str(one), "-o", str(out))
    assert (again.exit_code, "exists already" in again.stderr) == (2, True)
