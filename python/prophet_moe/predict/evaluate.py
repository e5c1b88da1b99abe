"""The figures of a predictor on sequences it never saw: eviction, the layers ahead, and the yardsticks.

A `Yardstick` holds what depends on the data alone (classical policies, the clairvoyant bound, forecasts
without training), so that several predictors of one split are judged by the same one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from prophet_moe.errors import InvalidArgument, StateError
from prophet_moe.formats.trace import Split, TraceReader

from .causal import FRACTIONS, best_per_size, classical_gaps, gap_closed, misses
from .export import Predictor
from .features import Rows, Stream, fingerprint, gaps, stream_of
from .held_out import seen
from .next_gate import next_gate
from .outputs import Floats, Outputs, outputs
from .score import baselines, popularity, score_ahead

CONTROL = "zero staleness"


class Yardstick:
    """A split of a trace and what needs no predictor. `hidden` reads the routers' inputs, too."""

    def __init__(self, trace: TraceReader, split: Split, hidden: bool = False) -> None:
        self.trace, self.split = trace, split
        self.stream = stream_of(trace, split.test, hidden)
        self.learn = stream_of(trace, split.train, hidden)
        self.judge = stream_of(trace, split.val)

    @cached_property
    def hot(self) -> Floats:
        """[L, E]: popularity in the training part."""
        return popularity(self.learn)

    @cached_property
    def policies(self) -> dict[str, list[float]]:
        """Miss rates at FRACTIONS of the classical policies."""
        return {name: rates(self.stream, gap) for name, gap in classical_gaps(self.stream, self.hot).items()}

    @cached_property
    def best(self) -> list[float]:
        """Of each size, the test figure of the policy that missed least on the sequences for choices."""
        before = {name: rates(self.judge, gap) for name, gap in classical_gaps(self.judge, self.hot).items()}
        return [self.policies[name][i] for i, name in enumerate(best_per_size(before))]

    @cached_property
    def bound(self) -> list[float]:
        return rates(self.stream, gaps(self.stream))

    def forecasts(self, horizons: int, routers: Floats | None = None) -> dict[str, Floats]:
        """Forecasts [F, n, L, E] without training, the control among them."""
        out = baselines(self.learn, self.stream, horizons)
        if routers is not None:
            out["next gate"] = next_gate(self.learn, self.stream, routers, horizons)
        return out


def rates(stream: Stream, gap: Any, fractions: Sequence[float] = FRACTIONS) -> list[float]:
    """misses / (tokens * L * K) with slots for these fractions of all experts, K at least."""
    return [misses(stream, gap, slots_of(stream, f)) / stream.experts.size for f in fractions]


def slots_of(stream: Stream, fraction: float) -> int:
    """Slots for this fraction of all experts; never fewer than one layer needs."""
    if not 0 < fraction <= 1:
        raise InvalidArgument(f"the share of experts that fit is above 0 and at most 1, not {fraction:g}.")
    return max(stream.top_k, int(stream.layers * stream.experts_per_layer * fraction))


def said_of(predictor: Predictor, stream: Stream, exact: bool = False) -> Outputs:
    """What the predictor says of every row of a stream."""
    return outputs(
        predictor.net, Rows(stream, predictor.net.config.decays, labels=False, exact=exact), exact=exact
    )


def eviction(predictor: Predictor, said: Outputs, yardstick: Yardstick) -> dict[str, Any]:
    """Miss rates at FRACTIONS of every policy, the bound, and the share of the gap that is closed."""
    limits = [predictor.limit(f) for f in FRACTIONS]
    learned = [
        rates(yardstick.stream, predictor.calibration.gap(said.use, h), [f])[0]
        for f, h in zip(FRACTIONS, limits, strict=True)
    ]
    return {
        "slots": list(FRACTIONS),
        "limits": limits,
        "policies": yardstick.policies,
        "best classical": yardstick.best,
        "prophet": learned,
        "clairvoyant": yardstick.bound,
        "gap closed": gap_closed(learned, yardstick.best, yardstick.bound),
    }


