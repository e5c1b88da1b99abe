"""The figures of an analysis: how predictable a model's routing is (docs/analysis.md has the numbers)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from prophet_moe.results_page.canvas import BLUE, COLOURS, GREEN, GREY, RED, empty
from prophet_moe.results_page.part import Drawing, Part
from prophet_moe.results_page.sources import Facts

FORMS = (
    ("dominant", "dominant expert"),
    ("member", "one expert of the set"),
    ("best_single", "best single expert"),
)
CURVES = (
    ("fixed", "best fixed set", GREY, "dot"),
    ("lru", "LRU", BLUE, "solid"),
    ("clairvoyant", "clairvoyant", GREEN, "dash"),
)


def title(found: Facts) -> str:
    return f"Routing of {found['model'] or Path(found['trace']).name}"


def subtitle(found: Facts) -> str:
    return (
        f"{found['tokens']:,} tokens ({found['phase']}) of {found['sequences']:,} sequences, "
        f"{found['layers']} layers of {found['experts_per_layer']} experts, top-{found['top_k']}"
    )


def command(found: Facts) -> str:
    return f"prophet analyze {Path(found['trace']).name} --json"


def part(found: Facts, key: str) -> Part:
    return Part(
        key,
        title(found),
        subtitle(found),
        command(found),
        drawings(found),
        sentences=found.get("verdict", []),
    )


def drawings(found: Facts) -> list[Drawing]:
    """All figures of an analysis, in the order of the page."""
    return [cache_sizes(found), popularity(found), layers(found), tokens(found), returns(found), drift(found)]


def cache_sizes(found: Facts) -> Drawing:
    reuse = found["reuse"]
    figure = empty("slots, % of all experts", "share of uses that miss", hovermode="x unified")
    total = len(reuse["lru"]) - 1
    for key, name, colour, dash in CURVES:
        x = [100 * slots / total for slots in range(total + 1)]
        figure.add_scatter(x=x, y=reuse[key], name=name, mode="lines", hovertemplate="%{y:.3f}",
                           line={"color": colour, "dash": dash})  # fmt: skip
    return Drawing(
        "sizes",
        "Misses of a cache of every size",
        "One pool for all layers, warm. What lies between LRU and the clairvoyant is what foresight in "
        "eviction can save.",
        figure,
    )


def popularity(found: Facts) -> Drawing:
    figure = empty("rank of the expert in its layer", "share of the layer's uses", hovermode="closest")
    ranked = [sorted(layer["shares"], reverse=True) for layer in found["popularity"]]
    for number, shares in enumerate(ranked):
        figure.add_scatter(x=list(range(1, len(shares) + 1)), y=shares, mode="lines", showlegend=False,
                           name=f"layer {number}", line={"color": GREY, "width": 1}, opacity=0.45,
                           hovertemplate="%{y:.3f}")  # fmt: skip
    middle = [_median(column) for column in zip(*ranked, strict=True)]
    figure.add_scatter(x=list(range(1, len(middle) + 1)), y=middle, mode="lines", name="median of the layers",
                       line={"color": BLUE, "width": 3}, hovertemplate="%{y:.3f}")  # fmt: skip
    even = 1 / found["experts_per_layer"]
    figure.add_scatter(x=[1, len(middle)], y=[even, even], mode="lines", name="all alike",
                       line={"color": RED, "dash": "dot"}, hoverinfo="skip")  # fmt: skip
    return Drawing(
        "popularity",
        "Popularity",
        "Shares of a layer's experts, most used first; one thin line a layer.",
        figure,
    )


def layers(found: Facts) -> Drawing:
    return Drawing(
        "layers",
        "What a layer says of later ones",
        "Mutual information of two layers of one token, as a share of the later one's entropy, corrected for "
        "bias; bars are intervals over sequences.",
        _information(found["cross_layer"], "layers ahead"),
        missing="the trace has one layer",
    )


def tokens(found: Facts) -> Drawing:
    return Drawing(
        "tokens",
        "What a token says of later ones",
        "The same between two tokens of one layer, over the tokens between them.",
        _information(found["cross_token"], "tokens ahead"),
        missing="no sequence has two tokens",
    )


def _information(distances: Sequence[Facts], x: str) -> go.Figure | None:
    if not distances:
        return None
    figure = empty(x, "share of the entropy", hovermode="x unified")
    ahead = [one["distance"] for one in distances]
    figure.update_xaxes(type="log", tickvals=ahead, ticktext=[str(one) for one in ahead])
    for place, (form, name) in enumerate(FORMS):
        rows = [one["forms"].get(form) for one in distances]
        if any(row is None or row["of_entropy"] is None for row in rows):
            continue
        value = [row["of_entropy"] for row in rows]
        spans = [row["of_entropy_interval"] or (v, v) for row, v in zip(rows, value, strict=True)]
        figure.add_scatter(
            x=ahead, y=value, name=name, mode="lines+markers", hovertemplate="%{y:.3f}",
            line={"color": COLOURS[place]},
            error_y={"array": [high - v for v, (_, high) in zip(value, spans, strict=True)],
                     "arrayminus": [v - low for v, (low, _) in zip(value, spans, strict=True)]},
        )  # fmt: skip
    return figure


def returns(found: Facts) -> Drawing:
    within = {int(turns): share for turns, share in found["reuse"]["returns_within"].items()}
    figure = empty("turns of the layer", "share of uses that return within", legend=False)
    figure.update_xaxes(type="log", tickvals=list(within), ticktext=[str(turns) for turns in within])
    figure.add_scatter(x=list(within), y=list(within.values()), mode="lines+markers", line={"color": BLUE},
                       hovertemplate="%{y:.3f}")  # fmt: skip
    return Drawing("returns", "How soon experts return", "A turn is one token of the expert's layer.", figure)


def drift(found: Facts) -> Drawing:
    domains: dict[str, Any] | None = found.get("domains")
    caption = "Jensen-Shannon divergence of two domains' popularity in bits, mean over layers: 0 the same."
    if not domains or len(domains["domains"]) < 2:
        return Drawing(
            "drift", "Drift across domains", caption, missing="the trace has fewer than two domains"
        )
    names = domains["domains"]
    figure = empty("", "", 320 + 6 * len(names), legend=False)
    figure.add_heatmap(z=domains["matrix"], x=names, y=names, colorscale="Blues", hovertemplate="%{z:.3f}")
    figure.update_xaxes(showticklabels=len(names) <= 12)
    figure.update_yaxes(showticklabels=len(names) <= 24, autorange="reversed")
    mean, shuffled = domains["mean"], domains["shuffled"]
    caption += f" On average {mean:.3f}; where sequences change their labels {shuffled:.3f}."
    return Drawing("drift", "Drift across domains", caption, figure)


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return ordered[half] if len(ordered) % 2 else (ordered[half - 1] + ordered[half]) / 2
