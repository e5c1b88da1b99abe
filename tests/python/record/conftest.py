"""What the recording tests share: the prompts of the package, tokenised for the reference model."""

from typing import NamedTuple

import pytest

from prophet_moe.models.stock import load_tokenizer
from prophet_moe.record import Prompt, read_prompts, tokenise
from prophet_moe.record.prompts import shipped


class Fed(NamedTuple):
    prompts: list[Prompt]
    ids: list[list[int]]


@pytest.fixture(scope="session")
def fed() -> Fed:
    """One short prompt of each of three domains."""
    prompts = read_prompts(shipped(), per_domain=1)[:3]
    return Fed(prompts, [row[:12] for row in tokenise(prompts, load_tokenizer("reference-moe"), 4096)])
