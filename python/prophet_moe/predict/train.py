"""Training of a predictor: random windows of a stream, binary cross-entropy, averaged weights.

Every step judges windows of consecutive tokens at a few consecutive layers: scores of a layer are
asked for in the very state in which the runtime will ask. The moving average of the weights is
what is validated, kept and exported.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import binary_cross_entropy_with_logits as bce

from prophet_moe.errors import InvalidArgument, StateError

from .bank import Bank
from .features import Rows, fingerprint
from .paper import Paper

Network = Bank | Paper


@dataclass(frozen=True)
class Recipe:
    """How to train. A step sees `windows` x `tokens` tokens and `span` layers of them."""

    steps: int = 2000
    windows: int = 32
    tokens: int = 8
    span: int = 8
    rate: float = 2e-3
    decay: float = 0.1
    warm: int = 60
    clip: float = 3.0
    average: float = 0.99
    ahead_weight: float = 1.0
    head_weights: Sequence[float] = (3.0, 2.0, 2.0, 2.0, 2.0, 2.0)
    seed: int = 0
    every: int = 200
    patience: int = 4
    seconds: float = math.inf


@dataclass
class Progress:
    """What a callback is told after every step; `validated` is set on steps that validated."""

    step: int
    steps: int
    loss: float
    seconds: float
    validated: float | None = None


@dataclass
class Result:
    """The best averaged weights are in the network; `history` has one entry per validation."""

    steps: int
    best: float
    seconds: float
    history: list[dict[str, Any]] = field(default_factory=list)


def losses(
    net: Network, rows: Rows, first: torch.Tensor, tokens: int, span: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean cross-entropy per head [N] and per layer ahead [F] of windows of `tokens` rows from `first`."""
    if rows.gap is None:
        raise InvalidArgument("these rows were made without labels; make them with labels=True to train")
    with torch.autocast("cpu", torch.bfloat16):
        use, ahead = net(rows, first, tokens, span)
    now = first[:, None] + torch.arange(tokens)
    gap = rows.gap[now, span].permute(2, 0, 1, 3)[:, :, :, None]
    within = gap <= torch.tensor(list(net.config.heads))[:, None]
    by_head = bce(use.float(), within.float(), reduction="none").mean((0, 1, 2, 4))
    chosen = rows.chosen[now[:, 1:], span].permute(2, 0, 1, 3).float()
    by_distance = [
        bce(y.float(), chosen[f:]) if y.numel() else torch.zeros(()) for f, y in enumerate(ahead, 1)
    ]
    return by_head, torch.stack(by_distance) if by_distance else torch.zeros(0)


def validate(net: Network, rows: Rows, tokens: int = 64, windows: int = 8) -> tuple[Any, Any]:
    """Losses (heads [N], ahead [F]) over a quarter of the stream, spread evenly; the network in eval mode."""
    mode = net.training
    net.eval()
    tokens = min(tokens, len(rows))
    firsts = torch.arange(0, len(rows) - tokens + 1, tokens)
    firsts = firsts[:: 4 if len(firsts) > 4 * windows else 1]
    heads: Any = 0.0
    ahead: Any = 0.0
    with torch.no_grad():
        for group in firsts.split(windows):
            a, b = losses(net, rows, group, tokens, slice(None))
            heads, ahead = heads + a * len(group), ahead + b * len(group)
    net.train(mode)
    return (heads / len(firsts)).numpy(), (ahead / len(firsts)).numpy()


