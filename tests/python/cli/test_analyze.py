"""prophet analyze: one JSON object or tables and a verdict, and a sentence for what it cannot do."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_traces import chain, write

from prophet_moe.analysis import figures
from prophet_moe.cli.analyze import numbers, sizes

FEW = ("--horizons", "1", "--lags", "1", "--bootstrap", "10", "--shuffles", "3")


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    experts = chain([150] * 4, 2, 6, 0.7, np.random.default_rng(0))
    return write(
        tmp_path, experts, [150] * 4, of=6, labels=("code", "prose"), gates=np.ones((600, 2, 1))
    ).path


def test_json_is_one_object_and_figures_can_be_drawn_of_it(prophet: Any, trace: Path) -> None:
    done = prophet("analyze", str(trace), "--json", "--slots", "3,50%", *FEW)
    assert done.exit_code == 0, done.output
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert [size["slots"] for size in found["sizes"]] == [3, 6]
    assert found["options"]["horizons"] == [1]
    assert found["verdict"]
    assert figures(found)


def test_tables_and_verdict(prophet: Any, trace: Path) -> None:
    done = prophet("analyze", str(trace), "--by-domain", *FEW)
    assert done.exit_code == 0, done.output
    for words in ("Popularity: made up, 600 tokens in 4 sequences", "Misses of one pool", "same token",
                  "same layer", "between domains", "prose", "- 3 slots (25 %): LRU misses"):  # fmt: skip
        assert words in done.stdout
    assert "warning" not in done.stderr


def test_without_gates_a_warning_says_what_stands_in(prophet: Any, tmp_path: Path) -> None:
    experts = chain([150] * 4, 2, 6, 0.7, np.random.default_rng(0))
    path = write(tmp_path, experts, [150] * 4, of=6).path
    done = prophet("analyze", str(path), *FEW)
    assert done.exit_code == 0
    assert "no gate probabilities: the first listed expert" in done.stderr
    assert prophet("analyze", str(path), "-q", *FEW).stderr == ""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--slots", "half"), "--slots are numbers or shares"),
        (("--slots", "0"), "0 slots cannot be"),
        (("--horizons", "near"), "--horizons are whole numbers"),
        (("--lags", "0"), "distances of 1 or more"),
        (("--phase", "prefill"), "has 0 tokens of phase 'prefill'"),
    ],
)
def test_sentences(prophet: Any, trace: Path, words: tuple[str, ...], said: str) -> None:
    done = prophet("analyze", str(trace), *words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_one_domain_has_no_matrix(prophet: Any, tmp_path: Path) -> None:
    experts = chain([150] * 4, 2, 6, 0.7, np.random.default_rng(0))
    path = write(tmp_path, experts, [150] * 4, of=6, labels=("code",)).path
    done = prophet("analyze", str(path), "--by-domain")
    assert done.exit_code == 2
    assert "needs two domains of 64 tokens at least; this trace has one domain ('code')" in done.stderr


@pytest.mark.parametrize("content", [b"", b"not a trace", b"\x10\0\0\0\0\0\0\0{}"])
def test_files_that_are_no_trace(prophet: Any, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "no.safetensors"
    path.write_bytes(content)
    done = prophet("analyze", str(path))
    assert done.exit_code == 2
    assert "no.safetensors" in done.stderr
    assert prophet("analyze", str(tmp_path / "absent")).exit_code == 2


def test_lists_of_numbers() -> None:
    assert numbers("1, 2,12", "--lags") == (1, 2, 12)
    assert numbers("", "--lags") == ()
    assert sizes("192,25%", 768) == (192, 192)
