"""Traces for the simulator's tests: a generated one that is always there, the supplied one where it is."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from prophet_moe.formats.trace import TraceReader, TraceWriter

SUPPLIED = (
    Path(__file__).resolve().parents[4] / "shared" / "data" / "gpt-oss-20b-routes" / "routes.safetensors"
)
LAYERS, EXPERTS, TOP_K = 5, 24, 3


def make_experts(
    tokens: int, seed: int, layers: int = LAYERS, experts: int = EXPERTS, top_k: int = TOP_K
) -> NDArray[np.int64]:
    """[tokens, layers, top_k]: skewed, and half kept from the token before."""
    random = np.random.default_rng(seed)
    out = np.empty((tokens, layers, top_k), np.int64)
    weight = 1 / np.arange(1, experts + 1)
    for layer in range(layers):
        popular = random.permutation(experts)
        last: list[int] = []
        for token in range(tokens):
            kept = [expert for expert in last if random.random() < 0.5]
            fresh = [int(popular[i]) for i in random.choice(experts, experts, False, weight / weight.sum())]
            last = (kept + [expert for expert in fresh if expert not in kept])[:top_k]
            out[token, layer] = last
    return out


@pytest.fixture
def write_trace(tmp_path: Path) -> Callable[..., TraceReader]:
    """write_trace(lengths, seed=0, prompts=0, ...) -> a trace of these sequence lengths, the first `prompts`
    tokens of each marked as prefill."""

    def write(lengths: list[int], seed: int = 0, prompts: int = 0, name: str = "trace") -> TraceReader:
        random = np.random.default_rng(seed)
        path = tmp_path / f"{name}.safetensors"
        with TraceWriter(
            path, model="generated", layers=LAYERS, experts_per_layer=EXPERTS, top_k=TOP_K
        ) as writer:
            for number, length in enumerate(lengths):
                gates = random.random((length, LAYERS, TOP_K))
                writer.append(
                    make_experts(length, 1000 * seed + number),
                    gate_probs=gates / gates.sum(2, keepdims=True),
                    token_id=random.integers(0, 100, length),
                    phase=(np.arange(length) >= prompts).astype(np.uint8),
                )
                writer.end_sequence(label="even" if number % 2 == 0 else "odd", number=number)
        return TraceReader(path)

    return write


@pytest.fixture(scope="session")
def supplied() -> TraceReader:
    """The gpt-oss-20b routes: PROPHET_ROUTES, or beside the repository in shared/data."""
    path = Path(os.environ.get("PROPHET_ROUTES", SUPPLIED))
    if not path.is_file():
        pytest.skip(f"no supplied trace at {path.name}: name it in PROPHET_ROUTES")
    return TraceReader(path)
