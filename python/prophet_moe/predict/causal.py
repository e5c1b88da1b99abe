"""What a forecast is worth to eviction: misses of one pool of slots, counted as the runtime would.

Before layer l of token t computes, its K experts must be resident; each absent one is one miss. The
scores of layer l are renewed when its router has spoken, before victims are chosen; all other
layers keep the score from when they last ran. Nothing a later router says is looked at. The victim
is the resident, not needed by this layer, with the largest

    distance = d + (gap - 1) * L,   d = layer(i) - l if layer(i) > l, else layer(i) - l + L

in layer steps. With the true gaps as scores this is the clairvoyant bound.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from prophet_moe.errors import InvalidArgument

from .features import Stream, gaps

FRACTIONS = (0.25, 0.375, 0.5, 0.75)
Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[Any]


def misses(stream: Stream, gap: Reals, slots: int, held_at: npt.NDArray[np.bool_] | None = None) -> int:
    """Experts brought in while the stream decodes, cache warm from sequence to sequence, empty at first.

    gap [n, L, E]: expected turns to next use (>= 1) as known when that layer of that token has run.
    held_at [n, L, E], when given, receives which experts were resident when their layer's router spoke.
    """
    n, layers, experts = gap.shape
    if gap.shape != (len(stream), stream.layers, stream.experts_per_layer):
        raise InvalidArgument(f"scores {gap.shape} do not fit a stream of {len(stream)} tokens")
    if slots < stream.top_k:
        raise InvalidArgument(f"{slots} slots cannot hold the {stream.top_k} experts of one layer")
    layer_of = np.repeat(np.arange(layers), experts)
    ahead = layer_of[None] - np.arange(layers)[:, None]
    wait = (np.where(ahead > 0, ahead, ahead + layers) - layers).astype(np.float32)
    flat = stream.experts + np.arange(layers)[None, :, None] * experts
    score = np.full(layers * experts, experts / stream.top_k * layers, np.float32)
    resident = np.zeros(layers * experts, bool)
    held = count = 0
    for t in range(n):
        fresh = gap[t].astype(np.float32) * layers
        for layer in range(layers):
            score[layer * experts : (layer + 1) * experts] = fresh[layer]
            if held_at is not None:
                held_at[t, layer] = resident[layer * experts : (layer + 1) * experts]
            needed = flat[t, layer]
            absent = needed[~resident[needed]]
            if not len(absent):
                continue
            count += len(absent)
            over = held + len(absent) - slots
            if over > 0:
                distance = np.where(resident, score + wait[layer], -np.inf)
                distance[needed] = -np.inf
                if over == 1:
                    resident[distance.argmax()] = False
                else:
                    resident[np.argpartition(distance, -over)[-over:]] = False
                held -= over
            resident[absent] = True
            held += len(absent)
    return count


def miss_rates(stream: Stream, gap: Reals, fractions: Sequence[float] = FRACTIONS) -> list[float]:
    """misses / (tokens * L * K) with slots for these fractions of all experts."""
    total = stream.layers * stream.experts_per_layer
    return [misses(stream, gap, int(total * f)) / max(stream.experts.size, 1) for f in fractions]


def belady(stream: Stream, fractions: Sequence[float] = FRACTIONS) -> list[float]:
    """The least misses any policy with these slots can have."""
    return miss_rates(stream, gaps(stream), fractions)


def classical_gaps(stream: Stream, popularity: Floats | None = None) -> dict[str, Floats]:
    """Scores [n, L, E] of policies without training: recency, and expected gap of decayed frequency.

    popularity [L, E]: share of tokens that used an expert, of a training part; adds the static mix.
    """
    decays = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
    n, layers, experts = len(stream), stream.layers, stream.experts_per_layer
    now = {d: np.full((layers, experts), stream.top_k / experts, np.float32) for d in decays}
    age = np.full((layers, experts), 300.0, np.float32)
    names = ["lru", "average .95", "averages .5 .8 .95 .99"]
    if popularity is not None:
        names.append("averages .8 .9 .98 + popularity")
    out = {name: np.empty((n, layers, experts), np.float32) for name in names}
    chosen = stream.selected()
    for t in range(n):
        age += 1
        age[chosen[t]] = 0
        for d, e in now.items():
            e *= d
            e += (1 - d) * chosen[t]
        out["lru"][t] = age + 1
        rates: dict[str, Reals] = {
            "average .95": now[0.95],
            "averages .5 .8 .95 .99": (now[0.5] + now[0.8] + now[0.95] + now[0.99]) / 4,
        }
        if popularity is not None:
            rates[names[-1]] = (now[0.8] + now[0.9] + now[0.98] + popularity) / 4
        for name, p in rates.items():
            out[name][t] = 1 / np.maximum(p, 1e-4)
    return out


def gap_closed(
    rates: Sequence[float], best_classical: Sequence[float], bound: Sequence[float]
) -> list[float]:
    """Share of the miss-rate gap between the best classical policy and the bound that is closed."""
    return [(c - r) / (c - b) if c > b else 0.0 for r, c, b in zip(rates, best_classical, bound, strict=True)]


def best_per_size(table: Mapping[str, Sequence[float]]) -> list[str]:
    """The name with the fewest misses at each size; chosen on validation data, used on test data."""
    sizes = len(next(iter(table.values())))
    return [min(table, key=lambda name: table[name][i]) for i in range(sizes)]
