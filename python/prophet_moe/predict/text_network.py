"""The network of ExpertFlow: reads the text so far and names the experts of all layers before the first.

csrc/predict/text_predictor.h has the arithmetic. Trained on the token ids and routes of a trace as one long
text: several places of it are read side by side, each with a state that goes on from step to step, as it
will when the runtime decodes. Binary cross-entropy over all experts of all layers; the best step is kept by
the loss on the sequences held for choices. Some tokens are hidden in training, so that unknown ones have a
meaning; those seen seldom are unknown.

The file is safetensors, float32: `embed.weight` [V + 1, D], `input.weight` [D, 3 H], `input.bias`,
`recur.weight` [H, 3 H], `recur.bias`, `leave.weight` [H + D, L * E], `leave.bias`; metadata `format`
(`prophet-text-network`), `version`, and `about`, a JSON object with `system`, geometry, sizes, `numbering`
(which token an id means: `TraceReader.numbering`) and `training`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from torch import nn

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader

from .export import PredictorError
from .held_out import digests

FORMAT, VERSION, SYSTEM = "prophet-text-network", "1", "expertflow"
EMBEDDING, WIDTH, RATE, WEIGHT_DECAY, DROPOUT = 64, 192, 3e-3, 0.01, 0.2
LANES, LENGTH = 32, 64  # places of the text that a step reads, and tokens of each
HIDDEN, SELDOM = 0.05, 3  # share of tokens hidden in training; fewer sightings than this make one unknown


class Network(nn.Module):
    """Token ids -> logits of every expert of every layer."""

    def __init__(self, vocabulary: int, embedding: int, width: int, outputs: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, embedding)
        self.cell = nn.GRU(embedding, width, batch_first=True)
        self.leave = nn.Linear(width + embedding, outputs)
        self.drop = nn.Dropout(DROPOUT)

    def forward(
        self, ids: torch.Tensor, state: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """ids [B, T], state [1, B, H] or None at the beginning; ([B, T, outputs], the state after)."""
        x = self.embed(ids)
        h, state = self.cell(self.drop(x), state)
        return self.leave(self.drop(torch.cat([h, x], 2))), state


@dataclass(frozen=True)
class TextNetwork:
    """A trained one."""

    system: str
    layers: int
    experts: int
    top_k: int
    vocabulary: int
    embedding: int
    width: int
    numbering: str
    tensors: Mapping[str, NDArray[np.float32]]
    training: Mapping[str, Any]

    def native(self) -> prophet_ext.Predictor:
        """The runtime's. Raises InvalidArgument: arrays that do not fit each other."""
        return prophet_ext.make_text_predictor(
            self.system,
            layers=self.layers,
            experts_per_layer=self.experts,
            top_k=self.top_k,
            vocabulary=self.vocabulary,
            embedding=self.embedding,
            width=self.width,
            tensors=self.tensors,
        )


