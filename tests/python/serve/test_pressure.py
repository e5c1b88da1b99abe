"""A server under pressure: overload, keys, clients that hang up, a disk that fails."""

import http.client
import json
import threading
from collections.abc import Callable, Sequence
from typing import Any

import httpx
import openai
import pytest
from fastapi.testclient import TestClient
from served import CONTEXT, PROMPTS, until

from prophet_moe.serve.app import build_app
from prophet_moe.serve.service import Limits, Service

Solo = Callable[[Sequence[int], int], list[int]]


def test_overload_is_told_at_once(open_server: Callable[..., Any]) -> None:
    with open_server(rows=1, queue=1) as running:
        long = {"prompt": PROMPTS[0], "max_tokens": 140, "ignore_eos": True, "temperature": 0}
        answers: list[int] = []
        threads = [
            threading.Thread(
                target=lambda: answers.append(running.post("/v1/completions", json=long).status_code)
            )
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        assert until(lambda: running.service.loop.gate.waiting == 1)
        with pytest.raises(openai.RateLimitError) as refused:
            running.client().completions.create(model="reference-moe", prompt="Hello")
        assert int(refused.value.response.headers["Retry-After"]) >= 1
        assert httpx.get(f"{running.url}/health").json()["waiting"] == 1
        for thread in threads:
            thread.join()
        assert answers == [200, 200]
        assert until(lambda: running.idle)


def test_keys(open_server: Callable[..., Any]) -> None:
    with open_server(rows=1, api_key="sesame") as running:
        for key in ("wrong", "sesame2", "sésame"):
            with pytest.raises((openai.AuthenticationError, UnicodeEncodeError)):
                running.client(key).models.list()
        keyless = httpx.get(f"{running.url}/v1/models")
        assert (keyless.status_code, keyless.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "send it as Authorization" in keyless.json()["error"]["message"]
        assert [one.id for one in running.client("sesame").models.list()] == ["reference-moe"]
        assert httpx.get(f"{running.url}/health").status_code == 200


def test_a_model_without_a_tokenizer_takes_token_ids(model: Any, solo: Solo) -> None:
    """Its answers are told as numbers, and texts are refused by a sentence."""
    service = Service(model, None, "bare", Limits(rows=1, context=CONTEXT))
    try:
        with TestClient(build_app(service)) as client:
            for path, body in (
                ("completions", {"prompt": "Hello"}),
                ("chat/completions", {"messages": [{"role": "user", "content": "Hello"}]}),
            ):
                refused = client.post(f"/v1/{path}", json=body)
                assert refused.status_code == 400
                assert "bare has no tokenizer" in refused.json()["error"]["message"]
                assert "token ids" in refused.json()["error"]["message"]
                assert refused.json()["error"]["param"] in body
            body = {"prompt": [5, 6, 7], "max_tokens": 4, "temperature": 0, "echo": True}
            said = client.post("/v1/completions", json=body).json()["choices"][0]["text"]
            assert [int(word) for word in said.split()] == [5, 6, 7, *solo([5, 6, 7], 4)]
    finally:
        service.loop.batching.close()


def test_a_client_that_hangs_up_frees_its_row(open_server: Callable[..., Any], model: Any) -> None:
    """In the middle of a stream, while waiting in the queue, and while waiting for a whole answer."""
    go_on = threading.Event()
    with open_server(rows=1, queue=2) as running:
        loop = running.service.loop
        body = {"prompt": PROMPTS[0], "max_tokens": 140, "ignore_eos": True}

        def call(stream: bool) -> http.client.HTTPConnection:
            connection = http.client.HTTPConnection(running.url.removeprefix("http://"), timeout=60)
            content = json.dumps({**body, "stream": stream})
            connection.request("POST", "/v1/completions", content, {"Content-Type": "application/json"})
            return connection

        first = call(stream=True)
        assert first.getresponse().readline().startswith(b"data: ")
        hook = model.register_forward_pre_hook(lambda *_: go_on.wait(60) and None)
        try:
            for stream in (True, False):
                waiting = call(stream)
                assert until(lambda: loop.gate.waiting == 1)
                waiting.close()
                assert until(lambda: loop.gate.waiting == 0)
                assert loop.gate.inside == 1
            first.close()
            assert until(lambda: loop.gate.inside == 0)
            whole = call(stream=False)
            assert until(lambda: loop.gate.inside == 1)
            whole.close()
            assert until(lambda: loop.gate.inside == 0)
        finally:
            go_on.set()
            hook.remove()
        assert until(lambda: running.idle)
        page = running.service.metrics.page()
        assert b'prophet_requests_total{outcome="cancelled"} 2.0' in page
        assert b'prophet_requests_total{outcome="refused"} 2.0' in page


def test_a_failing_disk_is_an_error_and_not_the_end(open_server: Callable[..., Any], model: Any) -> None:
    with open_server(rows=2) as running:
        client = running.client()

        def fail(*_: Any) -> None:
            raise OSError("the disk has gone")

        hook = model.register_forward_pre_hook(fail)
        try:
            with pytest.raises(openai.InternalServerError, match="the disk has gone"):
                client.completions.create(model="reference-moe", prompt="Hello")
            with pytest.raises(openai.APIError, match="the disk has gone"):
                list(client.completions.create(model="reference-moe", prompt="Hello", stream=True))
        finally:
            hook.remove()
        assert client.completions.create(model="reference-moe", prompt="Hello", max_tokens=2).choices[0].text
        assert until(lambda: running.idle)
        assert httpx.get(f"{running.url}/health").status_code == 200
