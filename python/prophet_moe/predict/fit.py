"""From a trace to a predictor, and from a predictor and a trace to its figures.

Choices (weights, calibration, truncation of the gap) are made on the training and validation
sequences; `evaluate` is for sequences that none of them saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader

from .bank import Bank, BankConfig
from .calibrate import LIMITS, calibrate
from .causal import FRACTIONS, best_per_size, classical_gaps, gap_closed, misses
from .export import Predictor
from .features import Rows, Stream, gaps, stream_of
from .outputs import Outputs, outputs
from .paper import Paper, PaperConfig
from .score import baselines, popularity, score_ahead
from .train import Progress, Recipe, train

INPUTS = ("history", "hidden", "both")
JUDGED = 4096  # validation rows on which the truncation is chosen


def fingerprint(stream: Stream) -> str:
    """sha256 of the expert ids, in the order they were seen."""
    return hashlib.sha256(np.ascontiguousarray(stream.experts, np.int32).tobytes()).hexdigest()


def network(stream: Stream, kind: str, inputs: str, options: Mapping[str, Any], seed: int) -> Bank | Paper:
    """An untrained network for the geometry of a stream. Raises InvalidArgument for unknown kinds, inputs."""
    if inputs not in INPUTS:
        raise InvalidArgument(f"inputs are one of {', '.join(INPUTS)}, not {inputs!r}")
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
    torch.manual_seed(seed)
    try:
        if kind == "bank":
            return Bank(BankConfig(**sizes, **options))
        if kind == "transformer":
            return Paper(PaperConfig(**sizes, **options))
    except TypeError as error:
        raise InvalidArgument(f"a {kind} has no such option ({error})") from error
    raise InvalidArgument(f"the predictor is a bank or a transformer, not {kind!r}")


def fit(
    trace: TraceReader,
    split: Split,
    recipe: Recipe,
    kind: str = "bank",
    inputs: str = "history",
    options: Mapping[str, Any] | None = None,
    progress: Callable[[Progress], None] | None = None,
    checkpoint: Path | None = None,
) -> Predictor:
    """Trains on split.train; stops, calibrates and chooses a truncation per cache size on split.val."""
    if not split.val:
        raise InvalidArgument("calibration needs validation sequences; hold some out (val >= 1)")
    hidden = inputs != "history"
    learn, judge = stream_of(trace, split.train, hidden), stream_of(trace, split.val, hidden)
    net = network(learn, kind, inputs, options or {}, recipe.seed)
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
    about = {
        "tokens": len(learn),
        "sequences": len(split.train),
        "validation_tokens": len(judge),
        "held_out_sequences": len(split.test),
        "domains": sorted(set(learn.labels) - {""}),
        "sha256": fingerprint(learn),
        "inputs": inputs,
        "steps": result.steps,
        "seconds": round(result.seconds),
        "recipe": {k: v for k, v in asdict(recipe).items() if k != "seconds"},
        "validation": result.history[-1] if result.history else {},
    }
    return Predictor(net, calibration, chosen, trace.model, about)


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


def eviction(
    predictor: Predictor, stream: Stream, said: Outputs, chosen_on: Stream, hot: Any
) -> dict[str, Any]:
    """Miss rates at FRACTIONS of every policy, the bound, and the share of the gap that is closed.

    The best classical policy of each size is chosen on `chosen_on`; `hot` [L, E] is the popularity that
    the static mix uses.
    """
    table = {name: _rates(stream, gap) for name, gap in classical_gaps(stream, hot).items()}
    before = {name: _rates(chosen_on, gap) for name, gap in classical_gaps(chosen_on, hot).items()}
    best = [table[name][i] for i, name in enumerate(best_per_size(before))]
    bound = _rates(stream, gaps(stream))
    limits = [predictor.limit(f) for f in FRACTIONS]
    learned = [
        _rates(stream, predictor.calibration.gap(said.use, h), [f])[0]
        for f, h in zip(FRACTIONS, limits, strict=True)
    ]
    return {
        "slots": list(FRACTIONS),
        "limits": limits,
        "policies": table,
        "best classical": best,
        "prophet": learned,
        "clairvoyant": bound,
        "gap closed": gap_closed(learned, best, bound),
    }


def _rates(stream: Stream, gap: Any, fractions: Sequence[float] = FRACTIONS) -> list[float]:
    total = stream.layers * stream.experts_per_layer
    return [misses(stream, gap, max(stream.top_k, int(total * f))) / stream.experts.size for f in fractions]


def horizons(
    predictor: Predictor, stream: Stream, said: Outputs, train_part: Stream, slots: float = 0.25
) -> dict[str, Any]:
    """Scores of the layers ahead for the predictor and the baselines; coverage against the residents of a
    cache of this fraction that evicts by the predictor's own next-use forecasts."""
    resident = np.zeros((len(stream), stream.layers, stream.experts_per_layer), bool)
    total = stream.layers * stream.experts_per_layer
    gap = predictor.calibration.gap(said.use, predictor.limit(slots))
    misses(stream, gap, max(stream.top_k, int(total * slots)), resident)
    p = predictor.calibration.look_ahead(said.ahead)
    out = {"prophet": score_ahead(stream, p, resident)}
    for name, q in baselines(train_part, stream, len(p)).items():
        out[name] = score_ahead(stream, q, resident)
    return out


def evaluate(
    predictor: Predictor, trace: TraceReader, split: Split, slots: float = 0.25, exact: bool = False
) -> dict[str, Any]:
    """Everything that `prophet score` says of split.test: {"eviction", "ahead", "tokens", ...}."""
    hidden = predictor.net.config.hidden > 0
    predictor.require(trace.layers, trace.experts_per_layer, trace.top_k)
    stream = stream_of(trace, split.test, hidden)
    learn, judge = stream_of(trace, split.train), stream_of(trace, split.val)
    rows = Rows(stream, predictor.net.config.decays, labels=False, exact=exact)
    said = outputs(predictor.net, rows, exact=exact)
    return {
        "tokens": len(stream),
        "sha256": fingerprint(stream),
        "eviction": eviction(predictor, stream, said, judge, popularity(learn)),
        "ahead": horizons(predictor, stream, said, learn, slots),
    }


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a report that a predictor file carries: eviction, and overall scores per horizon."""
    ahead = {h: part["all"] for h, part in report["ahead"]["prophet"].items()}
    return {
        "tokens": report["tokens"],
        "sha256": report["sha256"],
        "eviction": report["eviction"],
        "ahead": ahead,
    }
