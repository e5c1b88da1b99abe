"""What a loaded model promises besides its results: reports, interruption, two at once, the end."""

import copy
import gc
import os
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

import prophet_moe
from prophet_moe.errors import ProphetError, StateError
from prophet_moe.models import offload_of
from prophet_moe.models.experts import LAYER

Load = Callable[..., Any]
PROMPT = torch.tensor([[52, 270, 1001, 7]])


def greedy(model: Any, prompt: torch.Tensor = PROMPT, **options: Any) -> torch.Tensor:
    return model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=6, do_sample=False, **options
    )


def states(model: Any) -> set[str]:
    engine = offload_of(model).engine
    return {
        engine.state(layer, expert)
        for layer in range(engine.layers)
        for expert in range(engine.experts_per_layer)
    }


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def test_the_report_adds_up(load: Load) -> None:
    model = load("reference-moe", slots=96, system="lru")
    assert prophet_moe.report(model) == {
        "model": "reference-moe",
        "backend": offload_of(model).engine.backend,
        "system": "lru",
        "exact": False,
        "budget_bytes": offload_of(model).plan.budget_bytes,
        "expert_slots": 96,
        "experts_total": 384,
        "expert_bytes": 3 * 192 * 64 * 2,
        "arena_bytes": offload_of(model).engine.arena_bytes,
        "bytes": {"demand": 0, "prefetch_used": 0, "prefetch_late": 0, "prefetch_wasted": 0},
        "host_pool": None,
        "hits": {"resident": 0, "in_flight": 0, "miss": 0},
        "stall_ms": 0.0,
        "evictions": 0,
        "evicted_before_use": 0,
        "layer_steps": 0,
    }
    greedy(model)
    report = prophet_moe.report(model)
    assert report["layer_steps"] == 12 * 6  # a prompt and five single tokens
    wanted = sum(report["hits"].values())
    assert 4 * 12 * 6 <= wanted <= 4 * 12 * (4 + 5)
    misses = report["hits"]["miss"]
    assert (
        misses * report["expert_bytes"]
        <= report["bytes"]["demand"]
        <= misses * offload_of(model).engine.slot_bytes
    )
    assert report["evictions"] == max(0, misses - 96)
    assert report["stall_ms"] > 0


def test_on_demand_reads_every_expert_at_each_use(load: Load) -> None:
    model = load("reference-moe", slots=96, system="on-demand")
    greedy(model)
    first = prophet_moe.report(model)
    assert first["hits"]["resident"] == 0
    assert states(model) == {"absent"}


class Interrupt(LogitsProcessor):
    """Ctrl-C in the middle of the third token."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if self.calls == 3:
            raise KeyboardInterrupt
        return scores


@pytest.mark.parametrize("exact", [True, False])
def test_interrupted_between_tokens(exact: bool, load: Load) -> None:
    model = load("reference-moe", slots=96, exact=exact)
    expected = greedy(model)
    with pytest.raises(KeyboardInterrupt):
        greedy(model, logits_processor=LogitsProcessorList([Interrupt()]))
    assert states(model) <= {"absent", "resident"}
    assert torch.equal(greedy(model), expected)


@pytest.mark.parametrize("slots", [6, 384])
def test_interrupted_in_the_middle_of_a_layer(
    slots: int, load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Experts are leased and others are being read: all are let go, and what was being read is not lost."""
    model = load("reference-moe", slots=slots, exact=True)
    expected = greedy(model)
    experts = type(next(m for m in model.modules() if LAYER in m.__dict__))
    calls = 0

    def interrupted(self: Any, gate_up: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 40:
            raise KeyboardInterrupt
        return original(self, gate_up)

    original = experts._apply_gate
    with monkeypatch.context() as patch:
        patch.setattr(experts, "_apply_gate", interrupted)
        with pytest.raises(KeyboardInterrupt):
            greedy(model)
    assert "leased" not in states(model)
    assert torch.equal(greedy(model), expected)


def test_two_models_in_one_process(load: Load, stock_reference: Any) -> None:
    """Interleaved, layer engines and all; closing one leaves the other at work."""
    first = load("reference-moe", slots=96, exact=True)
    second = load("reference-moe", slots=40, exact=True, system="on-demand")
    prompt = PROMPT
    with torch.no_grad():
        for token in (5, 9):
            prompt = torch.cat([prompt, torch.tensor([[token]])], dim=1)
            expected = stock_reference(prompt).logits
            assert torch.equal(first(prompt).logits, expected)
            assert torch.equal(second(prompt).logits, expected)
        assert prophet_moe.report(first)["layer_steps"] == prophet_moe.report(second)["layer_steps"] == 24
        prophet_moe.close(first)
        assert torch.equal(second(prompt).logits, expected)


@pytest.mark.parametrize("exact", [True, False])
def test_after_close(exact: bool, load: Load) -> None:
    model = load("reference-moe", slots=24, exact=exact)
    greedy(model)
    prophet_moe.close(model)
    prophet_moe.close(model)
    with pytest.raises(StateError, match="closed"):
        greedy(model)
    with pytest.raises(StateError, match="closed"):
        prophet_moe.report(model)


def test_closing_gives_the_arena_back(load: Load) -> None:
    model = load("reference-moe", slots=384)
    for start in range(0, 4000, 200):  # touch most of 27 MiB
        model(torch.arange(start, start + 200)[None])
    arena = offload_of(model).engine.arena_bytes
    before = resident_bytes()
    prophet_moe.close(model)
    assert before - resident_bytes() > 0.8 * arena


def test_dropping_the_model_gives_the_arena_back() -> None:
    model = prophet_moe.load("reference-moe", slots=384)
    for start in range(0, 4000, 200):
        model(torch.arange(start, start + 200)[None])
    engine, gone = offload_of(model).engine, weakref.ref(model)
    arena, before = engine.arena_bytes, resident_bytes()
    del model
    gc.collect()
    assert gone() is None
    with pytest.raises(StateError, match="closed"):
        engine.counters()
    assert before - resident_bytes() > 0.8 * arena


def test_saving_is_refused(load: Load, tmp_path: Path) -> None:
    model = load("reference-moe", slots=24)
    with pytest.raises(ProphetError, match=r"without its experts.*original checkpoint.*prophet_moe\.pack"):
        model.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_copying_is_refused(load: Load) -> None:
    model = load("reference-moe", slots=24)
    with pytest.raises(ProphetError, match=r"cannot be copied or pickled.*load it a second time"):
        copy.deepcopy(model)


def test_another_experts_implementation_fails_loudly(load: Load) -> None:
    model = load("reference-moe", slots=24, exact=True)
    expected = greedy(model)
    model.set_experts_implementation("eager")
    with pytest.raises(AttributeError):
        greedy(model)
    model.set_experts_implementation("prophet")
    assert torch.equal(greedy(model), expected)


def test_what_is_not_prophets() -> None:
    with pytest.raises(StateError, match=r"Linear was not loaded by prophet_moe\.load"):
        prophet_moe.report(torch.nn.Linear(2, 2))
    with pytest.raises(StateError, match="not loaded by"):
        prophet_moe.close(object())
