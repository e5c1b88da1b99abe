"""Which experts the native kernels compute: activations found by asking, thresholds, large batches."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from transformers.activations import ACT2FN

import prophet_moe
from prophet_moe.errors import UnsupportedModelError
from prophet_moe.models import offload_of
from prophet_moe.models.activations import recognise
from prophet_moe.models.experts import LAYER, native_rows

Load = Callable[..., Any]

# transformers' names for what the kernels compute, and everything else it has.
KNOWN = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu_erf",
    "gelu_python": "gelu_erf",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_python_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
    "gelu_accurate": "gelu_tanh",
    "relu": "relu",
    "relu2": "relu2",
}
# They need parameters or settings of their own.
UNBUILT = {"xielu", "prelu"}


def plain(function: Any, has_gate: bool = True) -> SimpleNamespace:
    """An experts module, as far as its activation goes."""

    def apply_gate(gate_up: torch.Tensor) -> torch.Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return function(gate) * up

    return SimpleNamespace(has_gate=has_gate, is_concatenated=True, _apply_gate=apply_gate, act_fn=function)


@pytest.mark.parametrize("has_gate", [True, False])
@pytest.mark.parametrize("name", sorted(set(ACT2FN) - UNBUILT))
def test_every_activation_of_transformers(name: str, has_gate: bool) -> None:
    assert recognise(plain(ACT2FN[name], has_gate), inter=24) == KNOWN.get(name)


@pytest.mark.parametrize(
    "gate",
    [
        lambda g, u: F.silu(g.clamp(max=7.0)) * u,
        lambda g, u: F.silu(g) * u.clamp(-7.0, 7.0),
        lambda g, u: F.silu(g) * (u + 1),
        lambda g, u: F.silu(1.0001 * g) * u,
        lambda g, u: F.silu(u) * g,
        lambda g, u: F.silu(g) * u + 1e-3,
        lambda g, u: g * torch.sigmoid(1.702 * g) * u,
        lambda g, u: F.silu(g),
        lambda g, u: (F.silu(g) * u)[..., :-1],
        lambda g, u: F.silu(g.clamp(max=1e5)) * u,
    ],
)
def test_a_gate_that_differs_anywhere_is_not_native(gate: Callable[..., torch.Tensor]) -> None:
    module = plain(None)
    module._apply_gate = lambda gate_up: gate(*gate_up.chunk(2, dim=-1))
    assert recognise(module, inter=24) is None


def test_interleaved_gates_are_not_native() -> None:
    module = plain(F.silu)
    module.is_concatenated = False
    assert recognise(module, inter=24) is None


@given(inter=st.integers(1, 700))
def test_the_probe_fits_any_width(inter: int) -> None:
    assert recognise(plain(F.silu), inter) == "silu"


@given(st.integers(1, 512), st.data())
def test_native_rows_are_few_for_large_experts_and_never_none(experts: int, data: st.DataObject) -> None:
    top_k = data.draw(st.integers(1, experts))
    rows = [native_rows(experts, top_k, parameters) for parameters in (2**10, 2**20, 2**22, 2**26)]
    assert rows == sorted(rows, reverse=True)
    assert 12 <= rows[-1] <= 64
    assert rows[-1] * top_k <= 12 * experts or rows[-1] == 12 * experts // top_k


NATIVE = {"qwen3_moe": "silu", "nemotron_h": "relu2", "granitemoe": "silu", "gemma4_text": "gelu_tanh"}
LEASED = ("gpt_oss", "aria_text", "minimax_m3_vl_text", "hy_v4")  # transposed, biased, clamped


@pytest.mark.parametrize("family", [*NATIVE, *LEASED])
def test_families_take_the_way_their_arithmetic_allows(family: str, tmp_path: Path, load: Load) -> None:
    tiny_models.build(family).save_pretrained(tmp_path)
    offload = offload_of(load(tmp_path, slots=6))
    assert (offload.native, offload.activation) == (family in NATIVE, NATIVE.get(family))


@torch.no_grad()
def test_both_ways_agree_and_the_threshold_separates_them(
    load: Load, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load("reference-moe", slots="50%")
    module = next(m for m in ours.modules() if LAYER in m.__dict__)
    layer = module.__dict__[LAYER]
    layer.native_rows = 6
    leased: list[int] = []
    original = type(module)._apply_gate
    monkeypatch.setattr(
        type(module), "_apply_gate", lambda self, x: (leased.append(x.shape[0]), original(self, x))[1]
    )
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(7, 192, generator=generator).bfloat16()
    ids = torch.rand(7, 32, generator=generator).topk(4).indices
    weights = torch.rand(7, 4, generator=generator).softmax(-1).bfloat16()
    few = module(x[:6], ids[:6], weights[:6])
    assert leased == []
    many = module(x, ids, weights)
    assert sum(leased) == 7 * 4
    torch.testing.assert_close(few, many[:6], rtol=0.05, atol=0.02)
    assert module(x[:0], ids[:0], weights[:0]).shape == (0, 192)


@torch.no_grad()
def test_ids_of_other_ranks_are_skipped(load: Load) -> None:
    """Under expert parallelism rows of other ranks carry an id of num_experts."""
    ours = load("reference-moe", slots="50%")
    module = next(m for m in ours.modules() if LAYER in m.__dict__)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(3, 192, generator=generator).bfloat16()
    ids = torch.tensor([[0, 5, 9, 31], [32, 32, 7, 8], [32, 32, 32, 32]])
    weights = torch.full((3, 4), 0.25).bfloat16()
    zeroed = weights.masked_fill(ids == 32, 0)
    expected = module(x, ids.clamp(max=31), zeroed)
    for rows in (64, 0):
        module.__dict__[LAYER].native_rows = rows
        found = module(x, ids, weights)
        torch.testing.assert_close(found, expected, rtol=0.02, atol=0.01)
        assert not found[2].any()


def test_a_router_wider_than_the_configuration(load: Load) -> None:
    ours = load("reference-moe", slots="50%")
    module = next(m for m in ours.modules() if LAYER in m.__dict__)
    x, ids = torch.zeros(1, 192).bfloat16(), torch.arange(5)[None]
    with pytest.raises(UnsupportedModelError, match=r"asks for 5 experts .* said 4"):
        module(x, ids, torch.ones(1, 5).bfloat16())


@torch.no_grad()
@pytest.mark.parametrize("exact", [True, False])
def test_the_leased_way_tells_the_predictor_what_the_router_said(exact: bool, load: Load) -> None:
    ours = load("reference-moe", slots="50%", exact=exact)
    told: list[tuple[Any, ...]] = []

    class Observed:
        """The engine, with an ear on observe()."""

        def __init__(self, engine: Any) -> None:
            self._engine = engine

        def __getattr__(self, name: str) -> Any:
            return getattr(self._engine, name)

        def observe(self, *arguments: Any) -> None:
            told.append(arguments)

    module = next(m for m in ours.modules() if LAYER in m.__dict__)
    layer = module.__dict__[LAYER]
    x = torch.zeros(3, 192).bfloat16()
    ids, weights = torch.arange(12).view(3, 4), torch.full((3, 4), 0.25).bfloat16()
    assert not layer.observing  # no predictor was asked for: nothing is told
    layer.engine, layer.native_rows = Observed(layer.engine), 0
    module(x, ids, weights)
    assert told == []
    layer.observing = True
    module(x, ids, weights)
    last = x.data_ptr() + 2 * 192 * 2
    assert told == [
        (layer.number, 3, 4, ids.data_ptr(), weights.data_ptr(), "bf16", last, 192, "bf16"),
    ]


def test_gradients_get_a_sentence(load: Load) -> None:
    for exact in (True, False):
        ours = load("reference-moe", slots="50%", exact=exact)
        embedded = ours.get_input_embeddings()(torch.tensor([[5, 6]])).detach().requires_grad_()
        logits = ours(inputs_embeds=embedded).logits
        with pytest.raises(UnsupportedModelError, match=r"inference only.*Train with transformers"):
            logits.sum().backward()
        assert prophet_moe.report(ours)["layer_steps"] == 12
