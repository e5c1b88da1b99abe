"""vLLM in this process, with and without Prophet: one import serves all tests.

These tests need an environment of their own, which tests/vllm/run makes; elsewhere they say so and skip.
"""

import importlib.util
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vllm_runs import Run, run

THERE = importlib.util.find_spec("vllm") is not None
if THERE:  # before it is imported
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # its engine in this process
        "VLLM_PLUGINS": "",  # none before a test asks for it
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "HF_HUB_OFFLINE": "1",
    }


@pytest.fixture(scope="session", autouse=True)
def _vllm() -> None:
    if not THERE:
        pytest.skip("no vLLM in this environment: tests/vllm/run makes one and runs these tests")


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE: 4 layers of 16 experts, top-4, bfloat16, with a tokenizer of bytes."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("models") / "tiny"
    letters = {
        letter: number + 2 for number, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))
    }
    tokenizer = Tokenizer(models.BPE({"<eos>": 0, "<pad>": 1, **letters}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    wrapped.save_pretrained(folder)
    torch.manual_seed(0)
    shape = Qwen3MoeConfig(
        vocab_size=320,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=64,
        moe_intermediate_size=64,
        num_experts=16,
        num_experts_per_tok=4,
        norm_topk_prob=True,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        eos_token_id=0,
        pad_token_id=1,
        initializer_range=0.08,
    )
    Qwen3MoeForCausalLM(shape).to(torch.bfloat16).save_pretrained(folder)
    return folder


@pytest.fixture
def prophet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Callable[..., None]]:
    """prophet(SLOTS="50%", ...) registers the plug-in for the rest of the test."""
    from vllm.model_executor.custom_op import op_registry_oot

    from prophet_moe.integrations.vllm import register

    def ask(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"PROPHET_VLLM_{name}", value)
        register()

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    before = dict(op_registry_oot)
    yield ask
    op_registry_oot.clear()
    op_registry_oot.update(before)


@pytest.fixture(scope="session")
def stock(tiny: Path) -> Run:
    """The tiny model without Prophet."""
    return run(tiny)
