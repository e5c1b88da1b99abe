"""A server of our own, asked by two at once: one streams, one waits; then what it cost, in its metrics."""

import json
import sys
import threading
import urllib.request
from typing import Any

import uvicorn
from transformers import AutoTokenizer

import prophet_moe
from prophet_moe.serve import server
from prophet_moe.serve.app import build_app
from prophet_moe.serve.service import Limits, Service

name = sys.argv[1] if len(sys.argv) > 1 else "reference-moe"

model = prophet_moe.load(name, slots="25%", context=128, sequences=2)
tokenizer = AutoTokenizer.from_pretrained(model.config.name_or_path)
service = Service(model, tokenizer, "mine", Limits(rows=2, context=128))
bound = server.listen("127.0.0.1", 0)  # any free port
bound.listen()  # who asks before the server is up waits for it
http = uvicorn.Server(uvicorn.Config(build_app(service), log_level="warning"))
serving = threading.Thread(target=http.run, kwargs={"sockets": [bound]})
serving.start()


def ask(path: str, **body: Any) -> Any:
    """The open response to a POST; any client of OpenAI's API does the same."""
    request = urllib.request.Request(
        server.address(bound) + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    return urllib.request.urlopen(request)


def wait_for_all_of_it() -> None:
    """A whole answer."""
    answer = json.load(ask("/v1/completions", prompt="The President", max_tokens=24, temperature=0))
    print("\nwhole:", answer["choices"][0]["text"])


try:
    other = threading.Thread(target=wait_for_all_of_it)
    other.start()
    turns = [{"role": "user", "content": "Where is the whale?"}]
    print("stream:", end="", flush=True)
    for line in ask("/v1/chat/completions", messages=turns, max_tokens=24, seed=1, stream=True):
        if line.startswith(b"data: {"):
            print(json.loads(line[6:])["choices"][0]["delta"].get("content", ""), end="", flush=True)
    other.join()
    page = urllib.request.urlopen(server.address(bound) + "/metrics").read().decode()
    print()
    print("\n".join(line for line in page.splitlines() if line.startswith(("prophet_hits", "prophet_new"))))
finally:
    http.should_exit = True
    serving.join()
    prophet_moe.close(model)
