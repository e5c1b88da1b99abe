"""Does popularity move, from domain to domain and along a context?

Jensen-Shannon divergence between shares of uses, in bits (0 same, 1 nothing in common), mean over layers.
Finite samples always differ, and texts of one domain differ too: each divergence stands beside what shuffled
whole sequences give (between domains) or sequences turned in time (along the context).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prophet_moe.errors import InvalidArgument

from .information import entropy
from .popularity import uses_by_sequence
from .sample import Sample

Floats = NDArray[np.float64]
POSITIONS = (0, 16, 64, 256, 1024, 4096, 16384, 65536)
_LEAST = 64  # tokens of a domain or window


@dataclass(frozen=True)
class DomainDrift:
    """Between the domains that have enough tokens."""

    domains: list[str]
    tokens: list[int]
    matrix: list[list[float]]  # [D, D] bits
    mean: float  # off the diagonal
    p95: float
    shuffled: float  # the same mean when sequences change their labels
    shuffled_p95: float  # 95 % of shuffles lie below it
    within: float | None  # between halves of one domain, by sequence; None where no domain has two
    variation: float  # mean total variation of a domain against all tokens, 0 to 1


@dataclass(frozen=True)
class ContextDrift:
    """Windows of position against the window before, and against the first."""

    windows: list[tuple[int, int]]  # first position, and the one after the last
    tokens: list[int]
    from_before: list[float]  # bits; the first is 0
    from_first: list[float]
    by_chance: list[float]  # from_first when sequences are turned in time


def divergence(p: NDArray[Any], q: NDArray[Any]) -> Floats:
    """Jensen-Shannon, bits, over the last axis of counts."""
    p = np.asarray(p, np.float64) / np.maximum(np.sum(p, -1, keepdims=True), 1e-300)
    q = np.asarray(q, np.float64) / np.maximum(np.sum(q, -1, keepdims=True), 1e-300)
    return np.maximum(entropy((p + q) / 2) - (entropy(p) + entropy(q)) / 2, 0.0)


def _uses(sample: Sample) -> Floats:
    """[S, L, E]"""
    return np.stack([uses_by_sequence(sample, layer) for layer in range(sample.layers)], axis=1)


def _matrix(by_domain: Floats) -> Floats:
    """[D, L, E] -> [D, D], mean over layers."""
    rows = [divergence(one[None], by_domain).mean(1) for one in by_domain]
    return np.stack(rows)


def domain_drift(sample: Sample, shuffles: int, random: np.random.Generator) -> DomainDrift:
    """Raises InvalidArgument where fewer than two domains have enough tokens."""
    sizes = np.bincount(sample.sequence, minlength=sample.sequences)
    labels = np.array(sample.labels)
    named = {name: int(sizes[labels == name].sum()) for name in sample.domains}
    domains = [name for name, tokens in named.items() if tokens >= _LEAST]
    if len(domains) < 2:
        found = f"one domain ('{domains[0]}')" if domains else "no labelled domain"
        raise InvalidArgument(
            f"drift between domains needs two domains of {_LEAST} tokens at least; this trace has "
            f"{found}: record "
            "texts of several domains with their labels, or leave out --by-domain."
        )
    kept = np.isin(labels, domains)
    uses = _uses(sample)[kept]
    owner = np.searchsorted(domains, labels[kept])

    def pooled(owner: NDArray[np.intp]) -> Floats:
        out = np.zeros((len(domains), *uses.shape[1:]))
        np.add.at(out, owner, uses)
        return out

    by_domain = pooled(owner)
    matrix = _matrix(by_domain)
    off = ~np.eye(len(domains), dtype=bool)
    shuffled = [float(_matrix(pooled(random.permutation(owner)))[off].mean()) for _ in range(shuffles)]
    shares = by_domain / by_domain.sum(-1, keepdims=True)
    whole = uses.sum(0) / uses.sum(0).sum(-1, keepdims=True)
    return DomainDrift(
        domains=domains,
        tokens=[named[name] for name in domains],
        matrix=matrix.tolist(),
        mean=float(matrix[off].mean()),
        p95=float(np.quantile(matrix[off], 0.95)),
        shuffled=float(np.mean(shuffled)),
        shuffled_p95=float(np.quantile(shuffled, 0.95)),
        within=_halves(uses, owner, random),
        variation=float(np.abs(shares - whole).sum(-1).mean() / 2),
    )


def _halves(uses: Floats, owner: NDArray[np.intp], random: np.random.Generator) -> float | None:
    found = []
    for domain in range(int(owner.max()) + 1):
        mine = random.permutation(np.flatnonzero(owner == domain))
        if len(mine) > 1:
            halves = uses[mine[::2]].sum(0), uses[mine[1::2]].sum(0)
            found.append(float(divergence(*halves).mean()))
    return float(np.mean(found)) if found else None


def context_drift(sample: Sample, shuffles: int, random: np.random.Generator) -> ContextDrift | None:
    """None where no two windows have enough tokens."""
    window = np.searchsorted(POSITIONS, sample.position, side="right") - 1
    sizes = np.bincount(window, minlength=len(POSITIONS))
    kept = np.flatnonzero(sizes >= _LEAST)
    if len(kept) < 2:
        return None
    uses = _by_window(sample, window)[kept]
    chance = np.zeros(len(kept))
    starts = np.flatnonzero(np.r_[True, np.diff(sample.sequence) != 0])
    for _ in range(shuffles):
        blocks = np.split(window, starts[1:])
        turned = np.concatenate([np.roll(block, int(random.integers(len(block)))) for block in blocks])
        moved = _by_window(sample, turned)[kept]
        chance += divergence(moved[0][None], moved).mean(1) / shuffles
    return ContextDrift(
        windows=[(POSITIONS[w], _end(int(w), sample)) for w in kept],
        tokens=sizes[kept].tolist(),
        from_before=[0.0, *divergence(uses[1:], uses[:-1]).mean(1).tolist()],
        from_first=divergence(uses[0][None], uses).mean(1).tolist(),
        by_chance=chance.tolist(),
    )


def _end(window: int, sample: Sample) -> int:
    last = int(sample.position.max()) + 1
    return min(last, POSITIONS[window + 1]) if window + 1 < len(POSITIONS) else last


def _by_window(sample: Sample, window: NDArray[np.intp]) -> Floats:
    """[windows, L, E]"""
    experts, count = sample.experts_per_layer, len(POSITIONS)
    out = np.empty((count, sample.layers, experts))
    for layer in range(sample.layers):
        codes = np.asarray(sample.experts[:, layer]).astype(np.intp) + window[:, None] * experts
        out[:, layer] = np.bincount(codes.ravel(), minlength=count * experts).reshape(count, experts)
    return out
