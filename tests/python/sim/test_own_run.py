"""Routes from a timeline: a prompt's pass, in which an expert counts once, and single tokens."""

import numpy as np
import pytest
from numpy.typing import NDArray

from prophet_moe.errors import InvalidArgument
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.own_run import OwnRoutes, replay_own, routes_of
from prophet_moe.systems import system_named

KINDS = ["miss", "evicted", "hit", "in_flight"]
MACHINE = Machine("a test", bytes_per_second=1e9, layer_ns=1000)


def columns(events: list[tuple[int, int, int]]) -> dict[str, NDArray[np.int64]]:
    """Of (kind, layer, expert)."""
    kind, layer, expert = zip(*events, strict=True)
    return {name: np.array(column) for name, column in (("kind", kind), ("layer", layer), ("expert", expert))}


PROMPT = [(0, 0, 4), (0, 0, 2), (0, 0, 7), (0, 1, 1), (0, 1, 0)]
STEP = [(2, 0, 4), (1, 0, 9), (2, 0, 2), (2, 1, 1), (3, 1, 5)]  # an eviction among them


def test_a_prompt_and_steps() -> None:
    found = routes_of(columns(PROMPT + STEP), KINDS, 2, 2, 1)
    assert found.decoded.tolist() == [[[4, 2], [1, 5]]]
    assert found.first.shape == (2, 2, 2)
    assert [set(found.first[:, layer].ravel()) for layer in range(2)] == [{4, 2, 7}, {1, 0}]
    assert all(len(set(ids)) == 2 for row in found.first.tolist() for ids in row), "ids of a row are distinct"
    assert len(routes_of(columns(PROMPT), KINDS, 2, 2, 0).decoded) == 0


@pytest.mark.parametrize(
    ("events", "steps"),
    [
        (PROMPT + STEP[:-1], 1),  # the last request is not there
        (PROMPT[1:] + STEP, 2),  # fewer steps than said
        ([*PROMPT, (0, 0, 3), *STEP], 1),  # back to a layer
        ([(0, 0, 4), *PROMPT, *STEP], 1),  # twice in one pass
        ([PROMPT[0], *PROMPT[3:], *STEP], 1),  # a layer asked for less than top-k
        (STEP, 5),
    ],
)
def test_what_is_no_whole_run_is_refused(events: list[tuple[int, int, int]], steps: int) -> None:
    with pytest.raises(InvalidArgument, match="the timeline may be full, so take fewer steps"):
        routes_of(columns(events), KINDS, 2, 2, steps)


def farthest(passes: list[list[set[int]]], slots: int, experts: int) -> int:
    """Misses of Belady in one pool by brute force: every request of a (pass, layer) must be there."""
    steps = [{layer * experts + expert for expert in ids} for one in passes for layer, ids in enumerate(one)]
    held: set[int] = set()
    missed = 0
    for at, asked in enumerate(steps):
        missed += len(asked - held)
        held |= asked

        def next_use(key: int, after: int = at) -> int:
            return next((i for i in range(after + 1, len(steps)) if key in steps[i]), len(steps))

        while len(held) > slots:
            held.remove(max(held - asked, key=next_use))
    return missed


def test_the_bound_is_beladys_count() -> None:
    dice = np.random.default_rng(3)
    layers, experts, top_k, slots = 3, 8, 2, 9

    def row(count: int) -> NDArray[np.int64]:
        return dice.permuted(np.tile(np.arange(experts), (count, 1)), axis=1)[:, :top_k]

    decoded = np.stack([row(30) for _ in range(layers)], axis=1)
    first = np.stack([dice.permutation(experts)[:4].reshape(2, top_k) for _ in range(layers)], axis=1)
    passes = [[set(first[:, layer].ravel().tolist()) for layer in range(layers)]]
    passes += [[set(ids.tolist()) for ids in token] for token in decoded]
    for name in ("belady", "clairvoyant"):
        found = replay_own(
            OwnRoutes(first, decoded),
            system_named(name),
            MACHINE,
            experts_per_layer=experts,
            slots=slots,
            expert_bytes=1000,
        )
        assert found.hits.miss == farthest(passes, slots, experts)
        assert found.bytes.moved == 1000 * found.hits.miss
        assert (found.tokens, found.accesses) == (30, 12 + 30 * layers * top_k)


def test_a_system_with_a_predictor_is_refused() -> None:
    routes = OwnRoutes(np.zeros((1, 1, 1), np.int64), np.zeros((1, 1, 1), np.int64))
    with pytest.raises(InvalidArgument, match="prophet has a predictor"):
        replay_own(routes, system_named("prophet"), MACHINE, experts_per_layer=2, slots=2, expert_bytes=1)
