"""From a trace to a predictor.

Choices (weights, calibration, truncation of the gap) are made on the training and validation
sequences; `prophet_moe.predict.evaluate` is for sequences that none of them saw.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader

from .bank import Bank, BankConfig
from .calibrate import LIMITS, calibrate
from .causal import FRACTIONS, misses
from .export import Predictor
from .features import Rows, Stream, fingerprint, stream_of
from .held_out import digests
from .outputs import outputs
from .paper import Paper, PaperConfig
from .train import Progress, Recipe, train

INPUTS = ("history", "hidden", "both")
JUDGED = 4096  # validation rows on which the truncation is chosen


def network(stream: Stream, kind: str, inputs: str, options: Mapping[str, Any], seed: int) -> Bank | Paper:
    """An untrained network for the geometry of a stream. Raises InvalidArgument for unknown kinds, inputs."""
    _require_inputs(inputs)
    sizes: dict[str, Any] = {
        "layers": stream.layers,
        "experts": stream.experts_per_layer,
        "top_k": stream.top_k,
    }
    if inputs != "history":
        if stream.hidden is None:
            raise InvalidArgument(
                f"inputs {inputs!r} need what the routers read; record the trace with hidden states, "
                "or train with inputs 'history'"
            )
        sizes["hidden"] = stream.hidden.shape[2]
    sizes["history"] = inputs != "hidden"
    if int(options.get("ahead", 0)) >= stream.layers:
        raise InvalidArgument(
            f"{options['ahead']} layers ahead were asked for; a model with {stream.layers} MoE layers has at "
            f"most {stream.layers - 1}"
        )
    torch.manual_seed(seed)
    try:
        if kind == "bank":
            return Bank(BankConfig(**{**sizes, "pairs": _pairs(stream.experts_per_layer), **options}))
        if kind == "transformer":
            return Paper(PaperConfig(**sizes, **options))
    except TypeError as error:
        raise InvalidArgument(f"a {kind} has no such option ({error})") from error
    raise InvalidArgument(f"the predictor is a bank or a transformer, not {kind!r}")


def _pairs(experts: int) -> int:
    """Layers whose choices forecasts read directly: each is a table of experts x experts for every layer
    and horizon, which among hundreds of experts is larger than the rest of the network."""
    return min(4, max(1, 256 // experts))


def _require_inputs(inputs: str) -> None:
    if inputs not in INPUTS:
        raise InvalidArgument(f"inputs are one of {', '.join(INPUTS)}, not {inputs!r}")


def fit(
    trace: TraceReader,
    split: Split,
    recipe: Recipe,
    kind: str = "bank",
    inputs: str = "history",
    options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
    refit: bool = False,
    start: Predictor | None = None,
) -> Predictor:
    """Trains on split.train; stops, calibrates and chooses a truncation per cache size on split.val.

    `refit` trains once more with the same recipe, on split.train and split.val together, and ships those
    weights with what was chosen and calibrated before: more to learn from, nothing left to choose on.
    `start` gives the first weights; kind, inputs and options are then those of that predictor.
    """
    if not split.val:
        raise InvalidArgument("calibration needs validation sequences; hold some out (val >= 1)")
    if start is not None:
        start.require(trace.layers, trace.experts_per_layer, trace.top_k)
        kind, inputs, options = like(start)
    _require_inputs(inputs)
    hidden = inputs != "history"
    learn, judge = stream_of(trace, split.train, hidden), stream_of(trace, split.val, hidden)
    net = network(learn, kind, inputs, options or {}, recipe.seed)
    if start is not None:
        net.load_state_dict(start.net.state_dict())
    decays = net.config.decays
    rows, held_out = Rows(learn, decays), Rows(judge, decays)
    result = train(net, rows, held_out, recipe, progress, checkpoint)
    said = outputs(net, held_out)
    calibration = calibrate(held_out, said, net.config.heads)
    part = _first_rows(judge, JUDGED)
    total = judge.layers * judge.experts_per_layer
    by_limit = {h: calibration.gap(said.use[: len(part)], h) for h in LIMITS}
    chosen = []
    for f in FRACTIONS:
        slots = max(judge.top_k, int(total * f))
        counts = {h: misses(part, gap, slots) for h, gap in by_limit.items()}
        chosen.append((f, min(counts.items(), key=lambda pair: pair[1])[0]))
    if refit:
        learn = stream_of(trace, (*split.train, *split.val), hidden)
        net = network(learn, kind, inputs, options or {}, recipe.seed)
        if start is not None:
            net.load_state_dict(start.net.state_dict())
        again = replace(recipe, patience=recipe.steps)
        second = checkpoint and checkpoint.with_name(checkpoint.name + ".refit")
        train(net, Rows(learn, decays), held_out, again, progress, second)
    about = {
        "tokens": len(learn),
        "sequences": len(split.train) + (len(split.val) if refit else 0),
        "validation_tokens": len(judge),
        "held_out_sequences": len(split.test),
        "domains": sorted(set(learn.labels) - {""}),
        "sha256": fingerprint(learn),
        "seen": digests(trace, (*split.train, *split.val)),
        "inputs": inputs,
        "refit": refit,
        "started from": "" if start is None else str(start.training.get("sha256", "")),
        "steps": result.steps,
        "seconds": round(result.seconds),
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "seconds"},
        "validation": result.history[-1] if result.history else {},
    }
    return Predictor(net, calibration, chosen, trace.model, about)


def like(predictor: Predictor) -> tuple[str, str, dict[str, Any]]:
    """(kind, inputs, network options) of a predictor, to train another of the same design."""
    c = predictor.net.config
    fixed = ("layers", "experts", "top_k", "hidden", "history")
    options = {k: v for k, v in asdict(c).items() if k not in fixed}
    return predictor.kind, "history" if not c.hidden else "both" if c.history else "hidden", options


def parameters(predictor: Predictor) -> int:
    """Parameters of the network in all."""
    return sum(p.numel() for p in predictor.net.parameters())


def _first_rows(stream: Stream, count: int) -> Stream:
    starts = stream.starts[stream.starts < count]
    count = min(count, len(stream))
    return Stream(
        stream.experts[:count],
        stream.gate[:count],
        np.append(starts[starts < count], count),
        stream.experts_per_layer,
        list(stream.labels)[: len(starts)],
    )
