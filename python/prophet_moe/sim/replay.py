"""Replays a routing trace: what would this policy, with these slots, have cost on that machine?

    report = replay(TraceReader("routes.safetensors"), machine, slots=192, policy="lru")
    print(report.miss_rate, report.tpot_ms.mean)

The trace is read in pieces and forgotten, so memory does not depend on its length. Sequences follow one
another as the requests of one user: the cache stays warm from one to the next unless `cold`.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import DECODE, TraceReader
from prophet_moe.runreport import Bytes, Foresight, Held, Hits, RunReport, Spread, Stall
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.results import BACKEND
from prophet_moe.systems import PolicyFactory

if TYPE_CHECKING:
    from prophet_ext import Predictor

PIECE = 2048  # tokens read at once
HIDDEN_BYTES = 64 << 20  # of hidden states read at once
PREFILL = 512  # prompt tokens of one forward pass
CLAIRVOYANT = "belady"


@dataclass(frozen=True)
class Tail:
    """Milliseconds per decoded token; zeros when none was decoded. Percentiles to 0.4 %."""

    mean: float
    p50: float
    p90: float
    p99: float
    p999: float


@dataclass(frozen=True)
class Stay:
    """Of all evictions; percentiles to 0.4 %."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True)
class Residence:
    """How long experts stayed in fast memory, from arrival to eviction. A turn is a step of their layer."""

    left: int  # evictions; the rest is of these
    turns: Stay
    ms: Stay | None  # None where the clock is that of a bound
    by_power: list[int]  # evictions after 0 or 1 turns, 2 or 3, 4 to 7, ...
    back_within: dict[str, float]  # turns: share of those that left and were brought again within so many


@dataclass(frozen=True)
class ReplayReport:
    """One replay. Counts are exact; times are those of the machine's virtual clock."""

    machine: str
    policy: str
    pool: str
    slots: int
    cold: bool
    tokens: int  # decoded
    prefill_tokens: int
    accesses: int  # experts asked for, each once per forward pass and layer
    tpot_ms: Tail
    stall_ms: Tail
    prefill_ms: float
    bytes: Bytes
    hits: Hits
    layer_misses: list[int]  # [layers], what was not resident when the router asked
    evictions: int
    evicted_before_use: int
    residence: Residence | None  # None where nothing was evicted
    foresight: Foresight | None  # its cost is not measured: a replay's time is virtual
    link_busy_fraction: float
    stalled_ms: float  # waiting for bytes, the whole replay
    total_ms: float

    @property
    def miss_rate(self) -> float:
        """Share of accesses that found their expert absent."""
        return self.hits.miss / self.accesses if self.accesses else 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"miss_rate": self.miss_rate}


@dataclass(frozen=True)
class _Piece:
    """Rows to replay at once: one prefill pass, or decoded tokens."""

    sequence: int
    first: int
    last: int
    decode: bool
    opens: bool  # begins the sequence
    closes: bool  # ends it