class _Text:
    """Ids and routes of some sequences, one after another."""

    def __init__(self, trace: TraceReader, sequences: Sequence[int], vocabulary: int | None = None) -> None:
        places = np.concatenate([np.arange(trace.rows(s).start, trace.rows(s).stop) for s in sequences])
        ids = np.asarray(trace.map("token_id")[places], np.int64)
        self.vocabulary = int(ids.max(initial=0)) + 1 if vocabulary is None else vocabulary
        self.counts = np.bincount(ids[(ids >= 0) & (ids < self.vocabulary)], minlength=self.vocabulary)
        self.ids = torch.from_numpy(np.where((ids < 0) | (ids >= self.vocabulary), self.vocabulary, ids))
        self.routes = torch.from_numpy(np.asarray(trace.map("experts")[places], np.int64))
        self.experts = trace.experts_per_layer

    def __len__(self) -> int:
        return len(self.ids)

    def forget(self, seldom: NDArray[np.bool_]) -> None:
        """Tokens that are seldom become unknown."""
        keep = torch.from_numpy(np.append(~seldom, False))[self.ids]
        self.ids = torch.where(keep, self.ids, self.vocabulary)

    def targets(self, places: torch.Tensor) -> torch.Tensor:
        """[..., L * E] ones at the experts chosen."""
        routes = self.routes[places]
        ones = torch.zeros(*routes.shape[:-1], self.experts).scatter_(-1, routes, 1.0)
        return ones.flatten(-2)

    def steps(
        self, lanes: int, length: int, random: np.random.Generator
    ) -> Iterator[tuple[bool, torch.Tensor]]:
        """(whether the lanes begin anew, places [lanes, length]) without end."""
        lanes = max(1, min(lanes, len(self) // (2 * length)))
        share = len(self) // lanes
        while True:
            offset = int(random.integers(len(self)))
            starts = torch.arange(lanes) * share + offset
            for first in range(0, max(1, share - length), length):
                place = starts[:, None] + first + torch.arange(min(length, share))
                yield first == 0, place % len(self)


def train(
    trace: TraceReader,
    split: Split,
    *,
    steps: int = 2000,
    embedding: int = EMBEDDING,
    width: int = WIDTH,
    seed: int = 0,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> TextNetwork:
    """Trains on split.train, choosing by split.val. Raises InvalidArgument: a trace without token ids."""
    if not trace.has("token_id") or not (np.asarray(trace.map("token_id")) >= 0).any():
        raise InvalidArgument(
            f"{SYSTEM} reads the text, and {trace.path} has no token ids: record it with prophet trace, or "
            "import it with --tokens."
        )
    text = _Text(trace, split.train)
    judged = _Text(trace, split.val, text.vocabulary)
    seldom = text.counts < SELDOM
    for part in (text, judged):
        part.forget(seldom)
    random, generator = np.random.default_rng(seed), torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    outputs = trace.layers * trace.experts_per_layer
    net = Network(text.vocabulary, embedding, width, outputs)
    nn.init.normal_(net.embed.weight, std=1.0, generator=generator)
    nn.init.constant_(
        net.leave.bias, float(np.log(trace.top_k / max(trace.experts_per_layer - trace.top_k, 1)))
    )
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=WEIGHT_DECAY)
    plan = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    bce = nn.functional.binary_cross_entropy_with_logits
    places = text.steps(LANES, LENGTH, random)
    state: torch.Tensor | None = None
    best, kept, every = np.inf, _tensors(net), max(1, steps // 10)
    for step in range(1, steps + 1):
        anew, now = next(places)
        ids = text.ids[now]
        ids = torch.where(torch.rand(ids.shape, generator=generator) < HIDDEN, text.vocabulary, ids)
        logits, state = net(ids, None if anew or state is None else state.detach())
        loss = bce(logits, text.targets(now))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimiser.step()
        plan.step()
        if step % every == 0 or step == steps:
            held = _judge(net, judged)
            if held < best:
                best, kept = held, _tensors(net)
        on_step(step, loss.item())
    embed = kept["embed.weight"]
    embed[:-1][seldom] = embed[-1]
    return TextNetwork(
        system=SYSTEM,
        layers=trace.layers,
        experts=trace.experts_per_layer,
        top_k=trace.top_k,
        vocabulary=text.vocabulary,
        embedding=embedding,
        width=width,
        numbering=trace.numbering,
        tensors=kept,
        training={
            "steps": steps,
            "tokens": len(text),
            "loss": round(best, 5),
            "seed": seed,
            "seen": digests(trace, (*split.train, *split.val)),
        },
    )


def _judge(net: Network, text: _Text) -> float:
    """Mean loss over the whole text, read once from its beginning."""
    net.eval()
    total, state = 0.0, None
    with torch.no_grad():
        for places in torch.arange(len(text)).split(512):
            logits, state = net(text.ids[places][None], state)
            said = nn.functional.binary_cross_entropy_with_logits(logits[0], text.targets(places))
            total += float(said) * len(places)
    net.train()
    return total / len(text)


def _tensors(net: Network) -> dict[str, NDArray[np.float32]]:
    """Copies, by the names and in the layouts of the file."""
    of = {
        "embed.weight": net.embed.weight,
        "input.weight": net.cell.weight_ih_l0.T,
        "input.bias": net.cell.bias_ih_l0,
        "recur.weight": net.cell.weight_hh_l0.T,
        "recur.bias": net.cell.bias_hh_l0,
        "leave.weight": net.leave.weight.T,
        "leave.bias": net.leave.bias,
    }
    return {name: tensor.detach().contiguous().clone().numpy() for name, tensor in of.items()}


def save(made: TextNetwork, path: Path) -> None:
    about = asdict(replace(made, tensors={}))
    del about["tensors"]
    save_file(dict(made.tensors), path, {"format": FORMAT, "version": VERSION, "about": json.dumps(about)})


def load(path: Path) -> TextNetwork:
    """Raises PredictorError: not such a file, or not whole."""
    try:
        with safe_open(path, "np") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT or metadata.get("version") != VERSION:
                raise PredictorError(
                    f"{path} holds no network on the text of version {VERSION}: name a file that prophet "
                    f"train wrote with --kind {SYSTEM}."
                )
            tensors = {name: file.get_tensor(name).astype(np.float32) for name in file.keys()}  # noqa: SIM118
        made = TextNetwork(**json.loads(metadata["about"]), tensors=tensors)
        made.native()
    except (SafetensorError, OSError, ValueError, KeyError, TypeError, IndexError) as error:
        if isinstance(error, PredictorError):
            raise
        raise PredictorError(f"{path} is not a whole predictor ({error}): train it again.") from error
    return made
