"""The live page in a real browser, while the server works."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from chromium import open_chromium
from served import PROMPTS, until


@pytest.fixture(scope="module", params=[(390, True), (1280, False)], ids=["phone", "desk"])
def browser(request: pytest.FixtureRequest) -> Iterator[Any]:
    width, dark = request.param
    found = open_chromium(width, dark, offline=False)
    yield found
    found.quit()


def text_of(browser: Any, name: str) -> str:
    return str(browser.execute_script("return document.getElementById(arguments[0]).textContent", name))


def test_the_page_shows_what_the_server_does(open_server: Callable[..., Any], browser: Any) -> None:
    with open_server(rows=2) as running:
        body = {"prompt": PROMPTS[0], "max_tokens": 140, "ignore_eos": True, "stream": True}
        browser.get(running.url + "/")
        over = threading.Event()

        def work() -> None:
            while not over.is_set():
                httpx.post(f"{running.url}/v1/completions", json=body, timeout=60)

        worker = threading.Thread(target=work)
        worker.start()
        try:
            assert until(lambda: "1 running" in text_of(browser, "state"), 60)
            assert until(lambda: text_of(browser, "tokens").endswith("/s"), 60)
            assert until(lambda: "%" in text_of(browser, "hits"), 60)
            assert until(lambda: text_of(browser, "later").endswith("s"), 60)
            assert until(lambda: " of 140" in text_of(browser, "requests"), 60)
            assert until(lambda: "50.0 % of the key-value cache" in text_of(browser, "kv"), 60)
            assert "running" in text_of(browser, "requests")
        finally:
            over.set()
            worker.join(60)
        assert text_of(browser, "name") == "reference-moe"
        engine = running.service.offload.engine
        size = browser.execute_script("const c = document.getElementById('heat'); return [c.width, c.height]")
        assert size == [engine.experts_per_layer, engine.layers]
        wide, window = browser.execute_script(
            "return [document.documentElement.scrollWidth, window.innerWidth]"
        )
        assert wide <= window
        assert f"in {engine.slots} slots" in text_of(browser, "slots")
        assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    assert until(lambda: "does not answer" in text_of(browser, "state"), 60)


def test_the_page_asks_nobody_else(open_server: Callable[..., Any]) -> None:
    with open_server(rows=1) as running:
        page = httpx.get(running.url + "/").text
    assert "://" not in page
    assert "src=" not in page


def test_the_heat_is_what_the_engine_says(open_server: Callable[..., Any]) -> None:
    with open_server(rows=1) as running:
        httpx.post(f"{running.url}/v1/completions", json={"prompt": "Hello"}, timeout=60)
        said = httpx.get(f"{running.url}/live").json()
        engine = running.service.offload.engine
        for layer, row in enumerate(said["residency"]):
            for expert, digit in enumerate(row):
                assert (digit == "2") == (engine.state(layer, expert) == "resident")
        assert sum(row.count("2") for row in said["residency"]) <= engine.slots
        assert said["counters"]["hits_resident"] == engine.counters()["hits_resident"]
