"""Drift on texts whose popularity is known."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_traces import write
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from prophet_moe.analysis.drift import context_drift, divergence, domain_drift
from prophet_moe.analysis.sample import take_sample
from prophet_moe.errors import InvalidArgument

LENGTHS = [200] * 20


def draw(kind: Any, seed: int = 0) -> Any:
    """[N, 2, 1]: experts 0 to 3 where kind is 0, 4 to 7 where it is 1."""
    random = np.random.default_rng(seed)
    return (np.asarray(kind)[:, None] * 4 + random.integers(4, size=(len(kind), 2)))[:, :, None]


@settings(max_examples=50, deadline=None)
@given(arrays(np.int64, (2, 5), elements=st.integers(0, 9)))
def test_divergence_by_hand(counts: Any) -> None:
    if (counts.sum(1) == 0).any():
        return
    p, q = counts / counts.sum(1, keepdims=True)
    middle = (p + q) / 2
    by_hand = sum(
        sum(float(a * np.log2(a / m)) for a, m in zip(side, middle, strict=True) if a > 0) / 2
        for side in (p, q)
    )
    assert divergence(counts[0], counts[1]) == pytest.approx(by_hand, abs=1e-9)
    assert divergence(counts[1], counts[0]) == pytest.approx(by_hand, abs=1e-9)


def test_domains_with_nothing_in_common_are_one_bit_apart(tmp_path: Path) -> None:
    kind = np.repeat(np.arange(20) % 2, 200)
    trace = write(tmp_path, draw(kind), LENGTHS, of=8, labels=("code", "prose"))
    found = domain_drift(take_sample(trace), 20, np.random.default_rng(0))
    assert found.domains == ["code", "prose"]
    assert found.tokens == [2000, 2000]
    assert np.array(found.matrix) == pytest.approx(np.array([[0, 1], [1, 0]]))
    assert found.mean == found.p95 == pytest.approx(1)
    assert found.shuffled < 0.3
    assert found.within is not None
    assert found.within < 0.01
    assert found.variation == pytest.approx(0.5, abs=0.01)


def test_domains_that_are_the_same_do_not_move(tmp_path: Path) -> None:
    trace = write(tmp_path, draw(np.zeros(4000, int)), LENGTHS, of=8, labels=("a", "b", "c"))
    found = domain_drift(take_sample(trace), 50, np.random.default_rng(0))
    assert 0 < found.mean <= found.shuffled_p95
    assert found.mean < 0.01


@pytest.mark.parametrize(
    ("labels", "said"), [(("code",), r"one domain \('code'\)"), ((), "no labelled domain")]
)
def test_one_domain_is_refused(tmp_path: Path, labels: tuple[str, ...], said: str) -> None:
    trace = write(tmp_path, draw(np.zeros(4000, int)), LENGTHS, of=8, labels=labels)
    with pytest.raises(InvalidArgument, match=said):
        domain_drift(take_sample(trace), 20, np.random.default_rng(0))


def test_context_that_moves_and_that_does_not(tmp_path: Path) -> None:
    position = np.tile(np.arange(200), 20)
    moving = context_drift(
        take_sample(write(tmp_path, draw(position >= 64), LENGTHS, of=8)), 8, np.random.default_rng(0)
    )
    assert moving is not None
    assert moving.windows == [(0, 16), (16, 64), (64, 200)]
    assert moving.tokens == [320, 960, 2720]
    assert (moving.from_first[2], moving.from_before[2]) == pytest.approx((1, 1))
    assert moving.from_first[1] < 0.01
    assert moving.by_chance[2] < 0.02
    still = context_drift(
        take_sample(write(tmp_path, draw(np.zeros(4000, int)), LENGTHS, of=8)), 8, np.random.default_rng(0)
    )
    assert still is not None
    assert max(still.from_first) < 0.01


def test_short_texts_have_one_window(tmp_path: Path) -> None:
    trace = write(tmp_path, draw(np.zeros(160, int)), [10] * 16, of=8)
    assert context_drift(take_sample(trace), 8, np.random.default_rng(0)) is None
