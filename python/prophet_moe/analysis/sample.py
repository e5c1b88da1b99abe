"""The part of a trace that is analysed: which tokens, which expert of each set is the dominant one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import DECODE, PREFILL, TraceReader

PHASES = ("auto", "decode", "prefill", "all")
LEAST_TOKENS = 64
_AT_ONCE = 16_384  # tokens

Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True)
class Sample:
    """n tokens of S sequences, in the order of the trace. A run is consecutive tokens of one sequence."""

    experts: Ints  # [n, L, K], mapped from the file where all of its tokens are taken
    dominant: Ints  # [n, L]
    sequence: NDArray[np.int64]  # [n] 0 .. S - 1
    run: NDArray[np.int64]  # [n]
    position: NDArray[np.int64]  # [n] rows since the sequence began, tokens of other phases included
    labels: tuple[str, ...]  # [S] "" where none was noted
    experts_per_layer: int
    dominant_by: str  # "largest gate" or "first listed expert"
    phase: str  # what `experts` holds: "decode", "prefill" or "all"

    @property
    def tokens(self) -> int:
        return len(self.experts)

    @property
    def layers(self) -> int:
        return int(self.experts.shape[1])

    @property
    def top_k(self) -> int:
        return int(self.experts.shape[2])

    @property
    def sequences(self) -> int:
        return len(self.labels)

    @property
    def domains(self) -> tuple[str, ...]:
        return tuple(sorted(set(self.labels) - {""}))


def take_sample(trace: TraceReader, phase: str = "auto") -> Sample:
    """The tokens of one phase. "auto": decoded tokens where there are any, else all.

    Raises InvalidArgument: an unknown phase, fewer than LEAST_TOKENS tokens of it; TraceError: ids that
    cannot be.
    """
    if phase not in PHASES:
        raise InvalidArgument(f"phase is one of {', '.join(PHASES)}, not '{phase}'.")
    trace.check_ids()
    phases = np.asarray(trace.map("phase")) if trace.has("phase") else np.full(trace.tokens, DECODE, np.uint8)
    if phase == "auto":
        phase = "decode" if (phases == DECODE).any() else "all"
    wanted = {"decode": phases == DECODE, "prefill": phases == PREFILL, "all": np.ones(trace.tokens, bool)}
    rows = np.flatnonzero(wanted[phase])
    if len(rows) < LEAST_TOKENS:
        raise InvalidArgument(
            f"{trace.path} has {len(rows)} tokens of phase '{phase}'; an analysis needs {LEAST_TOKENS} at "
            "least: "
            "record a longer trace, or take another --phase."
        )
    which = np.searchsorted(trace.sequence_start, rows, side="right") - 1
    present, sequence = np.unique(which, return_inverse=True)
    gaps = (np.diff(rows) != 1) | (np.diff(which) != 0)
    experts: Ints = trace.map("experts")
    if len(rows) < trace.tokens:
        experts = np.asarray(experts[rows])
    return Sample(
        experts=experts,
        dominant=_dominant(trace, experts, rows),
        sequence=sequence.astype(np.int64),
        run=np.r_[0, np.cumsum(gaps)].astype(np.int64),
        position=(rows - trace.sequence_start[which]).astype(np.int64),
        labels=tuple(trace.labels[s] for s in present),
        experts_per_layer=trace.experts_per_layer,
        dominant_by="largest gate" if trace.has("gate_probs") else "first listed expert",
        phase=phase,
    )


def _dominant(trace: TraceReader, experts: Ints, rows: NDArray[np.int64]) -> Ints:
    if not trace.has("gate_probs"):
        return np.ascontiguousarray(experts[:, :, 0])
    gates = trace.map("gate_probs")
    out = np.empty(experts.shape[:2], experts.dtype)
    for first in range(0, len(rows), _AT_ONCE):
        part = slice(first, first + _AT_ONCE)
        best = np.asarray(gates[rows[part]]).argmax(axis=2)
        out[part] = np.take_along_axis(np.asarray(experts[part]), best[:, :, None], axis=2)[:, :, 0]
    return out
