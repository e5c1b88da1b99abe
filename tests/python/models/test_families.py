"""Every family that the experts registry serves: the bits of transformers' eager loop, with slots for
fewer experts than one layer has, so that each layer must let go of experts it has just used."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from transformers import AutoModelForCausalLM

import prophet_moe

SLOTS = 5  # of 8 experts a layer
PAD = tiny_models.SIZES["pad_token_id"]
TOKENS = torch.arange(3, 27).view(2, 12)
# The second row is shorter, and padded where generate() pads.
PADDED = torch.cat(
    [torch.tensor([[20, 21, 22, 23], [PAD, PAD, 24, 25]]), torch.tensor([[30, 31], [32, 33]])], 1
)

Load = Callable[..., Any]


def both(family: str, folder: Path, load: Load, dtype: torch.dtype, **options: Any) -> tuple[Any, Any]:
    """The same checkpoint through transformers' eager experts, and through Prophet."""
    tiny_models.build(family, dtype=dtype).save_pretrained(folder)
    stock = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, experts_implementation="eager")
    return stock.eval(), load(folder, exact=True, slots=SLOTS, dtype=dtype, **options)


@torch.no_grad()
def assert_same_logits(stock: Any, ours: Any) -> None:
    """Prefill of a batch, then left padding and decoding with a cache, one token at a time."""
    assert torch.equal(ours(TOKENS).logits, stock(TOKENS).logits)
    found = expected = None
    for end in range(3, PADDED.shape[1] + 1):
        step = PADDED[:, :end] if found is None else PADDED[:, end - 1 : end]
        mask = (PADDED[:, :end] != PAD).long()
        expected = stock(step, attention_mask=mask, past_key_values=expected and expected.past_key_values)
        found = ours(step, attention_mask=mask, past_key_values=found and found.past_key_values)
        assert torch.equal(found.logits, expected.logits), f"differs after {end} tokens"
        assert torch.isfinite(expected.logits).all()


@pytest.mark.parametrize("family", tiny_models.FAMILIES)
def test_float32_logits_are_the_eager_loops_bit_for_bit(family: str, tmp_path: Path, load: Load) -> None:
    stock, ours = both(family, tmp_path, load, torch.float32)
    assert_same_logits(stock, ours)
    report = prophet_moe.report(ours)
    assert report["hits"]["miss"] > report["expert_slots"] == SLOTS
    assert report["evictions"] > 0


@pytest.mark.parametrize(
    "family",
    ["qwen3_moe", "mixtral", "gpt_oss", "granitemoe", "deepseek_v3", "nemotron_h", "jamba", "gemma4_text"],
)
def test_bfloat16_logits_are_the_eager_loops_bit_for_bit(family: str, tmp_path: Path, load: Load) -> None:
    assert_same_logits(*both(family, tmp_path, load, torch.bfloat16))


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_a_checkpoint_in_another_type_equals_stock_loaded_in_that_type(
    family: str, tmp_path: Path, load: Load
) -> None:
    """Stored in float32, computed in bfloat16: every expert is rounded at its use, once."""
    tiny_models.build(family).save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(
        tmp_path, dtype=torch.bfloat16, experts_implementation="eager"
    )
    assert_same_logits(stock.eval(), load(tmp_path, exact=True, slots=SLOTS, dtype="bf16"))


@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoe"])
def test_odd_sizes_begin_anywhere_in_a_cache_line(family: str, tmp_path: Path, load: Load) -> None:
    """Experts whose bytes are no multiple of 64: their rows in a stacked tensor begin at odd places."""
    width = "moe_intermediate_size" if family == "qwen3_moe" else "intermediate_size"
    sizes = {width: 13, "hidden_size": 20, "head_dim": 8, "num_attention_heads": 2, "num_key_value_heads": 1}
    if family == "granitemoe":
        del sizes["head_dim"]
    model = tiny_models.build(family, **sizes)
    model.save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    assert_same_logits(stock, load(tmp_path, exact=True, slots=SLOTS))


def test_enough_families() -> None:
    assert len(tiny_models.FAMILIES) >= 40


@pytest.mark.parametrize("family", ["qwen3_moe", "granitemoehybrid", "nemotron_h", "glm4_moe"])
def test_default_kernels_choose_the_same_tokens(family: str, tmp_path: Path, load: Load) -> None:
    """Not exact: float32 rounding apart, but the model is the same."""
    tiny_models.build(family).save_pretrained(tmp_path)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager").eval()
    ours = load(tmp_path, slots=SLOTS)
    assert prophet_moe.models.offload_of(ours).native
    with torch.no_grad():
        expected, found = stock(TOKENS).logits, ours(TOKENS).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * expected.abs().max().item())
