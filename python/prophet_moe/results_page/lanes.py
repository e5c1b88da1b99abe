"""The figures of a timeline: a few tokens as lanes, where time went, how long experts stayed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
from numpy.typing import NDArray

from prophet_moe.results_page.canvas import AMBER, BLUE, GREEN, GREY, RED, VIOLET, add_buttons, empty
from prophet_moe.results_page.figures import powers
from prophet_moe.results_page.part import Drawing, Part, Row, Table
from prophet_moe.results_page.steps import LANES, PARTS, Stays, Steps
from prophet_moe.timeline import Timeline, tracks

# What a window is made of, top lane first, with its name and colour.
NAMES = {
    "outside": ("outside of experts", GREY),
    "compute": ("computing experts", VIOLET),
    "other": ("layer, other work", AMBER),
    "stall": ("waiting for bytes", RED),
}
READS = {"demand": ("reads, demanded", BLUE), "prefetch": ("reads, early", GREEN)}
TOGETHER = 2  # steps that are shown side by side
MOST_SPANS = 6000  # of one view
SLOWEST = 8
READ_HEIGHT = 0.3
HEADINGS = (
    "step",
    "ms",
    "of median",
    "waiting",
    "ms in experts",
    "misses",
    "MB demanded",
    "MB early",
    "worst wait",
)


def part(steps: Steps, key: str, name: str) -> Part:
    """All that is drawn of one timeline; name: its file's."""
    timeline = steps.timeline
    return Part(
        key=key,
        title=f"Timeline of {_model(timeline) or name}{_system(timeline)}",
        subtitle=_subtitle(steps),
        command=f"prophet run {_model(timeline) or 'MODEL'} --timeline {name}{_flags(timeline)}",
        sentences=sentences(steps),
        tables=[slowest(steps)],
        note="Steps are counted from 0, the prompt's. Worst wait: the layer that waited longest.",
        drawings=[
            lanes(steps), where_time_goes(steps), by_layer(steps), bytes_by_layer(steps),
            residence(steps.stays()),
        ],
    )  # fmt: skip


def _model(timeline: Timeline) -> str:
    """Its last name: where the model's folder lies is nobody's concern."""
    return timeline.title.rstrip("/").rpartition("/")[2]


def _system(timeline: Timeline) -> str:
    return f", {timeline.about['system']}" if "system" in timeline.about else ""


def _flags(timeline: Timeline) -> str:
    found = timeline.about
    known = [
        f" --{flag} {found[key]}"
        for flag, key in (("system", "system"), ("slots", "expert_slots"))
        if key in found
    ]
    return "".join(known)


def _subtitle(steps: Steps) -> str:
    found = steps.timeline.about
    slots = (
        f", {found['expert_slots']} of {found['experts_total']} experts in memory"
        if "expert_slots" in found
        else ""
    )
    layers = len(np.unique(steps.window_layer))
    return f"Measured: {len(steps.decoded)} decode steps through {layers} layers of experts{slots}"


