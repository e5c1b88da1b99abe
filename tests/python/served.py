"""What tests of the server share: prompts, a running server's handle, waiting for a fact."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from prophet_moe.serve.service import Service

CONTEXT = 160
PROMPTS = [
    "Call me Ishmael.",
    "The whale",
    "def main():",
    "The patient presents with fever and",
    "x^2 + 3 =",
    "To be, or not to be",
    "Once upon a time there was a",
    "Fellow citizens of the Senate",
]


@dataclass
class Running:
    """A server that answers."""

    service: Service
    url: str

    def client(self, key: str = "none", **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=60, **options)

    def post(self, path: str, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", timeout=60, **options)

    @property
    def idle(self) -> bool:
        """Nothing of any request is left: rows, blocks of the KV cache, leases, bookkeeping."""
        loop, engine = self.service.loop, self.service.offload.engine
        return (
            loop.gate.inside == loop.gate.waiting == len(loop.tracked) == len(loop._inboxes) == 0
            and loop.gate.free_blocks == loop.gate.blocks == loop.batching.free_blocks
            and not loop.batching._live
            and not any(
                engine.state(layer, expert) == "leased"
                for layer in range(engine.layers)
                for expert in range(engine.experts_per_layer)
            )
        )


def until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    """Waits for a fact; False when it does not come."""
    pause = threading.Event()
    for _ in range(int(seconds / 0.02)):
        if condition():
            return True
        pause.wait(0.02)
    return False
