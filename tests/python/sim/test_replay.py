"""Replays against models that share no code with them, and what a replay must hold to."""

import dataclasses
import heapq
from collections import OrderedDict
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceReader, split_sequences
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.replay import PIECE, ReplayReport, replay

MakeTrace = Callable[..., TraceReader]
EXPERT = 1_000_000  # bytes
MACHINE = Machine.of_ratio(1.0, 3, EXPERT)


def run(trace: TraceReader, policy: str, slots: int, pool: str = "global", **options: object) -> ReplayReport:
    settings = {"machine": MACHINE, "expert_bytes": EXPERT} | options
    return replay(trace, slots=slots, policy=policy, pool=pool, **settings)  # type: ignore[arg-type]


def steps(experts: NDArray[np.integer], layers: int) -> list[list[tuple[int, int]]]:
    """The keys (layer, expert) of each layer step, ascending."""
    flat = np.sort(experts.reshape(-1, experts.shape[2]).astype(int), axis=1)
    return [[(step % layers, e) for e in row] for step, row in enumerate(flat.tolist())]


def lru_misses(experts: NDArray[np.integer], slots: int, per_layer: bool) -> int:
    """A layer's residents are touched first, then its misses come in, both by ascending expert."""
    layers = experts.shape[1]
    pools: dict[int, OrderedDict[tuple[int, int], None]] = {}
    count = 0
    for step in steps(experts, layers):
        pool = pools.setdefault(step[0][0] if per_layer else 0, OrderedDict())
        absent = [key for key in step if key not in pool]
        for key in step:
            if key in pool:
                pool.move_to_end(key)
        for key in absent:
            count += 1
            if len(pool) >= (slots // layers if per_layer else slots):
                pool.popitem(last=False)
            pool[key] = None
    return count


def belady_misses(experts: NDArray[np.integer], slots: int) -> int:
    """One pool; the victim is the resident outside of the running set whose next use is farthest."""
    trace = steps(experts, experts.shape[1])
    coming: dict[tuple[int, int], list[int]] = {}
    for at in range(len(trace) - 1, -1, -1):
        for key in trace[at]:
            coming.setdefault(key, []).append(at)
    resident: dict[tuple[int, int], int] = {}  # next use
    farthest: list[tuple[int, tuple[int, int]]] = []  # some entries are out of date
    count = 0
    for step in trace:
        spare = []
        for key in step:
            if key not in resident:
                count += 1
                while len(resident) >= slots:
                    use, victim = heapq.heappop(farthest)
                    if victim in step:
                        spare.append((use, victim))
                    elif resident.get(victim) == -use:
                        del resident[victim]
            coming[key].pop()
            resident[key] = coming[key][-1] if coming[key] else len(trace)
            heapq.heappush(farthest, (-resident[key], key))
        for entry in spare:
            heapq.heappush(farthest, entry)
    return count


def test_misses_are_those_of_the_brute_force(write_trace: MakeTrace) -> None:
    trace = write_trace([60, 1, 90, 33])
    experts = trace.map("experts")
    for slots in (20, 45, 80):
        assert run(trace, "lru", slots).hits.miss == lru_misses(experts, slots, False)
        assert run(trace, "lru", slots, "per-layer").hits.miss == lru_misses(experts, slots, True)
        assert run(trace, "belady", slots).hits.miss == belady_misses(experts, slots)


def test_misses_on_the_supplied_trace_are_those_of_the_brute_force(supplied: TraceReader) -> None:
    rows = slice(0, int(supplied.sequence_start[12]))
    experts = np.asarray(supplied.map("experts")[rows])
    first = list(range(12))
    for slots in (192, 384):
        one = dataclasses.replace(MACHINE, chunk_bytes=EXPERT)
        for pool, per_layer in (("global", False), ("per-layer", True)):
            report = run(supplied, "lru", slots, pool, sequences=first, machine=one)
            assert report.hits.miss == lru_misses(experts, slots, per_layer)
        report = run(supplied, "belady", slots, sequences=first, machine=one)
        assert report.hits.miss == belady_misses(experts, slots)


def test_the_supplied_trace_gives_the_known_rates(supplied: TraceReader) -> None:
    """Miss rates of the clairvoyant that were found by another program on the same split."""
    split = split_sequences(supplied, test=60, val=30, seed=0)
    tokens = [sum(len(supplied.sequence(s)) for s in part) for part in (split.train, split.val, split.test)]
    assert tokens == [74_495, 8_642, 18_620]
    assert len(split.dropped) == 10
    one = dataclasses.replace(MACHINE, chunk_bytes=EXPERT)
    for slots, rate in ((192, 0.1746), (288, 0.0804), (384, 0.0328), (576, 0.0041)):
        report = run(supplied, "belady", slots, sequences=split.test, machine=one)
        assert round(report.miss_rate, 4) == rate
    report = run(supplied, "belady", 192, "per-layer", sequences=split.test, machine=one)
    assert round(report.miss_rate, 4) == 0.2253


def test_the_clairvoyant_is_never_beaten(write_trace: MakeTrace) -> None:
    for prompts in (0, 25):
        trace = write_trace([50, 70], seed=prompts + 1, prompts=prompts, name=f"bound-{prompts}")
        for slots in (20, 60):
            bound = run(trace, "belady", slots).hits.miss
            for policy in prophet_ext.eviction_policies():
                for pool in ("global", "per-layer"):
                    assert bound <= run(trace, policy, slots, pool).hits.miss


def test_pieces_do_not_show(write_trace: MakeTrace, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = write_trace([200, 40, 77], prompts=30)
    for policy in ("expected-next-use", "belady"):
        whole = run(trace, policy, 40)
        monkeypatch.setattr("prophet_moe.sim.replay.PIECE", 7)
        assert run(trace, policy, 40) == whole
        monkeypatch.setattr("prophet_moe.sim.replay.PIECE", PIECE)


def test_the_same_every_time(write_trace: MakeTrace) -> None:
    trace = write_trace([100, 50])
    assert run(trace, "expected-next-use", 40) == run(trace, "expected-next-use", 40)


def test_cold_sequences_stand_alone(write_trace: MakeTrace) -> None:
    trace = write_trace([40, 60, 20])
    alone = [run(trace, "expected-next-use", 40, sequences=[s]) for s in range(3)]
    cold = run(trace, "expected-next-use", 40, cold=True)
    assert cold.hits.miss == sum(report.hits.miss for report in alone)
    assert cold.total_ms == pytest.approx(sum(report.total_ms for report in alone))
    assert run(trace, "expected-next-use", 40).hits.miss < cold.hits.miss


def test_reports_add_up(write_trace: MakeTrace) -> None:
    trace = write_trace([80, 50], prompts=20)
    told: list[int] = []
    report = run(trace, "lru", 40, progress=told.append)
    assert sum(told) == trace.tokens
    assert (report.tokens, report.prefill_tokens) == (90, 40)
    assert report.accesses == report.hits.resident + report.hits.in_flight + report.hits.miss
    assert report.accesses < trace.tokens * trace.layers * trace.top_k  # a prompt shares its experts
    assert sum(report.layer_misses) == report.hits.miss
    assert report.bytes.demand == report.hits.miss * EXPERT
    assert report.total_ms == pytest.approx(report.prefill_ms + 90 * report.tpot_ms.mean)
    assert report.bytes.per_token is not None
    assert report.bytes.per_token < report.bytes.demand / 90
    assert 0 < report.link_busy_fraction < 1
    assert report.tpot_ms.p50 <= report.tpot_ms.p90 <= report.tpot_ms.p99 <= report.tpot_ms.p999
    assert report.to_dict()["miss_rate"] == report.miss_rate


def test_each_sequence_is_watched(write_trace: MakeTrace) -> None:
    trace = write_trace([40, 3, 25], prompts=2)
    seen: list[tuple[int, int]] = []
    order = [2, 0, 1]
    report = run(
        trace, "lru", 40, sequences=order, watch=lambda at, so_far: seen.append((at, so_far["tokens"]))
    )
    assert seen == [(2, 23), (0, 61), (1, 62)]
    assert report.stalled_ms >= report.tokens * report.stall_ms.mean > 0


def test_a_machine_of_a_ratio_is_what_it_says(write_trace: MakeTrace) -> None:
    trace = write_trace([30])
    resident = run(trace, "lru", trace.layers * trace.experts_per_layer, sequences=[0] * 20)
    assert resident.tpot_ms.p50 == pytest.approx(trace.layers * 1.0, rel=0.005)  # a layer takes 1 ms
    slow = run(trace, "lru", 20, keep=False, machine=Machine.of_ratio(16, trace.top_k, EXPERT))
    layer = 0.5 + 16 * trace.top_k + 1 / (2 * trace.top_k)
    assert slow.tpot_ms.mean == pytest.approx(trace.layers * layer, rel=1e-4)
    assert slow.hits.resident == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"slots": 2}, "2 slots"),
        ({"policy": "fifo"}, "'fifo'"),
        ({"pool": "shared"}, "'shared'"),
        ({"sequences": [0, 9]}, "not 9"),
        ({"expert_bytes": 0}, "0 bytes"),
        ({"machine": dataclasses.replace(MACHINE, bytes_per_second=-1.0)}, "bandwidth"),
        ({"machine": dataclasses.replace(MACHINE, layer_ns=-3)}, "-3"),
        ({"machine": dataclasses.replace(MACHINE, latency_ns=-3)}, "latency"),
    ],
)
def test_what_cannot_be_is_refused(write_trace: MakeTrace, change: dict[str, object], words: str) -> None:
    trace = write_trace([10])
    settings = {"slots": 30, "policy": "lru", "pool": "global", "expert_bytes": EXPERT, "machine": MACHINE}
    with pytest.raises(InvalidArgument, match=words):
        replay(trace, **(settings | change))  # type: ignore[arg-type]


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan")])
def test_a_ratio_that_cannot_be_is_refused(ratio: float) -> None:
    with pytest.raises(InvalidArgument, match="above 0"):
        Machine.of_ratio(ratio, 4, EXPERT)


def test_native_chunks_are_checked() -> None:
    core = prophet_ext.Replay(
        layers=2, experts_per_layer=4, top_k=2, slots=4, expert_bytes=10, bytes_per_second=1e9
    )
    assert core.rooms == [4, 4]
    with pytest.raises(InvalidArgument, match="whole number of tokens"):
        core.decode(np.zeros(3, np.int32))
    with pytest.raises(InvalidArgument, match="twice"):
        core.decode(np.zeros((1, 2, 2), np.int32))
    with pytest.raises(InvalidArgument, match="expert 4 in layer 0"):
        core.decode(np.full((1, 2, 2), 4))
    with pytest.raises(InvalidArgument, match="rooms"):
        prophet_ext.NextUse(layers=2, experts_per_layer=4, top_k=2, rooms=[4])
    backward = prophet_ext.NextUse(layers=2, experts_per_layer=4, top_k=2, rooms=[4, 4])
    with pytest.raises(InvalidArgument, match="at least one token"):
        backward.prepend(np.zeros((1, 2, 2), np.int32), 0)
