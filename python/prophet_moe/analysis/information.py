"""Entropy and mutual information of counts, in bits.

Plug-in estimates put counted shares in place of probabilities. They miss entropy by about (cells - 1) / (2 n)
nats and find information where there is none; Miller and Madow's correction adds this for the cells that were
seen (G. A. Miller, 1955; L. Paninski, Neural Computation 15, 2003). Tables may be stacked: leading axes are
kept.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Reals = NDArray[np.floating[Any]]
Counts = NDArray[Any]
_LN2 = float(np.log(2))


def xlog2x(values: Counts) -> NDArray[np.float64]:
    """x log2 x, 0 at 0."""
    x = np.asarray(values, np.float64)
    return x * np.log2(np.where(x > 0, x, 1.0))


def entropy(counts: Counts) -> NDArray[np.float64]:
    """Plug-in entropy over the last axis; 0 where nothing was counted."""
    counts = np.asarray(counts, np.float64)
    total = counts.sum(-1)
    safe = np.where(total > 0, total, 1.0)
    return np.log2(safe) - xlog2x(counts).sum(-1) / safe


def miller_madow(counts: Counts) -> NDArray[np.float64]:
    """entropy() with the correction for the cells that were seen."""
    counts = np.asarray(counts, np.float64)
    total = np.maximum(counts.sum(-1), 1.0)
    return entropy(counts) + ((counts > 0).sum(-1) - 1) / (2 * total * _LN2)


def mutual_information(joint: Counts) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(plug-in, Miller-Madow) of counts [..., A, B]; Miller-Madow may be below 0."""
    joint = np.asarray(joint, np.float64)
    cells = joint.reshape(*joint.shape[:-2], -1)
    rows, columns = joint.sum(-1), joint.sum(-2)
    out = []
    for of in (entropy, miller_madow):
        out.append(of(rows) + of(columns) - of(cells))
    return out[0], out[1]


def binary_information(both: Counts, x: Counts, y: Counts, n: Counts) -> NDArray[np.float64]:
    """Plug-in information between indicators: I(x_i; y_j), [..., A, B].

    both [..., A, B]: observations with x_i and y_j; x [..., A], y [..., B]: with x_i, with y_j; n [...]: in
    all.
    """
    both = np.asarray(both, np.float64)
    a, b = np.asarray(x, np.float64)[..., :, None], np.asarray(y, np.float64)[..., None, :]
    total = np.maximum(np.asarray(n, np.float64), 1.0)[..., None, None]
    cells = xlog2x(both) + xlog2x(a - both) + xlog2x(b - both) + xlog2x(total - a - b + both)
    sides = xlog2x(a) + xlog2x(total - a) + xlog2x(b) + xlog2x(total - b)
    return (cells - sides + xlog2x(total)) / total


def binary_entropy(p: Counts | float) -> NDArray[np.float64]:
    """Of a yes or no with probability p."""
    p = np.asarray(p, np.float64)
    return -xlog2x(p) - xlog2x(1 - p)
