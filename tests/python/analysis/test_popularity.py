"""Laws of popularity against searches on a grid, and samples of the laws themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prophet_moe.analysis.popularity import (
    LAWS,
    compare,
    design_effect,
    distance,
    fit,
    likeliest,
    log_shares,
    top_share,
)


def counts(p: np.ndarray, n: int, seed: int = 0) -> np.ndarray:
    return -np.sort(-np.random.default_rng(seed).multinomial(n, p / p.sum())).astype(float)


RANK = np.arange(1, 33)
ZIPF, EXPONENTIAL = RANK**-0.8, np.exp(-RANK / 9.0)
LOGNORMAL = np.exp(-0.3 * np.log(RANK) - 0.25 * np.log(RANK) ** 2)


def test_parameters_are_recovered() -> None:
    random = np.random.default_rng(0)
    assert fit("zipf", counts(ZIPF, 10**6), 1e6, 20, random).parameters[0] == pytest.approx(0.8, rel=0.01)
    assert fit("exponential", counts(EXPONENTIAL, 10**6), 1e6, 20, random).parameters[0] == pytest.approx(
        9, rel=0.01
    )
    a, b = fit("lognormal", counts(LOGNORMAL, 10**6), 1e6, 20, random).parameters
    assert (a, b) == pytest.approx((0.3, 0.25), abs=0.02)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 1000), min_size=2, max_size=20).filter(lambda c: sum(c) > 0))
def test_no_point_near_by_is_likelier(uses: list[int]) -> None:
    ranked = -np.sort(-np.array(uses, float))
    shares = ranked / ranked.sum()
    for law in LAWS:
        best = likeliest(law, ranked)
        top = (shares * log_shares(law, best, len(ranked))).sum()
        assert np.isfinite(top)
        for i in range(len(best)):
            for nudge in (-1e-3, 1e-3):
                near = best.copy()
                near[i] += nudge
                if law == "lognormal" and near[1] < 0:
                    continue  # outside of the law
                assert (shares * log_shares(law, near, len(ranked))).sum() <= top + 1e-6


def test_zipf_by_a_grid() -> None:
    ranked = counts(ZIPF, 5000)
    grid = np.linspace(0, 2, 20001)[:, None]
    loss = -(ranked * log_shares("zipf", grid, 32)).sum(-1)
    assert likeliest("zipf", ranked)[0] == pytest.approx(grid[loss.argmin(), 0], abs=2e-4)


def test_the_test_accepts_its_own_law_and_refuses_another() -> None:
    random = np.random.default_rng(1)
    own = [fit("zipf", counts(ZIPF, 4000, seed), 4000, 100, random).p_value for seed in range(30)]
    assert np.mean(np.array(own) < 0.1) < 0.35
    assert np.mean(own) > 0.3
    assert fit("zipf", counts(EXPONENTIAL, 4000), 4000, 100, random).p_value == 0


def test_likelihood_ratios_favour_the_law_that_made_them() -> None:
    random = np.random.default_rng(2)
    for p, sign in ((ZIPF, 1), (EXPONENTIAL, -1)):
        ranked = counts(p, 20_000)
        fits = {law: fit(law, ranked, 20_000, 20, random) for law in LAWS}
        against = compare(ranked, fits, 20_000)
        assert against["exponential"].ratio * sign > 0
        assert against["exponential"].p_value < 0.01
        assert against["lognormal"].ratio <= 1e-9  # zipf lies inside lognormal
        assert (against["lognormal"].p_value < 0.01) == (sign < 0)


def test_distance_is_the_largest_gap_of_two_cumulative_sums() -> None:
    ranked = np.array([6.0, 3.0, 1.0])
    model = np.exp(log_shares("zipf", np.array([0.0]), 3))
    assert model == pytest.approx([1 / 3] * 3)
    assert distance("zipf", ranked, np.array([0.0])) == pytest.approx(0.6 - 1 / 3)


def test_top_share_counts_the_last_expert_in_part() -> None:
    assert top_share(np.full(32, 7)) == pytest.approx(0.2)
    assert top_share(np.array([0, 0, 10, 0, 0])) == 1
    assert top_share(np.array([5, 4, 3, 2, 1, 0, 0, 0])) == pytest.approx((5 + 0.6 * 4) / 15)


def test_design_effect_of_independent_and_of_repeated_draws() -> None:
    random = np.random.default_rng(3)
    p = ZIPF / ZIPF.sum()
    single = random.multinomial(200, p, size=400).astype(float)
    assert design_effect(single) == pytest.approx(1, abs=0.15)
    assert design_effect(10 * random.multinomial(20, p, size=400)) == pytest.approx(10, rel=0.15)
    assert design_effect(single[:1]) == 1
