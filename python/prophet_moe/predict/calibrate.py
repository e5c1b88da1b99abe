"""Calibration on held-out sequences: a temperature and a shift per head and group of layers.

Fitted by Newton's method on the cross-entropy of sigmoid(scale * logit + shift). Deep and early
layers differ in how sure they may be; single layers have too few samples to be told apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from prophet_moe.errors import InvalidArgument

from .features import Rows
from .outputs import Floats, Outputs, Reals, sigmoid

GROUPS = 4
LIMITS = (6.0, 8.0, 12.0, 16.0, 24.0, 40.0, 80.0)


@dataclass(frozen=True)
class Calibration:
    """next_scale, next_shift [L, N]; ahead_scale, ahead_shift [F, L]; gap_weight [G, 1 + N] of `limits`.

    p = sigmoid(scale * logit + shift);  E[min(gap, H)] = weight[0] + sum over n of weight[1 + n] * (1 - p_n).
    """

    next_scale: Floats
    next_shift: Floats
    ahead_scale: Floats
    ahead_shift: Floats
    gap_weight: Floats
    limits: Sequence[float] = LIMITS

    def next_use(self, use: Reals) -> Floats:
        """Raw logits [n, L, N, E] -> P(used within h_n turns)."""
        return sigmoid(use * self.next_scale[:, :, None] + self.next_shift[:, :, None])

    def look_ahead(self, ahead: Reals) -> Floats:
        """Raw logits [F, n, L, E] -> P(in the set of that layer)."""
        return sigmoid(ahead * self.ahead_scale[:, None, :, None] + self.ahead_shift[:, None, :, None])

    def gap(self, use: Reals, limit: float, chunk: int = 1024) -> Floats:
        """Raw logits [n, L, N, E] -> estimate of E[min(turns to next use, limit)], >= 1, [n, L, E]."""
        weight = self.gap_weight[list(self.limits).index(limit)]
        out = np.empty((len(use), use.shape[1], use.shape[3]), np.float32)
        for a in range(0, len(use), chunk):
            idle = 1 - self.next_use(use[a : a + chunk])
            out[a : a + chunk] = weight[0] + np.einsum("tlne,n->tle", idle, weight[1:])
        return np.maximum(out, 1, out=out)


def temperature(logit: Reals, label: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """(scale, shift) that minimise the cross-entropy; (1, 0) when only one label occurs."""
    x, y = logit.astype(np.float64).ravel(), label.ravel().astype(np.float64)
    if not np.isfinite(x).all():
        raise InvalidArgument("logits that are not finite cannot be calibrated; train the predictor again")
    if not 0 < y.mean() < 1:
        return 1.0, 0.0
    scale, shift = 1.0, 0.0
    for _ in range(20):
        p = 1 / (1 + np.exp(-np.clip(scale * x + shift, -40, 40)))
        w = p * (1 - p) + 1e-9
        gradient = np.array([((p - y) * x).mean(), (p - y).mean()])
        curve = np.array([[(w * x * x).mean(), (w * x).mean()], [(w * x).mean(), w.mean()]])
        step = np.linalg.solve(curve + 1e-9 * np.eye(2), gradient)
        step *= min(1.0, 0.5 / max(abs(float(step[0])), 1e-12))
        scale, shift = scale - float(step[0]), shift - float(step[1])
        if abs(step).max() < 1e-6:
            break
    return max(scale, 1e-3), shift


def calibrate(rows: Rows, said: Outputs, heads: Sequence[int], stride: int = 5) -> Calibration:
    """Fits everything on the rows of held-out sequences, taking every `stride`-th row."""
    if rows.gap is None:
        raise InvalidArgument("these rows were made without labels; make them with labels=True to calibrate")
    use, gap = said.use[::stride], rows.gap[::stride].numpy()
    layers, ahead = use.shape[1], said.ahead[:, 1::stride]
    chosen = rows.chosen[1::stride].numpy()
    next_scale, next_shift = np.ones((2, layers, len(heads)), np.float32) * [[[1]], [[0]]]
    ahead_scale, ahead_shift = np.ones((2, len(ahead), layers), np.float32) * [[[1]], [[0]]]
    for group in np.array_split(np.arange(layers), min(GROUPS, layers)):
        for n, h in enumerate(heads):
            next_scale[group, n], next_shift[group, n] = temperature(use[:, group, n], gap[:, group] <= h)
        for f in range(len(ahead)):
            those = group[group > f]
            if len(those):
                fit = temperature(ahead[f][:, those], chosen[:, those])
                ahead_scale[f, those], ahead_shift[f, those] = fit
    partial = Calibration(
        next_scale.astype(np.float32),
        next_shift.astype(np.float32),
        ahead_scale.astype(np.float32),
        ahead_shift.astype(np.float32),
        np.zeros((len(LIMITS), 1 + len(heads)), np.float32),
    )
    idle = 1 - np.moveaxis(partial.next_use(use), 2, 3).reshape(-1, len(heads)).astype(np.float64)
    x = np.concatenate([np.ones((len(idle), 1)), idle], 1)
    square = x.T @ x + 1e-6 * len(x) * np.eye(x.shape[1])
    for i, limit in enumerate(LIMITS):
        partial.gap_weight[i] = np.linalg.solve(square, x.T @ np.minimum(gap.ravel(), limit))
    return partial
