"""Estimators on counts against sums over probabilities written out."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prophet_moe.analysis.information import (
    binary_entropy,
    binary_information,
    entropy,
    miller_madow,
    mutual_information,
)

tables = arrays(np.int64, st.tuples(st.integers(1, 5), st.integers(1, 5)), elements=st.integers(0, 30))


def by_hand(joint: np.ndarray) -> float:
    total, bits = joint.sum(), 0.0
    for i in range(joint.shape[0]):
        for j in range(joint.shape[1]):
            if joint[i, j]:
                p = joint[i, j] / total
                bits += p * math.log2(p * total * total / joint[i].sum() / joint[:, j].sum())
    return bits


@settings(max_examples=100, deadline=None)
@given(tables)
def test_plug_in_is_the_sum_over_cells(joint: np.ndarray) -> None:
    if joint.sum() == 0:
        return
    plug_in, _ = mutual_information(joint)
    assert plug_in == pytest.approx(by_hand(joint), abs=1e-9)
    assert -1e-9 <= plug_in <= min(entropy(joint.sum(0)), entropy(joint.sum(1))) + 1e-9


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(0, 40), st.integers(0, 40), st.integers(0, 40))
def test_information_of_two_indicators_is_that_of_their_table(a: int, b: int, c: int, d: int) -> None:
    found = binary_information(np.array([[a]]), np.array([a + b]), np.array([a + c]), np.array(a + b + c + d))
    assert found[0, 0] == pytest.approx(by_hand(np.array([[a, b], [c, d]])), abs=1e-9)


def test_stacked_tables_are_taken_one_by_one() -> None:
    stack = np.random.default_rng(0).integers(0, 9, (3, 2, 4, 5))
    found = mutual_information(stack)
    for i in np.ndindex(3, 2):
        for part, alone in zip(found, mutual_information(stack[i]), strict=True):
            assert part[i] == pytest.approx(alone)


def test_entropies_that_are_known() -> None:
    assert entropy(np.array([5, 5, 5, 5])) == pytest.approx(2)
    assert entropy(np.array([7, 0])) == 0
    assert entropy(np.zeros(3)) == 0
    assert miller_madow(np.array([2, 2])) == pytest.approx(1 + 1 / (8 * math.log(2)))
    assert binary_entropy(0.5) == pytest.approx(1)
    assert binary_entropy(np.array([0.0, 1.0])).tolist() == [0, 0]


def test_miller_madow_takes_most_of_the_bias() -> None:
    random = np.random.default_rng(1)
    uniform = random.multinomial(400, np.full(64, 1 / 64), size=500).reshape(500, 8, 8)
    plug_in, corrected = mutual_information(uniform)  # truth: 0
    assert plug_in.mean() > 0.07
    assert abs(corrected.mean()) < 0.1 * plug_in.mean()
