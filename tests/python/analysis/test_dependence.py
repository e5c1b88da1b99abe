"""Mutual information of processes known in closed form: within 2 %, nulls within their interval."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_traces import chain, chain_bits, noisy_copy, pairs, symmetric_bits, write

from prophet_moe.analysis import Options, Step, analyze
from prophet_moe.analysis.information import binary_entropy
from prophet_moe.formats.trace import TraceReader

EXPERTS = 8


def across_layers(trace: TraceReader, **options: Any) -> Step:
    return analyze(trace, Options(horizons=(1,), lags=(), **options)).cross_layer[0]


def across_tokens(trace: TraceReader, *lags: int) -> list[Step]:
    return analyze(trace, Options(horizons=(), lags=lags)).cross_token


@pytest.mark.parametrize("noise", [0.0, 0.3, 0.8])
def test_noisy_copy(tmp_path: Path, noise: float) -> None:
    experts, truth = noisy_copy(40_000, EXPERTS, noise, np.random.default_rng(0))
    step = across_layers(write(tmp_path, experts, [400] * 100, of=EXPERTS))
    seen = step.forms["dominant"]
    assert seen.corrected == pytest.approx(truth, rel=0.02)
    assert seen.interval is not None
    assert seen.interval[0] - 1e-9 <= truth <= seen.interval[1] + 1e-9 or seen.corrected == pytest.approx(
        truth, rel=0.01
    )
    assert seen.of_entropy == pytest.approx(truth / 3, rel=0.02)
    assert seen.of_maximum == pytest.approx(truth / 3, rel=0.02)
    assert seen.beyond_popularity == pytest.approx(truth, rel=0.02)
    # One expert each: the member is the dominant expert.
    assert step.forms["member"].corrected == pytest.approx(seen.corrected, rel=0.01)


def test_markov_chain_at_every_lag(tmp_path: Path) -> None:
    experts = chain([500] * 120, 2, EXPERTS, 0.7, np.random.default_rng(1))
    trace = write(tmp_path, experts, [500] * 120, of=EXPERTS)
    for step in across_tokens(trace, 1, 2, 3):
        seen, truth = step.forms["dominant"], chain_bits(EXPERTS, 0.7, step.distance)
        assert step.pairs == 120 * (500 - step.distance)
        assert seen.corrected == pytest.approx(truth, rel=0.02)
        assert seen.interval is not None
        assert seen.interval[0] < seen.corrected < seen.interval[1]


def test_independent_layers_say_nothing(tmp_path: Path) -> None:
    """Also where each layer hardly changes: a shuffle of single tokens would see information here."""
    experts = chain([300] * 60, 3, EXPERTS, 0.95, np.random.default_rng(2))
    seen = across_layers(write(tmp_path, experts, [300] * 60, of=EXPERTS), shuffles=40).forms["dominant"]
    assert seen.miller_madow is not None
    assert seen.null_interval[0] <= seen.miller_madow <= seen.null_interval[1]
    assert seen.null > 0.005  # a null of independent tokens: (E - 1)^2 / (2 n ln 2) = .002 before correction
    assert abs(seen.corrected) < 0.3 * seen.null
    assert seen.interval is not None
    assert seen.interval[0] <= 0.003


def test_what_belongs_to_the_text_is_told_from_the_moment(tmp_path: Path) -> None:
    """Two kinds of text with experts of their own; within a text all is drawn independently."""
    random = np.random.default_rng(3)
    kind = np.repeat(np.arange(100) % 2, 400)
    experts = (kind[:, None] * 4 + random.integers(4, size=(40_000, 2)))[:, :, None]
    seen = across_layers(write(tmp_path, experts, [400] * 100, of=EXPERTS), shuffles=20).forms["dominant"]
    assert (seen.miller_madow, seen.plug_in) == pytest.approx((1.0, 1.0), rel=0.02)  # the kind: one bit
    assert abs(seen.beyond_popularity) < 0.01


def test_a_copied_set(tmp_path: Path) -> None:
    first = pairs(30_000, EXPERTS, np.random.default_rng(4))
    step = across_layers(write(tmp_path, np.stack([first, first], 1), [300] * 100, of=EXPERTS))
    # A random member of a set of two is the same as another with probability 1/2.
    assert step.forms["member"].corrected == pytest.approx(symmetric_bits(EXPERTS, 0.5), rel=0.02)
    assert step.forms["best_single"].corrected == pytest.approx(EXPERTS * binary_entropy(2 / 8), rel=0.02)
    assert step.forms["best_single"].of_entropy == pytest.approx(1, rel=0.02)
    assert step.overlap == 1
    assert step.whole_set is not None
    assert 0.97 < step.whole_set.of_entropy <= 1


def test_a_set_half_kept(tmp_path: Path) -> None:
    """The target keeps one member of the source, drawn at random, and adds any of the six strangers."""
    random = np.random.default_rng(5)
    n = 60_000
    first = pairs(n, EXPERTS, random)
    kept = first[np.arange(n), random.integers(2, size=n)]
    strangers = np.argsort(random.random((n, EXPERTS)) + 10 * np.any(
        np.arange(EXPERTS)[None, :, None] == first[:, None, :], axis=2), axis=1)[:, 0]  # fmt: skip
    second = np.stack([kept, strangers], 1)
    step = across_layers(write(tmp_path, np.stack([first, second], 1), [600] * 100, of=EXPERTS))
    assert step.overlap == pytest.approx(0.5)
    # P(M' = M) = 1/2 * 1/2
    assert step.forms["member"].corrected == pytest.approx(symmetric_bits(EXPERTS, 0.25), rel=0.02)
    # y_j is on with probability 1/2 given x_j, else 1/6; x_j is on with probability 1/4.
    single = binary_entropy(0.25) - 0.25 * binary_entropy(0.5) - 0.75 * binary_entropy(1 / 6)
    assert step.forms["best_single"].corrected == pytest.approx(EXPERTS * single, rel=0.02)
    # Here the whole set says no more of y_j than x_j does: the bound may not pass it.
    assert step.whole_set is not None
    assert step.whole_set.interval is not None
    share = single / binary_entropy(0.25)
    assert step.whole_set.interval[0] <= share
    assert step.whole_set.of_entropy == pytest.approx(share, rel=0.03)


def test_independent_sets_say_nothing(tmp_path: Path) -> None:
    random = np.random.default_rng(6)
    both = np.stack([pairs(20_000, EXPERTS, random), pairs(20_000, EXPERTS, random)], 1)
    step = across_layers(write(tmp_path, both, [200] * 100, of=EXPERTS), shuffles=40)
    for form in ("member", "best_single"):
        seen = step.forms[form]
        assert seen.null_interval[0] <= seen.plug_in <= seen.null_interval[1]
    assert step.whole_set is not None
    assert step.whole_set.of_entropy < 0.001
    assert step.overlap == pytest.approx(step.overlap_by_chance, abs=0.01)


def test_names_of_experts_do_not_matter(tmp_path: Path) -> None:
    random = np.random.default_rng(7)
    experts, _ = noisy_copy(5_000, EXPERTS, 0.4, random)
    seen = across_layers(write(tmp_path, experts, [100] * 50, of=EXPERTS))
    experts[:, 1] = random.permutation(EXPERTS)[experts[:, 1]]
    renamed = across_layers(write(tmp_path, experts, [100] * 50, of=EXPERTS))
    for form in seen.forms:
        assert renamed.forms[form].corrected == pytest.approx(seen.forms[form].corrected, rel=1e-6)


def test_pairs_never_cross_sequences(tmp_path: Path) -> None:
    """Each text repeats one expert: with lag 1 everything is known, and no pair joins two texts."""
    experts = np.repeat(np.arange(64) % EXPERTS, 50)[:, None, None] + np.zeros((1, 1, 1), int)
    (step,) = across_tokens(write(tmp_path, experts, [50] * 64, of=EXPERTS), 1)
    assert step.pairs == 64 * 49
    assert step.forms["dominant"].plug_in == pytest.approx(3)
    assert step.forms["dominant"].beyond_popularity == pytest.approx(0, abs=1e-9)


def test_counting_in_pieces_does_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(8)
    experts = np.stack([pairs(900, EXPERTS, random) for _ in range(2)], 1)
    trace = write(tmp_path, experts, [100] * 9, of=EXPERTS)
    whole = across_layers(trace)
    monkeypatch.setattr("prophet_moe.analysis.dependence._AT_ONCE", 100)
    assert across_layers(trace) == whole
