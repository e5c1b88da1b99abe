"""Requests side by side: schedules against what continuous batching promises, counts against brute force."""

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceReader
from prophet_moe.sim.concurrent import distinct, serve
from prophet_moe.sim.interleave import PASS, Step, mixed_order, schedule
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.replay import replay

MakeTrace = Callable[..., TraceReader]
MACHINE = Machine("test", 1e9, 0, 0, 1 << 20, 1000, 500, 10, 300, 30, 0)
SETTINGS: dict[str, Any] = {"slots": 30, "expert_bytes": 5000}


def steps_of(trace: TraceReader, concurrency: int, prompt_tokens: int = 0) -> list[Step]:
    return list(schedule(trace, mixed_order(trace, None, 3), concurrency, prompt_tokens))


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=9),
    prompts=st.integers(0, 5),
    concurrency=st.integers(1, 5),
)
def test_every_token_is_served_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, lengths: list[int], prompts: int, concurrency: int
) -> None:
    trace = Lengths(lengths, prompts)
    steps = list(schedule(trace, list(range(len(lengths))), concurrency))  # type: ignore[arg-type]
    served = np.concatenate([step.rows for step in steps])
    assert sorted(served.tolist()) == list(range(sum(lengths)))
    for sequence in range(len(lengths)):
        mine = [row for row in served.tolist() if trace.owner[row] == sequence]
        assert mine == sorted(mine)
    for step in steps:
        owners = [trace.owner[row] for row in step.rows.tolist()]
        assert step.requests.tolist() == owners, "they come in the order of their numbers"
        assert len(set(owners)) <= concurrency
        decoded = owners[: step.decoded]
        assert len(set(decoded)) == len(decoded), "one token of a sequence in a pass"
        assert all(trace.phase[row] == 1 for row in step.rows[: step.decoded].tolist())
        assert all(trace.phase[row] == 0 for row in step.rows[step.decoded :].tolist())
    assert sorted(s for step in steps for s in step.came) == list(range(len(lengths)))
    # While anyone waits outside, every place is taken.
    for at, step in enumerate(steps[:-1]):
        if any(later.came for later in steps[at + 1 :]):
            assert len({trace.owner[row] for row in step.rows.tolist()}) == concurrency


class Lengths:
    """A trace as the scheduler sees it."""

    def __init__(self, lengths: list[int], prompts: int) -> None:
        ends = np.cumsum(lengths)
        self._rows = [slice(int(end) - length, int(end)) for length, end in zip(lengths, ends, strict=True)]
        self.owner = np.repeat(np.arange(len(lengths)), lengths)
        self.phase = np.concatenate([np.arange(n) >= min(prompts, n) for n in lengths]).astype(np.uint8)
        self.labels = [""] * len(lengths)
        self.sequences = len(lengths)

    def rows(self, sequence: int) -> slice:
        return self._rows[sequence]

    def sequence(self, sequence: int) -> range:
        return range(self._rows[sequence].start, self._rows[sequence].stop)

    def has(self, name: str) -> bool:
        return name == "phase"

    def map(self, name: str) -> Any:
        return self.phase


def test_one_at_a_time_is_the_plain_replay_of_that_order(write_trace: MakeTrace) -> None:
    trace = write_trace([20, 25, 30, 15])
    for policy in ("lru", "expected-next-use", "belady"):
        served, serving = serve(trace, MACHINE, concurrency=1, seed=3, policy=policy, **SETTINGS)
        plain = replay(trace, MACHINE, policy=policy, sequences=mixed_order(trace, None, 3), **SETTINGS)
        assert served == plain
        assert serving.rows == 1
        assert serving.union == trace.top_k


def test_counts_are_those_of_an_lru_of_sets(write_trace: MakeTrace) -> None:
    trace = write_trace([30, 12, 25, 18, 40], prompts=6)
    report, serving = serve(trace, MACHINE, concurrency=3, seed=3, policy="lru", streaming=False, **SETTINGS)
    experts, cache = trace.map("experts"), OrderedDict[tuple[int, int], None]()
    hits = misses = union = 0
    steps = steps_of(trace, 3)
    for step in steps:
        for layer in range(trace.layers):
            wanted = sorted(set(np.asarray(experts[step.rows, layer]).ravel().tolist()))
            union += len(wanted)
            here = [(layer, e) for e in wanted if (layer, e) in cache]
            hits += len(here)
            misses += len(wanted) - len(here)
            for key in here:
                cache.move_to_end(key)
            for e in wanted:
                if (layer, e) in cache:
                    continue
                if len(cache) == SETTINGS["slots"]:
                    cache.pop(next(k for k in cache if k[0] != layer or k[1] not in wanted))
                cache[layer, e] = None
    assert (report.hits.resident, report.hits.miss) == (hits, misses)
    assert serving.union == pytest.approx(union / (len(steps) * trace.layers))
    assert report.bytes.per_token == misses * 5000 / report.tokens


