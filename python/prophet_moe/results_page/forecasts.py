"""The figures of a score: how well a predictor forecasts on sequences it never saw (docs/foresight.md)."""

from __future__ import annotations

from pathlib import Path

from prophet_moe.results_page.canvas import BLUE, COLOURS, GREEN, GREY, empty
from prophet_moe.results_page.part import Drawing, Part
from prophet_moe.results_page.sources import Facts

OWN, CONTROL = "prophet", "zero staleness"
RECALL = "recall_k"


def title(found: Facts) -> str:
    return f"Forecasts of {Path(found['predictor']).stem}"


def subtitle(found: Facts) -> str:
    blind = ", without the hidden states it can read" if found["blind"] else ""
    seen = f"; it has learned from {found['seen']} of them" if found["seen"] else ""
    return f"{found['tokens']:,} tokens of {found['sequences']} held-out sequences{seen}{blind}"


def command(found: Facts) -> str:
    return f"prophet score {Path(found['predictor']).name} TRACE --json"


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
    """All figures of a score, in the order of the page."""
    return [calibration(found), recall(found), eviction(found), by_layer(found), by_domain(found)]


def calibration(found: Facts) -> Drawing:
    figure = empty("forecast probability", "share that was needed", hovermode="closest",
                   xaxis_range=[0, 1], yaxis_range=[0, 1])  # fmt: skip
    figure.add_scatter(x=[0, 1], y=[0, 1], mode="lines", name="as forecast", hoverinfo="skip",
                       line={"color": GREY, "dash": "dot"})  # fmt: skip
    for place, (horizon, part) in enumerate(found["ahead"][OWN].items()):
        rows = part["reliability"]
        figure.add_scatter(
            x=[row["forecast"] for row in rows], y=[row["observed"] for row in rows], mode="lines+markers",
            name=f"{horizon} ahead", line={"color": COLOURS[place % len(COLOURS)]},
            customdata=[row["count"] for row in rows],
            hovertemplate="%{x:.3f} said, %{y:.3f} seen, of %{customdata:,}",
        )  # fmt: skip
    errors = ", ".join(
        f"{part['all']['ece']:.4f} at {horizon}" for horizon, part in found["ahead"][OWN].items()
    )
    return Drawing(
        "calibration",
        "Reliability",
        f"Forecasts in bins. Expected calibration error: {errors} ahead.",
        figure,
    )


def recall(found: Facts) -> Drawing:
    figure = empty("layers ahead", "recall of the top k", hovermode="x unified")
    for place, (name, horizons) in enumerate(found["ahead"].items()):
        if name == CONTROL:
            continue
        ahead = [int(horizon) for horizon in horizons]
        value = [part["all"][RECALL] for part in horizons.values()]
        own = name == OWN
        figure.add_scatter(
            x=ahead, y=value, name="this predictor" if own else name, mode="lines+markers",
            hovertemplate="%{y:.3f}",
            line={"color": BLUE if own else COLOURS[(place + 2) % len(COLOURS)],
                  "dash": "solid" if own else "dash"},
        )  # fmt: skip
    figure.update_xaxes(dtick=1)
    return Drawing("recall", "Recall over horizons", "Beside forecasts that need no training.", figure)


def eviction(found: Facts) -> Drawing:
    rates = found["eviction"]
    x = [100 * share for share in rates["slots"]]
    figure = empty("slots, % of all experts", "share of uses that miss", hovermode="x unified")
    for key, name, colour, dash in (
        ("best classical", "best classical", GREY, "solid"),
        (OWN, "this predictor", BLUE, "solid"),
        ("clairvoyant", "clairvoyant", GREEN, "dash"),
    ):
        figure.add_scatter(x=x, y=rates[key], name=name, mode="lines+markers", hovertemplate="%{y:.4f}",
                           line={"color": colour, "dash": dash})  # fmt: skip
    closed = ", ".join(f"{100 * share:.1f} %" for share in rates["gap closed"])
    return Drawing("eviction", "Misses when it evicts", f"It closes {closed} of the gap.", figure)


def by_layer(found: Facts) -> Drawing:
    part = next(iter(found["ahead"][OWN].values()))
    rows = {int(layer): scores[RECALL] for layer, scores in part["layers"].items()}
    figure = empty("layer that is forecast", "recall of the top k, one ahead", legend=False)
    figure.add_bar(x=list(rows), y=list(rows.values()), marker_color=BLUE, hovertemplate="%{y:.3f}")
    return Drawing("layers", "Recall by layer", "One layer ahead.", figure)


def by_domain(found: Facts) -> Drawing:
    part = next(iter(found["ahead"][OWN].values()))
    rows = sorted((scores[RECALL], domain) for domain, scores in part["domains"].items())
    if len(rows) < 2:
        return Drawing("domains", "Recall by domain", "One layer ahead.", missing="fewer than two domains")
    figure = empty("recall of the top k, one ahead", "", 60 + 20 * len(rows), legend=False)
    figure.add_bar(x=[value for value, _ in rows], y=[domain for _, domain in rows], orientation="h",
                   marker_color=BLUE, hovertemplate="%{x:.3f}")  # fmt: skip
    return Drawing("domains", "Recall by domain", "One layer ahead.", figure)
