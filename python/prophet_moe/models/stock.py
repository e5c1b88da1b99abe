"""What transformers loads by itself: tokenizers, and the stock model to compare with."""

import os
from typing import Any

import torch

from prophet_moe.models.locate import locate


def load_tokenizer(model: str | os.PathLike[str]) -> Any:
    """The tokenizer of a folder, a Hub id, or "reference-moe". Raises CheckpointError where there is none."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(locate(model))


def load_stock(model: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Any:
    """The whole model in memory, experts computed by the library's eager loop: the reference for
    tokens and times. `dtype` None takes the checkpoint's."""
    from transformers import AutoModelForCausalLM

    wanted = "auto" if dtype is None else dtype
    loaded = AutoModelForCausalLM.from_pretrained(
        locate(model), dtype=wanted, experts_implementation="eager", low_cpu_mem_usage=True
    )
    return loaded.eval()


def quiet_library() -> None:
    """Ends the library's own progress bars and advice: the command line has its own."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
