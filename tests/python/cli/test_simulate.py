"""prophet simulate and prophet report as typed."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prophet_moe.formats.trace import TraceWriter
from prophet_moe.sim.cards import KINDS
from prophet_moe.sim.machine_card import read_machine
from prophet_moe.sim.results import OWN_KEYS
from prophet_moe.sim.systems import left_out, systems_known


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """A short trace of the reference model's geometry."""
    dice = np.random.default_rng(5)
    path = tmp_path / "trace.safetensors"
    with TraceWriter(path, model="reference-moe", layers=12, experts_per_layer=32, top_k=4) as writer:
        for label in ("a", "b"):
            experts = np.argsort(dice.random((40, 12, 32)), axis=2)[:, :, :4]
            gates = np.full((40, 12, 4), 0.25)
            writer.append(experts, gate_probs=gates, token_id=np.arange(40), phase=np.ones(40, np.uint8))
            writer.end_sequence(label=label)
    return path


def words(trace: Path, *more: str) -> list[str]:
    return ["simulate", str(trace), "--model", "reference-moe", "--machine", "cpu-nvme", "-j", "1", *more]


def test_simulate_then_report(prophet: Any, trace: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "results.jsonl", tmp_path / "report.html"
    more = ["--slots", "25%,50%", "--systems", "lru,belady,resident", "-o", str(out)]
    done = prophet(*words(trace, *more, "--json", "-q"))
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert {(line["system"], line["slots"]) for line in lines} == {
        ("lru", "25%"), ("lru", "50%"), ("belady", "25%"), ("belady", "50%"), ("resident", "100%"),
    }  # fmt: skip
    assert all([*line][-len(OWN_KEYS) :] == list(OWN_KEYS) for line in lines)
    assert [json.loads(line) for line in out.read_text().splitlines()] == lines

    again = prophet(*words(trace, *more, "--systems", "lru,lfu,belady,resident"))
    assert again.exit_code == 0
    assert "5 of 7 results are in" in again.stderr
    assert "reference-moe (bf16) on cpu-nvme, simulated" in again.stdout
    assert len(out.read_text().splitlines()) == 7
    untouched = out.read_text()
    assert prophet(*words(trace, *more, "-q")).exit_code == 0
    assert out.read_text() == untouched

    drawn = prophet("report", str(out), "-o", str(page))
    assert drawn.exit_code == 0, drawn.stderr
    assert "reference-moe (bf16) on cpu-nvme" in page.read_text()


def test_all_takes_the_predictor_of_the_package(
    prophet: Any, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = prophet(*words(trace, "--slots", "25%", "--json"))
    assert done.exit_code == 0, done.stderr
    lines = {line["system"]: line for line in map(json.loads, done.stdout.splitlines())}
    assert set(lines) == {name for name in systems_known() if left_out(name, ["prophet"]) is None}
    for name in set(systems_known()) - set(lines):
        assert f"left out: {name} needs" in " ".join(done.stderr.split())
    assert lines["prophet"]["predictor"] == "reference-moe.safetensors"
    assert lines["prophet"]["predictor_seen"] == 0
    assert "learned from" not in done.stderr
    monkeypatch.setattr("prophet_moe.predict.shipped.matching", lambda *_: None)
    done = prophet(*words(trace, "--slots", "25%"))
    assert done.exit_code == 0
    assert "left out: prophet needs a predictor" in done.stderr
    assert "on-demand" in done.stdout


def test_a_predictor_on_what_it_learned_from_is_told(
    prophet: Any, trace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prophet_moe.predict.held_out.seen", lambda trace, numbers, about: list(numbers))
    done = prophet(*words(trace, "--slots", "25%", "--systems", "prophet"))
    assert "learned from 2 of the sequences" in " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (["--systems", "fifo"], "'fifo' is not a system: the names are on-demand"),
        (["--machine", "abacus"], "no machine card 'abacus': give a TOML file or one of a100-pcie4"),
        (["--model", "gpt-oss-20b"], "name the model of the trace by --model"),
        (["--slots", "3"], "one token of reference-moe needs 4"),
        (["--slots", "0%"], "no share of the experts"),
        (["--weights", "2bit"], "known are bf16, 4bit"),
        (["--lane", "link"], "cpu-nvme has no lane 'link': it has disk"),
        (["--link-scale", "fast"], "no list of numbers"),
        (["--held-out", "2"], "leave none"),
        (["--held-out", "some"], "is a number of sequences or a share"),
        (["--sweep", "least"], "is no option with values"),
        (["--predictor", "gpt-oss-20b", "--systems", "prophet"], "experts"),
    ],
)
def test_mistakes_get_a_sentence(prophet: Any, trace: Path, more: list[str], said: str) -> None:
    done = prophet(*words(trace, *more))
    assert done.exit_code == 2, done.stdout
    assert said in " ".join(done.stderr.split())


def test_files_that_are_something_else(prophet: Any, trace: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text('{"results_version": 99}\n')
    for call in (words(trace, "-o", str(other)), ["report", str(other)]):
        done = prophet(*call)
        assert done.exit_code == 2
        assert "results version 99" in done.stderr
    assert prophet("report", str(tmp_path / "none.jsonl")).exit_code == 2
    assert prophet(*words(tmp_path / "none.safetensors")).exit_code == 2


def test_the_doctor_writes_a_card(prophet: Any, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    done = prophet("doctor", "--path", str(tmp_path), "--card", str(path), "-q")
    assert done.exit_code == 0, done.stderr
    card = read_machine(str(path))
    assert card.name == "mine"
    measured = [name for name, figure in card.figures().items() if figure.kind == "measured"]
    assert {"disk.bytes_per_second", "compute.layer_ns", "fast_memory.bytes"} <= set(measured)
    assert {figure.kind for figure in card.figures().values()} <= set(KINDS)


def test_sequences_side_by_side(prophet: Any, trace: Path, tmp_path: Path) -> None:
    out, page = tmp_path / "results.jsonl", tmp_path / "report.html"
    more = [
        "--slots",
        "25%",
        "--systems",
        "on-demand,lru,clairvoyant",
        "--concurrency",
        "1,2",
        "-o",
        str(out),
    ]
    done = prophet(*words(trace, *more, "--prompt-tokens", "5", "--json", "-q"))
    assert done.exit_code == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    found = {(line["system"], line["serving"]["concurrency"]): line for line in lines}
    assert len(found) == 6
    alone, both = found["lru", 1], found["lru", 2]
    assert both["serving"]["union"] > alone["serving"]["union"] > 4 - 1e-9
    assert both["serving"]["passes"] < alone["serving"]["passes"]
    assert alone["new_tokens"] == both["new_tokens"]
    assert found["clairvoyant", 2]["tpot_ms"]["mean"] <= both["tpot_ms"]["mean"]
    again = prophet(*words(trace, *more, "--prompt-tokens", "5"))
    assert "6 of 6 results are in" in again.stderr
    assert "expert caching by lru" in again.stdout
    assert "at 25% of slots on cpu-nvme (simulated)" in again.stdout
    drawn = prophet("report", str(out), "-o", str(page))
    assert drawn.exit_code == 0, drawn.stderr
    assert "2 at once" in page.read_text()
    assert "--concurrency 1,2" in page.read_text()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--concurrency", "two"], "write 1,4,16"),
        (["--concurrency", "0"], "give at least 1"),
        (["--concurrency", "2", "--cold"], "leave out one"),
        (["--prompt-tokens", "3"], "--concurrency as well"),
    ],
)
def test_sequences_side_by_side_that_cannot_be(
    prophet: Any, trace: Path, flags: list[str], said: str
) -> None:
    done = prophet(*words(trace, "--slots", "25%", "--systems", "lru", *flags))
    assert done.exit_code == 2
    assert said in " ".join(done.stderr.split())


def test_emulated_predictors_are_of_one_sequence_at_a_time(prophet: Any, trace: Path) -> None:
    done = prophet(*words(trace, "--slots", "25%", "--systems", "lru,oracle", "--concurrency", "2"))
    assert done.exit_code == 0
    assert "left out: oracle" in done.stderr