def residents(predictor: Predictor, said: Outputs, stream: Stream, slots: float) -> Any:
    """bool [n, L, E]: in a cache of this fraction that evicts by the predictor's forecasts, what was there
    when its layer's router spoke."""
    held = np.zeros((len(stream), stream.layers, stream.experts_per_layer), bool)
    gap = predictor.calibration.gap(said.use, predictor.limit(slots))
    misses(stream, gap, slots_of(stream, slots), held)
    return held


def horizons(
    predictor: Predictor,
    said: Outputs,
    yardstick: Yardstick,
    slots: float = 0.25,
    routers: Floats | None = None,
    compare: bool = True,
) -> dict[str, Any]:
    """Scores of the layers ahead for "prophet" and, to `compare`, the forecasts without training.

    Raises StateError when the control, which is told the answer, reads less than 100 %.
    """
    stream = yardstick.stream
    held = residents(predictor, said, stream, slots)
    p = predictor.calibration.look_ahead(said.ahead)
    out = {"prophet": score_ahead(stream, p, held)}
    if compare:
        for name, q in yardstick.forecasts(len(p), routers).items():
            out[name] = score_ahead(stream, q, held)
        for horizon, part in out[CONTROL].items():
            if part["all"]["exact"] != 1.0 or part["all"]["ece"] != 0.0:
                raise StateError(f"the zero-staleness control fails {horizon} ahead: the scores are wrong.")
    return out


def evaluate(
    predictor: Predictor,
    trace: TraceReader,
    split: Split,
    slots: float = 0.25,
    exact: bool = False,
    routers: Floats | None = None,
    yardstick: Yardstick | None = None,
    compare: bool = True,
    blind: bool = False,
) -> dict[str, Any]:
    """Everything that `prophet score` says of split.test.

    slots: the cache whose absent experts are counted as covered or not; routers [L, E, H]: weights for the
    next-gate baseline, which needs a trace with `gate_input`; yardstick: one made for this split before;
    blind: the predictor is not given hidden states, as by a runtime that has none.
    Raises PredictorError (another geometry), TraceError (hidden states are needed and were not recorded).
    """
    predictor.require(trace.layers, trace.experts_per_layer, trace.top_k)
    require_width(predictor, trace)
    if blind and not predictor.net.config.history:
        raise InvalidArgument("this predictor sees hidden states alone: without them it forecasts nothing.")
    reads = predictor.net.config.hidden > 0 and not blind
    if reads and not trace.has("gate_input"):
        raise InvalidArgument(
            f"the predictor reads hidden states, and {trace.path} has none: record a trace with them, "
            "or score it blind."
        )
    hidden = reads or routers is not None
    yardstick = yardstick or Yardstick(trace, split, hidden)
    given = replace(yardstick.stream, hidden=None) if blind else yardstick.stream
    said = said_of(predictor, given, exact)
    return {
        "tokens": len(yardstick.stream),
        "sequences": len(split.test),
        "seen": len(seen(trace, split.test, predictor.training)),
        "sha256": fingerprint(yardstick.stream),
        "trained for": predictor.model,
        "scored on": trace.model,
        "slots": slots,
        "blind": blind,
        "eviction": eviction(predictor, said, yardstick),
        "ahead": horizons(predictor, said, yardstick, slots, routers, compare),
    }


def require_width(predictor: Predictor, trace: TraceReader) -> None:
    """Raises InvalidArgument when the hidden states of the trace are not as wide as the network's input."""
    wanted = predictor.net.config.hidden
    if wanted and trace.has("gate_input"):
        width = trace.map("gate_input").shape[2]
        if width != wanted:
            raise InvalidArgument(
                f"the predictor reads hidden states of width {wanted}, {trace.path} has {width}: "
                "it was trained for another model."
            )


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a report that a predictor file carries: eviction, and overall scores per horizon."""
    ahead = {h: part["all"] for h, part in report["ahead"]["prophet"].items()}
    return {
        "tokens": report["tokens"],
        "sha256": report["sha256"],
        "eviction": report["eviction"],
        "ahead": ahead,
    }