def replay(
    trace: TraceReader,
    machine: Machine,
    *,
    slots: int,
    expert_bytes: int,
    policy: str | PolicyFactory = "lru",
    pool: str = "global",
    keep: bool = True,
    cold: bool = False,
    prefetch_chunks: int = 2,
    predictor: Predictor | None = None,
    prefetch: Mapping[str, Any] | None = None,
    emulate: tuple[float, int] | None = None,
    clairvoyant: bool = False,
    sequences: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
    watch: Callable[[int, dict[str, Any]], None] | None = None,
) -> ReplayReport:
    """Replays all sequences of the trace, or the named ones in that order.

    slots: experts that fit in fast memory; pool "global" or "per-layer"; keep False drops every expert after
    its use; policy: one of prophet_ext.eviction_policies(), one in Python (prophet_ext.Replay), or "belady",
    which knows the future of the trace. emulate: a predictor of so much recall, so many layers ahead (0: to
    the end of the token), in place of a real one. clairvoyant: times are those of the bound of
    csrc/sim/clairvoyant.h. A predictor that reads token ids, or hidden states of the trace's width, is shown
    those that the trace has. progress is told how
    many tokens have been served since the last time; watch, at the end of each sequence, its number and what
    prophet_ext.Replay.result() says by then. Raises InvalidArgument: slots, policy, pool or a machine that
    cannot be, sequences that do not exist, ids out of range.
    """
    if bad := [s for s in sequences or () if not 0 <= s < trace.sequences]:
        raise InvalidArgument(f"{trace.path} has sequences 0 to {trace.sequences - 1}, not {bad[0]}.")
    core = make_core(
        trace, machine, slots=slots, expert_bytes=expert_bytes, policy=policy, pool=pool, keep=keep,
        prefetch_chunks=prefetch_chunks, predictor=predictor, prefetch=prefetch, emulate=emulate,
        clairvoyant=clairvoyant,
    )  # fmt: skip
    order = range(trace.sequences) if sequences is None else sequences
    read = 0 if predictor is None else _width(trace, "gate_input", predictor.hidden_width)
    entered = 0 if predictor is None else _width(trace, "entering", predictor.entering_width)
    width = read + entered
    most = min(PIECE, HIDDEN_BYTES // (4 * trace.layers * width)) if width else PIECE
    future = _Future(trace, order, core.rooms, most) if policy == CLAIRVOYANT else None
    started = False
    for piece in _pieces(trace, order, most):
        if cold and piece.opens and started:
            core.restart()
        started = True
        part = trace.slice(piece.first, piece.last)
        gates = None if predictor is None or part.gate_probs is None else part.gate_probs.astype(np.float32)
        following = None if future is None else future.next()
        (core.decode if piece.decode else core.prefill)(
            part.experts,
            gates,
            following,
            hidden=part.gate_input.astype(np.float32) if read and part.gate_input is not None else None,
            ids=part.token_id if predictor is not None and predictor.reads_tokens else None,
            entering=part.entering.astype(np.float32) if entered and part.entering is not None else None,
        )
        if progress is not None:
            progress(piece.last - piece.first)
        if watch is not None and piece.closes:
            watch(piece.sequence, core.result())
    kind = f"emulated, recall {emulate[0]:g}" if emulate else predictor.name if predictor else None
    return report_of(core.result(), machine, str(policy), pool, slots, cold, kind)


def shape_of(trace: TraceReader) -> dict[str, int]:
    """The geometry of a trace as prophet_ext takes it."""
    return {"layers": trace.layers, "experts_per_layer": trace.experts_per_layer, "top_k": trace.top_k}


def make_core(
    trace: TraceReader, machine: Machine, *, prefetch: Mapping[str, Any] | None, **settings: Any
) -> prophet_ext.Replay:
    """The native replay of a trace on a machine; settings as those of prophet_ext.Replay."""
    return prophet_ext.Replay(
        layers=trace.layers,
        experts_per_layer=trace.experts_per_layer,
        top_k=trace.top_k,
        bytes_per_second=machine.bytes_per_second,
        latency_ns=machine.latency_ns,
        overhead_ns=machine.overhead_ns,
        chunk_bytes=machine.chunk_bytes,
        pass_ns=machine.pass_ns,
        layer_ns=machine.layer_ns,
        layer_token_ns=machine.layer_token_ns,
        expert_ns=machine.expert_ns,
        expert_token_ns=machine.expert_token_ns,
        wait_ns=machine.wait_ns,
        prefetch=None if prefetch is None else dict(prefetch),
        **settings,
    )


def run_report(
    report: ReplayReport,
    *,
    model: str,
    system: str,
    budget_bytes: int,
    experts_total: int,
    expert_bytes: int,
) -> RunReport:
    """A replay in the words of a run; what only a real run has is None."""
    busy = report.link_busy_fraction * report.total_ms
    tail = asdict(report.tpot_ms) if report.tokens else dict.fromkeys(asdict(report.tpot_ms))
    stalls = (report.stall_ms.p50, report.stall_ms.p99) if report.tokens else (None, None)
    return RunReport(
        model=model,
        backend=BACKEND,
        system=system,
        exact=None,
        budget_bytes=budget_bytes,
        expert_slots=report.slots,
        experts_total=experts_total,
        expert_bytes=expert_bytes,
        prompt_tokens=report.prefill_tokens,
        new_tokens=report.tokens,
        token_ids=[],
        text=None,
        ttft_ms=None,
        tpot_ms=Spread(**tail),
        bytes=report.bytes,
        hits=report.hits,
        stall_ms=Stall(report.stalled_ms, *stalls),
        overlap_fraction=min(1.0, max(0.0, 1 - report.stalled_ms / busy)) if busy > 0 else None,
        link_busy_fraction=report.link_busy_fraction,
        evictions=report.evictions,
        evicted_before_use=report.evicted_before_use,
        foresight=report.foresight,
        peak_rss_bytes=None,
    )


def _width(trace: TraceReader, name: str, wanted: int) -> int:
    """Of the states of this name, where the trace has them as wide as the predictor reads; else 0."""
    return wanted if wanted and trace.has(name) and trace.arrays[name][1][-1] == wanted else 0


def _pieces(trace: TraceReader, order: Sequence[int], most: int, backward: bool = False) -> Iterator[_Piece]:
    for sequence in reversed(order) if backward else order:
        pieces = _pieces_of(trace, sequence, most)
        yield from reversed(pieces) if backward else pieces


def _pieces_of(trace: TraceReader, sequence: int, most: int) -> list[_Piece]:
    """Prompt tokens in passes of PREFILL, then decoded ones, `most` at once; a prompt may follow decoded
    tokens (chat)."""
    rows = trace.rows(sequence)
    turns = [rows.start, rows.stop]
    decode = np.ones(1, bool)
    if trace.has("phase"):
        phase = np.asarray(trace.map("phase")[rows]) == DECODE
        changes = np.flatnonzero(np.diff(phase)) + 1
        turns = [rows.start, *(rows.start + changes).tolist(), rows.stop]
        decode = phase[np.r_[0, changes]]
    pieces = []
    for first, last, decoded in zip(turns, turns[1:], decode.tolist(), strict=False):
        step = max(1, most) if decoded else PREFILL
        for at in range(first, last, step):
            end = min(at + step, last)
            pieces.append(_Piece(sequence, at, end, decoded, at == rows.start, end == rows.stop))
    return pieces


class _Future:
    """Next uses of every piece, found from the end of the trace and kept in an unnamed file."""

    def __init__(
        self,
        trace: TraceReader,
        order: Sequence[int],
        rooms: list[int],
        most: int,
    ) -> None:
        backward = prophet_ext.NextUse(**shape_of(trace), rooms=rooms)
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as this object)
        self._places: list[tuple[int, int]] = []
        for piece in _pieces(trace, order, most, backward=True):
            experts = trace.slice(piece.first, piece.last).experts
            uses = backward.prepend(experts, 1 if piece.decode else len(experts))
            self._places.append((self._file.tell(), uses.nbytes))
            self._file.write(uses.tobytes())

    def next(self) -> NDArray[np.int64]:
        """Of the piece that comes next, from the first on."""
        at, count = self._places.pop()
        self._file.seek(at)
        return np.frombuffer(self._file.read(count), np.int64)


