"""The figures of requests side by side: what each waits, what they share, when keeping experts pays."""

from __future__ import annotations

from collections.abc import Callable

import plotly.graph_objects as go

from prophet_moe.break_even import FLOOR, PAYS, verdicts
from prophet_moe.break_even import Point as Timed
from prophet_moe.results_page.canvas import GREY, add_buttons, add_curve, empty, logarithmic
from prophet_moe.results_page.load import Load, Point
from prophet_moe.results_page.part import Drawing, Part, Row, Table, text
from prophet_moe.results_page.study import BOUNDS

Value = Callable[[Point], float | None]
X = "requests at once"
HEADINGS = (
    "at once",
    "system",
    "ms/token",
    "of on-demand",
    "p99",
    "first token ms",
    "tokens/s",
    "hits",
    "MB/token",
    "union",
)


def part(load: Load, key: str) -> Part:
    return Part(
        key=key,
        title=load.title,
        subtitle=load.subtitle,
        command=load.command,
        sentences=sentences(load),
        tables=[table(load, slots) for slots in load.slots],
        note="ms/token: between two tokens of a request. tokens/s: of all requests. union: distinct experts "
        "that a layer is asked for in one pass. Bounds are in italics.",
        drawings=drawings(load),
    )


def sentences(load: Load) -> list[str]:
    """Where keeping experts, and foreseeing them, stops paying."""
    said = []
    for slots in load.slots:
        points = [
            Timed(one.system, one.at_once, one.tpot["mean"])
            for system in load.systems
            if system not in BOUNDS
            for one in load.at(system, slots)
            if one.tpot["mean"] is not None
        ]
        said += [f"With {load.share(slots)} of experts: {verdict}" for verdict in verdicts(points, "here")]
    return said


def drawings(load: Load) -> list[Drawing]:
    def mean(one: Point) -> float | None:
        return one.tpot["mean"]

    def tail(one: Point) -> float | None:
        return one.tpot["p99"]

    def first(one: Point) -> float | None:
        return one.ttft["mean"]

    def hits(one: Point) -> float | None:
        return None if one.hit_rate is None else 100 * one.hit_rate

    def megabytes(one: Point) -> float | None:
        return None if one.bytes_per_token is None else one.bytes_per_token / 1e6

    return [
        _curves(load, "tpot", "Time per output token",
                "What a request waits between two of its tokens. It rises with the requests, because a pass "
                "brings what any of them needs.", "ms per token", mean, log=True),
        paying(load),
        _curves(load, "p99", "Tails", "One token in a hundred takes longer.", "ms per token, p99", tail,
                log=True),
        _curves(load, "ttft", "Time to the first token", "From the moment a request comes.", "ms, mean",
                first, log=True, lacks="these requests have no prompts; simulate with --prompt-tokens 32"),
        _curves(load, "rate", "Tokens per second", "Of all requests together: what batching gains.",
                "tokens/s", lambda one: one.tokens_per_second),
        _curves(load, "hits", "Hits", "Of the experts that a layer step asks for, those in fast memory.",
                "% resident", hits),
        _curves(load, "bytes", "Bytes per token", "All bytes that moved, prompts' included, by new tokens.",
                "MB per token", megabytes),
        union(load),
    ]  # fmt: skip


def _axis(load: Load, y: str) -> go.Figure:
    figure = empty(X, y, hovermode="x unified")
    figure.update_xaxes(type="log", tickvals=load.at_once, ticktext=[str(count) for count in load.at_once])
    return figure


