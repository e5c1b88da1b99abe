"""The trained networks of other systems: which file belongs to which, and how each is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

import prophet_ext
from prophet_moe.formats.trace import MODELS_OWN, Split, TraceReader

from . import layer_mlp, text_network
from .export import PredictorError
from .layer_mlp import LayerMlp
from .text_network import TextNetwork

Rival = LayerMlp | TextNetwork


def train(
    trace: TraceReader,
    split: Split,
    system: str,
    *,
    steps: int,
    seed: int,
    on_step: Callable[[int, float], None] = lambda _step, _loss: None,
) -> Rival:
    """Raises InvalidArgument: a system without a network, a trace without what it reads."""
    if system == text_network.SYSTEM:
        return text_network.train(trace, split, steps=steps, seed=seed, on_step=on_step)
    return layer_mlp.train(trace, split, system, steps=steps, seed=seed, on_step=on_step)


def save(made: Rival, path: Path, **noted: Any) -> None:
    """Writes the file; `noted` is added to what it says of its training."""
    made = replace(made, training={**made.training, **noted})
    if isinstance(made, TextNetwork):
        text_network.save(made, path)
    else:
        layer_mlp.save(made, path)


def load(path: Path) -> Rival | None:
    """The network of the file; None where it says that it holds none of these. Raises PredictorError: not
    whole."""
    try:
        with safe_open(path, "np") as file:
            found = (file.metadata() or {}).get("format")
    except (SafetensorError, OSError):
        return None
    if found == text_network.FORMAT:
        return text_network.load(path)
    return layer_mlp.load(path) if found == layer_mlp.FORMAT else None


def native(path: Path, system: str, numbering: str = MODELS_OWN) -> prophet_ext.Predictor:
    """The runtime's predictor of a file for the system, to be shown token ids of this numbering
    (TraceReader.numbering). Raises PredictorError: none, another system's, or trained on other numbers."""
    made = load(path)
    if made is None or made.system != system:
        whose = "another system" if made is None else made.system
        raise PredictorError(
            f"{path} was trained for {whose}, not for {system}: prophet train --kind {system} writes one."
        )
    if isinstance(made, TextNetwork) and made.numbering != numbering:
        raise PredictorError(
            f"{path} was trained on token ids that are numbered otherwise than these: train {system} on a "
            "trace with this numbering."
        )
    return made.native()
