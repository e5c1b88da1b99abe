"""Default kernels: how far from float64, and what may not change their results."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from prophet_moe.models.experts import LAYER
from prophet_moe.models.locate import locate

Load = Callable[..., Any]
POSITIONS = 384


@pytest.fixture(scope="module")
def float64_reference() -> Any:
    """The same weights, computed by transformers in float64: as good as the truth."""
    model = AutoModelForCausalLM.from_pretrained(
        locate("reference-moe"), dtype=torch.float64, experts_implementation="eager"
    )
    return model.eval()


@pytest.fixture(scope="module")
def text(stock_reference: Any) -> torch.Tensor:
    """What the model writes by itself: 8 rows of 48 tokens."""
    torch.manual_seed(5)
    start = torch.randint(1, 4096, (8, 1))
    options = {"max_new_tokens": 47, "min_new_tokens": 47, "do_sample": True, "pad_token_id": 0}
    return stock_reference.generate(start, attention_mask=torch.ones_like(start), **options)


def experts_by_layer(*models: Any) -> list[tuple[Any, ...]]:
    names = [name for name, module in models[0].named_modules() if LAYER in module.__dict__]
    return [tuple(model.get_submodule(name) for model in models) for name in names]


def root_mean_square(error: torch.Tensor) -> float:
    return error.double().square().mean().sqrt().item()


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 4, 48])
def test_every_layer_is_nearer_to_float64_than_the_eager_loop(
    rows: int, load: Load, stock_reference: Any, float64_reference: Any
) -> None:
    """bfloat16 in and out; inside, ours sums in float32 where the eager loop rounds at each step."""
    ours = load("reference-moe", slots="50%")
    generator = torch.Generator().manual_seed(rows)
    for mine, stock, exact in experts_by_layer(ours, stock_reference, float64_reference):
        eager_errors, native_errors = [], []
        for _ in range(max(1, 48 // rows)):
            x = torch.randn(rows, 192, generator=generator).bfloat16()
            ids = torch.rand(rows, 32, generator=generator).topk(4).indices
            weights = torch.rand(rows, 4, generator=generator).softmax(-1).bfloat16()
            truth = exact(x.double(), ids, weights.double())
            native_errors.append(mine(x, ids, weights).double() - truth)
            eager_errors.append(stock(x, ids, weights).double() - truth)
        native, eager = torch.cat(native_errors), torch.cat(eager_errors)
        assert 0 < root_mean_square(native) < root_mean_square(eager)
        assert native.abs().max() <= eager.abs().max()


@torch.no_grad()
def test_logits_are_no_farther_from_float64_than_stocks(
    load: Load, stock_reference: Any, float64_reference: Any, text: torch.Tensor
) -> None:
    """The median over positions: where rounding flips a router's choice, either may be the luckier one."""
    ours = load("reference-moe", slots="50%")
    assert all(mine.__dict__[LAYER].native_rows > 0 for (mine,) in experts_by_layer(ours))
    truth = float64_reference(text).logits

    def typical(model: Any) -> float:
        # In rows of few tokens, so that every layer is served as in decoding.
        logits = torch.cat([model(row[None]).logits for row in text])
        return (logits.double() - truth).square().mean(-1).sqrt().median().item()

    assert text.numel() == POSITIONS
    assert typical(ours) <= typical(stock_reference)


@torch.no_grad()
def test_results_do_not_depend_on_slots_or_system(load: Load, text: torch.Tensor) -> None:
    """Down to the last bit: a prompt, then single tokens with a cache; in waves where the slots are few."""
    seen = []
    for options in (
        {"slots": "100%"},
        {"slots": 40, "system": "lru", "pool": "global"},
        {"slots": 72, "system": "lfu", "pool": "per-layer"},
        {"slots": 4, "system": "on-demand"},
        {"slots": 100, "threads": 2, "io": "pread"},
    ):
        model = load("reference-moe", **options)
        first = model(text[:2, :20])
        second = model(text[:2, 20:21], past_key_values=first.past_key_values)
        third = model(text[:1, :1])
        seen.append((first.logits, second.logits, third.logits))
        torch.set_num_threads(1)
    for other in seen[1:]:
        assert all(torch.equal(a, b) for a, b in zip(seen[0], other, strict=True))


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_computing_in_another_type_than_stored(dtype: torch.dtype, load: Load, text: torch.Tensor) -> None:
    """bfloat16 weights: widened exactly to float32, and as stock rounds them to float16."""
    ours = load("reference-moe", slots="25%", dtype=dtype)
    stock = AutoModelForCausalLM.from_pretrained(
        locate("reference-moe"), dtype=dtype, experts_implementation="eager"
    ).eval()
    expected, found = stock(text[:2, :24]).logits, ours(text[:2, :24]).logits
    assert found.dtype == expected.dtype == dtype
    tolerance = 1e-4 if dtype is torch.float32 else 0.05
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance * expected.abs().max().item())
