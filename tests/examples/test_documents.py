"""The commands and the Python that README.md and the tutorial show run as they stand there."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ["README.md", "docs/tutorial.md"]
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)
PLACEHOLDERS = {"MODEL", "OUT"}


def blocks(language: str) -> list[tuple[str, str]]:
    found = [(page, *block) for page in PAGES for block in BLOCK.findall((ROOT / page).read_text())]
    return [(page, text) for page, kind, text in found if kind == language]


def shown_sessions() -> list[list[list[str]]]:
    """Arguments of the `prophet ...` lines of each block that needs no model but the shipped one."""
    sessions = []
    for _, text in blocks("sh"):
        lines = [line for line in text.splitlines() if line.startswith("prophet ")]
        split = [shlex.split(line, comments=True)[1:] for line in lines]
        if split and not PLACEHOLDERS & {word for words in split for word in words}:
            sessions.append(split)
    return sessions


def name_of(session: list[list[str]]) -> str:
    return shlex.join(session[0])


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


@pytest.mark.slow
@pytest.mark.parametrize("session", shown_sessions(), ids=name_of)
def test_shown_commands_run(session: list[list[str]], tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "prophet"
    assert program.exists(), "the command prophet is not installed: pip install '.[test]'"
    (tmp_path / "texts.jsonl").write_text(
        '{"domain": "novel", "text": "Call me Ishmael."}\n'
    )  # the reader's own
    if "-o routes.safetensors" not in name_of(session) and "routes.safetensors" in session[0]:
        run([str(program), "trace", "reference-moe", "-n", "32", "-o", "routes.safetensors"], tmp_path)
    for words in session:
        done = run([str(program), *words], tmp_path)
        assert done.stdout or done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("page", "text"), blocks("python"), ids=lambda value: value.split("\n")[0])
def test_shown_python_runs(page: str, text: str, tmp_path: Path) -> None:
    assert run([sys.executable, "-W", "error::SyntaxWarning", "-c", text], tmp_path).stdout, page


def test_the_pages_show_something() -> None:
    assert sum(map(len, shown_sessions())) >= 5
    assert len(blocks("python")) == 2
