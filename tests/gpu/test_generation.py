"""A whole model with its experts on the GPU: the tokens of the CPU backend, and what its report says."""

from __future__ import annotations

from typing import Any

import emulated_cuda
import pytest
import torch

import prophet_moe
from prophet_moe.cli.session import Session, Wish, look_at
from prophet_moe.errors import BudgetError, DeviceError, InvalidArgument
from prophet_moe.models import offload_of

PROMPT = [5, 6, 7, 8]


@pytest.fixture(scope="module")
def expected() -> list[int]:
    return greedy(backend="cpu")[0]


def greedy(tokens: int = 3, **settings: Any) -> tuple[list[int], dict[str, Any]]:
    """(all tokens, the report) of the reference model with a quarter of its experts in fast memory."""
    model = prophet_moe.load("reference-moe", slots="25%", context=64, **settings)
    try:
        ids = torch.tensor([PROMPT], device=model.device)
        out = model.generate(ids, max_new_tokens=tokens, do_sample=False)
        return out[0].tolist(), prophet_moe.report(model)
    finally:
        offload_of(model).close()


@pytest.mark.parametrize("seed", [1, 2])
def test_tokens_are_those_of_the_cpu(
    seed: int, expected: list[int], gpu: emulated_cuda.EmulatedCuda | None
) -> None:
    if gpu is not None:
        gpu.machine(SEED=seed)
    tokens, report = greedy(backend="cuda")
    assert tokens == expected
    assert report["backend"] == ("cuda" if gpu is None else "cuda (emulated)")
    assert report["hits"]["miss"] > 0
    assert report["hits"]["resident"] > 0
    pool = report["host_pool"]
    assert 0 < pool["bytes_staged"] <= sum(report["bytes"].values()) - pool["bytes_found_staged"]


def test_exact_results_by_leases(expected: list[int]) -> None:
    tokens, report = greedy(backend="cuda", exact=True)
    assert tokens == expected
    assert report["bytes"]["demand"] > 0


def test_a_device_is_taken_by_itself_and_the_command_line_says_so() -> None:
    info = look_at("reference-moe", quiet=True)
    wish = Wish("reference-moe", slots="25%", context=64, quiet=True, backend="auto")
    with Session(wish, info) as session:
        report = session.report(session.decode(PROMPT, 2))
    assert report.backend.startswith("cuda")


def test_memory_that_cannot_hold_one_token_is_refused_with_what_would_do() -> None:
    with pytest.raises(BudgetError, match="device budget") as refused:
        prophet_moe.load("reference-moe", backend="cuda", device_budget="1MiB")
    assert refused.value.minimum_bytes is not None


def test_a_device_budget_without_a_device_is_refused() -> None:
    with pytest.raises(InvalidArgument, match="leave it out"):
        prophet_moe.load("reference-moe", backend="cpu", device_budget="1GiB")


def test_no_device_is_a_sentence(emulated: emulated_cuda.EmulatedCuda) -> None:
    emulated.machine(DEVICES=0)
    with pytest.raises(DeviceError):
        prophet_moe.load("reference-moe", backend="cuda")
    tokens, report = greedy(1, backend="auto")
    assert report["backend"] == "cpu"
    assert len(tokens) == len(PROMPT) + 1


def test_a_lost_device_is_a_device_error(emulated: emulated_cuda.EmulatedCuda) -> None:
    model = prophet_moe.load("reference-moe", slots="25%", context=64, backend="cuda")
    try:
        emulated.lose_device()
        with pytest.raises(DeviceError):
            model.generate(torch.tensor([PROMPT]), max_new_tokens=2, do_sample=False)
    finally:
        offload_of(model).close()