def train(
    net: Network,
    rows: Rows,
    held_out: Rows,
    recipe: Recipe,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> Result:
    """Trains `net` in place and leaves it with its best averaged weights, in eval mode.

    Stops after `recipe.steps`, `recipe.seconds`, or `recipe.patience` validations without a better
    loss. With `checkpoint`, state is written there at each validation (atomically) and training
    resumes from it when it exists; a checkpoint of another recipe, network or trace is refused. A loss
    that is not finite raises StateError, and the network keeps the best weights so far.
    """
    if len(rows) <= recipe.tokens + 1:
        raise InvalidArgument(f"{len(rows)} training tokens are fewer than one window; record a longer trace")
    weights = torch.tensor(list(recipe.head_weights))
    if len(weights) != len(net.config.heads):
        raise InvalidArgument(f"{len(weights)} head weights given for {len(net.config.heads)} heads")
    torch.manual_seed(recipe.seed)
    rng = np.random.default_rng(recipe.seed)
    layers = net.config.layers
    span = min(recipe.span, layers)
    usual = span * layers / (layers + span - 1)  # mean length of a span cut at the first and last layer
    optimiser = torch.optim.AdamW(net.groups(recipe.decay), lr=recipe.rate)
    data = f"{fingerprint(rows.stream)} {fingerprint(held_out.stream)}" if checkpoint else ""
    run = _Run(net, optimiser, rng, recipe, checkpoint, data)
    run.resume()
    start = time.monotonic() - run.seconds
    net.train()
    while run.step < recipe.steps and run.stale < recipe.patience:
        cosine = 0.5 + 0.5 * math.cos(math.pi * run.step / recipe.steps)
        for group in optimiser.param_groups:
            group["lr"] = recipe.rate * min(1.0, (run.step + 1) / recipe.warm) * cosine + recipe.rate / 200
        first = torch.from_numpy(rng.integers(0, len(rows) - recipe.tokens + 1, recipe.windows))
        low = int(rng.integers(1 - span, layers))
        cut = slice(max(0, low), min(layers, low + span))
        heads, ahead = losses(net, rows, first, recipe.tokens, cut)
        loss = ((heads * weights).sum() + recipe.ahead_weight * ahead.sum()) * (
            (cut.stop - cut.start) / usual
        )
        if not math.isfinite(float(loss.detach())):
            run.restore_best()
            raise StateError(
                f"the loss of step {run.step + 1} is not finite; lower the learning rate "
                f"(now {recipe.rate:g}) or look for broken gate probabilities and hidden states in the trace"
            )
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), recipe.clip)
        optimiser.step()
        run.step += 1
        run.follow()
        run.seconds = time.monotonic() - start
        report = Progress(run.step, recipe.steps, float(loss.detach()), run.seconds)
        late = run.seconds > recipe.seconds
        if run.step % recipe.every == 0 or run.step == recipe.steps or late:
            report.validated = run.judge(held_out, weights)
        if progress:
            progress(report)
        if late:
            break
    run.restore_best()
    net.eval()
    return Result(run.step, run.best, run.seconds, run.history)


class _Run:
    """Everything that a checkpoint must hold for training to go on as if it had not stopped."""

    def __init__(
        self,
        net: Network,
        optimiser: Any,
        rng: np.random.Generator,
        recipe: Recipe,
        path: Path | None,
        data: str,
    ) -> None:
        self.net, self.optimiser, self.rng, self.recipe, self.path = net, optimiser, rng, recipe, path
        self.data = data
        self.step = self.stale = 0
        self.best, self.seconds = math.inf, 0.0
        self.history: list[dict[str, Any]] = []
        self.average = {k: v.clone() for k, v in net.state_dict().items()}
        self.kept = {k: v.clone() for k, v in self.average.items()}

    @property
    def identity(self) -> dict[str, Any]:
        """What must be the same for a checkpoint to be this run's; how long it may take need not."""
        recipe = {k: v for k, v in asdict(self.recipe).items() if k not in ("seconds", "patience")}
        return {"network": asdict(self.net.config), "recipe": recipe, "data": self.data}

    def follow(self) -> None:
        keep = min(self.recipe.average, self.step / (self.step + 9))
        with torch.no_grad():
            for name, value in self.net.state_dict().items():
                self.average[name].lerp_(value, 1 - keep)

    def judge(self, held_out: Rows, weights: torch.Tensor) -> float:
        now = {k: v.clone() for k, v in self.net.state_dict().items()}
        self.net.load_state_dict(self.average)
        heads, ahead = validate(self.net, held_out)
        self.net.load_state_dict(now)
        loss = float((heads * weights.numpy()).sum() + self.recipe.ahead_weight * ahead.sum())
        self.history.append(
            {"step": self.step, "loss": loss, "heads": heads.tolist(), "ahead": ahead.tolist()}
        )
        if loss < self.best:
            self.best, self.stale = loss, 0
            self.kept = {k: v.clone() for k, v in self.average.items()}
        else:
            self.stale += 1
        self.save()
        return loss

    def restore_best(self) -> None:
        self.net.load_state_dict(self.kept)

    def save(self) -> None:
        if not self.path:
            return
        state = {
            "identity": self.identity,
            "net": self.net.state_dict(),
            "average": self.average,
            "kept": self.kept,
            "optimiser": self.optimiser.state_dict(),
            "torch_rng": torch.get_rng_state(),
            "rng": self.rng.bit_generator.state,
            "numbers": (self.step, self.stale, self.best, self.seconds),
            "history": self.history,
        }
        whole = self.path.with_name(self.path.name + ".part")
        torch.save(state, whole)
        os.replace(whole, self.path)

    def resume(self) -> None:
        if not self.path or not self.path.exists():
            return
        try:
            state = torch.load(self.path, weights_only=True)
            same = state["identity"] == self.identity
        except Exception as error:
            raise InvalidArgument(
                f"{self.path} is no checkpoint of a training run; delete it to start anew"
            ) from error
        if not same:
            raise InvalidArgument(
                f"{self.path} belongs to another network, recipe or trace; delete it, or use its options"
            )
        self.net.load_state_dict(state["net"])
        self.average, self.kept = state["average"], state["kept"]
        self.optimiser.load_state_dict(state["optimiser"])
        torch.set_rng_state(state["torch_rng"])
        self.rng.bit_generator.state = state["rng"]
        self.step, self.stale, self.best, self.seconds = state["numbers"]
        self.history = state["history"]
