"""What a predictor sees of a routing trace, and what it is asked: averages, windows, labels.

A `Stream` is the sequences of one part of a split, glued together as a single decoding user whose
cache stays warm. All features of a row use that row and earlier ones; all labels use later ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceReader

FAR = 60_000  # a gap longer than any horizon, and the gap of what never returns
FLOOR = 0.004  # added to an average before its logarithm


@dataclass(frozen=True)
class Stream:
    """Routing of consecutive tokens.

    experts  int [n, L, K], ids 0..E-1          gate    float32 [n, L, K], rows sum to 1
    starts   int64 [S + 1], rows where sequences begin, then n
    labels   S names of domains ("" unknown)    hidden  float16 [n, L, H], what the routers read, or None
    """

    experts: npt.NDArray[np.int64]
    gate: npt.NDArray[np.float32]
    starts: npt.NDArray[np.int64]
    experts_per_layer: int
    labels: Sequence[str] = ()
    hidden: npt.NDArray[np.float16] | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.experts.ndim != 3 or self.gate.shape != self.experts.shape:
            raise InvalidArgument(
                f"experts {self.experts.shape} and gates {self.gate.shape} must both be "
                "[tokens, layers, top-k]"
            )
        if len(self.experts) and not (
            int(self.experts.min()) >= 0 and int(self.experts.max()) < self.experts_per_layer
        ):
            raise InvalidArgument(f"the trace names experts outside 0..{self.experts_per_layer - 1}")
        if not np.isfinite(self.gate).all():
            raise InvalidArgument("the trace has gate probabilities that are not finite; record it again")

    @property
    def layers(self) -> int:
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[2])

    def __len__(self) -> int:
        return len(self.experts)

    def selected(self) -> npt.NDArray[np.bool_]:
        """bool [n, L, E]: the router chose this expert."""
        out = np.zeros((len(self), self.layers, self.experts_per_layer), bool)
        np.put_along_axis(out, self.experts, True, 2)
        return out


def stream_of(trace: TraceReader, sequences: Sequence[int], hidden: bool = False) -> Stream:
    """The named sequences of a trace, glued together in that order. Gates default to 1 / K each.

    Raises TraceError when `hidden` is asked of a trace recorded without `gate_input`.
    """
    if hidden and not trace.has("gate_input"):
        trace.map("gate_input")
    parts = [trace.sequence(s) for s in sequences]
    if not parts:
        raise InvalidArgument("a stream needs at least one sequence")
    experts = np.concatenate([p.experts for p in parts]).astype(np.int64)
    gate = np.full(experts.shape, 1 / trace.top_k, np.float32)
    if trace.has("gate_probs"):
        gate = np.concatenate([p.gate_probs for p in parts if p.gate_probs is not None]).astype(np.float32)
    read = [p.gate_input for p in parts if p.gate_input is not None] if hidden else []
    return Stream(
        experts,
        gate,
        np.cumsum([0] + [len(p) for p in parts]),
        trace.experts_per_layer,
        [trace.labels[s] for s in sequences],
        np.concatenate(read).astype(np.float16) if read else None,
    )


def fingerprint(stream: Stream) -> str:
    """sha256 of the expert ids, in the order they were seen."""
    return hashlib.sha256(np.ascontiguousarray(stream.experts, np.int32).tobytes()).hexdigest()


def averages(stream: Stream, decays: Sequence[float], dtype: Any = np.float16) -> npt.NDArray[Any]:
    """[n, L, D, E]: decayed averages of "was selected", after each token; they start at K / E."""
    n, layers, experts = len(stream), stream.layers, stream.experts_per_layer
    out = np.empty((n, layers, len(decays), experts), dtype)
    keep = np.asarray(decays, np.float32)[:, None]
    now = np.full((layers, len(decays), experts), stream.top_k / experts, np.float32)
    chosen = stream.selected()[:, :, None]
    for t in range(n):
        now *= keep
        now += (1 - keep) * chosen[t]
        out[t] = now
    return out


def gaps(stream: Stream) -> npt.NDArray[np.uint16]:
    """uint16 [n, L, E]: turns from each row to the next use strictly after it, at least 1, at most FAR."""
    chosen = stream.selected()
    out = np.empty(chosen.shape, np.uint16)
    now = np.full(chosen.shape[1:], FAR, np.int32)
    for t in range(len(stream) - 1, -1, -1):
        out[t] = now
        now += 1
        now[chosen[t]] = 1
        np.minimum(now, FAR, out=now)
    return out


class Rows:
    """A stream made ready for a network: dense gates, averages and gaps, gathered by row number.

    Kept in float16, which is enough to train on and to score by; `exact` keeps float32.
    """

    def __init__(
        self, stream: Stream, decays: Sequence[float], labels: bool = True, exact: bool = False
    ) -> None:
        dtype = np.float32 if exact else np.float16
        n, layers, top_k = stream.experts.shape
        dense = np.zeros((n, layers, stream.experts_per_layer), dtype)
        total = stream.gate.sum(2, keepdims=True)
        gate = np.where(total > 0, stream.gate * top_k / np.where(total > 0, total, 1), 1)
        np.put_along_axis(dense, stream.experts, gate.astype(dtype), 2)
        self.gate = torch.from_numpy(dense)
        self.chosen = torch.from_numpy(stream.selected())
        self.average = torch.from_numpy(averages(stream, decays, dtype))
        self.logs = torch.empty_like(self.average)
        for a in range(0, n, 4096):
            self.logs[a : a + 4096] = torch.log(self.average[a : a + 4096].float() + FLOOR)
        self.gap = torch.from_numpy(gaps(stream).astype(np.int32)) if labels else None
        self.hidden = None if stream.hidden is None else torch.from_numpy(stream.hidden)
        self.stream = stream

    def __len__(self) -> int:
        return len(self.gate)

    def at(self, what: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """what[rows] in float32; rows before the first one read as zeros."""
        out = what[rows.clamp(min=0)].float()
        missing = rows < 0
        if bool(missing.any()):
            out[missing] = 0.0
        return out
