"""What runners share, and two of them run for real on a tiny checkpoint."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from workload import Workload, fixed_tokens


def test_tokens_are_the_same_everywhere() -> None:
    # The first values of SplitMix64 from seed 0, as its author publishes them.
    assert fixed_tokens(2, vocab=1 << 64, seed=1) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4]
    assert fixed_tokens(40)[:6] == fixed_tokens(6)


def test_tokens_cover_the_vocabulary_evenly() -> None:
    tokens = fixed_tokens(20_000, vocab=100)
    counts = [tokens.count(token) for token in range(100)]
    assert sum(counts) == 20_000
    assert 140 <= min(counts) <= max(counts) <= 260


@pytest.fixture
def workload(monkeypatch: pytest.MonkeyPatch) -> Workload:
    monkeypatch.setattr(
        sys, "argv", ["runner", "model", "--steps", "3", "--prompt-tokens", "2", "--extra", "y"]
    )
    return Workload("about", extra="x")


def test_every_logit_but_the_last_is_followed_by_a_fixed_token(workload: Workload) -> None:
    tokens = fixed_tokens(5)
    workload.loaded()
    assert workload.prompt == tokens[:2]
    assert [workload.token(9) for _ in range(workload.positions - 1)] == tokens[2:]
    assert isinstance(workload.token(9), int)
    assert workload.given.extra == "y"


def test_the_line_splits_load_prefill_and_steps(
    workload: Workload, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import workload as module

    clock = iter([10.0, 11.0, 11.5, 11.75, 12.25])
    counter = iter([100, 250, 250, 260, 290])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(module, "read_bytes", lambda: next(counter))
    processor = iter([0.5, 1.5, 1.75, 2.0, 2.25])
    monkeypatch.setattr(module.time, "process_time", lambda: next(processor))
    workload._marks = [(8.0, 0, 0.0)]
    workload.loaded()
    for picked in (5, 6, 7, 8):
        workload.token(picked)
    workload.emit("some", "1.0", budgets=["a"])
    line = json.loads(capsys.readouterr().out)
    assert line["load_s"] == 2
    assert line["ttft_ms"] == 1000
    assert line["steps_ms"] == [500, 250, 500]
    assert line["tpot_ms"] == {"mean": 416.667, "median": 500}
    assert line["cpu_ms_per_token"] == 250
    assert line["bytes"] == {"load": 100, "prefill": 150, "decode": 40, "per_token": 13}
    assert line["step_bytes"] == [0, 10, 30]
    assert line["picked"] == [5, 6, 7, 8]
    assert line["decode_steps"] == 3
    assert line["budgets"] == ["a"]


def test_a_generation_cut_short_prints_no_line(
    workload: Workload, capsys: pytest.CaptureFixture[str]
) -> None:
    workload.loaded()
    workload.token(1)
    workload.token(1)
    with pytest.raises(RuntimeError, match="took 1 of 3 decode steps"):
        workload.emit("some", "1.0")
    assert not capsys.readouterr().out


def runner(e2e: Path, name: str, *words: str, path: Path | None = None) -> tuple[int, Any]:
    search = os.pathsep.join(filter(None, [str(path or ""), os.environ.get("PYTHONPATH", "")]))
    run = subprocess.run(
        [sys.executable, str(e2e / "peers" / name), *words],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"PYTHONPATH": search},
    )
    assert run.stdout, run.stderr
    return run.returncode, json.loads(run.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("name", "module"), [("run_llama_cpp.py", "llama_cpp"), ("run_neurostream.py", "neurostream")]
)
def test_an_absent_peer_says_so(e2e: Path, tmp_path: Path, name: str, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("raise ImportError('not on this machine')\n")
    status, line = runner(e2e, name, "model", path=tmp_path)
    assert status == 3
    assert sys.executable in line["unavailable"]
    assert "not on this machine" in line["unavailable"]
    assert "bench/README.md" in line["unavailable"]


@pytest.fixture(scope="module")
def stock_picks(tiny: Path) -> list[int]:
    """What the resident model would pick after each prefix of the fixed tokens."""
    model = transformers.AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.bfloat16)
    tokens = fixed_tokens(11 + 6)
    picks = []
    for end in range(11, len(tokens) + 1):
        picks.append(int(model(torch.tensor([tokens[:end]])).logits[0, -1].argmax()))
    return picks


@pytest.mark.slow
def test_prophet_runs_the_same_tokens_as_the_resident_model(
    e2e: Path, tiny: Path, stock_picks: list[int]
) -> None:
    status, line = runner(e2e, "run_prophet.py", str(tiny), "--steps", "6", "--slots", "4")
    assert status == 0
    assert line["decode_steps"] == 6
    assert line["picked"] == stock_picks
    assert line["report"]["expert_slots"] == 4
    assert line["peak_rss_bytes"] > 50_000_000
