"""The networks of rivals: one small MLP per layer that names the experts of a layer some steps ahead.

ProMoE, PreScope, DuoServe-MoE, FloE and pre-attention prediction each train one per layer; they differ in
what it reads and how far ahead it looks (`KINDS`). csrc/predict/layer_mlp_network.h has the arithmetic.
Trained here by binary cross-entropy over all experts of the target layer, the best step kept by the loss on
the sequences held for choices. The loss of pre-attention prediction minds ranks: cross-entropy weighs the
heaviest expert 3, the other chosen ones 1.5 and the rest 0.5, and a tenth of a margin loss keeps the least of
the chosen above each of the rest.

The file is safetensors, float32: `enter.weight` [S, F, D], `enter.bias` [S, D], `leave.weight` [S, D, E],
`leave.bias` [S, E], perhaps `affinity` [S, E, E], where S = layers - stride; metadata `format`
(`prophet-layer-mlp`), `version`, and `about`, a JSON object with `system`, `geometry`, `stride`, `context`,
`hidden`, `width` and `training`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader

from .export import PredictorError
from .held_out import digests

FORMAT, VERSION = "prophet-layer-mlp", "1"
BATCH, WIDTH, RATE, WEIGHT_DECAY = 256, 128, 2e-3, 0.01
JUDGED = 4096  # tokens of validation
HEAVIEST, CHOSEN, REST, RANKING, MARGIN = 3.0, 1.5, 0.5, 0.1, 1.0  # of the loss that minds ranks
EPSILON = 1e-6  # of the norm of what enters a layer


@dataclass(frozen=True)
class Kind:
    """What a system's network reads, and how many layers ahead it looks."""

    stride: int  # 0: what enters a layer names the experts of that layer
    context: int  # layers of the token's path, the newest included
    affinity: bool
    hidden: bool

    @property
    def states(self) -> str:
        """The array of a trace that it reads; "" where it reads none."""
        if not self.hidden:
            return ""
        return "gate_input" if self.stride else "entering"


KINDS: Mapping[str, Kind] = {
    "promoe": Kind(2, 0, False, True),
    "prescope": Kind(1, 0, False, True),
    "duoserve": Kind(1, 8, True, False),
    "floe": Kind(1, 1, False, True),
    "pre-attention": Kind(0, 0, False, True),
}


@dataclass(frozen=True)
class LayerMlp:
    """A trained network of one system."""

    system: str
    layers: int
    experts: int
    top_k: int
    stride: int
    context: int
    hidden: int  # width of the hidden state; 0: not read
    tensors: Mapping[str, NDArray[np.float32]]
    training: Mapping[str, Any]

    @property
    def width(self) -> int:
        return int(self.tensors["enter.bias"].shape[1])

    def native(self) -> prophet_ext.Predictor:
        """The runtime's. Raises InvalidArgument: arrays that do not fit each other."""
        return prophet_ext.make_layer_mlp(
            self.system,
            layers=self.layers,
            experts_per_layer=self.experts,
            top_k=self.top_k,
            stride=self.stride,
            context=self.context,
            hidden=self.hidden,
            width=self.width,
            tensors=self.tensors,
        )


