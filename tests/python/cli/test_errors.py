"""What the user can mend is one sentence on stderr and exit code 2, without a traceback."""

import json
from pathlib import Path
from typing import Any

import pytest

RUN = ("run", "reference-moe", "-q")
IDS = ("--prompt-ids", "1,2,3")


def sentence(done: Any) -> str:
    """The one line of an error, checked to be just that."""
    assert done.exit_code == 2, done.output
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert lines[0].rstrip().endswith((".", "...")), lines[0]
    return lines[0]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*RUN], "none was given"),
        ([*RUN, "-p", "a", *IDS], "-p and --prompt-ids were given"),
        ([*RUN, "-p", ""], "the prompt is empty"),
        ([*RUN, "--prompt-ids", "1,two"], "not a list of token ids"),
        ([*RUN, "--prompt-ids", ""], "not a list of token ids"),
        ([*RUN, "--prompt-ids", "1,4096"], "token id 4096"),
        ([*RUN, "--prompt-ids", "-1"], "token id -1"),
        ([*RUN, "--prompt-file", "no-such-file"], "no-such-file cannot be used: No such file"),
        ([*RUN, *IDS, "--budget", "plenty"], "'plenty' is not a size"),
        ([*RUN, *IDS, "--budget", "0"], "is not a size"),
        ([*RUN, *IDS, "--budget", "64MiB"], "the smallest budget that would do is"),
        ([*RUN, *IDS, "--slots", "3"], "name at least 4 slots"),
        ([*RUN, *IDS, "--slots", "0%"], "share"),
        ([*RUN, *IDS, "--slots", "some"], "not a number of slots"),
        ([*RUN, *IDS, "--slots", "40", "--pool", "per-layer"], "name at least 48 slots"),
        ([*RUN, *IDS, "--pool", "puddle"], "use global or per-layer"),
        ([*RUN, *IDS, "--system", "oracle"], "on-demand, lru, lfu, lfru, least-stale"),
        ([*RUN, *IDS, "-n", "50", "--context", "10"], "give at least 53"),
        ([*RUN, *IDS, "--top-p", "7", "--temperature", "1"], "top-p"),
        (["run", "-q", "no/such/folder", *IDS], "no/such/folder"),
        (["plan", "-q", "./absent"], "absent"),
        (["chat", "-q", "reference-moe", "--context", "100", "-n", "100"], "leaves no room"),
        (["bench", "-q", "reference-moe", "--systems", "lru,oracle"], "'oracle' is not a system"),
        (["bench", "-q", "reference-moe", "--systems", "lru,lru"], "different systems"),
        (["bench", "-q", "reference-moe", "--systems", ","], "one or more"),
        (["bench", "-q", "reference-moe", "--json", "--markdown"], "choose one"),
        (["bench", "-q", "reference-moe", "--context", "8"], "cannot hold"),
        (["doctor", "-q", "--path", "/no/such/place"], "does not exist"),
    ],
)
def test_sentence(prophet: Any, words: list[str], said: str) -> None:
    assert said in sentence(prophet(*words))


def test_verbose_adds_the_way_there(prophet: Any) -> None:
    done = prophet(*RUN, *IDS, "--budget", "plenty", "--verbose")
    assert done.exit_code == 2
    assert "Traceback" in done.stderr
    assert "error: 'plenty' is not a size" in done.stderr


def test_a_flag_may_come_from_the_surroundings(prophet: Any) -> None:
    assert "'plenty' is not a size" in sentence(prophet(*RUN, *IDS, env={"PROPHET_BUDGET": "plenty"}))


def test_a_model_without_tokenizer_needs_ids(prophet: Any, tmp_path: Path) -> None:
    from prophet_moe.models.locate import locate

    for file in locate("reference-moe").iterdir():
        if not file.name.startswith("tokenizer"):
            (tmp_path / file.name).symlink_to(file)
    assert "give token ids" in sentence(prophet("run", "-q", str(tmp_path), "-p", "hello"))
    assert "chat needs one" in sentence(prophet("chat", "-q", str(tmp_path)))
    done = prophet("run", "-q", str(tmp_path), *IDS, "-n", "2", "--json", "--slots", "50%")
    assert json.loads(done.stdout)["text"] is None


def test_pack_says_when_the_disk_is_too_small(
    prophet: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prophet_moe import machine

    monkeypatch.setattr(machine, "file_system", lambda _: machine.FileSystem("ext4", "/", "sda", 1000))
    assert "has 1000 B free" in sentence(prophet("pack", "-q", "reference-moe", str(tmp_path / "out")))
    assert not (tmp_path / "out").exists()
