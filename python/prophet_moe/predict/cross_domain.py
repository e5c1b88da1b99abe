"""What a predictor learned in one domain is worth in another: one network per domain, each scored on all.

The row "all" is the same network trained on all domains together, tested on the same sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceError, TraceReader

from .causal import FRACTIONS, gap_closed
from .evaluate import Yardstick, horizons, rates, said_of
from .export import Predictor
from .fit import fit, like
from .held_out import of_domains
from .train import Progress, Recipe

LEAST = 3  # sequences of a domain: one each to train, choose and test


def domains_of(trace: TraceReader) -> list[str]:
    """Domains with enough sequences. Raises TraceError when there are fewer than two."""
    names = sorted(set(trace.labels) - {""})
    usable = [name for name in names if len(of_domains(trace, (name,))) >= LEAST]
    if len(usable) < 2:
        raise TraceError(
            f"{trace.path} has {len(usable)} domains with {LEAST} sequences or more "
            f"({', '.join(usable) or 'none'}): a cross-domain matrix needs at least two. "
            "Record a trace of labelled texts."
        )
    return usable


def split_domain(trace: TraceReader, domain: str, seed: int = 0) -> Split:
    """A fifth of the domain's sequences to test, a tenth to choose, at least one each."""
    order = np.random.default_rng(seed).permutation(of_domains(trace, (domain,))).tolist()
    test, val = max(1, len(order) // 5), max(1, len(order) // 10)
    return Split(tuple(order[test + val :]), tuple(order[test : test + val]), tuple(order[:test]), ())


def cross_domain(
    trace: TraceReader,
    predictor: Predictor,
    recipe: Recipe,
    slots: float = 0.25,
    seed: int = 0,
    progress: Callable[[str, Progress], None] | None = None,
) -> dict[str, Any]:
    """{"domains": [...], "rows": {trained on: {tested on: {"recall_k", "coverage", "miss_rate",
    "gap_closed"}}}, "tokens": {trained on: tokens}}; recall and coverage (top K) are one layer ahead.

    Raises TraceError for a trace of one domain, InvalidArgument for a predictor without horizons.
    """
    predictor.require(trace.layers, trace.experts_per_layer, trace.top_k)
    if not predictor.net.config.ahead:
        raise InvalidArgument("a cross-domain matrix compares layers ahead; this predictor forecasts none.")
    names = domains_of(trace)
    kind, inputs, options = like(predictor)
    parts = {name: split_domain(trace, name, seed) for name in names}
    whole = Split(
        tuple(s for p in parts.values() for s in p.train),
        tuple(s for p in parts.values() for s in p.val),
        tuple(s for p in parts.values() for s in p.test),
        (),
    )
    tests = {name: Yardstick(trace, part, inputs != "history") for name, part in parts.items()}
    rows: dict[str, dict[str, Any]] = {}
    tokens: dict[str, int] = {}
    for name, part in {**parts, "all": whole}.items():

        def tell(step: Progress, name: str = name) -> None:
            if progress:
                progress(name, step)

        made = fit(trace, part, recipe, kind, inputs, options, tell)
        tokens[name] = made.training["tokens"]
        rows[name] = {other: _cell(made, tests[other], slots) for other in names}
    return {"domains": names, "slots": slots, "tokens": tokens, "rows": rows}


def _cell(made: Predictor, yardstick: Yardstick, slots: float) -> dict[str, float]:
    said = said_of(made, yardstick.stream)
    ahead = horizons(made, said, yardstick, slots, compare=False)["prophet"]["1"]["all"]
    size = int(np.argmin([abs(f - slots) for f in FRACTIONS]))
    gap = made.calibration.gap(said.use, made.limit(FRACTIONS[size]))
    rate = rates(yardstick.stream, gap, [FRACTIONS[size]])[0]
    closed = gap_closed([rate], [yardstick.best[size]], [yardstick.bound[size]])[0]
    widest = max(ahead["coverage"], key=int)
    return {
        "recall_k": ahead["recall_k"],
        "coverage": ahead["coverage"][widest],
        "miss_rate": rate,
        "gap_closed": closed,
    }
