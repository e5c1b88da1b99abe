"""Long prompts on a loaded model: the engine notices, other requests keep their experts, results stay."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prophet_moe.generate import decode
from prophet_moe.models.offload import offload_of

PROMPT = list(range(3, 150))


def residents(engine: Any) -> set[tuple[int, int]]:
    return {
        (layer, expert)
        for layer in range(engine.layers)
        for expert in range(engine.experts_per_layer)
        if engine.state(layer, expert) == "resident"
    }


@pytest.mark.parametrize("exact", [False, True])
def test_a_prompt_streams_and_its_logits_do_not_change(load: Callable[..., Any], exact: bool) -> None:
    model = load("reference-moe", slots="25%", system="lru", exact=exact)
    engine, ids, found = offload_of(model).engine, torch.tensor([PROMPT]), []
    for streams in (False, True):
        engine.streaming = streams
        before = engine.counters()
        with torch.no_grad():
            found.append(model(ids).logits)
        after = engine.counters()
        steps = after["layer_steps"] - before["layer_steps"]
        assert after["streamed_steps"] - before["streamed_steps"] == (steps if streams else 0)
    assert torch.equal(*found)


@pytest.mark.parametrize(("exact", "least"), [(False, 0.7), (True, 0.85)])
def test_what_decoding_uses_survives_another_requests_prompt(
    load: Callable[..., Any], exact: bool, least: float
) -> None:
    """By leases an eighth of the slots serves a prompt; native kernels hold a layer's experts at once."""
    kept = {}
    for streams in (False, True):
        model = load("reference-moe", slots="25%", system="lru", exact=exact)
        engine = offload_of(model).engine
        engine.streaming = streams
        decode(model, PROMPT[:4], max_new_tokens=24)
        before = residents(engine)
        assert len(before) == engine.slots
        with torch.no_grad():
            model(torch.tensor([PROMPT]))
        kept[streams] = len(before & residents(engine)) / len(before)
    assert kept[True] >= least
    assert kept[False] < 0.5
