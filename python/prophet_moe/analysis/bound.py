"""What the whole source set says about each target expert: a lower bound, in held-out bits.

The information of a set of K experts cannot be counted: there are too many sets. But a forecaster that sees
the whole set and saves b bits of cross-entropy on texts it was not fitted to proves that at least b bits are
there. Here it is one logistic regression for each target expert on the indicators of the source experts,
against the shares of the fitting texts. Bits are summed over target experts, each taken alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .pairing import Pairing
from .sample import Ints, Sample

Floats = NDArray[np.float32]
_FITTED = 12_000  # tokens
_ROUNDS = 40
_RIDGE = 1.0


@dataclass(frozen=True)
class Bound:
    """Mean over pairs of layers. Below 0: the forecaster is worse than shares."""

    bits: float
    of_entropy: float  # bits / cross-entropy of the shares
    interval: (
        tuple[float, float] | None
    )  # 95 % of of_entropy, over held-out sequences; None for fewer than two


def indicators(ids: Ints, experts: int) -> Floats:
    """[m, K] -> [m, E] 0 or 1"""
    out = np.zeros((len(ids), experts), np.float32)
    np.put_along_axis(out, ids.astype(np.intp), 1.0, axis=1)
    return out


def fit_logistic(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(weights [E, E'], intercepts [E']) of y [m, E'] on x [m, E]: ridge, by steps on Boehning's bound of the
    curvature.

    The bound is shared by all targets, so one factorisation serves every step; Nesterov's momentum speeds
    them up.
    """
    m, experts = x.shape
    design = np.concatenate([x, np.ones((m, 1), np.float32)], 1)
    curvature = design.T.astype(np.float64) @ design / 4
    curvature[np.arange(experts), np.arange(experts)] += _RIDGE
    curvature += 1e-6 * np.eye(experts + 1)
    inverse = np.linalg.inv(curvature).astype(np.float32)
    share = np.clip(y.mean(0), 0.5 / m, 1 - 0.5 / m)
    at = np.zeros((experts + 1, y.shape[1]), np.float32)
    at[-1] = np.log(share / (1 - share))
    ahead = at
    for step in range(_ROUNDS):
        p = 1 / (1 + np.exp(-np.clip(design @ ahead, -30, 30)))
        gradient = design.T @ (p - y)
        gradient[:-1] += _RIDGE * ahead[:-1]
        new = ahead - inverse @ gradient
        ahead = new + step / (step + 3) * (new - at)
        at = new
    return at[:-1], at[-1]


def saved_bits(
    sample: Sample,
    pairing: Pairing,
    layers: tuple[int, int],
    fitted: NDArray[np.bool_],
    random: np.random.Generator,
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Which pairs were held out, and their bits [m, 2] under the shares and under the forecaster.

    fitted [S]: sequences to fit on; all others are held out.
    """
    source, target = pairing.source, pairing.target
    experts = sample.experts_per_layer
    sides = [np.asarray(sample.experts[:, layer]) for layer in layers]
    learn = fitted[sample.sequence[source]]
    rows = np.flatnonzero(learn)
    if len(rows) > _FITTED:
        rows = np.sort(random.choice(rows, _FITTED, replace=False))
    x, y = (indicators(side[at[rows]], experts) for side, at in zip(sides, (source, target), strict=True))
    weights, intercept = fit_logistic(x, y)
    held = np.flatnonzero(~learn)
    if len(held) > 2 * _FITTED:
        held = np.sort(random.choice(held, 2 * _FITTED, replace=False))
    x, truth = (indicators(side[at[held]], experts) for side, at in zip(sides, (source, target), strict=True))
    logits = x @ weights + intercept
    share = np.clip(y.mean(0), 0.5 / len(y), 1 - 0.5 / len(y))
    known = np.broadcast_to(np.log(share / (1 - share)).astype(np.float32), logits.shape)
    return held, np.stack([_bits(known, truth), _bits(logits, truth)], 1)


def _bits(logits: Floats, truth: Floats) -> NDArray[np.float64]:
    return (np.logaddexp(0, logits) - truth * logits).sum(1, dtype=np.float64) / np.log(2)
