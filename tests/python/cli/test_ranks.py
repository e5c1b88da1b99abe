"""`prophet run` under torchrun: one voice, a report for every rank, other verbs refused."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from prophet_moe.cli import main, ranks
from prophet_moe.errors import InvalidArgument

TOGETHER = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "WORLD_SIZE": "2"}


def test_run_over_two_processes(tmp_path: Path) -> None:
    """Sampled, without a seed: the ranks must draw the same tokens all the same."""
    pytest.importorskip("transformers.distributed.expert_parallel")
    done = subprocess.run(
        [
            *[sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"],
            *["-m", "prophet_moe.cli", "run", "reference-moe", "-p", "Call me Ishmael.", "-n", "6"],
            *["--temperature", "0.8", "--slots", "25%", "--timeline", str(tmp_path / "t.json"), "--json"],
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    first, second = map(json.loads, done.stdout.splitlines())
    assert [(report["rank"], report["ranks"]) for report in (first, second)] == [(0, 2), (1, 2)]
    assert list(first)[2] == "model"
    assert first["token_ids"] == second["token_ids"]
    assert len(first["token_ids"]) == 6
    for report in (first, second):
        assert (report["expert_slots"], report["experts_total"]) == (48, 192)
        assert report["peak_rss_bytes"] <= report["budget_bytes"]
    assert done.stderr.count("hit rate") == 1 + 2, "one block by rank 0, with a line for each rank"
    assert {path.name for path in tmp_path.iterdir()} == {"t.json", "t.rank1.json"}


@pytest.mark.parametrize("verb", ["bench", "chat", "trace"])
def test_other_verbs_are_refused(
    verb: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in TOGETHER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["prophet", verb, "reference-moe"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert said.startswith("error: rank 1: torchrun started 2 processes, and each would do all of prophet")


def test_one_stdin_is_not_for_many(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in TOGETHER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.argv", ["prophet", "run", "reference-moe", "--prompt-file", "-"])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 2
    assert "cannot read one stdin" in capsys.readouterr().err


def test_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some clusters set these variables for every process; only torchrun's own mark counts."""
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ranks.place() == (0, 1)
    ranks.require_alone(["bench", "m"])
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    assert ranks.place() == (1, 2)
    ranks.require_alone(["--help"])
    ranks.require_alone(["run", "m"])
    with pytest.raises(InvalidArgument, match="each would do all of prophet bench"):
        ranks.require_alone(["bench", "m"])
    assert ranks.own_file(Path("a/t.json"), 1, 2) == Path("a/t.rank1.json")
    assert (
        ranks.own_file(Path("a/t.json"), 0, 2) == ranks.own_file(Path("a/t.json"), 1, 1) == Path("a/t.json")
    )