class _Rows:
    """Inputs and targets of any tokens of a trace, dense."""

    def __init__(self, trace: TraceReader, kind: Kind, affinity: NDArray[np.float32] | None) -> None:
        self.kind, self.affinity = kind, affinity
        self.chosen = trace.map("experts")
        self.states = trace.map(kind.states) if kind.states else None
        self.gates = trace.map("gate_probs") if trace.has("gate_probs") else None
        self.layers, self.experts = trace.layers, trace.experts_per_layer

    def __call__(self, tokens: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        """[S, n, F] inputs and [S, n, E] ones at the experts of the target layer."""
        n, L, E = len(tokens), self.layers, self.experts
        ids = torch.from_numpy(np.asarray(self.chosen[tokens], np.int64))
        ones = torch.zeros(n, L, E).scatter_(2, ids, 1.0).transpose(0, 1)  # [L, n, E]
        S = L - self.kind.stride
        parts = []
        for back in range(self.kind.context):
            path = torch.zeros(S, n, E)
            path[back:] = ones[: S - back]
            parts.append(path)
        if self.affinity is not None:
            share = ones[:S] / ones[:S].sum(2, keepdim=True)
            parts.append(torch.bmm(share, torch.from_numpy(self.affinity)))
        if self.states is not None:
            states = torch.from_numpy(np.asarray(self.states[tokens][:, :S], np.float32)).transpose(0, 1)
            if self.kind.stride == 0:
                states = states * torch.rsqrt(states.square().mean(2, keepdim=True) + EPSILON)
            parts.append(states)
        return torch.cat(parts, 2), ones[self.kind.stride :]

    def weights(self, tokens: NDArray[np.int64], y: torch.Tensor) -> torch.Tensor:
        """[S, n, E] weights of the targets y by rank; without gates, the first named is the heaviest."""
        ids = np.asarray(self.chosen[tokens], np.int64)
        if self.gates is None:
            first = ids[:, :, :1]
        else:
            first = np.take_along_axis(ids, np.asarray(self.gates[tokens]).argmax(2, keepdims=True), 2)
        heaviest = torch.from_numpy(first).transpose(0, 1)[self.kind.stride :]
        return torch.where(y > 0, CHOSEN, REST).scatter_(2, heaviest, HEAVIEST)


def _tokens(trace: TraceReader, sequences: Sequence[int]) -> NDArray[np.int64]:
    rows = [np.arange(trace.rows(s).start, trace.rows(s).stop) for s in sequences]
    return np.concatenate(rows) if rows else np.empty(0, np.int64)


def follows(chosen: NDArray[Any], stride: int, experts: int) -> NDArray[np.float32]:
    """[S, E, E] of the tokens that chose the first expert, the share that chose the second `stride` on."""
    n, layers, _ = chosen.shape
    counts = np.zeros((layers - stride, experts, experts))
    for first in range(0, n, 4096):
        part = np.asarray(chosen[first : first + 4096], np.int64)
        ones = np.zeros((len(part), layers, experts), np.float32)
        np.put_along_axis(ones, part, 1.0, 2)
        counts += np.einsum("nle,nlf->lef", ones[:, : layers - stride], ones[:, stride:], optimize=True)
    k = chosen.shape[2]
    return (counts / np.maximum(counts.sum(2, keepdims=True) / k, 1)).astype(np.float32)


def train(
    trace: TraceReader,
    split: Split,
    system: str,
    *,
    steps: int = 2000,
    width: int = WIDTH,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> LayerMlp:
    """Trains the network of `system` on split.train, choosing by split.val.

    Raises InvalidArgument: a system without one, hidden states that the trace does not have, too few layers.
    """
    if system not in KINDS:
        raise InvalidArgument(
            f"{system!r} has no network per layer: those that have one are {', '.join(KINDS)}."
        )
    kind = KINDS[system]
    if kind.states and not trace.has(kind.states):
        flag = {"gate_input": "--hidden", "entering": "--entering"}[kind.states]
        raise InvalidArgument(
            f"{system} reads hidden states ({kind.states}), which {trace.path} does not have: record it with "
            f"{flag}."
        )
    if kind.stride >= trace.layers:
        raise InvalidArgument(f"{system} looks {kind.stride} layers ahead: {trace.layers} are too few.")
    if kind.context:
        kind = replace(kind, context=min(kind.context, trace.layers - kind.stride))
    tokens, judged = _tokens(trace, split.train), _tokens(trace, split.val)
    random = np.random.default_rng(seed)
    judged = random.permutation(judged)[:JUDGED]
    affinity = (
        follows(trace.map("experts")[tokens], kind.stride, trace.experts_per_layer) if kind.affinity else None
    )
    rows = _Rows(trace, kind, affinity)
    S, E = trace.layers - kind.stride, trace.experts_per_layer
    F = rows(tokens[:1])[0].shape[2]
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(S, F, width, generator=generator) / np.sqrt(F),
        torch.zeros(S, 1, width),
        torch.randn(S, width, E, generator=generator) / np.sqrt(width),
        torch.full((S, 1, E), float(np.log(trace.top_k / max(E - trace.top_k, 1)))),
    ]
    for one in weights:
        one.requires_grad_(True)
    optimiser = torch.optim.AdamW(weights, RATE, weight_decay=WEIGHT_DECAY)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

    def loss_of(some: NDArray[np.int64]) -> torch.Tensor:
        x, y = rows(some)
        hidden = torch.relu(torch.baddbmm(weights[1], x, weights[0]))
        logits = torch.baddbmm(weights[3], hidden, weights[2])
        bce = torch.nn.functional.binary_cross_entropy_with_logits
        if kind.stride > 0:
            return bce(logits, y)
        least = logits.masked_fill(y == 0, math.inf).min(2, keepdim=True).values
        above = torch.relu(MARGIN - least + logits)[y == 0].mean()
        return bce(logits, y, rows.weights(some, y)) + RANKING * above

    best, kept, every = np.inf, [one.detach().clone() for one in weights], max(1, steps // 10)
    for step in range(1, steps + 1):
        loss = loss_of(random.choice(tokens, min(BATCH, len(tokens)), replace=False))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        plan.step()
        if step % every == 0 or step == steps:
            with torch.no_grad():
                parts = np.array_split(judged, max(1, len(judged) // BATCH))
                held = float(np.mean([loss_of(part).item() for part in parts]))
            if held < best:
                best, kept = held, [one.detach().clone() for one in weights]
        on_step(step, loss.item())
    names = ("enter.weight", "enter.bias", "leave.weight", "leave.bias")
    tensors = {
        name: (one.squeeze(1) if name.endswith("bias") else one).contiguous().numpy()
        for name, one in zip(names, kept, strict=True)
    }
    if affinity is not None:
        tensors["affinity"] = affinity
    return LayerMlp(
        system=system,
        layers=trace.layers,
        experts=E,
        top_k=trace.top_k,
        stride=kind.stride,
        context=kind.context,
        hidden=0 if rows.states is None else int(rows.states.shape[2]),
        tensors=tensors,
        training={
            "steps": steps,
            "tokens": len(tokens),
            "loss": round(best, 5),
            "seed": seed,
            "seen": digests(trace, (*split.train, *split.val)),
        },
    )


def save(made: LayerMlp, path: Path) -> None:
    about = asdict(replace(made, tensors={})) | {"width": made.width}
    del about["tensors"]
    metadata = {"format": FORMAT, "version": VERSION, "about": json.dumps(about)}
    save_file(dict(made.tensors), path, metadata)


def load(path: Path) -> LayerMlp:
    """Raises PredictorError: not such a file, or not whole."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise PredictorError(
                    f"{path} holds no networks per layer of version {VERSION}: name a file that "
                    f"prophet train wrote with --kind {' or '.join(KINDS)}."
                )
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
        about = json.loads(metadata["about"])
        made = LayerMlp(**{k: v for k, v in about.items() if k != "width"}, tensors=tensors)
        made.native()
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, PredictorError):
            raise
        raise PredictorError(f"{path} is not a whole predictor ({error}): train it again.") from error
    return made
