"""How good forecasts are: sets, probabilities, and what they add to a cache.

A forecast is a probability per expert, p [n, L, E]; the truth is chosen [n, L, E]. Recall over all
experts flatters, because residents are the easy ones: `coverage` counts the absent ones alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from prophet_moe.errors import InvalidArgument

from .features import Stream
from .outputs import Floats, Reals

BINS = 15
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Scores:
    """Shares in 0..1 over `rows` forecast layers of tokens; nan where nothing was forecast.

    top1      the most probable expert was chosen
    dominant  it was the one with the largest gate
    recall_k, recall_2k   chosen experts among the k, 2k most probable
    exact     the k most probable are the chosen set
    f1        of the set p >= 0.5
    brier     mean squared error per expert
    ece       expected calibration error, BINS equal bins
    coverage  {m: absent chosen experts among the m most probable absent ones}; empty without residents
    """

    rows: int
    top1: float
    dominant: float
    recall_k: float
    recall_2k: float
    exact: float
    f1: float
    brier: float
    ece: float
    coverage: Mapping[int, float]

    def as_dict(self) -> dict[str, Any]:
        """For JSON; numbers rounded to five places."""
        plain = {k: round(v, 5) if isinstance(v, float) else v for k, v in asdict(self).items()}
        plain["coverage"] = {str(m): round(v, 5) for m, v in self.coverage.items()}
        return plain


def reliability(p: Reals, chosen: Bools) -> list[dict[str, float]]:
    """Per bin of forecasts: mean forecast, observed share and how many there were; empty bins left out."""
    flat, truth = p.ravel().astype(np.float64), chosen.ravel()
    at = np.minimum((flat * BINS).astype(int), BINS - 1)
    count = np.bincount(at, minlength=BINS)
    said = np.bincount(at, flat, BINS)
    seen = np.bincount(at, truth, BINS)
    return [
        {
            "forecast": float(said[b] / count[b]),
            "observed": float(seen[b] / count[b]),
            "count": float(count[b]),
        }
        for b in range(BINS)
        if count[b]
    ]


def calibration_error(table: Sequence[Mapping[str, float]]) -> float:
    """ECE of a reliability table."""
    total = sum(row["count"] for row in table)
    return sum(abs(row["forecast"] - row["observed"]) * row["count"] for row in table) / max(total, 1)


def score(
    p: Reals,
    chosen: Bools,
    dominant: npt.NDArray[np.int64],
    top_k: int,
    resident: Bools | None = None,
    tops: Sequence[int] = (1, 2, 4),
) -> Scores:
    """p, chosen, resident [r, E]; dominant [r]. Ties are broken by expert number, as a runtime would."""
    if p.shape != chosen.shape:
        raise InvalidArgument(f"forecasts {p.shape} and truth {chosen.shape} differ in shape")
    if not np.isfinite(p.astype(np.float32)).all():
        raise InvalidArgument("forecasts that are not finite cannot be scored; the predictor is damaged")
    r, experts = p.shape
    if not r:
        nan = float("nan")
        return Scores(0, nan, nan, nan, nan, nan, nan, nan, nan, {})
    order = np.argsort(-p.astype(np.float32), 1, kind="stable")
    ranked = np.take_along_axis(chosen, order, 1)
    per_row = np.maximum(chosen.sum(1), 1)
    hits = ranked.cumsum(1)
    wide = min(2 * top_k, experts)
    firm = p >= 0.5
    both = float((firm & chosen).sum())
    table = reliability(p, chosen)
    covered: dict[int, float] = {}
    if resident is not None:
        absent_first = np.take_along_axis(~resident, order, 1)
        place = absent_first.cumsum(1)
        wanted = ranked & absent_first
        covered = {m: float((wanted & (place <= m)).sum() / max(wanted.sum(), 1)) for m in tops}
    return Scores(
        r,
        float(ranked[:, 0].mean()),
        float((order[:, 0] == dominant).mean()),
        float((hits[:, top_k - 1] / per_row).mean()),
        float((hits[:, wide - 1] / per_row).mean()),
        float((hits[:, top_k - 1] == per_row).mean()),
        2 * both / max(float(firm.sum() + chosen.sum()), 1.0),
        float(((p.astype(np.float32) - chosen) ** 2).mean()),
        calibration_error(table),
        covered,
    )


def score_ahead(stream: Stream, p: Reals, resident: Bools | None = None, skip: int = 1) -> dict[str, Any]:
    """Scores of horizon forecasts p [F, n, L, E], overall, per layer, and per domain (where labelled).

    Layer l has no forecast from f + 1 layers before when l <= f, nor have the first `skip` rows.
    """
    chosen = stream.selected()[skip:]
    dominant = np.take_along_axis(stream.experts, stream.gate.argmax(2)[:, :, None], 2)[skip:, :, 0]
    held = None if resident is None else resident[skip:]
    domain = domains(stream)[skip:]
    out: dict[str, Any] = {}
    for f in range(len(p)):
        layers = range(f + 1, stream.layers)

        def part(rows: Any, layer: Any, f: int = f) -> Scores:
            pick = np.ix_(rows, layer)
            flat = (len(rows) * len(layer), stream.experts_per_layer)
            return score(
                p[f, skip:][pick].reshape(flat),
                chosen[pick].reshape(flat),
                dominant[pick].ravel(),
                stream.top_k,
                None if held is None else held[pick].reshape(flat),
            )

        every = np.arange(len(chosen))
        table = reliability(p[f, skip:][:, f + 1 :], chosen[:, f + 1 :])
        out[str(f + 1)] = {
            "all": part(every, layers).as_dict(),
            "layers": {str(layer): part(every, [layer]).as_dict() for layer in layers},
            "domains": {
                name: part(np.flatnonzero(domain == name), layers).as_dict()
                for name in sorted(set(domain) - {""})
            },
            "reliability": table,
        }
    return out


def domains(stream: Stream) -> npt.NDArray[np.str_]:
    """The label of each row, "" where its sequence has none."""
    labels = list(stream.labels) or [""] * (len(stream.starts) - 1)
    return np.repeat(np.array(labels, dtype=str), np.diff(stream.starts))


def popularity(stream: Stream) -> Floats:
    """[L, E]: share of tokens that chose each expert."""
    share: Floats = stream.selected().mean(0, dtype=np.float32)
    return share


def baselines(train: Stream, stream: Stream, horizons: int) -> dict[str, Floats]:
    """Forecasts [F, n, L, E] without training: "static-hot", "previous token", "Markov" (pair
    conditionals from the layer f + 1 before, geometric mean over its experts), and the control that is
    told the answer ("zero staleness")."""
    chosen = stream.selected()
    n, layers, experts = chosen.shape
    hot = popularity(train)
    before = np.concatenate([np.broadcast_to(hot, (1, layers, experts)), chosen[:-1]])
    seen = train.selected()
    markov = np.broadcast_to(hot, (horizons, n, layers, experts)).copy()
    for f in range(1, horizons + 1):
        for layer in range(f, layers):
            source = seen[:, layer - f].astype(np.float32)
            pair = (source.T @ seen[:, layer].astype(np.float32) + 2) / (source.sum(0)[:, None] + 16)
            logs = chosen[:, layer - f].astype(np.float32) @ np.log(pair)
            markov[f - 1, :, layer] = np.exp(logs / train.top_k)
    many = (horizons, n, layers, experts)
    return {
        "static-hot": np.broadcast_to(hot, many),
        "previous token": np.broadcast_to(before, many).astype(np.float32),
        "Markov": markov,
        "zero staleness": np.broadcast_to(chosen, many).astype(np.float32),
    }
