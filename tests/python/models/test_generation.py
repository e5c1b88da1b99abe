"""generate() in its modes on the reference model: transformers' own tokens, at a quarter of the experts."""

from typing import Any

import pytest
import torch
from transformers import GenerationConfig
from transformers.generation.configuration_utils import ContinuousBatchingConfig

import prophet_moe
from prophet_moe.models.stock import load_tokenizer

SLOTS = 96  # of 384
NEW = 12
PROMPTS = ("Once upon a time there was", "The little dog and her friend went to the park. They")


@pytest.fixture(scope="module")
def ours() -> Any:
    model = prophet_moe.load("reference-moe", exact=True, slots=SLOTS)
    yield model
    prophet_moe.close(model)


@pytest.fixture(scope="module")
def draft() -> Any:
    """A second model in the same process, with its own engine, to guess for the first."""
    model = prophet_moe.load("reference-moe", slots=24)
    yield model
    prophet_moe.close(model)


@pytest.fixture(scope="module")
def batch() -> Any:
    tokenizer = load_tokenizer("reference-moe")
    tokenizer.padding_side = "left"
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer(list(PROMPTS), return_tensors="pt", padding=True)


def tokens(model: Any, batch: Any, **options: Any) -> torch.Tensor:
    torch.manual_seed(7)
    return model.generate(
        batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=NEW,
        pad_token_id=0,
        **options,
    )


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"do_sample": True, "temperature": 1.3, "top_k": 50},
        {"do_sample": False, "num_beams": 3},
        {"do_sample": False, "cache_implementation": "static"},
    ],
    ids=["greedy", "sampled", "beams", "static-cache"],
)
def test_batches_with_left_padding(
    options: dict[str, Any], ours: Any, stock_reference: Any, batch: Any
) -> None:
    expected_options = options | {"disable_compile": True}
    assert torch.equal(tokens(ours, batch, **options), tokens(stock_reference, batch, **expected_options))


def test_assisted_by_a_draft_model(ours: Any, draft: Any, stock_reference: Any, batch: Any) -> None:
    """Several tokens are checked at once; the draft runs on experts of its own."""
    one = {key: value[1:] for key, value in batch.items()}
    expected = tokens(stock_reference, one, do_sample=False, assistant_model=stock_reference)
    before = prophet_moe.report(draft)["layer_steps"]
    assert torch.equal(tokens(ours, one, do_sample=False, assistant_model=draft), expected)
    assert prophet_moe.report(draft)["layer_steps"] > before


def test_prompt_lookup(ours: Any, stock_reference: Any, batch: Any) -> None:
    one = {key: value[1:] for key, value in batch.items()}
    options = {"do_sample": False, "prompt_lookup_num_tokens": 3}
    assert torch.equal(tokens(ours, one, **options), tokens(stock_reference, one, **options))


def test_generate_batch(ours: Any, stock_reference: Any, batch: Any) -> None:
    """Continuous batching: prompts of different lengths packed into one row of tokens."""
    prompts = [
        row[mask.bool()].tolist()
        for row, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True)
    ]
    generation = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = ContinuousBatchingConfig(num_blocks=32, page_size=16, max_batch_tokens=64)

    def run(model: Any) -> list[list[int]]:
        results = model.generate_batch(
            prompts, generation_config=generation, continuous_batching_config=batching, progress_bar=False
        )
        ordered = sorted(results.items(), key=lambda item: int(item[0].rsplit("_", 1)[-1]))
        return [result.generated_tokens for _, result in ordered]

    found, expected = run(ours), run(stock_reference)
    assert [len(row) for row in found] == [NEW] * len(prompts)
    assert found == expected


def test_the_experts_did_not_all_fit(ours: Any, batch: Any) -> None:
    tokens(ours, batch, do_sample=False)
    report = prophet_moe.report(ours)
    assert report["expert_slots"] == SLOTS < report["experts_total"]
    assert report["evictions"] > 0
    assert report["bytes"]["demand"] >= report["hits"]["miss"] * report["expert_bytes"]
