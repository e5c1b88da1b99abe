"""The bank: decayed averages of every expert's use, and a low-rank network over all layers.

State (t, l) is what is known when the router of layer l has spoken for token t: layers up to l hold
row t, later ones row t - 1. Expert scores of layer l use state (t, l) alone, so causality is a
matter of which rows are added up, and the runtime (prophet_moe.predict.export) adds them as they come.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.functional import dropout, hardswish, layer_norm, pad

from .features import Rows

EPS = 1e-5


@dataclass(frozen=True)
class BankConfig:
    """Sizes and inputs; the names are those of the file (prophet_moe.predict.export)."""

    layers: int
    experts: int
    top_k: int
    rank: int = 256
    decays: Sequence[float] = (0.5, 0.8, 0.9, 0.95, 0.98, 0.995)
    bank: Sequence[int] = (1, 3, 5)
    recent: Sequence[tuple[int, str]] = ((0, "count"), (0, "gate"), (1, "count"), (2, "count"))
    heads: Sequence[int] = (1, 3, 8, 24, 80, 300)
    latents: int = 2
    mid: bool = True
    ahead: int = 3
    pairs: int = 4  # layers whose choices enter a forecast directly: the present one and those before it
    history: bool = True
    hidden: int = 0
    drop_input: float = 0.3
    drop_hidden: float = 0.2
    drop_block: float = 0.0
    drop_read: float = 0.0  # share of windows trained without the router's input, which a runtime may lack

    @property
    def blocks(self) -> int:
        return len(self.bank) + len(self.recent) if self.history else 0

    @property
    def lags(self) -> int:
        return max((lag for lag, _ in self.recent), default=0)


class OwnLayer(nn.Module):
    """Logistic of an expert's own past: logits [l, r, N, E] from averages, gate and the turn before."""

    def __init__(self, layers: int, experts: int, top_k: int, averages: int, heads: Sequence[int]) -> None:
        super().__init__()
        idle = torch.tensor([math.exp(-h * top_k / experts) for h in heads])
        prior = torch.log(1 - idle + 1e-3) - torch.log(idle + 1e-3) + (1.3 if averages else 0.0)
        self.bias = nn.Parameter(prior[None, :, None].repeat(layers, 1, experts))
        self.weight = nn.Parameter(torch.zeros(layers, averages + 2 if averages else 0, len(heads)))
        with torch.no_grad():
            self.weight[:, 1 : min(4, averages)] = 0.2

    def forward(self, rows: Rows, now: torch.Tensor, span: slice) -> torch.Tensor:
        if not self.weight.shape[1]:
            return self.bias[span, None]
        f = torch.cat(
            [
                rows.logs[now, span].float(),
                rows.gate[now, span].float()[:, :, None],
                rows.at(rows.chosen, now - 1)[:, span, None],
            ],
            2,
        )
        return torch.einsum("rlfe,lfn->lrne", f, self.weight[span]).float() + self.bias[span, None]


