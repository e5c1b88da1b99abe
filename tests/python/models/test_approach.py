"""What the engine hears before a layer runs: the ids a model is fed, and what enters its layers."""

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import build

from prophet_moe.models.approach import tell
from prophet_moe.models.families import require_experts

FAMILY = "qwen3_moe"


class Listening:
    """In the place of an engine: keeps what it is told."""

    def __init__(self) -> None:
        self.fed: list[list[int]] = []
        self.entered: list[tuple[int, int, Any]] = []

    def approach(
        self, layer: int, tokens: int, ids: int = 0, entering: int = 0, width: int = 0, dtype: str = "f32"
    ) -> None:
        if ids:
            assert layer == 0
            self.fed.append(list((ctypes.c_int64 * tokens).from_address(ids)))
        if entering:
            assert dtype == "f32"
            row = np.array((ctypes.c_float * width).from_address(entering))
            self.entered.append((layer, tokens, row))


def listening(tokens: bool = False, width: int = 0) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model, engine = build(FAMILY).eval(), Listening()
    reads: Any = SimpleNamespace(reads_tokens=tokens, entering_width=width)
    tell(model, engine, reads, list(require_experts(model)))  # type: ignore[arg-type]
    return model, engine


def test_every_pass_of_generate_tells_the_ids_it_is_fed() -> None:
    model, engine = listening(tokens=True)
    prompt = torch.tensor([[5, 9, 17]])
    out = model.generate(prompt, max_new_tokens=4, do_sample=False, eos_token_id=None)[0].tolist()
    assert engine.fed == [[5, 9, 17], *[[token] for token in out[3:-1]]]
    assert not engine.entered


def test_what_enters_each_layer_is_its_input_for_the_last_token() -> None:
    model, engine = listening(width=128)
    with torch.no_grad():
        states = model(torch.tensor([[3, 1, 4, 1]]), output_hidden_states=True).hidden_states
    layers = len(require_experts(model))
    assert [(layer, tokens) for layer, tokens, _ in engine.entered] == [(n, 4) for n in range(layers)]
    for layer, _, row in engine.entered:
        np.testing.assert_array_equal(row, states[layer][0, -1].numpy())
    assert not engine.fed


@pytest.mark.parametrize("given", [{"inputs_embeds": torch.zeros(1, 2, 128)}])
def test_without_ids_nothing_is_told(given: dict[str, torch.Tensor]) -> None:
    model, engine = listening(tokens=True)
    with torch.no_grad():
        model(**given)
    assert not engine.fed


def test_who_reads_nothing_sets_no_hook() -> None:
    model, _ = listening()
    assert not any(module._forward_pre_hooks for module in model.modules())
