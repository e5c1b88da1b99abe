"""What a network says of a whole stream: the logits a runtime would have had, row by row."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .features import Rows
from .train import Network

Floats = npt.NDArray[np.float32]
Reals = npt.NDArray[np.floating[Any]]


@dataclass(frozen=True)
class Outputs:
    """Raw logits. use [n, L, N, E]: of layer l once it has run in row t; head n is "within h_n turns".

    ahead [F, n, L, E]: of layer l, f + 1 layers before it runs in row t; minus infinity where no
    forecast is made (the first f + 1 layers of a token, and the first row).
    """

    use: Reals
    ahead: Reals


def outputs(net: Network, rows: Rows, tokens: int = 64, windows: int = 4, exact: bool = False) -> Outputs:
    """Runs `net` over every row. `exact` computes and keeps float32 instead of bfloat16 and float16."""
    c, n = net.config, len(rows)
    dtype = np.float32 if exact else np.float16
    use = np.empty((n, c.layers, len(c.heads), c.experts), dtype)
    ahead = np.full((c.ahead, n, c.layers, c.experts), -np.inf, dtype)
    tokens = max(1, min(tokens, n - 1))
    firsts = list(range(0, max(1, n - 1), tokens))
    net.eval()
    while firsts:
        group, firsts = firsts[:windows], firsts[windows:]
        whole = [a for a in group if a + tokens + 1 <= n]
        rest = [a for a in group if a + tokens + 1 > n]
        for batch, length in ((whole, tokens + 1), *(([a], n - a) for a in rest)):
            if not batch:
                continue
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=not exact):
                u, y = net(rows, torch.tensor(batch), length)
            for i, a in enumerate(batch):
                use[a : a + length] = u[:, i].transpose(0, 1).float().numpy()
                for f, logits in enumerate(y):
                    ahead[f, a + 1 : a + length, f + 1 :] = logits[:, i].transpose(0, 1).float().numpy()
    return Outputs(use, ahead)


def sigmoid(x: Reals) -> Floats:
    """1 / (1 + exp(-x)) in float32; 0 at minus infinity."""
    with np.errstate(over="ignore"):
        return np.reciprocal(1 + np.exp(-x.astype(np.float32)))
