"""What the Python tests share: one thread for torch, a quiet library, the reference model in both forms."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from prophet_moe.models.stock import load_stock


@pytest.fixture(autouse=True, scope="session")
def _one_thread_and_quiet() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def stock_reference() -> Any:
    """The reference model as transformers loads it, bf16, experts by the eager loop."""
    return load_stock("reference-moe")


@pytest.fixture
def load() -> Iterator[Callable[..., Any]]:
    """prophet_moe.load, whose models are closed when the test is over."""
    import prophet_moe

    loaded: list[Any] = []

    def call(model: str | Path, **options: Any) -> Any:
        loaded.append(prophet_moe.load(model, **options))
        return loaded[-1]

    yield call
    for model in loaded:
        prophet_moe.close(model)
