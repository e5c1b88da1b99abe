"""The alternative to the bank: a transformer over the last c layers of the same token.

Positions are the routed sets of layers l-c+1 .. l (the gate-weighted mean of their experts' embeddings, a
learned pad where the token has no such layer) and, when recorded, what the router of layer l read.
It forecasts the layers l + h from the last position. So that eviction can be compared, it also has the
next-use heads of the bank, with the same own-layer terms: all else that it knows is this token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu, linear

from .bank import OwnLayer
from .features import Rows


@dataclass(frozen=True)
class PaperConfig:
    """Width, depth and inputs. 320 x 4 with 10 heads is the size called 8.4M (see `size`)."""

    layers: int
    experts: int
    top_k: int
    width: int = 320
    depth: int = 4
    attention_heads: int = 10
    context: int = 3
    decays: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.995)
    heads: Sequence[int] = (1, 3, 8, 24, 80, 300)
    ahead: int = 3
    history: bool = True
    hidden: int = 0
    drop: float = 0.1


class Block(nn.Module):
    """A pre-norm encoder block over p positions, [p, n, d] for n sequences; every position reads all p."""

    def __init__(self, width: int, heads: int, drop: float) -> None:
        super().__init__()
        self.heads, self.drop = heads, drop
        self.norm_in, self.norm_mid = nn.LayerNorm(width), nn.LayerNorm(width)
        self.read = nn.Linear(width, 3 * width)  # query, key, value
        self.merge = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, last: bool = False) -> torch.Tensor:
        """[p, n, d], or [1, n, d] with `last`: the last position alone, which is all that heads read."""
        h, d = self.norm_in(x), x.shape[2]
        if last:
            query = linear(h[-1:], self.read.weight[:d], self.read.bias[:d])
            key, value = linear(h, self.read.weight[d:], self.read.bias[d:]).chunk(2, 2)
            x = x[-1:]
        else:
            query, key, value = self.read(h).chunk(3, 2)
        x = x + self._dropped(self.merge(self._attend(query, key, value)))
        return x + self._dropped(self.down(gelu(self.up(self.norm_mid(x)))))

    def _attend(self, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(2, (self.heads, -1)) for t in (query, key, value))
        score = (q[:, None] * k[None]).sum(4, dtype=torch.float32) * q.shape[3] ** -0.5
        share = score.softmax(1).to(v.dtype)
        return (share[..., None] * v[None]).sum(1).flatten(2)

    def _dropped(self, x: torch.Tensor) -> torch.Tensor:
        """One mask for all positions: drawing bits costs."""
        if not self.training or not self.drop:
            return x
        return x * ((torch.rand(x.shape[1:]) >= self.drop) / (1 - self.drop)).to(x.dtype)


class Paper(nn.Module):
    """Same calls and results as `Bank`."""

    def __init__(self, config: PaperConfig) -> None:
        super().__init__()
        self.config = c = config
        L, E, d = c.layers, c.experts, c.width
        self.expert = nn.Parameter(torch.randn(L, E, d) * 0.1)
        self.layer = nn.Parameter(torch.randn(L, d) * 0.1)
        self.pad = nn.Parameter(torch.randn(c.context, d) * 0.1)
        self.place = nn.Parameter(torch.randn(c.context + 1, d) * 0.1)
        if c.hidden:
            self.project = nn.Linear(c.hidden, d)
        self.blocks = nn.ModuleList(Block(d, c.attention_heads, c.drop) for _ in range(c.depth))
        self.norm = nn.LayerNorm(d)
        self.horizon = nn.Parameter(torch.eye(d).repeat(c.ahead, 1, 1))
        self.out = nn.Parameter(torch.randn(L, d, E) * 0.02)
        self.use = nn.Parameter(torch.randn(L, d, len(c.heads) * E) * 0.005)
        self.ahead_bias = nn.Parameter(torch.full((c.ahead, L, E), -2.0))
        self.own = OwnLayer(L, E, c.top_k, len(c.decays), c.heads)

    def size(self) -> int:
        """Parameters in all."""
        return sum(p.numel() for p in self.parameters())

    def states(self, rows: Rows, now: torch.Tensor, span: range) -> torch.Tensor:
        """[l, r, d]: the encoder's last position for each layer of `span` and each row."""
        c = self.config
        with torch.autocast("cpu", enabled=False):
            gate = rows.gate[now].float().transpose(0, 1) / c.top_k
            sets = torch.bmm(gate, self.expert) + self.layer[:, None]
        positions = []
        for back in range(c.context - 1, -1, -1):
            steps = [sets[i - back] if i >= back else self.pad[back].expand(len(now), -1) for i in span]
            positions.append(torch.stack(steps) + self.place[back])
        if not c.history:
            positions = []
        if c.hidden:
            assert rows.hidden is not None
            x = rows.hidden[now, span.start : span.stop].float().transpose(0, 1)
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            layer = self.layer[span.start : span.stop, None]
            positions.append(self.project(x).float() + layer + self.place[c.context])
        x = torch.stack(positions).flatten(1, 2)
        for i, block in enumerate(self.blocks):
            x = block(x, last=i + 1 == c.depth)
        return self.norm(x[-1].float()).unflatten(0, (len(span), len(now)))

    def forward(
        self, rows: Rows, first: torch.Tensor, tokens: int, span: slice = slice(None)
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """As `Bank.forward`."""
        c, b = self.config, len(first)
        layers = range(c.layers)[span]
        now = (first[:, None] + torch.arange(tokens)).flatten()
        deep = self.states(rows, now, layers)
        use = torch.bmm(deep, self.use[span]).float().unflatten(2, (len(c.heads), c.experts))
        use = (use + self.own(rows, now, span)).unflatten(1, (b, tokens))
        ahead = []
        inner = deep.unflatten(1, (b, tokens))[:, :, 1:].flatten(1, 2)
        for f in range(1, c.ahead + 1):
            count = max(0, len(layers) - f)
            y = torch.bmm(inner[:count] @ self.horizon[f - 1], self.out[span][f:]).float()
            y = y + self.ahead_bias[f - 1, span][f:, None]
            ahead.append(y.unflatten(1, (b, tokens - 1)))
        return use, ahead

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """Parameter groups of an optimiser: matrices decay, the rest does not."""
        heavy = [p for p in self.parameters() if p.ndim >= 2 and p is not self.own.bias]
        ids = {id(p) for p in heavy}
        return [
            {"params": heavy, "weight_decay": decay},
            {"params": [p for p in self.parameters() if id(p) not in ids], "weight_decay": 0.0},
        ]
