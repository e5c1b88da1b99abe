"""What all figures share: colours of systems, empty figures, curves over slots, rows with buttons for slots.

The page gives each figure its room (assets/report/page.html): `meta.plot` is the height of the plot itself in
pixels, `meta.legend` says whether room for a legend is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any
from zlib import crc32

import plotly.graph_objects as go
from plotly.colors import qualitative

from prophet_moe.results_page.study import BOUNDS, RESIDENT, Study
from prophet_moe.sim.results import Line
from prophet_moe.sim.systems import systems_known

COLOURS = qualitative.T10[:9] + qualitative.Dark2 + qualitative.Bold  # seen on light and on dark
SYMBOLS = ("circle", "square", "diamond", "cross", "triangle-up", "x", "star", "hexagon")
GREY = "#8a8f98"
BLUE, GREEN, AMBER, RED, VIOLET = "#5b7db1", "#4f9d69", "#d9a441", "#c0504d", "#8c6bb1"

Value = Callable[[Line], float | None]
Fill = Callable[[go.Figure, list[str], list[Line]], None]


def style(name: str) -> dict[str, Any]:
    """Line and marker of a system, the same in all figures of all pages; bounds are grey and dashed.

    name: with options where those vary (`prophet least=0.5`), which change the marker alone.
    """
    system, _, options = name.partition(" ")
    order = [known for known in systems_known() if known not in BOUNDS]
    place = order.index(system) if system in order else crc32(system.encode())
    colour = GREY if system in BOUNDS else COLOURS[place % len(COLOURS)]
    dash = "dot" if system == RESIDENT else "dash" if system in BOUNDS else "solid"
    variant = BOUNDS.index(system) if system in BOUNDS else place + crc32(options.encode())
    marker = {"color": colour, "symbol": SYMBOLS[variant % len(SYMBOLS)], "size": 8}
    return {"line": {"color": colour, "dash": dash}, "marker": marker}


def empty(x: str, y: str, plot: int = 320, legend: bool = True, **layout: Any) -> go.Figure:
    """A figure with named axes and nothing in it."""
    figure = go.Figure()
    figure.update_layout(
        template="none",
        xaxis_title=x,
        yaxis_title=y,
        meta={"plot": plot, "legend": legend},
        margin={"l": 8, "r": 8, "t": 8, "b": 8},
        showlegend=legend,
        **layout,
    )
    figure.update_xaxes(automargin=True)
    figure.update_yaxes(automargin=True)
    return figure


def add_curve(figure: go.Figure, system: str, pairs: list[tuple[float, float]], **more: Any) -> None:
    """Points (x, y) of a system in its style; nothing where there are none."""
    if pairs:
        x, y = zip(*sorted(pairs), strict=True)
        look = style(system) | {"mode": "lines+markers", "hovertemplate": "%{y:.4g}"} | more
        figure.add_scatter(x=x, y=y, name=system, **look)


def over_slots(study: Study, of: Value, y: str, log: bool = False) -> go.Figure:
    """One curve per system over the slots."""
    figure = empty("slots, % of all experts", y, hovermode="x unified", xaxis_range=[0, 105])
    total = study.head["experts_total"]
    for system in study.systems:
        pairs = [
            (100 * slots / total, value)
            for slots in study.slots
            if (line := study.line(system, slots)) and (value := of(line)) is not None
        ]
        add_curve(figure, system, pairs)
    if log:
        logarithmic(figure.update_yaxes)
    return figure


def over_bandwidth(study: Study, of: Value, y: str, log: bool = False) -> go.Figure | None:
    """One curve per system over the lane's bandwidth, at the fewest slots; None of fewer than two."""
    fewest = study.slots[:1]
    lines = [
        line
        for line in study.lines
        if (line["expert_slots"] in fewest or line["system"] == RESIDENT) and of(line) is not None
    ]
    if len({line["link_scale"] for line in lines}) < 2:
        return None
    figure = empty(f"GB/s of the lane, at {study.share(fewest[0])} of experts", y, hovermode="x unified")
    for system in study.systems:
        pairs = [
            (line["times"]["bytes_per_second"] / 1e9, value)
            for line in lines
            if study.name(line) == system and (value := of(line)) is not None
        ]
        add_curve(figure, system, pairs)
    logarithmic(figure.update_xaxes)
    if log:
        logarithmic(figure.update_yaxes)
    return figure


def logarithmic(update: Callable[..., Any]) -> None:
    ticks = [digit * 10.0**power for power in range(-4, 7) for digit in (1, 2, 5)]
    update(type="log", tickvals=ticks, ticktext=[f"{tick:g}" for tick in ticks])


def rows_by_slots(study: Study, x: str, fill: Fill, legend: bool = True, **layout: Any) -> go.Figure:
    """Rows, one per system, for one number of slots at a time; buttons choose it.

    fill adds traces for the systems it is given, and their lines.
    """
    sizes = study.slots
    systems = [name for name in study.systems if name != RESIDENT]
    figure = empty(x, "", 60 + 26 * len(systems), legend, **layout)
    owner: list[int] = []
    for place, slots in enumerate(sizes):
        pairs = [(name, line) for name in systems if (line := study.line(name, slots))]
        fill(figure, [name for name, _ in pairs], [line for _, line in pairs])
        owner += [place] * (len(figure.data) - len(owner))
    add_buttons(figure, [study.share(slots) for slots in sizes], owner)
    figure.update_yaxes(categoryorder="array", categoryarray=systems[::-1])
    return figure


def add_buttons(figure: go.Figure, labels: Sequence[str], owner: Sequence[int]) -> None:
    """Buttons above a figure, each of which shows its own traces; the first is chosen.

    owner: of each trace, the number of its label. With one label all are shown and there is no button.
    """
    for place, trace in zip(owner, figure.data, strict=True):
        trace.visible = place == 0
    if len(labels) < 2:
        return
    buttons = [
        {"label": label, "method": "restyle", "args": [{"visible": [mine == place for mine in owner]}]}
        for place, label in enumerate(labels)
    ]
    menu = {"type": "buttons", "direction": "right", "buttons": buttons, "showactive": True}
    place_above = {"x": 0, "xanchor": "left", "y": 1, "yanchor": "bottom", "pad": {"b": 6, "t": 0}}
    figure.update_layout(updatemenus=[menu | place_above], margin_t=44)