def sentences(steps: Steps) -> list[str]:
    """What the figures say, in words."""
    ns, shares, reading = steps.ns[steps.decoded], steps.shares(), steps.reading_ns()
    total, stalled = int(ns.sum()), shares["stall"] * int(ns.sum())
    parts = ", ".join(f"{shares[name]:.0%} {NAMES[name][0]}" for name in PARTS)
    said = [
        f"A decode step takes {np.median(ns) / 1e6:.2f} ms (median of {len(ns)}). Of their time: {parts}."
    ]
    later = steps.shares(steps.decoded[len(steps.decoded) // 2 :])["stall"]
    if abs(later - shares["stall"]) > 0.05:
        said.append(
            f"In the later half of the steps {later:.0%} is waiting: what came before is not typical."
        )
    moved = sum(int(steps.by_step(of)[steps.decoded].sum()) for of in steps.window_bytes.values())
    if reading:
        hidden = max(0.0, 1 - stalled / reading)
        said.append(
            f"A read is in flight {reading / total:.0%} of the time, and brings {moved / reading:.2f} GB/s "
            "then; "
            f"{hidden:.0%} of that time is hidden behind other work."
        )
    else:
        said.append("Nothing was read while decoding.")
    return said


def lanes(steps: Steps) -> Drawing:
    """Spans of a few steps, one view a button."""
    wanted = {"typical": steps.typical, "slowest": steps.slowest(1)[0], "first": int(steps.decoded[0])}
    views = {
        name: step
        for name, step in wanted.items()
        if step not in list(wanted.values())[: list(wanted).index(name)]
    }
    figure = empty("ms from the start of the step", "", 330, dragmode="zoom")
    owner: list[int] = []
    cut = 0
    for place, first in enumerate(views.values()):
        cut += _add_view(figure, steps, first, visible=place == 0)
        owner += [place] * (len(figure.data) - len(owner))
    places = [*(PARTS.index(name) for name in PARTS), len(PARTS), len(PARTS) + 1.5]
    names = [NAMES[name][0] if name != "other" else "in the layer" for name in PARTS]
    names += [name for name, _ in READS.values()]
    figure.update_yaxes(tickvals=places, ticktext=names, range=[len(PARTS) + 2.6, -0.6], fixedrange=True)
    figure.update_layout(barmode="overlay")
    labels = [f"{name} (step {step})" for name, step in views.items()]
    add_buttons(figure, labels, owner)
    caption = (
        f"{'Two steps' if len(steps.decoded) > 1 else 'A step'} as they ran; a row of reads for each that "
        "were in flight at "
        "once. Drag over a part to enlarge it, double-click to see all. Red is what an ideal forecast could "
        "save."
    )
    if cut:
        caption += f" {cut:,} spans are left out."
    return Drawing("lanes", "Tokens as lanes", caption, figure, wide=True)


def _add_view(figure: go.Figure, steps: Steps, first: int, visible: bool) -> int:
    """Two steps from `first` on; how many spans were too many."""
    last = min(first + TOGETHER, len(steps)) - 1
    begin, end = int(steps.begin[first]), int(steps.end[last])
    cut = 0

    def add(name: str, colour: str, rows: dict[str, Any], at: NDArray[np.float64], high: float) -> None:
        nonlocal cut
        cut += max(0, len(rows["begin"]) - MOST_SPANS)
        rows, at = {key: of[:MOST_SPANS] for key, of in rows.items()}, at[:MOST_SPANS]
        figure.add_bar(
            base=(rows["begin"] - begin) / 1e6, x=(rows["end"] - rows["begin"]) / 1e6, y=at, width=high,
            orientation="h", name=name, marker={"color": colour, "line": {"width": 0}}, visible=visible,
            text=_labels(rows), textposition="none", hovertemplate="%{text}: %{x:.3f} ms", showlegend=False,
        )  # fmt: skip

    windows = np.flatnonzero((steps.window_step >= first) & (steps.window_step <= last))
    outside = steps.window_parts["outside"][windows]
    ends = steps.window_begin[windows] + steps.window_ns[windows]
    spans = {"begin": ends - outside, "end": ends, "layer": steps.window_layer[windows]}
    add(*NAMES["outside"], spans, np.zeros(len(windows)), 0.8)
    served = {
        "begin": steps.window_begin[windows],
        "end": ends - outside,
        "layer": steps.window_layer[windows],
    }
    add(*NAMES["other"], served, np.full(len(windows), float(PARTS.index("other"))), 0.8)
    for kind in ("compute", "stall"):
        rows = _within(steps.timeline, kind, begin, end)
        add(*NAMES[kind], rows, np.full(len(rows["begin"]), float(PARTS.index(kind))), 0.8)
    for place, (lane, (name, colour)) in enumerate(READS.items()):
        rows = _within(steps.timeline, LANES[lane], begin, end)
        rank = np.array(tracks(rows["begin"], rows["end"]), np.float64)
        high = READ_HEIGHT if rank.max(initial=0) < 4 else 1.2 / (rank.max() + 1)
        add(name, colour, rows, len(PARTS) - 0.4 + high / 2 + 1.5 * place + rank * high, high * 0.85)
    return cut


def _within(timeline: Timeline, kind: str, begin: int, end: int) -> dict[str, NDArray[np.int64]]:
    rows = timeline.rows(kind)
    chosen = (rows["end"] > begin) & (rows["begin"] < end)
    found = {key: of[chosen] for key, of in rows.items()}
    return found | {"begin": np.maximum(found["begin"], begin), "end": np.minimum(found["end"], end)}


def _labels(rows: dict[str, Any]) -> list[str]:
    experts = rows.get("expert")
    if experts is None or not len(experts) or experts[0] < 0:
        return [f"layer {layer}" for layer in rows["layer"].tolist()]
    sizes = rows["bytes"] / 1e6
    return [
        f"layer {layer} expert {expert}, {size:.2f} MB"
        for layer, expert, size in zip(rows["layer"].tolist(), experts.tolist(), sizes.tolist(), strict=True)
    ]


def where_time_goes(steps: Steps) -> Drawing:
    figure = empty("decode step", "ms", barmode="stack", bargap=0.1, hovermode="x unified")
    for name in PARTS:
        value = steps.by_step(steps.window_parts[name])[steps.decoded] / 1e6
        label, colour = NAMES[name]
        figure.add_bar(x=steps.decoded, y=value, name=label, marker_color=colour, hovertemplate="%{y:.2f} ms")
    return Drawing(
        "steps",
        "Where the time of each step went",
        "Stacked, so that a bar is as high as its step is long.",
        figure,
    )


def by_layer(steps: Steps) -> Drawing:
    figure = empty("layer", "ms of a decode step, mean", barmode="stack", bargap=0.1, hovermode="x unified")
    for name in PARTS:
        found = steps.by_layer(steps.window_parts[name])
        label, colour = NAMES[name]
        figure.add_bar(
            x=list(found), y=[ns / 1e6 for ns in found.values()], name=label, marker_color=colour,
            hovertemplate="%{y:.3f} ms",
        )  # fmt: skip
    caption = (
        "From the moment a layer's router has spoken to the next layer's: the time a read may take unseen."
    )
    return Drawing("layers", "Where the time of each layer went", caption, figure)


def bytes_by_layer(steps: Steps) -> Drawing:
    title, caption = (
        "Bytes by layer",
        "Read for a layer's experts while it ran (demanded) or earlier (early), by when the read began.",
    )
    if not any(int(of.sum()) for of in steps.window_bytes.values()):
        return Drawing("bytes", title, caption, missing="nothing was read")
    figure = empty("layer during which the read began", "MB of a decode step, mean", barmode="stack",
                   bargap=0.1, hovermode="x unified")  # fmt: skip
    for lane, of in steps.window_bytes.items():
        found = steps.by_layer(of)
        label, colour = READS[lane]
        figure.add_bar(
            x=list(found), y=[size / 1e6 for size in found.values()], name=label, marker_color=colour,
            hovertemplate="%{y:.3f} MB",
        )  # fmt: skip
    return Drawing("bytes", title, caption, figure)


def residence(stays: Stays) -> Drawing:
    title = "How long experts stayed"
    if not len(stays.turns):
        return Drawing("residence", title, "", missing="no expert that came in this timeline left again")
    turns = np.bincount(np.log2(np.maximum(stays.turns, 1)).astype(int))
    labels = [powers(place) for place in range(len(turns))]
    figure = empty(
        "turns of the expert's layer between arrival and eviction", "experts that left", legend=False
    )
    figure.add_bar(x=labels, y=turns, marker_color=BLUE, hovertemplate="%{x} turns: %{y}")
    figure.update_xaxes(type="category")
    caption = (
        f"{len(stays.turns):,} left, after {np.median(stays.turns):.0f} turns and "
        f"{np.median(stays.ns) / 1e6:,.0f} ms "
        f"(medians); {stays.still_there:,} that came were still there at the end. A turn is one pass "
        "through the layer."
    )
    return Drawing("residence", title, caption, figure)


def slowest(steps: Steps) -> Table:
    middle = float(np.median(steps.ns[steps.decoded]))
    sums = {name: steps.by_step(of) for name, of in steps.window_parts.items()}
    moved = {lane: steps.by_step(of) for lane, of in steps.window_bytes.items()}
    misses = steps.by_step(steps.window_misses)

    def cells(step: int) -> Sequence[str]:
        mine = np.flatnonzero(steps.window_step == step)
        worst = mine[np.argmax(steps.window_parts["stall"][mine])]
        waited = int(steps.window_parts["stall"][worst])
        return (
            str(step),
            f"{steps.ns[step] / 1e6:.2f}",
            f"{steps.ns[step] / middle:.2f}x" if middle else "–",
            f"{sums['stall'][step] / max(int(steps.ns[step]), 1):.0%}",
            f"{(sums['compute'][step] + sums['other'][step]) / 1e6:.2f}",
            f"{misses[step]:,}",
            f"{moved['demand'][step] / 1e6:.1f}",
            f"{moved['prefetch'][step] / 1e6:.1f}",
            f"layer {steps.window_layer[worst]}, {waited / 1e6:.2f} ms" if waited else "none",
        )

    rows = [Row(cells(step)) for step in [steps.typical, *steps.slowest(SLOWEST)]]
    return Table("A typical step, and the slowest ones", HEADINGS, rows)
