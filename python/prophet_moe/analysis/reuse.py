"""What a cache of N slots would miss, for every N, and after how many tokens experts come back.

LRU and the clairvoyant are counted in one pass over stack distances (csrc/sim/stack_distance.h) and equal
replays of the same tokens, one per forward pass, cache warm from sequence to sequence and empty at first. The
fixed set is the best there is in hindsight: the N most used experts, never exchanged, others streamed past
it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

import prophet_ext

from .sample import Sample

Floats = NDArray[np.float64]
FRACTIONS = (0.25, 0.375, 0.5, 0.75)
_PIECE = 4096  # tokens
GAPS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


@dataclass(frozen=True)
class Curves:
    """Miss rates (misses / accesses) by slots, from 0; 1 below top_k, where no layer can run."""

    lru: list[float]  # [L * E + 1] one pool for all layers
    clairvoyant: list[float]
    fixed: list[float]
    lru_per_layer: list[float]  # [E + 1] by slots of each layer, all layers together
    clairvoyant_per_layer: list[float]
    lru_by_layer: list[list[float]]  # [L][E + 1]
    clairvoyant_by_layer: list[list[float]]
    accesses: int
    never_used: int  # experts that no token chose
    returns_within: dict[int, float]  # share of uses whose expert is used again within so many tokens


@dataclass(frozen=True)
class AtSize:
    """Miss rates of one pool of this many slots."""

    slots: int
    fraction: float
    fixed: float
    lru: float
    clairvoyant: float


def reuse(sample: Sample, progress: Callable[[int], None] | None = None) -> Curves:
    """progress is told tokens done since the last time; each token counts twice."""
    tell = progress or (lambda _: None)
    layers, experts, top_k = sample.layers, sample.experts_per_layer, sample.top_k
    geometry = {"layers": layers, "experts_per_layer": experts, "top_k": top_k}
    backward = prophet_ext.NextUse(**geometry, rooms=[experts] * layers)
    stacks = prophet_ext.StackDistances(**geometry)
    firsts = range(0, sample.tokens, _PIECE)
    within = np.zeros(len(GAPS))
    with tempfile.TemporaryFile() as kept:  # next uses are found from the end, and read from the beginning
        places: list[tuple[int, int]] = []
        for first in reversed(firsts):
            uses = backward.prepend(np.asarray(sample.experts[first : first + _PIECE]))
            places.append((kept.tell(), uses.nbytes))
            kept.write(uses.tobytes())
            tell(min(_PIECE, sample.tokens - first))
        for first, (at, size) in zip(firsts, reversed(places), strict=True):
            kept.seek(at)
            uses = np.frombuffer(kept.read(size), np.int64)
            part = np.asarray(sample.experts[first : first + _PIECE])
            within += _returns(uses, first - sample.tokens, part.shape)
            stacks.decode(part, uses)
            tell(len(part))
    total = stacks.accesses
    counts = np.zeros((layers, experts))
    for layer in range(layers):
        counts[layer] = np.bincount(np.asarray(sample.experts[:, layer]).ravel(), minlength=experts)
    popular = -np.sort(-counts.ravel())
    lru_layers, best_layers = stacks.lru_per_layer(), stacks.clairvoyant_per_layer()
    each = total / layers
    return Curves(
        lru=_rates(stacks.lru(), total),
        clairvoyant=_rates(stacks.clairvoyant(), total),
        fixed=[1.0, *(1 - np.cumsum(popular) / total).clip(0).tolist()],
        lru_per_layer=_rates(lru_layers.sum(0), total),
        clairvoyant_per_layer=_rates(best_layers.sum(0), total),
        lru_by_layer=[_rates(row, each) for row in lru_layers],
        clairvoyant_by_layer=[_rates(row, each) for row in best_layers],
        accesses=total,
        never_used=int((counts == 0).sum()),
        returns_within={gap: float(share) for gap, share in zip(GAPS, within / total, strict=True)},
    )


def _rates(misses: NDArray[Any], total: float) -> list[float]:
    return [float(rate) for rate in np.asarray(misses, np.float64) / total]


def _returns(uses: NDArray[np.int64], first: int, shape: tuple[int, ...]) -> Floats:
    """How many uses of a piece return within each of GAPS tokens; times count layer steps, down from 0."""
    tokens, layers, top_k = shape
    now = (first * layers + np.arange(tokens * layers))[:, None]
    steps = np.minimum(uses, 1 << 40).reshape(-1, top_k) - now  # none: far beyond any gap
    return np.array([(steps <= gap * layers).sum() for gap in GAPS], np.float64)


def at_sizes(curves: Curves, slots: list[int]) -> list[AtSize]:
    total = len(curves.lru) - 1
    return [AtSize(n, n / total, curves.fixed[n], curves.lru[n], curves.clairvoyant[n]) for n in slots]
