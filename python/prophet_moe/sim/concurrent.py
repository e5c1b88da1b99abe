"""Replays a routing trace as requests of several users at once: continuous batching on a virtual clock.

    report = serve(trace, machine, concurrency=8, slots=192, expert_bytes=2**20, policy="lru")

Which tokens share a forward pass says sim/interleave.py. A pass serves the union of its tokens' experts, and
every request in it waits for all of it: the time from one token to the next is that of the pass between.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import prophet_ext
from prophet_moe.formats.trace import TraceReader
from prophet_moe.runreport import percentile
from prophet_moe.sim.interleave import Step, mixed_order, schedule
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.replay import CLAIRVOYANT, PIECE, ReplayReport, make_core, report_of, shape_of
from prophet_moe.systems import PolicyFactory

if TYPE_CHECKING:
    from prophet_ext import Predictor


@dataclass(frozen=True)
class Waits:
    """Milliseconds from the step in which a request comes to the end of its prompt; None without prompts."""

    mean: float | None
    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class Serving:
    """What only requests side by side have."""

    concurrency: int  # sequences that live at once
    seed: int  # of their order
    prompt_tokens: int  # taken for a prompt where the trace has no phases
    passes: int
    rows: float  # tokens of a pass, mean
    union: float  # distinct experts of a layer step, mean
    streamed: float  # share of the layer steps that streamed
    tokens_per_second: float | None  # decoded
    ttft_ms: Waits


@dataclass(frozen=True)
class Piece:
    """Passes that are replayed in one call, and their rows one after the other."""

    rows: NDArray[np.int64]
    requests: NDArray[np.int64]  # [rows]
    passes: NDArray[np.int32]  # [passes, 2]: tokens, decoded


def serve(
    trace: TraceReader,
    machine: Machine,
    *,
    concurrency: int,
    slots: int,
    expert_bytes: int,
    seed: int = 0,
    prompt_tokens: int = 0,
    policy: str | PolicyFactory = "lru",
    pool: str = "global",
    keep: bool = True,
    prefetch_chunks: int = 2,
    predictor: Predictor | None = None,
    prefetch: Mapping[str, Any] | None = None,
    clairvoyant: bool = False,
    streaming: bool = True,
    sequences: Sequence[int] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[ReplayReport, Serving]:
    """Replays all sequences of the trace, or the named ones, `concurrency` at a time.

    Settings as sim.replay.replay; streaming False: no layer step streams (csrc/cache/cache.h). Bytes per
    token are all bytes that moved, prompts' included, per decoded token. Raises InvalidArgument as it does.
    """
    core = make_core(
        trace, machine, slots=slots, expert_bytes=expert_bytes, policy=policy, pool=pool, keep=keep,
        prefetch_chunks=prefetch_chunks, predictor=predictor, prefetch=prefetch, clairvoyant=clairvoyant,
        streaming=streaming,
    )  # fmt: skip
    steps = list(schedule(trace, mixed_order(trace, sequences, seed), concurrency, prompt_tokens))
    pieces = list(_pieces(steps))
    experts = trace.map("experts")
    gates = trace.map("gate_probs") if predictor is not None and trace.has("gate_probs") else None
    reads = predictor is not None and predictor.reads_tokens and trace.has("token_id")
    tokens = trace.map("token_id") if reads else None
    future = _future(trace, pieces, core.rooms) if policy == CLAIRVOYANT else None
    ends: list[NDArray[np.int64]] = []
    union = 0
    for piece in pieces:
        routes = np.asarray(experts[piece.rows], np.int32)
        shown = None if gates is None else np.asarray(gates[piece.rows], np.float32)
        following = None if future is None else future.pop()
        fed = None if tokens is None else np.asarray(tokens[piece.rows], np.int32)
        ends.append(core.packed(routes, piece.passes, shown, following, piece.requests, fed))
        union += distinct(routes, piece.passes[:, 0], trace.experts_per_layer)
        if progress is not None:
            progress(len(piece.rows))
    result = core.result()
    waits = _waits(steps, np.concatenate(ends) / 1e6)
    c, total = result["counters"], result["counters"]["now_ns"] / 1e9
    kind = None if predictor is None else predictor.name
    return report_of(result, machine, str(policy), pool, slots, False, kind), Serving(
        concurrency=concurrency,
        seed=seed,
        prompt_tokens=prompt_tokens,
        passes=len(steps),
        rows=sum(len(step.rows) for step in steps) / len(steps),
        union=union / (len(steps) * trace.layers),
        streamed=c["streamed_steps"] / c["layer_steps"],
        tokens_per_second=result["tokens"] / total if total > 0 else None,
        ttft_ms=waits,
    )


def distinct(routes: NDArray[np.int32], tokens: NDArray[np.int32], experts_per_layer: int) -> int:
    """Distinct experts of all layer steps: routes [rows, layers, top_k], tokens [passes] of each pass."""
    layers = routes.shape[1]
    place = np.repeat(np.arange(len(tokens)), tokens)[:, None] * layers + np.arange(layers)
    asked = np.zeros((len(tokens) * layers, experts_per_layer), bool)
    asked[np.broadcast_to(place[:, :, None], routes.shape), routes] = True
    return int(asked.sum())


def _pieces(steps: Sequence[Step]) -> Iterator[Piece]:
    """Passes together while they have at most PIECE rows."""
    begun, rows = 0, 0
    for at, step in enumerate(steps):
        if rows and rows + len(step.rows) > PIECE:
            yield _piece(steps[begun:at])
            begun, rows = at, 0
        rows += len(step.rows)
    if rows:
        yield _piece(steps[begun:])


def _piece(steps: Sequence[Step]) -> Piece:
    passes = np.array([(len(step.rows), step.decoded) for step in steps], np.int32)
    rows = np.concatenate([step.rows for step in steps])
    return Piece(rows, np.concatenate([step.requests for step in steps]), passes)


def _future(trace: TraceReader, pieces: Sequence[Piece], rooms: list[int]) -> list[NDArray[np.int64]]:
    """Next uses of every piece, the last piece first."""
    backward = prophet_ext.NextUse(**shape_of(trace), rooms=rooms)
    experts, found = trace.map("experts"), []
    for piece in reversed(pieces):
        routes = np.asarray(experts[piece.rows], np.int32)
        ends = np.cumsum(piece.passes[:, 0])
        uses = [
            backward.prepend(routes[end - count : end], int(count))
            for count, end in zip(piece.passes[::-1, 0], ends[::-1], strict=True)
        ]
        found.append(np.concatenate(uses[::-1]))
    return found


def _waits(steps: Sequence[Step], ends: NDArray[np.float64]) -> Waits:
    came: dict[int, float] = {}
    waited: list[float] = []
    begins = np.r_[0.0, ends[:-1]]
    for step, begin, end in zip(steps, begins.tolist(), ends.tolist(), strict=True):
        came.update(dict.fromkeys(step.came, begin))
        waited.extend(end - came[sequence] for sequence in step.answered)
    mean = sum(waited) / len(waited) if waited else None
    return Waits(mean, percentile(waited, 0.5), percentile(waited, 0.99))
