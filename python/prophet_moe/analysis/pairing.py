"""Which tokens are looked at together, how they are shuffled for the nulls, and how sequences are resampled.

Tokens of one sequence depend on each other, so a shuffle of single tokens would understate what chance
does. Two nulls keep the order of tokens on either side:

    other   sequences in a shuffled order, the targets turned against the sources by between a quarter and
            three quarters of all; pairs within one sequence are dropped. What is left is estimation error:
            true information is 0. Of one sequence there is no other, and "moved" takes its place.
    moved   targets of the same sequence, turned by between a quarter and three quarters of its length. What
            is left is what the two sides share because they belong to one text (its popularity), not one
            moment.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .sample import Sample

Index = NDArray[np.int64]
_CELLS = 1 << 24  # entries of the per-group tables
_GROUPS = 512


@dataclass(frozen=True)
class Resampling:
    """A bootstrap over sequences: weights [B, G], each row of which sums to G; group [S] of each sequence."""

    group: Index
    weights: NDArray[np.float64]

    @property
    def groups(self) -> int:
        return int(self.weights.shape[1])


def resample(sample: Sample, times: int, random: np.random.Generator) -> Resampling | None:
    """None where there is but one sequence: nothing then says how far texts differ.

    More sequences than the tables have room for are drawn together, in groups of equal number.
    """
    if sample.sequences < 2 or times < 2:
        return None
    room = max(2, min(_GROUPS, _CELLS // sample.experts_per_layer**2))
    groups = min(sample.sequences, room)
    group = random.permutation(np.arange(sample.sequences) % groups)
    weights = random.multinomial(groups, np.full(groups, 1 / groups), size=times)
    return Resampling(group.astype(np.int64), weights.astype(np.float64))


@dataclass(frozen=True)
class Shuffle:
    """Pairs of a null: source row [m'], target row [m'], and m' as a share of the true pairs' m."""

    source: Index
    target: Index
    share: float = 1.0


@dataclass(frozen=True)
class Pairing:
    """Rows of the sample looked at together: a token and the one `lag` tokens on."""

    lag: int
    source: Index  # [m]
    target: Index  # [m]
    sequence: Index  # [m]
    other: tuple[Shuffle, ...]
    moved: tuple[Shuffle, ...]


def pair(sample: Sample, lag: int, shuffles: int, random: np.random.Generator) -> Pairing:
    """All pairs at this distance within runs; none where every run is shorter."""
    n = sample.tokens
    source = np.flatnonzero(sample.run[lag:] == sample.run[: n - lag]) if lag < n else np.empty(0, np.int64)
    target = source + lag
    sequence = sample.sequence[source]
    starts = np.flatnonzero(np.r_[True, np.diff(sequence) != 0]) if len(source) else np.empty(0, np.int64)
    blocks = np.split(np.arange(len(source)), starts[1:])
    other, moved = [], []
    for _ in range(shuffles if len(source) else 0):
        if len(blocks) > 1:
            order = np.concatenate([blocks[i] for i in random.permutation(len(blocks))])
            turned = np.roll(order, _distance(len(order), random))
            keep = sequence[order] != sequence[turned]
            a, b = source[order[keep]], target[turned[keep]]
            other.append(Shuffle(a, b, float(keep.mean())))
        turned = np.concatenate([np.roll(b, _distance(len(b), random)) for b in blocks])
        moved.append(Shuffle(source, target[turned]))
    return Pairing(lag, source, target, sequence, tuple(other) or tuple(moved), tuple(moved))


def _distance(length: int, random: np.random.Generator) -> int:
    return int(random.integers(max(1, length // 4), max(1, 3 * length // 4) + 1))
