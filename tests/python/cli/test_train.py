"""prophet train: from a trace to a predictor file, again after an interruption, and several compared."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from predict_routes import EXPERTS, LAYERS, TOP_K, record
from safetensors.numpy import load_file, save_file

from prophet_moe.predict import export
from prophet_moe.predict.held_out import HeldOut, seen
from prophet_moe.predict.train import Progress

SMALL = ("--size", "8", "--steps", "6", "--set", "windows=4", "--set", "tokens=4", "--set", "heads=[1,3,8]",
         "--horizons", "2", "--test", "2", "--val", "2", "-q")  # fmt: skip


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return record(tmp_path_factory.mktemp("routes") / "toy.safetensors")


def sentence(done: Any) -> str:
    assert done.exit_code == 2, done.output
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    return str(lines[0])


@pytest.mark.parametrize("kind", ["bank", "transformer"])
def test_writes_a_predictor_and_says_what_it_is(prophet: Any, trace: Any, tmp_path: Path, kind: str) -> None:
    out = tmp_path / "p.safetensors"
    done = prophet("train", str(trace.path), "-o", str(out), "--kind", kind, "--json", *SMALL)
    assert done.exit_code == 0, done.stderr
    about, made = json.loads(done.stdout), export.load(out)
    assert made.kind == about["kind"] == kind
    assert about["bytes"] == out.stat().st_size
    assert about["steps"] == 6
    assert made.model == "toy"
    assert made.net.config.ahead == 2
    split = HeldOut.from_dict(made.training["split"]).split(trace)
    assert (len(split.test), len(split.val)) == (2, 2)
    assert seen(trace, range(trace.sequences), made.training) == sorted((*split.train, *split.val))
    assert list(tmp_path.iterdir()) == [out]


def test_context_horizons_inputs_and_settings_reach_the_network(prophet: Any, tmp_path: Path) -> None:
    routes, out = record(tmp_path / "hidden.safetensors", hidden=5), tmp_path / "p.safetensors"
    words = ("--context", "3", "--inputs", "both", "--set", "rate=0.01", "--set", "drop_input=0.1")
    assert prophet("train", str(routes.path), "-o", str(out), *SMALL, *words).exit_code == 0
    made = export.load(out)
    c = made.net.config
    assert c.recent == ((0, "count"), (0, "gate"), (1, "count"), (2, "count"))
    assert (c.rank, c.hidden, c.history, c.heads, c.drop_input) == (8, 5, True, (1, 3, 8), 0.1)
    assert made.training["recipe"]["rate"] == 0.01
    words = ("--kind", "transformer", "--context", "2")
    assert prophet("train", str(routes.path), "-o", str(out), *SMALL, *words).exit_code == 0
    assert export.load(out).net.config.context == 2


def test_goes_on_after_an_interruption_as_if_there_had_been_none(
    prophet: Any, trace: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prophet_moe.cli import train as verb

    words = ("train", str(trace.path), *SMALL, "--set", "every=2")
    assert prophet(*words, "-o", str(tmp_path / "whole")).exit_code == 0
    out, checkpoint = tmp_path / "parts", tmp_path / "parts.checkpoint"
    with monkeypatch.context() as patch:
        from contextlib import contextmanager

        @contextmanager
        def impatient(_quiet: bool) -> Any:
            def tell(_title: str, step: Progress) -> None:
                if step.step == 5:
                    raise KeyboardInterrupt

            yield tell

        patch.setattr(verb, "steps_bar", impatient)
        assert prophet(*words, "-o", str(out)).exit_code == 130
    assert checkpoint.exists()
    assert not out.exists()
    assert torch.load(checkpoint, weights_only=True)["numbers"][0] == 4
    assert prophet(*words, "-o", str(out)).exit_code == 0
    assert not checkpoint.exists()
    one, two = load_file(tmp_path / "whole"), load_file(out)
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_a_sweep_says_a_line_for_every_combination_and_keeps_them(
    prophet: Any, trace: Any, tmp_path: Path
) -> None:
    axes = ("--sweep", "size=4,8", "--sweep", "horizons=0,1")
    words = ("train", str(trace.path), "-o", str(tmp_path / "all"), *SMALL, *axes)
    done = prophet(*words, "--json")
    assert done.exit_code == 0, done.stderr
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(row["size"], row["horizons"]) for row in rows] == [
        ("4", "0"),
        ("4", "1"),
        ("8", "0"),
        ("8", "1"),
    ]
    assert rows[0]["parameters"] < rows[2]["parameters"]
    assert rows[0]["recall_k"] is None
    assert 0 < rows[1]["recall_k"] <= 1
    assert len(list((tmp_path / "all").glob("*.safetensors"))) == 4
    again = prophet(*words)  # scored again, not trained again
    assert again.exit_code == 0, again.stderr
    assert f"{rows[3]['parameters']:,}" in again.stdout
    assert "recall@k" in again.stdout


def test_one_domain_can_be_held_out_or_be_all_there_is(prophet: Any, trace: Any, tmp_path: Path) -> None:
    out = tmp_path / "p"
    assert prophet("train", str(trace.path), "-o", str(out), *SMALL, "--hold-out", "prose").exit_code == 0
    assert export.load(out).training["domains"] == ["code"]
    assert prophet("train", str(trace.path), "-o", str(out), *SMALL, "--only", "prose", "--test", "1",
                   "--val", "1").exit_code == 0  # fmt: skip
    made = export.load(out)
    assert made.training["domains"] == ["prose"]
    assert made.training["sequences"] == 2
    assert prophet("train", str(trace.path), "-o", str(out), *SMALL, "--label", "source", "--hold-out",
                   "book 1").exit_code == 0  # fmt: skip
    assert export.load(out).training["domains"] == ["book 0", "book 2"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "Name a file with -o"),
        (["-o", "p", "--kind", "oracle"], "a bank or a transformer, not 'oracle'"),
        (["-o", "p", "--size", "huge"], "small, medium, large or a width, not 'huge'"),
        (["-o", "p", "--inputs", "hidden"], "has no gate_input: record a trace that includes it"),
        (["-o", "p", "--inputs", "tokens"], "not 'tokens'"),
        (["-o", "p", "--horizons", "9"], f"at most {LAYERS - 1}"),
        (["-o", "p", "--set", "speed=9"], "no such option"),
        (["-o", "p", "--set", "rate"], "write NAME=VALUE"),
        (["-o", "p", "--test", "90%"], "leave none to train on"),
        (["-o", "p", "--test", "most"], "as in 12 or 20%"),
        (["-o", "p", "--hold-out", "law"], "has no domain law; it has code, prose"),
        (["-o", "p", "--only", "prose", "--test", "4"], "too few sequences"),
        (["-o", "p", "--label", "mood"], "no sequence has a note 'mood'"),
        (["--sweep", "speed=1,2"], "a sweep varies"),
        (["--sweep", "size=4,4"], "different values"),
        (["--sweep", "horizons=many"], "whole numbers"),
        (["--sweep", "size=4", "--start", "gpt-oss-20b"], "cannot go together"),
        (["-o", "p", "--start", "gpt-oss-20b"], "the model has 4 x 8, top-2"),
    ],
)
def test_sentence(prophet: Any, trace: Any, tmp_path: Path, monkeypatch: Any, words: Any, said: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in sentence(prophet("train", str(trace.path), *SMALL, *words))
    assert not (tmp_path / "p").exists()


def test_broken_traces_are_refused_before_a_step_is_made(prophet: Any, trace: Any, tmp_path: Path) -> None:
    whole = trace.path.read_bytes()
    (tmp_path / "cut").write_bytes(whole[: len(whole) // 2])
    out = ("-o", str(tmp_path / "p"), *SMALL)
    assert "is cut short" in sentence(prophet("train", str(tmp_path / "cut"), *out))
    arrays = load_file(trace.path)
    arrays["experts"][7, 1, 0] = EXPERTS
    about = {"format": "prophet-trace", "version": "1", "layers": str(LAYERS), "experts": str(EXPERTS)}
    save_file(arrays, tmp_path / "ids", about | {"top_k": str(TOP_K)})
    assert "an expert that does not exist" in sentence(prophet("train", str(tmp_path / "ids"), *out))
    arrays = load_file(trace.path)
    arrays["gate_probs"][7, 1, 0] = np.nan
    save_file(arrays, tmp_path / "nan", about | {"top_k": str(TOP_K)})
    assert "not finite" in sentence(prophet("train", str(tmp_path / "nan"), *out))


def test_a_rate_that_ruins_the_weights_is_a_sentence(prophet: Any, trace: Any, tmp_path: Path) -> None:
    out = tmp_path / "p"
    done = prophet(
        "train", str(trace.path), "-o", str(out), *SMALL, "--set", "rate=1e30", "--set", "clip=1e30"
    )
    assert "is not finite; lower the learning rate" in sentence(done)
    assert not out.exists()