def test_waits_are_counted_from_the_step_in_which_a_request_comes(write_trace: MakeTrace) -> None:
    """Two requests at once on a machine where only attention takes time: pass by pass on paper."""
    trace = write_trace([4, 4, 3], prompts=2)
    free = Machine("paper", 1e18, 0, 0, 1 << 20, 1_000_000, 0, 0, 0, 0, 0)
    _, serving = serve(trace, free, concurrency=2, slots=120, expert_bytes=8)
    # Passes: both prompts, two of decoding, then the third's prompt, and its decoding.
    assert serving.passes == 5
    assert serving.ttft_ms.mean == pytest.approx(1.0, rel=1e-3)
    assert serving.tokens_per_second == pytest.approx(5 / 5e-3, rel=1e-3)


def test_a_trace_without_phases_may_be_given_prompts(write_trace: MakeTrace) -> None:
    trace = write_trace([10, 10])
    report, serving = serve(trace, MACHINE, concurrency=2, prompt_tokens=4, **SETTINGS)
    assert (report.prefill_tokens, report.tokens) == (8, 12)
    assert serving.ttft_ms.mean is not None
    _, without = serve(trace, MACHINE, concurrency=2, **SETTINGS)
    assert without.ttft_ms.mean is None
    report, _ = serve(trace, MACHINE, concurrency=2, prompt_tokens=99, **SETTINGS)
    assert report.tokens == 2  # of each the last


def test_long_prompts_are_served_in_parts(write_trace: MakeTrace) -> None:
    trace = write_trace([PASS + 40, 30], prompts=PASS + 20)
    steps = steps_of(trace, 2)
    assert max(len(step.rows) - step.decoded for step in steps) == PASS


def test_streaming_keeps_a_recency_cache_from_being_flushed(write_trace: MakeTrace) -> None:
    trace = write_trace([80] * 8, prompts=30)
    bytes_moved = {
        on: serve(trace, MACHINE, concurrency=4, policy="lru", streaming=on, slots=30, expert_bytes=5000)[0]
        for on in (False, True)
    }
    assert bytes_moved[True].bytes.moved < bytes_moved[False].bytes.moved


def test_orders_mix_domains_and_follow_the_seed(write_trace: MakeTrace) -> None:
    trace = write_trace([3] * 12)
    order = mixed_order(trace, None, 0)
    assert sorted(order) == list(range(12))
    labels = [trace.labels[s] for s in order]
    assert all({*labels[at : at + 2]} == {"even", "odd"} for at in range(0, 12, 2))
    assert mixed_order(trace, None, 0) == order
    assert mixed_order(trace, None, 1) != order
    assert sorted(mixed_order(trace, [2, 5, 7], 0)) == [2, 5, 7]


def test_distinct_counts_each_expert_once_a_layer_step() -> None:
    dice = np.random.default_rng(0)
    routes = dice.integers(0, 9, (20, 3, 2)).astype(np.int32)
    tokens = np.array([1, 4, 7, 8], np.int32)
    ends = np.cumsum(tokens)
    want = sum(
        len(set(routes[end - n : end, layer].ravel().tolist()))
        for n, end in zip(tokens.tolist(), ends.tolist(), strict=True)
        for layer in range(3)
    )
    assert distinct(routes, tokens, 9) == want


@pytest.mark.parametrize(("concurrency", "prompts"), [(0, 0), (-1, 0), (2, -1)])
def test_nobody_cannot_be_served(write_trace: MakeTrace, concurrency: int, prompts: int) -> None:
    with pytest.raises(InvalidArgument, match="cannot be served"):
        serve(write_trace([5]), MACHINE, concurrency=concurrency, prompt_tokens=prompts, **SETTINGS)
