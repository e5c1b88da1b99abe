"""`prophet serve` as a process: it says where it is, answers, and leaves when told to."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import httpx
import pytest
from typer.testing import CliRunner

from prophet_moe.cli import app

COMMAND = [
    *(sys.executable, "-m", "prophet_moe.cli", "serve", "reference-moe"),
    *("--slots", "25%", "--context", "96", "--concurrency", "2", "--port", "0"),
]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[str]]:
    running = subprocess.Popen(
        COMMAND,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PROPHET_API_KEY": "sesame", "OMP_NUM_THREADS": "1", "NO_COLOR": "1"},
    )
    yield running
    running.kill()
    running.wait()


def address(process: subprocess.Popen[str]) -> str:
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(r"http:" r"//127\.0\.0\.1:\d+(?=/v1)", line):
            return found[0]
    raise AssertionError("the server ended without saying where it is")


def test_a_told_server_finishes_its_answer_and_leaves(process: subprocess.Popen[str]) -> None:
    url = address(process)
    threading.Thread(target=process.stderr.read, daemon=True).start()  # type: ignore[union-attr]
    body = {"prompt": "Call me", "max_tokens": 80, "ignore_eos": True, "stream": True}
    assert httpx.post(f"{url}/v1/completions", json=body, timeout=60).status_code == 401
    headers = {"Authorization": "Bearer sesame"}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, headers=headers, timeout=60) as answer:
        lines = answer.iter_lines()
        next(lines)
        process.send_signal(signal.SIGTERM)
        assert [line for line in lines if line][-1] == "data: [DONE]"
    assert process.wait(60) == 0


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--context", "100000"], "was made for"),
        (["--context", "64", "--kv-tokens", "63"], "cannot hold one context"),
        (["--budget", "20MiB", "--context", "64"], "the smallest budget that would do"),
        (
            ["--budget", "400MiB", "--context", "1024", "--concurrency", "64"],
            "a context shorter than 1024 tokens, or for fewer sequences at a time than 64",
        ),
        (["--concurrency", "0"], "--concurrency"),
        (["--host", "256.0.0.1"], "name another --port or --host"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_served(arguments: list[str], sentence: str) -> None:
    done = CliRunner().invoke(app, ["serve", "reference-moe", *arguments, "--port", "0", "--quiet"])
    assert done.exit_code == 2
    assert sentence in " ".join(done.stderr.split())


def test_a_taken_port_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = CliRunner().invoke(app, ["serve", "reference-moe", "--port", str(port), "--quiet"])
    assert done.exit_code == 2
    assert f"port {port}" in done.stderr
