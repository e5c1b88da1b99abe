"""prophet trace and its sub-verbs, as typed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer

from prophet_moe.cli import app
from prophet_moe.formats.trace import TraceReader

GROUP = typer.main.get_command(app).commands["trace"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    rows = [{"domain": "code", "text": "import os"}, {"domain": "novel", "prompt": "Call me Ishmael."}]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


@pytest.fixture
def trace(prophet: Any, prompts: Path, tmp_path: Path) -> Path:
    words = ("-n", "3", "--slots", "25%", "-q", "--prompts", str(prompts))
    done = prophet("trace", "reference-moe", "-o", str(tmp_path / "t.safetensors"), *words)
    assert (done.exit_code, done.stdout, done.stderr) == (0, "", "")
    return tmp_path / "t.safetensors"


@pytest.mark.parametrize("verb", sorted(GROUP.commands))
def test_each_sub_verb_begins_with_an_example(prophet: Any, verb: str) -> None:
    lines = [line.strip() for line in prophet("trace", verb, "--help").stdout.splitlines() if line.strip()]
    said = "" if verb == GROUP.unsaid else f"{verb} "
    assert lines[1].startswith(f"Example: prophet trace {said}")


@pytest.mark.parametrize("verb", sorted(GROUP.commands))
def test_every_flag_has_its_variable(verb: str) -> None:
    for option in GROUP.commands[verb].params:
        if option.param_type_name == "option" and option.name != "help":
            long = next(name for name in option.opts if name.startswith("--"))
            assert option.envvar == "PROPHET_" + long[2:].replace("-", "_").upper(), f"{verb} {long}"


def test_the_word_record_may_be_left_out(prophet: Any, trace: Path, prompts: Path, tmp_path: Path) -> None:
    """Flags may come before the model, too."""
    words = ("-n", "3", "-q", "--prompts", str(prompts), "--json")
    done = prophet("trace", "-o", str(tmp_path / "b"), *words, "reference-moe")
    named = prophet("trace", "record", "reference-moe", "-o", str(tmp_path / "c"), *words)
    assert done.exit_code == named.exit_code == 0, done.output + named.output
    for path in (tmp_path / "b", tmp_path / "c"):
        np.testing.assert_array_equal(
            TraceReader(path).map("experts"), TraceReader(trace).map("experts"), "slots change no route"
        )
    found = json.loads(done.stdout)
    assert (found["sequences"], found["model"], found["domains"]["novel"]["sequences"]) == (
        2,
        "reference-moe",
        1,
    )
    assert found["decode_tokens"] == 6


def test_a_folder_named_like_a_sub_verb_is_reached(
    prophet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "info").mkdir()
    monkeypatch.chdir(tmp_path)
    done = prophet("trace", "./info", "-o", "t")
    assert done.exit_code == 2
    assert "config.json is missing" in done.stderr


def test_info_and_split(prophet: Any, trace: Path, tmp_path: Path) -> None:
    done = prophet("trace", "info", str(trace))
    assert done.exit_code == 0
    assert "12 layers of 32 experts, top-4" in done.stdout
    found = json.loads(prophet("trace", "info", str(trace), "--json").stdout)
    assert found["tokens"] == TraceReader(trace).tokens
    done = prophet("trace", "split", str(trace), str(tmp_path / "parts"), "--test", "1", "--json")
    assert done.exit_code == 0, done.stderr
    parts = json.loads(done.stdout)
    assert sorted(parts["train"]["sequences"] + parts["test"]["sequences"]) == [0, 1]
    done = prophet("trace", "split", str(trace), str(tmp_path / "domains"), "--by", "domain")
    assert done.exit_code == 0
    assert sorted(os.listdir(tmp_path / "domains")) == ["code.safetensors", "novel.safetensors"]
    done = prophet("trace", "split", str(trace), str(tmp_path / "held"), "--hold-out", "code", "-q")
    assert (done.exit_code, done.stderr) == (0, "")
    assert TraceReader(tmp_path / "held" / "test.safetensors").labels == ("code",)


def test_import(prophet: Any, tmp_path: Path) -> None:
    ids = np.array([[[0, 1]], [[2, 3]], [[1, 4]]])
    np.save(tmp_path / "ids.npy", ids)
    out = tmp_path / "t"
    words = ("trace", "import", str(tmp_path / "ids.npy"), "--experts-per-layer", "5", "-o", str(out))
    assert prophet(*words).exit_code == 0
    np.testing.assert_array_equal(TraceReader(out).map("experts"), ids)
    done = prophet(*words)
    assert done.exit_code == 2
    assert "exists already" in done.stderr


def test_teacher_forced(prophet: Any, prompts: Path, tmp_path: Path) -> None:
    words = ("trace", "reference-moe", "--teacher-forced", "-n", "4", "--prompts", str(prompts), "-q")
    for number, more in enumerate((["--hidden"], ["--step-by-step"], ["--as", "prefill", "--entering"])):
        done = prophet(*words, *more, "-o", str(tmp_path / str(number)))
        assert done.exit_code == 0, done.stderr
    one, steps, prefill = (TraceReader(tmp_path / str(number)) for number in range(3))
    assert one.tokens == steps.tokens == prefill.tokens <= 8
    assert (one.map("phase") == 1).all()
    assert (prefill.map("phase") == 0).all()
    assert one.arrays["gate_input"] == prefill.arrays["entering"] == ("F16", (one.tokens, 12, 192))
    assert "entering" not in one.arrays
    assert not steps.has("gate_input")


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--prompts", "absent.jsonl"], "absent.jsonl cannot be read"),
        (["--prompts", "empty.jsonl"], "holds no prompts"),
        (["--prompts", "broken.jsonl"], "broken.jsonl, line 2 is not JSON"),
        (["--prompts", "long.txt", "-n", "5"], "the model has 1024: give a smaller -n"),
        (["--prompts", "long.txt", "--teacher-forced"], "the model has 1024: cut texts by -n"),
        (["--prompts", "ids.jsonl"], "token id 4096 is outside the vocabulary of 0 to 4095"),
        (["-o", "there"], "there exists already"),
        (["-o", "begun"], "begun.partial holds an interrupted recording"),
        (["-o", "there/t"], "there is no folder to write t in"),
        (["--step-by-step"], "--step-by-step is a way of --teacher-forced"),
        (["--as", "prefill"], "give --teacher-forced alone"),
        (["--as", "both", "--teacher-forced"], "--as is decode or prefill, not 'both'"),
        (["--hidden", "--hidden-dtype", "f8"], "--hidden-dtype is f16 or f32, not 'f8'"),
        (["--slots", "1"], "slots"),
    ],
)
def test_bad_input_is_a_sentence(
    prophet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("empty.jsonl").touch()
    Path("broken.jsonl").write_text('{"text": "a"}\n{"text"\n')
    Path("long.txt").write_text("a b c d e f " * 300)
    Path("ids.jsonl").write_text('{"ids": [4096]}')
    Path("there").touch()
    Path("begun.partial").mkdir()
    before = sorted(os.listdir())
    done = prophet("trace", "reference-moe", "-q", *(["-o", "t"] if "-o" not in words else []), *words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert sentence in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    "words",
    [
        ["split", "t", "out", "--by", "token"],
        ["split", "t", "out", "--test", "all"],
        ["split", "t", "out", "--hold-out", "law"],
        ["split", "absent", "out"],
        ["info", "absent"],
        ["info", "prompts.jsonl"],
        ["import", "absent.npy", "--experts-per-layer", "4", "-o", "x"],
    ],
)
def test_sub_verbs_refuse_in_sentences(prophet: Any, trace: Path, words: list[str]) -> None:
    named = [
        str(trace) if word == "t" else str(trace.parent / word) if "." in word else word for word in words
    ]
    done = prophet("trace", *named)
    assert done.exit_code == 2
    assert done.stderr.startswith("error: ")
    assert not Path("out").exists()


def test_a_model_without_a_tokenizer_is_fed_ids(prophet: Any, medium_model: Path, tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("1 2 3\n4 5\n")
    out = tmp_path / "t"
    words = ("trace", str(medium_model), "-o", str(out), "-n", "2", "-q", "--slots", "25%")
    done = prophet(*words, "--prompts", str(tmp_path / "p.txt"))
    assert done.exit_code == 0, done.stderr
    assert TraceReader(out).map("token_id")[:3].tolist() == [1, 2, 3]
    assert TraceReader(out).model == medium_model.name
    done = prophet(*words[:2], "-o", str(tmp_path / "u"))
    assert done.exit_code == 2
    assert "the model has no tokenizer: give token ids" in done.stderr


@pytest.mark.slow
def test_ctrl_c_leaves_a_recording_that_goes_on(tmp_path: Path) -> None:
    """The signal comes when the journal names a complete sequence, in the middle of a later one."""
    out = tmp_path / "t.safetensors"
    words = ["trace", "reference-moe", "-n", "24", "--per-domain", "2", "-q", "-t", "1", "-o", str(out)]
    command = [sys.executable, "-m", "prophet_moe.cli", *words]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PROPHET_")}
    journal = tmp_path / "t.safetensors.partial" / "journal.json"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment) as child:
        while child.poll() is None and not (journal.exists() and len(notes(journal)) >= 2):
            os.sched_yield()
        child.send_signal(signal.SIGINT)
        _, said = child.communicate(timeout=120)
    assert child.returncode == 130, said
    assert "go on with --resume" in said
    assert not out.exists()
    kept = len(notes(journal))
    assert 2 <= kept < 12
    subprocess.run([*command, "--resume"], check=True, timeout=300, env=environment)
    whole = tmp_path / "whole"
    subprocess.run([*command[:-1], str(whole)], check=True, timeout=300, env=environment)
    assert out.read_bytes() == whole.read_bytes()


def notes(journal: Path) -> list[Any]:
    found: list[Any] = json.loads(journal.read_text())["notes"]
    return found
