"""Two hundred requests at concurrency eight, some of which hang up and some of which are nonsense."""

import gc
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import httpx
import pytest
from served import PROMPTS, Running, until

from prophet_moe import machine

REQUESTS = 200
WARM_UP = 60  # requests that make every thread and allocator take what it keeps
NONSENSE = [
    b"{",
    b'{"prompt": 7}',
    b'{"prompt": "a", "max_tokens": 100000}',
    b'{"prompt": "a", "colour": "red"}',
    b"\xff",
]
GROWTH = 16 << 20  # bytes that fragments and 200 clients may leave


def ask(running: Running, client: httpx.Client, number: int, expected: dict[str, str]) -> str:
    """One request of the storm; what became of it."""
    url, dice = f"{running.url}/v1/completions", random.Random(number)
    headers = {"Content-Type": "application/json"}
    if number % 20 == 7:  # 5 %
        answer = client.post(url, content=dice.choice(NONSENSE), headers=headers)
        assert answer.status_code == 400, answer.text
        return "malformed"
    prompt = PROMPTS[number % len(PROMPTS)]
    body: dict[str, Any] = {"prompt": prompt, "max_tokens": 14, "temperature": 0, "stream": number % 2 == 0}
    if number % 10 == 3:  # 10 %
        body |= {"stream": True, "max_tokens": 100, "ignore_eos": True}
        with client.stream("POST", url, json=body) as answer:
            lines = answer.iter_lines()
            for _ in range(dice.randrange(1, 5)):
                next(lines)
        return "cancelled"
    if not body["stream"]:
        answer = client.post(url, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == expected[prompt]
        return "whole"
    said = ""
    with client.stream("POST", url, json=body) as answer:
        lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    assert lines[-1] == "[DONE]"
    for line in lines[:-1]:
        said += json.loads(line)["choices"][0]["text"]
    assert said == expected[prompt]
    return "streamed"


@pytest.mark.slow
def test_a_storm_leaves_nothing_behind(
    open_server: Callable[..., Any], tokenizer: Any, solo: Callable[[Sequence[int], int], list[int]]
) -> None:
    expected = {
        text: tokenizer.decode(solo(tokenizer(text)["input_ids"], 14), skip_special_tokens=True)
        for text in PROMPTS
    }
    with open_server(rows=8, queue=64) as running, httpx.Client(timeout=60) as client:
        over = threading.Event()
        health: list[int] = []

        def watch() -> None:
            while not over.wait(0.05):
                health.append(client.get(f"{running.url}/health").status_code)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            with ThreadPoolExecutor(8) as crowd:
                each = partial(ask, running, client, expected=expected)
                list(crowd.map(each, range(WARM_UP)))
                assert until(lambda: running.idle)
                gc.collect()
                before = machine.rss()
                ended = Counter(crowd.map(each, range(REQUESTS)))
        finally:
            over.set()
            watcher.join()
        assert ended["malformed"] == REQUESTS // 20
        assert ended["cancelled"] == REQUESTS // 10
        assert ended["whole"] + ended["streamed"] == REQUESTS - REQUESTS // 20 - REQUESTS // 10
        assert len(health) > 20
        assert set(health) == {200}
        assert until(lambda: running.idle)
        gc.collect()
        assert machine.rss() - before < GROWTH
