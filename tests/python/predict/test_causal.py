"""The replay against a brute-force cache, the bound against exhaustive search, causality by scrambling."""

from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predict_routes import EXPERTS, LAYERS, TOP_K, scrambled, stream

from prophet_moe.errors import InvalidArgument
from prophet_moe.predict.causal import (
    belady,
    best_per_size,
    classical_gaps,
    gap_closed,
    miss_rates,
    misses,
)
from prophet_moe.predict.features import Stream, gaps


def brute_force(s, gap, slots):
    """One expert at a time, distances from the definition."""
    resident, last, count = set(), {}, 0
    for t in range(len(s)):
        for layer in range(LAYERS):
            for e in range(EXPERTS):
                last[layer, e] = gap[t, layer, e]
            needed = {(layer, int(e)) for e in s.experts[t, layer]}
            for key in sorted(needed - resident):
                count += 1
                if len(resident) >= slots:

                    def distance(k, now=layer):
                        d = k[0] - now if k[0] > now else k[0] - now + LAYERS
                        return d + (last.get(k, EXPERTS / TOP_K) - 1) * LAYERS

                    resident.remove(max(resident - needed, key=distance))
                resident.add(key)
    return count


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(TOP_K, LAYERS * EXPERTS))
def test_misses_are_those_of_a_plain_cache(seed, slots):
    s = stream(40, seed)
    scores = np.random.default_rng(seed).uniform(1, 30, (40, LAYERS, EXPERTS)).astype(np.float32)
    assert misses(s, scores, slots) == brute_force(s, scores, slots)


def fewest(s, slots):
    """Exhaustive search over every choice of victims."""
    steps = [
        frozenset((layer, int(e)) for e in s.experts[t, layer]) for t in range(len(s)) for layer in range(2)
    ]

    @cache
    def search(i, resident):
        if i == len(steps):
            return 0
        needed = steps[i]
        absent = needed - resident
        free = resident - needed
        over = max(0, len(resident) + len(absent) - slots)
        return len(absent) + min(
            search(i + 1, (resident | needed) - set(gone)) for gone in combinations(sorted(free), over)
        )

    return search(0, frozenset())


@pytest.mark.parametrize("seed", range(4))
def test_true_gaps_give_the_fewest_misses_possible(seed):
    s = stream(9, seed)
    one = Stream(s.experts[:, :2, :1] % 5, np.ones((9, 2, 1), np.float32), np.array([0, 9]), 5)
    assert misses(one, gaps(one), 4) == fewest(one, 4)


def test_no_score_beats_the_bound():
    s = stream(300, 3)
    bound = belady(s)
    for gap in classical_gaps(s, s.selected().mean(0)).values():
        assert all(b <= r for b, r in zip(bound, miss_rates(s, gap), strict=True))


def test_a_decision_uses_nothing_that_comes_later():
    s = stream(50)
    for token, layer in ((20, 0), (20, 3), (35, 1)):
        held, other = (np.zeros((50, LAYERS, EXPERTS), bool) for _ in range(2))
        for what, out in ((s, held), (scrambled(s, token, layer), other)):
            misses(what, classical_gaps(what)["average .95"], 12, out)
        assert (held[:token] == other[:token]).all()
        assert (held[token, : layer + 1] == other[token, : layer + 1]).all()
        assert (held[token + 2 :] != other[token + 2 :]).any()


def test_what_fits_is_missed_once():
    s = stream(200)
    cold = sum(len(np.unique(s.experts[:, layer])) for layer in range(LAYERS))
    assert misses(s, gaps(s), LAYERS * EXPERTS) == cold


def test_refuses_a_cache_below_one_layer_and_scores_of_another_stream():
    s = stream(20)
    with pytest.raises(InvalidArgument, match="cannot hold"):
        misses(s, gaps(s), TOP_K - 1)
    with pytest.raises(InvalidArgument, match="do not fit"):
        misses(s, gaps(stream(21)), 12)


def test_the_gap_closed_is_between_the_best_classical_and_the_bound():
    assert gap_closed([0.3, 0.2], [0.4, 0.2], [0.2, 0.2]) == pytest.approx([0.5, 0.0])
    assert best_per_size({"a": [0.1, 0.3], "b": [0.2, 0.2]}) == ["a", "b"]
