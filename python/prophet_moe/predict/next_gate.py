"""The next-gate forecast: a later layer's router applied to what this layer's router has read.

It needs no training but a trace with hidden states and the routers' weights. Between the two layers
the model adds attention and experts to that state; that this changes it little is the whole idea.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from prophet_moe.errors import InvalidArgument

from .calibrate import temperature
from .features import Stream
from .outputs import Floats, sigmoid

FITTED_ON = 4096  # rows on which scale and shift of the logits are fitted
_NAMES = re.compile(r"gate|router")


def router_weights(directory: Path, layers: int, experts: int, hidden: int) -> Floats:
    """[L, E, H] of the checkpoint in a folder: its tensors [E, H] of which every MoE layer has one.

    Raises InvalidArgument when there is no such family of tensors, or more than one.
    """
    import torch
    from safetensors import safe_open

    from prophet_moe.models.checkpoint import open_checkpoint

    checkpoint = open_checkpoint(directory)
    families: dict[str, list[tuple[list[int], str]]] = {}
    for name, place in checkpoint.tensors.items():
        if place.shape == (experts, hidden):
            numbers = [int(n) for n in re.findall(r"\d+", name)]
            families.setdefault(re.sub(r"\d+", "#", name), []).append((numbers, name))
    fitting = [family for family, members in families.items() if len(members) == layers]
    fitting = [family for family in fitting if _NAMES.search(family)] if len(fitting) > 1 else fitting
    if len(fitting) != 1:
        raise InvalidArgument(
            f"{directory} has {len(fitting)} kinds of tensors [{experts}, {hidden}] that each of {layers} "
            "layers has once, and the routers must be the only one: name the model that the trace is of."
        )
    out = np.empty((layers, experts, hidden), np.float32)
    for layer, (_, name) in enumerate(sorted(families[fitting[0]])):
        with safe_open(checkpoint.file_of(name), "pt") as file:
            out[layer] = file.get_tensor(name).to(torch.float32).numpy()
    return out


def next_gate(learn: Stream, stream: Stream, routers: Floats, horizons: int) -> Floats:
    """Probabilities [F, n, L, E]; a scale and a shift per horizon are fitted on the training part.

    Layers without a source, l < f, are given 0. Raises InvalidArgument without hidden states, or with
    routers of another shape.
    """
    out = np.zeros((horizons, len(stream), stream.layers, stream.experts_per_layer), np.float32)
    for f in range(1, horizons + 1):
        few = slice(None, None, max(1, len(learn) // FITTED_ON))
        logits, chosen = _logits(learn, routers, f, few), learn.selected()[few, f:]
        scale, shift = temperature(logits, chosen)
        out[f - 1, :, f:] = sigmoid(_logits(stream, routers, f, slice(None)) * scale + shift)
    return out


def _logits(stream: Stream, routers: Floats, ahead: int, rows: slice) -> Floats:
    """[r, L - ahead, E]: the routers of the layers `ahead` later on what each layer's router read."""
    if stream.hidden is None:
        raise InvalidArgument("a next-gate forecast needs what the routers read: record hidden states.")
    wanted = (stream.layers, stream.experts_per_layer, stream.hidden.shape[2])
    if routers.shape != wanted:
        raise InvalidArgument(f"the routers are {list(routers.shape)}; this trace asks for {list(wanted)}.")
    source = stream.hidden[rows, : stream.layers - ahead].astype(np.float32)
    logits: Floats = np.einsum("nlh,leh->nle", source, routers[ahead:], optimize=True)
    return logits
