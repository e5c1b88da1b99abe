"""Every example runs as a reader would run it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import safe_open

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def run(name: str, *arguments: str) -> str:
    """What examples/NAME.py prints; it must end well, offline, within its minute."""
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=400,  # under a minute on an idle machine
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_generate() -> None:
    assert "Permission is hereby granted" in run("01_generate")


def test_plain_pytorch_moe() -> None:
    said = run("02_plain_pytorch_moe")
    assert re.search(r"6 of 16 experts in memory, [\d,]+ bytes read", said)


def test_budget_and_report() -> None:
    said = run("03_budget_and_report")
    assert "refused before loading" in said
    assert "same tokens" in said


def test_record_a_trace() -> None:
    said = run("04_record_a_trace")
    found = re.findall(r"^(\w+) +(\d+) tokens, (\d+)% of the experts", said, re.MULTILINE)
    assert [domain for domain, _, _ in found] == ["code", "dialogue", "math", "medical", "novel", "speech"]
    # Of 32 experts 4 are chosen: by chance an eighth would be chosen again.
    assert all(int(share) > 12 for _, _, share in found)


@pytest.mark.slow
def test_write_a_policy() -> None:
    said = run("05_write_a_policy")
    rows = re.findall(r"^ 25% (\S+) +(\d+\.\d+) ms per token, +(\d+\.\d)%", said, re.MULTILINE)
    assert rows[0][0] == "belady"
    assert {name for name, _, _ in rows} == {"belady", "lru", "second-chance", "expected-next-use"}
    misses = {name: float(share) for name, _, share in rows}
    assert abs(misses["second-chance"] - misses["lru"]) < 10, "the clock is nearly LRU"


@pytest.mark.slow
def test_simulate(tmp_path: Path) -> None:
    said = run("06_simulate", str(tmp_path / "report.html"))
    assert "left out: prophet needs a predictor" in said
    rows = re.findall(r"^ 25% (\S+) +(\d+\.\d+) ms", said, re.MULTILINE)
    assert rows[0][0] == "clairvoyant"
    assert rows[-1][0] == "on-demand"
    assert "Plotly.newPlot" in (tmp_path / "report.html").read_text()


def test_serve_and_ask() -> None:
    said = run("07_serve_and_ask")
    assert "stream:" in said
    assert "whole:" in said
    counted = re.search(r"^prophet_new_tokens_total (\d+)\.0$", said, re.MULTILINE)
    assert counted is not None
    assert 0 < int(counted[1]) <= 48  # the last token may be counted after it was told


def test_expert_parallel() -> None:
    pytest.importorskip("transformers.distributed.expert_parallel")
    said = run("08_expert_parallel")
    assert "tokens are those of one process" in said
    shares = [int(share) for share in re.findall(r"^rank \d of 2 .* (\d+)%$", said, re.MULTILINE)]
    assert len(shares) == 2
    assert all(35 < share < 65 for share in shares)


@pytest.mark.slow
def test_remake_reference_model(tmp_path: Path) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for i in range(24):
        (texts / f"{i}.txt").write_text(" ".join(f"line {j} of text {i} says {i * j};" for j in range(400)))
    said = run("remake_reference_model", str(tmp_path / "out"), str(texts), "--steps", "20", "--quick")
    losses = [float(found) for found in re.findall(r"loss (\d+\.\d+)", said)]
    assert losses[-1] < losses[0], "twenty steps taught it nothing"
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = set(file.keys())
    assert "model.layers.0.mlp.experts.31.down_proj.weight" in names
    assert (tmp_path / "out" / "tokenizer.json").exists()


def test_every_example_is_tested() -> None:
    tested = Path(__file__).read_text()
    untested = [path.stem for path in EXAMPLES.glob("*.py") if f'"{path.stem}"' not in tested]
    assert not untested, f"add tests of {untested}"