def report_of(
    result: dict[str, Any],
    machine: Machine,
    policy: str,
    pool: str,
    slots: int,
    cold: bool,
    predictor: str | None,
) -> ReplayReport:
    """What Replay.result() says, in the words of this module; predictor: its kind."""
    c = result["counters"]
    tokens = result["tokens"]
    hits = Hits(c["hits_resident"], c["hits_in_flight"], c["misses"])
    return ReplayReport(
        machine=machine.name,
        policy=policy,
        pool=pool,
        slots=slots,
        cold=cold,
        tokens=tokens,
        prefill_tokens=result["prefill_tokens"],
        accesses=hits.resident + hits.in_flight + hits.miss,
        tpot_ms=_tail(result["tpot_ns"]),
        stall_ms=_tail(result["stall_ns"]),
        prefill_ms=result["prefill_ns"] / 1e6,
        bytes=Bytes(
            demand=c["bytes_demand"],
            prefetch_used=c["bytes_prefetch_used"],
            prefetch_late=c["bytes_prefetch_late"],
            prefetch_wasted=c["bytes_prefetch_wasted"],
            cancelled=c["bytes_cancelled"],
            unused=c["bytes_prefetch_unused"],
            per_token=(c["bytes_moved"] - result["prefill_bytes"]) / tokens if tokens else None,
        ),
        hits=hits,
        layer_misses=result["layers"][:, 1:].sum(axis=1).tolist(),
        evictions=c["evictions"],
        evicted_before_use=c["evicted_before_use"],
        residence=_residence(result["residence"]),
        foresight=None
        if predictor is None
        else Foresight(
            predictor=predictor,
            steps=c["foresight_steps"],
            ms_per_token=None,
            share_of_tpot=None,
            held=Held(c["foresight_held_steps"], c["prefetch_held_steps"]),
            failure=None,
        ),
        link_busy_fraction=c["busy_ns"] / c["now_ns"] if c["now_ns"] else 0.0,
        stalled_ms=c["stall_ns"] / 1e6,
        total_ms=c["now_ns"] / 1e6,
    )


def _residence(found: dict[str, Any]) -> Residence | None:
    left = found["left"]
    if not left:
        return None
    turns, ns = ([found[kind][name] for name in ("mean", "p50", "p90", "p99")] for kind in ("turns", "ns"))
    back = {str(turns): count / left for turns, count in found["back_within"].items()}
    return Residence(left, Stay(*turns), Stay(*(value / 1e6 for value in ns)), found["by_power"], back)


def _tail(spread: dict[str, float]) -> Tail:
    return Tail(*(spread[name] / 1e6 for name in ("mean", "p50", "p90", "p99", "p999")))
