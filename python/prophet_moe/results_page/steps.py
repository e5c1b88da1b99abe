"""A timeline as forward passes and layers: what each took, moved and waited for (times in nanoseconds).

A *step* is one forward pass: it begins when the router of the first MoE layer has spoken and ends where the
next pass does so. A layer's *window* is the same between two layers; the end of a window is what the model
does outside of its experts: the next layer's attention and router, after the last layer also the head,
sampling and the first layer's attention.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from prophet_moe.timeline import Timeline

Longs = NDArray[np.int64]
PARTS = ("outside", "compute", "other", "stall")  # what a window is made of; they sum to it
LANES = {"demand": "read_demand", "prefetch": "read_prefetch"}


@dataclass(frozen=True)
class Stays:
    """Experts between arrival and eviction: [evicted], and how many were never evicted."""

    turns: Longs  # steps of the expert's layer meanwhile
    ns: Longs
    still_there: int


class Steps:
    """What the steps of a timeline were. At least one."""

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        layers = timeline.rows("layer_step")
        self.window_layer = layers["layer"]  # [windows]
        self.window_begin = layers["begin"]
        ends = np.append(self.window_begin[1:], timeline.columns["end"].max())
        self.window_ns = np.maximum(ends - self.window_begin, 0)
        opens = np.r_[True, self.window_layer[1:] <= self.window_layer[:-1]]
        self.window_step = np.cumsum(opens) - 1  # which step a window is of
        self.begin = self.window_begin[opens]  # [steps]
        self.end = np.append(self.begin[1:], ends[-1])
        served = layers["end"] - layers["begin"]  # 0 where the caller computed by itself (leases)
        stall, compute = (self._sum(kind, "ns") for kind in ("stall", "compute"))
        inside = np.minimum(np.maximum(served, stall + compute), self.window_ns)
        self.window_parts = {
            "outside": self.window_ns - inside,
            "compute": compute,
            "other": np.maximum(inside - stall - compute, 0),
            "stall": stall,
        }
        self.window_bytes = {lane: self._sum(kind, "bytes") for lane, kind in LANES.items()}
        self.window_misses = self._sum("miss", "count")

    def __len__(self) -> int:
        return len(self.begin)

    def _window_of(self, moments: Longs) -> Longs:
        found = np.searchsorted(self.window_begin, moments, side="right") - 1
        return np.maximum(found, 0)

    def _sum(self, kind: str, what: str) -> Longs:
        """[windows]: of the events that begin in each, their time, bytes or count."""
        rows = self.timeline.rows(kind)
        value = {"ns": rows["end"] - rows["begin"], "bytes": rows["bytes"]}.get(what)
        out = np.zeros(len(self.window_begin), np.int64)
        np.add.at(out, self._window_of(rows["begin"]), 1 if value is None else value)
        return out

    def by_step(self, of_windows: Longs) -> Longs:
        """[steps]: sums over their windows."""
        return np.bincount(self.window_step, of_windows, len(self)).astype(np.int64)

    @cached_property
    def decoded(self) -> Longs:
        """Numbers of the steps that decode: not the first, which reads the prompt, unless it is alone."""
        return np.arange(len(self))[1:] if len(self) > 1 else np.arange(1)

    @cached_property
    def ns(self) -> Longs:
        return self.end - self.begin

    @property
    def typical(self) -> int:
        """The decode step of median duration."""
        order = self.decoded[np.argsort(self.ns[self.decoded], kind="stable")]
        return int(order[(len(order) - 1) // 2])

    def slowest(self, count: int) -> list[int]:
        """Decode steps, slowest first."""
        order = np.argsort(-self.ns[self.decoded], kind="stable")
        return [int(step) for step in self.decoded[order[:count]]]

    def shares(self, of: Longs | None = None) -> dict[str, float]:
        """Of the time of some steps (all that decode), what each part takes; they sum to 1."""
        chosen = self.decoded if of is None else of
        total = int(self.ns[chosen].sum())
        parts = {name: self.by_step(self.window_parts[name])[chosen].sum() for name in PARTS}
        return {name: float(value / total) if total else 0.0 for name, value in parts.items()}

    def by_layer(self, of_windows: Longs) -> dict[int, float]:
        """Mean of a layer's windows in decode steps."""
        chosen = np.isin(self.window_step, self.decoded)
        return {
            int(layer): float(of_windows[chosen & (self.window_layer == layer)].mean())
            for layer in np.unique(self.window_layer[chosen])
        }

    def reading_ns(self) -> int:
        """Time of decode steps with at least one read in flight."""
        first, last = int(self.begin[self.decoded[0]]), int(self.end[self.decoded[-1]])
        spans = np.concatenate([self._spans(kind) for kind in LANES.values()])
        spans = np.clip(spans[np.argsort(spans[:, 0], kind="stable")], first, last)
        until = np.maximum.accumulate(np.r_[first, spans[:, 1]])
        return int(np.maximum(spans[:, 1] - np.maximum(spans[:, 0], until[:-1]), 0).sum())

    def _spans(self, kind: str) -> Longs:
        rows = self.timeline.rows(kind)
        return np.stack([rows["begin"], rows["end"]], axis=1)

    def stays(self) -> Stays:
        """Of every eviction whose expert's arrival the timeline saw."""
        arrived: dict[tuple[int, int], int] = {}
        turns, lasted = [], []
        marks = [("left", self.timeline.rows("evicted"), "begin")]
        marks += [("came", self.timeline.rows(kind), "end") for kind in LANES.values()]
        order = sorted(
            (int(at), kind == "left", int(layer), int(expert))
            for kind, rows, when in marks
            for at, layer, expert in zip(rows[when], rows["layer"], rows["expert"], strict=True)
        )
        begins = {layer: self.window_begin[self.window_layer == layer] for layer in set(self.window_layer)}
        for at, left, layer, expert in order:
            if not left:
                arrived[layer, expert] = at
            elif (came := arrived.pop((layer, expert), None)) is not None:
                mine = begins.get(layer, np.zeros(0, np.int64))
                turns.append(int(np.diff(np.searchsorted(mine, (came, at), side="right"))[0]))
                lasted.append(at - came)
        return Stays(np.array(turns, np.int64), np.array(lasted, np.int64), len(arrived))