def _curves(
    load: Load, key: str, title: str, caption: str, y: str, of: Value, log: bool = False, lacks: str = ""
) -> Drawing:
    """One curve per system, one view per number of slots."""
    figure = _axis(load, y)
    owner: list[int] = []
    for place, slots in enumerate(load.slots):
        for system in load.systems:
            points = [one for one in load.at(system, slots) if of(one) is not None]
            pairs = [(float(one.at_once), value) for one in points if (value := of(one)) is not None]
            spread = {}
            if key == "tpot" and any(one.spread for one in points):
                low, high = zip(*(one.spread or (of(one), of(one)) for one in points), strict=True)
                means = [value for _, value in pairs]
                spread["error_y"] = {
                    "array": [most - mean for most, mean in zip(high, means, strict=True)],
                    "arrayminus": [mean - least for least, mean in zip(low, means, strict=True)],
                    "thickness": 1,
                }
            add_curve(figure, system, pairs, **spread)
        owner += [place] * (len(figure.data) - len(owner))
    if not owner:
        return Drawing(key, title, caption, missing=lacks or "these results do not say it")
    add_buttons(figure, [load.share(slots) for slots in load.slots], owner)
    if log:
        logarithmic(figure.update_yaxes)
    return Drawing(key, title, caption + _buttons(load), figure)


def _buttons(load: Load) -> str:
    return " Buttons choose the slots, as a share of all experts." if len(load.slots) > 1 else ""


def paying(load: Load) -> Drawing:
    """Time per token over that of on-demand."""
    title = "What keeping experts saves"
    floor = {
        (one.slots, one.at_once): one.tpot["mean"]
        for one in load.points
        if one.system == FLOOR and one.tpot["mean"]
    }
    if not floor:
        return Drawing("paying", title, "", missing=f"{FLOOR} was not run beside the others")

    def share(one: Point) -> float | None:
        least, mean = floor.get((one.slots, one.at_once)), one.tpot["mean"]
        return mean / least if mean is not None and least else None

    caption = (
        f"Time per token over that of {FLOOR}, which keeps nothing and reads the union of each pass once. "
        f"At most {PAYS:.2f} "
        "(dotted) counts as paying."
    )
    drawing = _curves(load, "paying", title, caption, f"of {FLOOR}'s time", share)
    if drawing.figure is not None:
        drawing.figure.add_hline(y=PAYS, line={"color": GREY, "dash": "dot", "width": 1})
        drawing.figure.update_yaxes(rangemode="tozero")
    return drawing


def union(load: Load) -> Drawing:
    """What the requests of a pass ask for together; it depends on them, hardly on the system."""
    points = load.at(next(name for name in load.systems if load.at(name, load.slots[0])), load.slots[0])
    figure = _axis(load, "distinct experts of a layer step")
    figure.add_scatter(x=[one.at_once for one in points], y=[one.union for one in points], name="asked for",
                       mode="lines+markers", hovertemplate="%{y:.1f}", line={"color": "#5b7db1"})  # fmt: skip
    if points[0].at_once == 1:
        alone = [points[0].union * one.at_once for one in points]
        figure.add_scatter(x=[one.at_once for one in points], y=alone, mode="lines",
                           name="if they shared nothing",
                           hovertemplate="%{y:.1f}", line={"color": GREY, "dash": "dot"})  # fmt: skip
        logarithmic(figure.update_yaxes)
    caption = (
        "Union of what the tokens of a pass want from a layer. The gap to the dotted line is what they share."
    )
    return Drawing("union", "What the requests ask for together", caption, figure)


def table(load: Load, slots: int) -> Table:
    rows = []
    for count in load.at_once:
        found = [one for name in load.systems for one in load.at(name, slots) if one.at_once == count]
        least = next((one.tpot["mean"] for one in found if one.system == FLOOR), None)
        found.sort(key=lambda one: (one.tpot["mean"] is None, one.tpot["mean"] or 0))
        rows += [Row(_cells(one, least), one.system.split(" ")[0] in BOUNDS) for one in found]
    return Table(f"{load.share(slots)} of experts ({slots} slots)", HEADINGS, rows, names=2)


def _cells(one: Point, least: float | None) -> list[str]:
    mean = one.tpot["mean"]
    return [
        str(one.at_once),
        one.system,
        text(mean, ".2f"),
        text(mean / least if mean is not None and least else None, ".2f", "x"),
        text(one.tpot["p99"], ".1f"),
        text(one.ttft["mean"], ".1f"),
        text(one.tokens_per_second, ".1f"),
        text(one.hit_rate, ".1%"),
        text(None if one.bytes_per_token is None else one.bytes_per_token / 1e6, ".1f"),
        text(one.union, ".1f"),
    ]
