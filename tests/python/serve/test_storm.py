"""Two hundred requests at concurrency eight: some hang up, some end at a stop, some are nonsense."""

import gc
import json
import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from served import PROMPTS, Running, until

from prophet_moe import machine

REQUESTS = 200
TOKENS = 14
KINDS = ("whole", "streamed", "openai whole", "openai streamed")
WARM_UP = 60  # requests that make every thread and allocator take what it keeps
NONSENSE = [
    b"{",
    b'{"prompt": 7}',
    b'{"prompt": "a", "max_tokens": 100000}',
    b'{"prompt": "a", "colour": "red"}',
    b"\xff",
]
GROWTH = 16 << 20  # bytes that fragments and 200 clients may leave


def cut(text: str, stop: str) -> str:
    """What is left of an answer that ends at a stop."""
    return text.partition(stop)[0]


class Client:
    """One of the storm's: by bare HTTP and by OpenAI's own package, in turn."""

    def __init__(self, running: Running, http: httpx.Client, expected: dict[str, str]) -> None:
        self._url, self._http, self._expected = f"{running.url}/v1/completions", http, expected
        self._openai = running.client(http_client=http)

    def ask(self, number: int) -> str:
        """One request; what became of it."""
        dice = random.Random(number)
        if number % 20 == 7:  # 5 %
            return self._nonsense(dice)
        prompt = PROMPTS[number % len(PROMPTS)]
        if number % 10 == 3:  # 10 %
            return self._hang_up(prompt, dice, by_hand=number % 20 == 3)
        told = self._expected[prompt]
        at = dice.randrange(len(told) - 2)
        stop = told[at : at + 3] if number % 3 == 0 else None  # another third ends early
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "stop": stop}
        kind = dice.choice(KINDS)
        said, finish = self._say(kind, body)
        assert said == (told if stop is None else cut(told, stop))
        assert finish == ("length" if stop is None else "stop")
        return kind

    def _say(self, kind: str, body: dict[str, Any]) -> tuple[str, str | None]:
        """(text, finish reason)"""
        if kind == "whole":
            answer = self._http.post(self._url, json=body)
            assert answer.status_code == 200, answer.text
            choice = answer.json()["choices"][0]
            return choice["text"], choice["finish_reason"]
        if kind == "streamed":
            with self._http.stream("POST", self._url, json=body | {"stream": True}) as answer:
                lines = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
            assert lines[-1] == "[DONE]"
            choices = [json.loads(line)["choices"][0] for line in lines[:-1]]
            return "".join(one["text"] for one in choices), choices[-1]["finish_reason"]
        if kind == "openai whole":
            one = self._openai.completions.create(model="reference-moe", **body).choices[0]
            return one.text, one.finish_reason
        with self._openai.completions.create(model="reference-moe", stream=True, **body) as chunks:
            pieces = [chunk.choices[0] for chunk in chunks]
        return "".join(piece.text for piece in pieces), pieces[-1].finish_reason

    def _nonsense(self, dice: random.Random) -> str:
        headers = {"Content-Type": "application/json"}
        answer = self._http.post(self._url, content=dice.choice(NONSENSE), headers=headers)
        assert answer.status_code == 400, answer.text
        return "malformed"

    def _hang_up(self, prompt: str, dice: random.Random, by_hand: bool) -> str:
        """In the middle of a stream, whose stop never comes."""
        body: dict[str, Any] = {"prompt": prompt, "max_tokens": 100, "stop": ["\0never\0"]}
        if by_hand:
            with self._http.stream(
                "POST", self._url, json=body | {"stream": True, "ignore_eos": True}
            ) as answer:
                lines = answer.iter_lines()
                for _ in range(dice.randrange(1, 5)):
                    next(lines)
            return "cancelled"
        with self._openai.completions.create(
            model="reference-moe", stream=True, extra_body={"ignore_eos": True}, **body
        ) as chunks:
            for _ in range(dice.randrange(1, 5)):
                next(chunks)
        return "cancelled"


@pytest.mark.slow
def test_a_storm_leaves_nothing_behind(
    open_server: Callable[..., Any], tokenizer: Any, solo: Callable[[Sequence[int], int], list[int]]
) -> None:
    expected = {
        text: tokenizer.decode(solo(tokenizer(text)["input_ids"], TOKENS), skip_special_tokens=True)
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
                each = Client(running, client, expected).ask
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
        whole = [ended[kind] for kind in KINDS]
        assert sum(whole) == REQUESTS - REQUESTS // 20 - REQUESTS // 10
        assert min(whole) > REQUESTS // 8
        assert len(health) > 20
        assert set(health) == {200}
        assert until(lambda: running.idle)
        gc.collect()
        assert machine.rss() - before < GROWTH