class Bank(nn.Module):
    """forward(rows, first, tokens) -> (next-use logits, ahead logits) for windows of a trace."""

    def __init__(self, config: BankConfig) -> None:
        super().__init__()
        self.config = c = config
        L, E, R, N = c.layers, c.experts, c.rank, len(c.heads)
        self.own = OwnLayer(L, E, c.top_k, len(c.decays) if c.history else 0, c.heads)
        if c.history:
            self.enter = nn.Parameter(torch.randn(L, c.blocks, E, R) * 0.08)
        if c.hidden:
            self.enter_hidden = nn.Parameter(torch.randn(L, c.hidden, R) / math.sqrt(c.hidden))
        self.enter_bias = nn.Parameter(torch.zeros(R))
        self.norm_gain = nn.Parameter(torch.ones(L, R))
        self.norm_bias = nn.Parameter(torch.zeros(L, R))
        if c.mid:
            self.mid = nn.Linear(R, R)
        self.leave = nn.Parameter(torch.randn(L, R, c.latents * E) * 0.005)
        self.leave_bias = nn.Parameter(torch.zeros(L, c.latents * E))
        late = torch.linspace(0, 1, N) if N > 1 else torch.zeros(1)
        mix = torch.stack([1 - late, late], 1) if c.latents >= 2 else torch.ones(N, 1)
        extra = torch.randn(N, max(0, c.latents - 2)) * 0.3
        self.mix = nn.Parameter(torch.cat([mix, extra], 1)[:, : c.latents].contiguous())
        if c.ahead:
            self.ahead = nn.Parameter(torch.randn(c.ahead, L, R, E) * 0.005)
            self.ahead_bias = nn.Parameter(torch.full((c.ahead, L, E), -0.5))
            self.ahead_prior = nn.Parameter(torch.full((c.ahead, L), 0.8))
            if c.pairs:
                self.ahead_pair = nn.Parameter(torch.zeros(c.pairs, c.ahead, L, E, E))

    def inputs(self, rows: Rows, window: torch.Tensor) -> torch.Tensor:
        """Row numbers [b, t] -> float32 [L, b * t, blocks * E], centred and scaled; export folds that in."""
        c, at = self.config, window.flatten()
        average = rows.average[at.clamp(min=0)].float()
        average[at < 0] = c.top_k / c.experts
        blocks = [average[:, :, d] - c.top_k / c.experts for d in c.bank]
        for lag, kind in c.recent:
            source = rows.gate if kind == "gate" else rows.chosen
            blocks.append(rows.at(source, at - lag) * 0.5)
        z = torch.stack(blocks, 2)
        if self.training and c.drop_input:
            keep = torch.rand(z.shape[0], z.shape[1], 1, z.shape[3]) >= c.drop_input
            z = z * keep / (1 - c.drop_input)
        if self.training and c.drop_block:
            averages = torch.rand(len(window), 1, len(c.bank)) >= c.drop_block
            averages = averages.expand(-1, window.shape[1], -1).flatten(0, 1)[:, None, :, None]
            z[:, :, : len(c.bank)] *= averages / (1 - c.drop_block)
        return z.transpose(0, 1).flatten(2)

    def trunk(self, rows: Rows, first: torch.Tensor, tokens: int, span: slice) -> torch.Tensor:
        """[l, b * tokens, R]: state after each layer of `span`, for tokens first .. first + tokens - 1."""
        c, b = self.config, len(first)
        cut = range(c.layers)[span]
        state = self.enter_bias.expand(len(cut), b * tokens, -1)
        if c.history:
            window = first[:, None] - 1 + torch.arange(tokens + 1)
            share = torch.bmm(self.inputs(rows, window), self.enter.flatten(1, 2)).float()
            share = share.view(c.layers, b, tokens + 1, c.rank)
            pair = torch.cat([share[:, :, 1:], share[:, :, :-1]]).flatten(1)
            spoken = torch.ones(c.layers, c.layers).tril()[cut.start : cut.stop]
            with torch.autocast("cpu", enabled=False):
                state = state + (torch.cat([spoken, 1 - spoken], 1) @ pair).view(len(cut), -1, c.rank)
        if c.hidden and rows.hidden is not None:
            now = (first[:, None] + torch.arange(tokens)).flatten()
            x = rows.hidden[now, cut.start : cut.stop].float().transpose(0, 1)
            x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6)
            if self.training and c.drop_input:
                x = dropout(x, c.drop_input / 2)
            if self.training and c.drop_read:
                x = x * (torch.rand(b, 1) >= c.drop_read).expand(-1, tokens).reshape(1, -1, 1)
            state = state + torch.bmm(x, self.enter_hidden[cut.start : cut.stop]).float()
        return self.deep(state, cut)

    def deep(self, state: torch.Tensor, span: range) -> torch.Tensor:
        """[l, r, R] sums of shares -> [l, r, R] features for the heads."""
        c = self.config
        cut = slice(span.start, span.stop)
        y = layer_norm(state, (c.rank,), eps=EPS)
        y = hardswish(y * self.norm_gain[cut, None] + self.norm_bias[cut, None])
        if self.training and c.drop_hidden:
            y = y * self._mask(y)
        if c.mid:
            y = y + hardswish(self.mid(y).float())
            if self.training and c.drop_hidden:
                y = y * self._mask(y)
        return y

    def _mask(self, y: torch.Tensor) -> torch.Tensor:
        """One mask for all layers of a token: drawing bits costs more than the network."""
        p = self.config.drop_hidden
        return (torch.rand(1, y.shape[1], y.shape[2]) >= p) / (1 - p)

    def next_use(self, rows: Rows, now: torch.Tensor, deep: torch.Tensor, span: slice) -> torch.Tensor:
        """[r] rows and their deep [l, r, R] -> raw logits [l, r, N, E] of the layers of `span`."""
        c = self.config
        o = torch.bmm(deep, self.leave[span]).float() + self.leave_bias[span, None]
        logit = torch.einsum("lrme,nm->lrne", o.unflatten(2, (c.latents, c.experts)), self.mix)
        return logit + self.own(rows, now, span)

    def look_ahead(
        self, rows: Rows, now: torch.Tensor, deep: torch.Tensor, last: torch.Tensor, span: slice
    ) -> list[torch.Tensor]:
        """Raw logits [l - f, r, E] of the layers of `span` but its first f, for f = 1..F.

        last [l, r, E]: raw first-head logits of the token before, the newest known of later layers.
        """
        c, out = self.config, []
        begin = range(c.layers)[span].start
        chosen = rows.chosen[now, : begin + len(deep)].float().transpose(0, 1)
        for f in range(1, c.ahead + 1):
            count = max(0, len(deep) - f)
            y = torch.bmm(deep[:count], self.ahead[f - 1, span][f:]).float()
            y = y + self.ahead_bias[f - 1, span][f:, None]
            y = y + self.ahead_prior[f - 1, span][f:, None, None] * last[f:]
            for lag in range(min(c.pairs, begin + count)):
                early = max(0, lag - begin)  # layers of the span that have none so far before them
                source = chosen[begin + early - lag : begin + count - lag]
                said = torch.bmm(source, self.ahead_pair[lag, f - 1, span][f:][early:count]).float()
                y = y + pad(said, (0, 0, 0, 0, early, 0))
            out.append(y)
        return out

    def forward(
        self, rows: Rows, first: torch.Tensor, tokens: int, span: slice = slice(None)
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Windows of `tokens` rows from `first` [b], judged at the layers of `span` (l of them).

        Raw logits [l, b, tokens, N, E], and per horizon f [l - f, b, tokens - 1, E] for all but the
        first token of each window and the first f layers of the span.
        """
        c, b = self.config, len(first)
        now = (first[:, None] + torch.arange(tokens)).flatten()
        deep = self.trunk(rows, first, tokens, span)
        use = self.next_use(rows, now, deep, span).unflatten(1, (b, tokens))
        if not c.ahead:
            return use, []
        last = use[:, :, :-1, 0].detach().flatten(1, 2)
        inner = deep.unflatten(1, (b, tokens))[:, :, 1:].flatten(1, 2)
        later = now.view(b, tokens)[:, 1:].flatten()
        ahead = self.look_ahead(rows, later, inner, last, span)
        return use, [y.unflatten(1, (b, tokens - 1)) for y in ahead]

    def groups(self, decay: float) -> list[dict[str, Any]]:
        """Parameter groups of an optimiser: matrices decay, scales, biases and own-layer terms do not."""
        heavy = [p for n, p in self.named_parameters() if n in ("enter", "enter_hidden", "leave", "ahead")]
        heavy += [self.mid.weight] if self.config.mid else []
        ids = {id(p) for p in heavy}
        light = [p for p in self.parameters() if id(p) not in ids]
        return [{"params": heavy, "weight_decay": decay}, {"params": light, "weight_decay": 0.0}]
