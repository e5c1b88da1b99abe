"""Splits of a trace by sequence or by domain; a token is never parted from its sequence."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from prophet_moe.formats.trace_file import TraceError

if TYPE_CHECKING:
    from prophet_moe.formats.trace import TraceReader

RUN = 8  # tokens of a run that is compared
OPENING = 20  # tokens of an opening that is compared
SHARE = 0.3  # a sequence with this share of its runs in the held-out ones is a copy


@dataclass(frozen=True)
class Split:
    """Numbers of sequences. `dropped` are copies of held-out sequences, in none of the three."""

    train: tuple[int, ...]
    val: tuple[int, ...]
    test: tuple[int, ...]
    dropped: tuple[int, ...]


def split_sequences(trace: TraceReader, test: int, val: int, seed: int = 0) -> Split:
    """Shuffles sequences with `seed`: the first `test` are held out, of the rest that copy none of them
    `val` are for choices, and what copies neither is for training.

    Text repeats (exam questions, greedy answers), and a copy in training makes a test worthless. Routes are
    compared, not text: the expert set of layer 0 is nearly a function of the token. A copy
    opens with the same 20 sets as a held-out sequence, or has 30 % of its runs of 8 tokens in them.
    Raises TraceError when too few sequences are left.
    """
    if test < 0 or val < 0 or test + val >= trace.sequences:
        raise TraceError(
            f"{trace.path} has {trace.sequences} sequences: {test} for testing and {val} for choices "
            "leave none to train on."
        )
    marks = [_Marks(trace.map("experts")[trace.rows(s), 0]) for s in range(trace.sequences)]
    order = [int(s) for s in np.random.default_rng(seed).permutation(trace.sequences)]
    held, rest = order[:test], _without_copies(order[test:], order[:test], marks)
    chosen, rest = rest[:val], rest[val:]
    train = _without_copies(rest, chosen, marks)
    if len(chosen) < val or not train:
        raise TraceError(
            f"{trace.path}: without copies of held-out sequences too few are left; hold out fewer."
        )
    kept = {*train, *chosen, *held}
    return Split(tuple(train), tuple(chosen), tuple(held), tuple(s for s in order if s not in kept))


def split_domains(trace: TraceReader, held_out: Iterable[str], val: int = 0, seed: int = 0) -> Split:
    """All sequences of the domains `held_out` test, `val` others are for choices, the rest train.

    Raises TraceError: unknown labels, or nothing left to train on.
    """
    wanted = set(held_out)
    known = set(trace.labels) - {""}
    if unknown := wanted - known:
        raise TraceError(
            f"{trace.path} has no domain {', '.join(sorted(unknown))}; "
            f"it has {', '.join(sorted(known)) or 'no labels'}."
        )
    order = [int(s) for s in np.random.default_rng(seed).permutation(trace.sequences)]
    test = [s for s in order if trace.labels[s] in wanted]
    rest = [s for s in order if trace.labels[s] not in wanted]
    if len(rest) <= val:
        raise TraceError(
            f"{trace.path}: {len(rest)} sequences left beside {', '.join(sorted(wanted))}: hold out fewer."
        )
    return Split(tuple(rest[val:]), tuple(rest[:val]), tuple(test), ())


class _Marks:
    """What gives a copy away: its opening, and its runs."""

    def __init__(self, first_layer: NDArray[Any]) -> None:
        sets = np.ascontiguousarray(np.sort(first_layer.astype(np.int32), axis=1))
        tokens = [row.tobytes() for row in sets]
        self.opening = b"".join(tokens[:OPENING])
        self.runs = {b"".join(tokens[i : i + RUN]) for i in range(len(tokens) - RUN + 1)}


def _without_copies(candidates: list[int], held_out: list[int], marks: list[_Marks]) -> list[int]:
    openings = {marks[s].opening for s in held_out}
    seen = set().union(*(marks[s].runs for s in held_out))
    return [
        s
        for s in candidates
        if marks[s].opening not in openings and len(marks[s].runs & seen) < SHARE * max(len(marks[s].runs), 1)
    ]
