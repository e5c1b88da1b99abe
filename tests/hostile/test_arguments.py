"""Budgets, slots and names of nonsense: refused before a weight is read, with what would do instead."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import prophet_moe
from prophet_moe import BudgetError, InvalidArgument
from prophet_moe.models.offload import offload_of

Refused = Callable[..., str]


@pytest.mark.parametrize(
    "budget",
    [
        "plenty",
        "",
        "8 apples",
        "0",
        0,
        -1,
        "-8GiB",
        "nan",
        float("nan"),
        float("inf"),
        True,
        "8GiBB",
        "١GB x",
    ],
)
def test_a_budget_that_is_no_size(sound: Path, refused: Refused, budget: Any) -> None:
    refused(InvalidArgument, sound, repr(budget), "is not a size", budget=budget, slots=None)


@pytest.mark.parametrize("budget", [1, "64KiB", "100MB"])
def test_a_budget_below_the_minimum(sound: Path, refused: Refused, budget: int | str) -> None:
    said = refused(BudgetError, sound, "expert slots", budget=budget, slots=None)
    assert "the smallest budget that would do is" in said


def test_the_minimum_that_is_named_does(
    sound: Path, expected: list[int], greedy: Callable[..., list[int]]
) -> None:
    with pytest.raises(BudgetError) as raised:
        prophet_moe.load(sound, budget="64MiB", context=32)
    least = raised.value.minimum_bytes
    assert least is not None
    assert f"{least >> 20}MiB" in str(raised.value)
    model = prophet_moe.load(sound, budget=least, context=32, exact=True)
    assert greedy(model) == expected
    prophet_moe.close(model)


@pytest.mark.parametrize("slots", [1, "1", "1%"])
def test_slots_below_top_k(sound: Path, refused: Refused, slots: int | str) -> None:
    refused(BudgetError, sound, f"{slots} slots", "name at least 2 slots", slots=slots)


def test_slots_below_top_k_of_every_layer(sound: Path, refused: Refused) -> None:
    said = refused(BudgetError, sound, "3 slots", "name at least 4 slots", slots=3, pool="per-layer")
    assert "top-k of every layer" in said


@pytest.mark.parametrize(
    "slots", ["many", "", 0, -4, "-4", 2.5, "2.5", True, "4 slots", "1e3", float("nan"), [4]]
)
def test_slots_that_are_no_number(sound: Path, refused: Refused, slots: Any) -> None:
    refused(InvalidArgument, sound, repr(slots), "is not a number of slots", "25%", slots=slots)


@pytest.mark.parametrize("slots", ["0%", "101%", "1000 %"])
def test_slots_that_are_no_share(sound: Path, refused: Refused, slots: str) -> None:
    refused(InvalidArgument, sound, slots, "no share of the experts", "up to 100%", slots=slots)


def test_more_slots_than_experts_are_all_experts(sound: Path) -> None:
    model = prophet_moe.load(sound, slots=10**12)
    assert offload_of(model).engine.slots == 16
    prophet_moe.close(model)


def test_slots_beyond_the_budget(sound: Path, refused: Refused) -> None:
    refused(BudgetError, sound, "16 expert slots", "smallest budget", slots=16, budget="64MiB")


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"system": "prophecy"}, ("'prophecy'", "lru", "expected-next-use")),
        ({"backend": "tpu"}, ("'tpu'", "auto, cpu, cuda")),
        ({"pool": "puddle"}, ("'puddle'", "global or per-layer")),
        ({"io": "floppy"}, ("'floppy'", "uring or pread")),
        ({"dtype": "float8"}, ("'float8'", "float32, float16 or bfloat16")),
        ({"dtype": "int8"}, ("'int8'", "bfloat16")),
        ({"threads": 0}, ("threads is at least 1",)),
        ({"threads": -2}, ("threads is at least 1", "-2")),
        ({"context": 0}, ("context is at least 1", "0")),
        ({"context": -5}, ("context is at least 1", "-5")),
    ],
    ids=str,
)
def test_names_that_nobody_knows(
    sound: Path, refused: Refused, options: dict[str, Any], parts: tuple[str, ...]
) -> None:
    refused(InvalidArgument, sound, *parts, **options)
