"""Miss curves against replays through the engine and a fixed set counted by hand."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from analysis_traces import chain, write

from prophet_moe.analysis.reuse import GAPS, at_sizes, reuse
from prophet_moe.analysis.sample import take_sample
from prophet_moe.formats.trace import TraceReader
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.replay import replay

LAYERS, EXPERTS, TOP_K = 3, 10, 3
MACHINE = Machine("any", bytes_per_second=1e9, layer_ns=1000)


@pytest.fixture(scope="module")
def trace(tmp_path_factory: pytest.TempPathFactory) -> TraceReader:
    random = np.random.default_rng(0)
    lengths = [40, 1, 90, 69]
    taste = chain(lengths, LAYERS, EXPERTS, 0.8, random)
    score = random.random((200, LAYERS, EXPERTS)) + np.eye(EXPERTS)[taste[:, :, 0]]
    return write(tmp_path_factory.mktemp("reuse"), np.argsort(-score, 2)[:, :, :TOP_K], lengths, of=EXPERTS)


@pytest.mark.parametrize("pool", ["global", "per-layer"])
def test_curves_are_those_of_replays(trace: TraceReader, pool: str) -> None:
    curves = reuse(take_sample(trace))
    step = 1 if pool == "global" else LAYERS
    first = TOP_K if pool == "global" else TOP_K * LAYERS
    for slots in range(first, LAYERS * EXPERTS + 1, step):
        for policy, ours in (("lru", "lru"), ("belady", "clairvoyant")):
            report = replay(trace, MACHINE, slots=slots, expert_bytes=1000, policy=policy, pool=pool)
            curve = getattr(curves, ours + ("" if pool == "global" else "_per_layer"))
            assert curve[slots // step] == pytest.approx(report.miss_rate, abs=1e-12), (policy, slots)
            if pool == "per-layer":
                by_layer = getattr(curves, f"{ours}_by_layer")
                found = [round(row[slots // step] * 200 * TOP_K) for row in by_layer]
                assert found == report.layer_misses


def test_a_fixed_set_and_returns_by_hand(trace: TraceReader) -> None:
    curves = reuse(take_sample(trace))
    ids = np.asarray(trace.map("experts")) + EXPERTS * np.arange(LAYERS)[None, :, None]
    uses = sorted(Counter(ids.ravel().tolist()).values(), reverse=True)
    for slots in (1, 5, 17, 30):
        assert curves.fixed[slots] == pytest.approx(1 - sum(uses[:slots]) / ids.size)
    returns = Counter[int]()
    for token in range(200):
        for key in ids[token].ravel():
            later = next((t for t in range(token + 1, 200) if key in ids[t]), None)
            if later is not None:
                returns.update(gap for gap in GAPS if later - token <= gap)
    assert curves.returns_within == pytest.approx({gap: returns[gap] / ids.size for gap in GAPS})
    assert curves.accesses == ids.size
    assert curves.never_used == LAYERS * EXPERTS - len(uses)


def test_curves_fall_and_the_clairvoyant_is_lowest(trace: TraceReader) -> None:
    curves = reuse(take_sample(trace))
    for curve in (curves.lru, curves.clairvoyant, curves.fixed):
        assert len(curve) == LAYERS * EXPERTS + 1
        assert curve[0] == 1
    assert (np.diff(curves.clairvoyant) <= 1e-12).all()
    assert (np.array(curves.clairvoyant) <= np.array(curves.lru) + 1e-12).all()
    (size,) = at_sizes(curves, [15])
    assert (size.fraction, size.lru) == (0.5, curves.lru[15])


def test_pieces_do_not_show(trace: TraceReader, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = reuse(take_sample(trace))
    monkeypatch.setattr("prophet_moe.analysis.reuse._PIECE", 7)
    told: list[int] = []
    assert reuse(take_sample(trace), told.append) == whole
    assert sum(told) == 400


def test_prompts_are_left_out(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    experts = random.integers(6, size=(200, 2, 1))
    phase = (np.arange(200) % 100 >= 20).astype(np.uint8)
    mixed = write(tmp_path, experts, [100, 100], of=6, phase=phase)
    decoded = reuse(take_sample(mixed))
    assert decoded.accesses == 160 * 2
    alone = write(tmp_path, experts[phase == 1], [80, 80], of=6)
    assert reuse(take_sample(alone)) == decoded
