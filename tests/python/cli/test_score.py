"""prophet score: its tables, its yardsticks, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from predict_routes import EXPERTS, LAYERS, record

from prophet_moe.cli.score import as_share
from prophet_moe.predict import export

SMALL = ("--size", "8", "--steps", "30", "--set", "windows=4", "--set", "tokens=4", "--set", "heads=[1,3,8]",
         "--horizons", "2", "--test", "2", "--val", "2", "-q")  # fmt: skip


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(trace with hidden states, predictor trained on it)."""
    from typer.testing import CliRunner

    from prophet_moe.cli import app

    folder = tmp_path_factory.mktemp("score")
    trace = record(folder / "toy.safetensors", hidden=5)
    out = folder / "p.safetensors"
    done = CliRunner().invoke(app, ["train", str(trace.path), "-o", str(out), *SMALL])
    assert done.exit_code == 0, done.output
    return trace, out


def sentence(done: Any) -> str:
    assert done.exit_code == 2, done.output
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return str(lines[0])


def test_scores_the_held_out_sequences_against_every_yardstick(prophet: Any, made: Any) -> None:
    trace, out = made
    done = prophet("score", str(out), str(trace.path), "--json", "-q")
    assert done.exit_code == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["sequences"] == 2
    assert report["seen"] == 0
    assert report["tokens"] == sum(len(trace.sequence(s)) for s in _test_part(trace, out))
    assert set(report["ahead"]) == {"prophet", "static-hot", "previous token", "Markov", "zero staleness"}
    control = report["ahead"]["zero staleness"]["1"]["all"]
    assert control["recall_k"] == control["exact"] == control["f1"] == 1.0
    assert control["brier"] == control["ece"] == 0.0
    assert set(report["ahead"]["prophet"]["2"]["domains"]) <= {"code", "prose"}
    assert len(report["ahead"]["prophet"]["1"]["layers"]) == LAYERS - 1
    assert report["eviction"]["slots"] == [0.25, 0.375, 0.5, 0.75]


def _test_part(trace: Any, out: Path) -> Any:
    from prophet_moe.predict.held_out import HeldOut

    return HeldOut.from_dict(export.load(out).training["split"]).split(trace).test


def test_tables_by_layer_and_domain_and_of_reliability(prophet: Any, made: Any) -> None:
    trace, out = made
    done = prophet("score", str(out), str(trace.path), "--by", "layer", "--reliability", "--slots", "50%")
    assert done.exit_code == 0, done.stderr
    for word in ("best classical", "clairvoyant", "share of the gap closed", "Markov", "control", "by layer",
                 "observed", "with 50% of slots"):  # fmt: skip
        assert word in done.stdout, word
    assert all(len(line) <= 80 for line in done.stdout.splitlines())
    assert "code" in prophet("score", str(out), str(trace.path), "--by", "domain").stdout


def test_keep_writes_the_scores_into_the_file(prophet: Any, made: Any, tmp_path: Path) -> None:
    trace, out = made
    copy = tmp_path / "copy"
    copy.write_bytes(out.read_bytes())
    done = prophet("score", str(copy), str(trace.path), "--keep", "--json", "-q")
    assert export.load(copy).scores["eviction"] == json.loads(done.stdout)["eviction"]
    assert export.load(out).scores == {}


def test_sequences_it_learned_from_and_other_models_are_told_of(
    prophet: Any, made: Any, tmp_path: Path
) -> None:
    trace, out = made
    done = prophet("score", str(out), str(trace.path), "--split-seed", "5")
    assert "were in its training: these scores flatter" in done.stderr
    other = export.load(out)
    other.model = "another"
    export.save(other, tmp_path / "other")
    done = prophet("score", str(tmp_path / "other"), str(trace.path))
    assert "the trace is of toy: this scores a transfer" in done.stderr


def test_a_matrix_has_a_row_for_each_domain_and_one_for_all(prophet: Any, made: Any) -> None:
    trace, out = made
    words = ("score", str(out), str(trace.path), "--cross-domain", "--steps", "3", "-q")
    done = prophet(*words, "--json")
    assert done.exit_code == 0, done.stderr
    matrix = json.loads(done.stdout)
    assert matrix["domains"] == ["code", "prose"]
    assert list(matrix["rows"]) == ["code", "prose", "all"]
    assert matrix["tokens"]["all"] == matrix["tokens"]["code"] + matrix["tokens"]["prose"]
    assert set(matrix["rows"]["code"]["prose"]) == {"recall_k", "coverage", "miss_rate", "gap_closed"}
    assert "trained on" in prophet(*words).stdout


def test_a_matrix_needs_two_domains(prophet: Any, made: Any, tmp_path: Path) -> None:
    single = record(tmp_path / "single.safetensors", hidden=5, labels=("code",))
    done = prophet("score", str(made[1]), str(single.path), "--cross-domain", "-q")
    assert "a cross-domain matrix needs at least two" in sentence(done)
    bare = record(tmp_path / "bare.safetensors", hidden=5, labels=("",))
    assert "has 0 domains" in sentence(prophet("score", str(made[1]), str(bare.path), "--cross-domain", "-q"))


def test_refuses_what_it_cannot_score(prophet: Any, made: Any, tmp_path: Path) -> None:
    trace, out = made
    routes = str(trace.path)
    assert f"the model has {LAYERS} x {EXPERTS}" in sentence(prophet("score", "gpt-oss-20b", routes, "-q"))
    whole = out.read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) - 100])
    assert "may be truncated" in sentence(prophet("score", str(tmp_path / "cut"), routes, "-q"))
    assert "is not a predictor file" in sentence(prophet("score", routes, routes, "-q"))
    assert "there is no predictor" in sentence(prophet("score", "oracle", routes, "-q"))
    assert "is not a share" in sentence(prophet("score", str(out), routes, "--slots", "200%", "-q"))
    assert "--by is layer or domain" in sentence(prophet("score", str(out), routes, "--by", "mood", "-q"))
    plain = record(tmp_path / "plain.safetensors")
    done = prophet("score", str(out), str(plain.path), "--model", "reference-moe", "-q")
    assert "has no gate_input" in sentence(done)
    done = prophet("score", str(out), routes, "--model", "reference-moe", "-q")
    assert "name the model that the trace is of" in sentence(done)


def test_a_share_of_slots() -> None:
    assert as_share("25%") == as_share("0.25") == 0.25
    for text in ("0", "101%", "many", "-3", "nan"):
        with pytest.raises(ValueError, match="not a share"):
            as_share(text)
