"""The figures of a study. Each says what it shows, or why it cannot be drawn from these results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import plotly.graph_objects as go

from prophet_moe.results_page.canvas import (
    AMBER,
    BLUE,
    COLOURS,
    GREEN,
    GREY,
    RED,
    add_curve,
    empty,
    over_bandwidth,
    over_slots,
    rows_by_slots,
    style,
)
from prophet_moe.results_page.part import Drawing
from prophet_moe.results_page.study import (
    ON_DEMAND,
    RESIDENT,
    Study,
    bytes_per_token,
    domain_misses,
    miss_rate,
    moved,
    per_token,
    prefetched,
    residence,
    tpot,
)
from prophet_moe.sim.results import Line

OUTCOMES = (
    ("demand", "demand", BLUE),
    ("prefetch_used", "prefetched, used", GREEN),
    ("prefetch_late", "prefetched, late", AMBER),
    ("prefetch_wasted", "wasted", RED),
)
PLACES = (("resident", "resident", GREEN), ("in_flight", "in flight", AMBER), ("miss", "miss", RED))
PERCENTILES = (("p50", "p50", "circle"), ("p99", "p99", "diamond"), ("p999", "p99.9", "square"))
ONE_BANDWIDTH = "these lines have one bandwidth; simulate with --link-scale 0.25,0.5,1,2,4"


def _buttons(study: Study) -> str:
    return " Buttons choose the slots, as a share of all experts." if len(study.slots) > 1 else ""


def drawings(study: Study) -> list[Drawing]:
    """All figures of a study, in the order of the page."""
    makers: tuple[Callable[[Study], Drawing], ...] = (
        time_per_token,
        tails,
        bytes_split,
        hits_split,
        cache_size,
        thresholds,
        bandwidth,
        waste,
        drift,
        churn,
        stays,
        layers,
        intensity,
    )
    return [make(study) for make in makers]


def time_per_token(study: Study) -> Drawing:
    return Drawing(
        "tpot",
        "Time per output token",
        "Mean over decode passes, on a logarithmic axis. Grey and dashed: bounds, which know the future "
        "or hold every expert.",
        over_slots(study, tpot, "ms per token", log=True),
    )


def tails(study: Study) -> Drawing:
    def fill(figure: go.Figure, systems: list[str], lines: list[Line]) -> None:
        for place, (key, name, symbol) in enumerate(PERCENTILES):
            figure.add_scatter(
                x=[line["tpot_ms"][key] for line in lines],
                y=systems,
                mode="markers",
                name=name,
                hovertemplate="%{x:.2f} ms",
                marker={"symbol": symbol, "size": 10, "color": COLOURS[place]},
            )

    caption = f"A mean hides the tokens that people notice.{_buttons(study)}"
    return Drawing("tails", "Tails", caption, rows_by_slots(study, "ms per token", fill))


def _stacked(
    study: Study,
    parts: Sequence[tuple[str, str, str]],
    x: str,
    of: Callable[[Line, str], float | None],
) -> go.Figure:
    def fill(figure: go.Figure, systems: list[str], lines: list[Line]) -> None:
        for key, name, colour in parts:
            figure.add_bar(
                x=[of(line, key) for line in lines],
                y=systems,
                orientation="h",
                name=name,
                marker_color=colour,
                hovertemplate="%{x:.2f}",
            )

    return rows_by_slots(study, x, fill, barmode="stack", bargap=0.35, legend_traceorder="normal")


def bytes_split(study: Study) -> Drawing:
    def megabytes(line: Line, key: str) -> float | None:
        return per_token(line, line["bytes"][key] / 1e6)

    return Drawing(
        "bytes",
        "Bytes per token",
        "By what became of them: demanded bytes are waited for, late ones in part, wasted ones were "
        f"never used.{_buttons(study)}",
        _stacked(study, OUTCOMES, "MB per token", megabytes),
    )


def hits_split(study: Study) -> Drawing:
    def share(line: Line, key: str) -> float | None:
        return 100 * line["hits"][key] / line["accesses"] if line["accesses"] else None

    return Drawing(
        "hits",
        "Where experts stood when the router asked",
        f"Only resident is a hit: in flight is late, and a miss costs a transfer.{_buttons(study)}",
        _stacked(study, PLACES, "% of requests", share),
    )


def _percent(value: float | None) -> float | None:
    return None if value is None else 100 * value


def cache_size(study: Study) -> Drawing:
    return Drawing(
        "misses",
        "Sensitivity to cache size",
        "Share of requests whose expert was absent; those in flight are not among them.",
        over_slots(study, lambda line: _percent(miss_rate(line)), "misses, %"),
    )


def thresholds(study: Study) -> Drawing:
    title, caption = "Sensitivity to thresholds", "Time per token as an option of a system changes."
    curves: dict[str, list[tuple[float, float]]] = {}
    for line in study.lines:
        for option, value in line["options"].items():
            if (
                line["link_scale"] == 1
                and isinstance(value, int | float)
                and (time := tpot(line)) is not None
            ):
                others = [f"{name} {kept}" for name, kept in line["options"].items() if name != option]
                name = ", ".join([f"{line['system']} by {option}", *others, line["slots"]])
                curves.setdefault(name, []).append((value, time))
    curves = {name: sorted(pairs) for name, pairs in curves.items() if len(pairs) > 1}
    if not curves:
        lacks = (
            "no option of a system was replayed with several values; simulate with --sweep least=0.3,0.5,0.8"
        )
        return Drawing("thresholds", title, caption, missing=lacks)
    figure = empty("value of the option", "ms per token")
    for name, pairs in sorted(curves.items()):
        x, y = zip(*pairs, strict=True)
        figure.add_scatter(x=x, y=y, mode="lines+markers", name=name)
    return Drawing("thresholds", title, caption, figure)


def bandwidth(study: Study) -> Drawing:
    return Drawing(
        "bandwidth",
        "Sensitivity to bandwidth",
        "Time per token as the lane gets faster; both axes are logarithmic.",
        over_bandwidth(study, tpot, "ms per token", log=True),
        ONE_BANDWIDTH,
    )


def waste(study: Study) -> Drawing:
    title, caption = "Waste against bandwidth", "Prefetched bytes that were never used, of all bytes moved."
    if not any(prefetched(line) for line in study.lines):
        lacks = "no system of these lines prefetches, so nothing is wasted"
        return Drawing("waste", title, caption, missing=lacks)

    def share(line: Line) -> float | None:
        return 100 * line["bytes"]["prefetch_wasted"] / moved(line) if prefetched(line) else None

    return Drawing("waste", title, caption, over_bandwidth(study, share, "wasted, % of bytes"), ONE_BANDWIDTH)


def drift(study: Study) -> Drawing:
    title = "Drift across domains"
    if max((len(line["domains"]) for line in study.main), default=0) < 2:
        return Drawing("drift", title, "", missing="the trace names fewer than two domains")

    def fill(figure: go.Figure, systems: list[str], lines: list[Line]) -> None:
        for system, line in zip(systems, lines, strict=True):
            shares = domain_misses(line)
            figure.add_box(
                x=[100 * share for share in shares.values()],
                y=[system] * len(shares),
                text=list(shares),
                boxpoints="all",
                pointpos=0,
                jitter=0.5,
                orientation="h",
                hovertemplate="%{text}: %{x:.1f} %",
                marker={"size": 4, "color": style(system)["marker"]["color"]},
                line_width=1,
                fillcolor="rgba(0,0,0,0)",
                name=system,
            )

    caption = "Misses in the sequences of each domain, in the order of the trace; a point is a domain."
    caption += _buttons(study)
    return Drawing("drift", title, caption, rows_by_slots(study, "misses, %", fill, legend=False))


def churn(study: Study) -> Drawing:
    return Drawing(
        "churn",
        "Churn",
        "Experts that gave up their slot.",
        over_slots(study, lambda line: per_token(line, line["evictions"]), "evictions per token"),
    )


def stays(study: Study) -> Drawing:
    """A histogram for each system: evictions by the turns that the expert had stayed."""
    title = "How long experts stay"
    told = [found for line in study.main if line["system"] != RESIDENT and (found := residence(line))]
    if not told:
        return Drawing(
            "stays", title, "", missing="these lines do not say how long experts stayed, or none left"
        )
    spans = [powers(place) for place in range(max(len(found["by_power"]) for found in told))]

    def fill(figure: go.Figure, systems: list[str], lines: list[Line]) -> None:
        rows = [
            (name, found) for name, line in zip(systems, lines, strict=True) if (found := residence(line))
        ]
        shares = [
            [100 * count / found["left"] for count in found["by_power"]]
            + [0.0] * (len(spans) - len(found["by_power"]))
            for _, found in rows
        ]
        figure.add_heatmap(
            z=shares,
            x=spans,
            y=[name for name, _ in rows],
            customdata=[[_medians(found)] * len(spans) for _, found in rows],
            colorscale="Blues",
            zmin=0,
            hovertemplate="%{y}: %{z:.1f} % of evictions after %{x} turns<br>%{customdata}<extra></extra>",
            colorbar={"thickness": 10, "ticksuffix": " %"},
        )

    caption = (
        "Evictions by the turns of its layer that an expert had stayed; a turn is one pass through the "
        "layer. Dark on "
        f"the left: experts leave soon after they came.{_buttons(study)}"
    )
    figure = rows_by_slots(study, "turns between arrival and eviction", fill, legend=False)
    figure.update_xaxes(type="category", categoryorder="array", categoryarray=spans)
    return Drawing("stays", title, caption, figure)


def powers(place: int) -> str:
    """The turns that bucket number `place` holds; the first one holds 0, too."""
    return f"{2**place}–{2 ** (place + 1) - 1}" if place else "0–1"


def _medians(found: dict[str, Any]) -> str:
    lasted = f", {found['ms']['p50']:,.1f} ms" if found["ms"] else ""
    return f"median {found['turns']['p50']:.0f} turns{lasted}"


def layers(study: Study) -> Drawing:
    title, depth = "Misses by layer", len(study.head["layer_misses"])
    fewest = study.slots[:1]
    found = {
        name: line
        for name in study.systems
        if name not in (RESIDENT, ON_DEMAND)
        and fewest
        and (line := study.line(name, fewest[0]))
        and line["accesses"]
    }
    if not found:
        return Drawing("layers", title, "", missing="no system that keeps experts served a request")
    figure = empty("layer", "", 60 + 26 * len(found), legend=False)
    figure.add_heatmap(
        z=[[100 * n * depth / line["accesses"] for n in line["layer_misses"]] for line in found.values()],
        y=list(found),
        x=list(range(depth)),
        colorscale="Viridis",
        hovertemplate="%{y}, layer %{x}: %{z:.1f} %",
        colorbar={"thickness": 10, "ticksuffix": " %"},
    )
    figure.update_yaxes(autorange="reversed")
    caption = f"Share of a layer's requests that were not resident, at {study.share(fewest[0])} of experts."
    return Drawing("layers", title, caption, figure)


def intensity(study: Study) -> Drawing:
    """A roofline: what a token computes against what it moves."""
    title, head = "Operational intensity", study.head
    flops = head["flops_per_token"]
    roof, rate = flops / head["resident_ms"] * 1e3, study.bytes_per_second
    figure = empty("operations per byte moved", "operations per second")
    seen = [roof / rate]
    for system in study.systems:
        lines = [line for slots in study.slots if (line := study.line(system, slots))]
        pairs = [
            (flops / moves, flops / time * 1e3)
            for line in lines
            if system != RESIDENT and (moves := bytes_per_token(line)) and (time := tpot(line))
        ]
        seen += [x for x, _ in pairs]
        add_curve(figure, system, pairs)
    if len(seen) == 1:
        return Drawing("intensity", title, "", missing="no system of these lines moved a byte")
    xs = [min(seen) / 1.5, roof / rate, max(seen) * 1.5]
    figure.add_scatter(
        x=xs,
        y=[min(roof, x * rate) for x in xs],
        mode="lines",
        name="roof",
        line={"color": GREY, "dash": "dot"},
        hoverinfo="skip",
    )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log")
    caption = (
        "Arithmetic of a token over the bytes it moves, from few slots to many. On the slope the lane "
        "decides, on the flat part computing; below the roof are waits that perfect overlap would remove."
    )
    return Drawing("intensity", title, caption, figure)
