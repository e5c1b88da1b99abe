"""A server in a thread, on a free port, that ends with its test; solo runs to compare with."""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import uvicorn
from served import CONTEXT, Running, until

import prophet_moe
from prophet_moe.generate import decode
from prophet_moe.models.stock import load_tokenizer
from prophet_moe.serve import server
from prophet_moe.serve.app import build_app
from prophet_moe.serve.service import Limits, Service


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return load_tokenizer("reference-moe")


@pytest.fixture(scope="session")
def model() -> Iterator[Any]:
    """Half of the experts in memory; in float32, where rounding does not decide between tokens."""
    loaded = prophet_moe.load("reference-moe", slots="50%", dtype="float32", context=CONTEXT, sequences=8)
    yield loaded
    prophet_moe.close(loaded)


@pytest.fixture(scope="session")
def open_server(model: Any, tokenizer: Any) -> Callable[..., Any]:
    """`with open_server(rows=4) as running:`; limits by name, and api_key."""

    @contextlib.contextmanager
    def open_one(api_key: str | None = None, **limits: Any) -> Iterator[Running]:
        service = Service(
            model, tokenizer, "reference-moe", Limits(**{"rows": 8, "context": CONTEXT, **limits})
        )
        bound = server.listen("127.0.0.1", 0)
        app = build_app(service, api_key=api_key)
        running = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=5))
        thread = threading.Thread(target=running.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            assert until(lambda: running.started or not thread.is_alive())
            yield Running(service, server.address(bound))
        finally:
            running.should_exit = True
            thread.join(60)
            service.loop.batching.close()
            bound.close()
            assert not thread.is_alive()

    return open_one


@pytest.fixture(scope="session")
def solo(model: Any) -> Callable[[Sequence[int], int], list[int]]:
    """solo(prompt, tokens): what the model says when nobody else is there, by transformers' generate."""
    known: dict[tuple[tuple[int, ...], int], list[int]] = {}

    def run(prompt: Sequence[int], tokens: int) -> list[int]:
        key = (tuple(prompt), tokens)
        if key not in known:
            known[key] = decode(model, prompt, max_new_tokens=tokens).token_ids
        return known[key]

    return run
