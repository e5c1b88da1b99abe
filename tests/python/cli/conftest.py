"""The command in this process (quick) and as a process of its own (for memory, signals, streams)."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from prophet_moe.cli import app

Process = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No flags from the surroundings but one thread, wide lines, and torch's threads as they were."""
    for name in list(os.environ):
        if name.startswith("PROPHET_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("PROPHET_THREADS", "1")
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("NO_COLOR", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def prophet() -> Callable[..., Any]:
    """prophet("run", ...) -> result with exit_code, stdout, stderr; in this process."""

    def call(*words: str, **options: Any) -> Any:
        return CliRunner().invoke(app, list(words), **options)

    return call


def process(*words: str, timeout: float = 240, **options: Any) -> Process:
    """The same in a process of its own."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PROPHET_")}
    return subprocess.run(
        [sys.executable, "-m", "prophet_moe.cli", *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        env=environment | {"HF_HUB_OFFLINE": "1"} | options.pop("env", {}),
        **options,
    )


@pytest.fixture
def prophet_process() -> Callable[..., Process]:
    return process


@pytest.fixture(scope="session")
def medium_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE of about 300 MB, no tokenizer: 6 layers, 64 experts of 768 KiB, top-8, bf16."""
    from transformers import Qwen3MoeConfig, Qwen3MoeForCausalLM

    folder = tmp_path_factory.mktemp("medium")
    config = Qwen3MoeConfig(
        hidden_size=512,
        moe_intermediate_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_experts=64,
        num_experts_per_tok=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=64,
        vocab_size=8192,
        max_position_embeddings=4096,
        decoder_sparse_step=1,
        mlp_only_layers=[],
        eos_token_id=None,
        dtype="bfloat16",
    )
    torch.manual_seed(0)
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        Qwen3MoeForCausalLM(config).save_pretrained(folder)
    finally:
        torch.set_default_dtype(default)
    return folder
