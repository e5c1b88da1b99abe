"""The run report: one schema for run, bench, demo and whatever comes later (docs/formats.md).

A report is made of marks: a clock and the engine's counters, taken when the logits of a token are
ready. The first mark closes the prefill, each later one a decode step.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prophet_ext import Engine

COUNTERS = (
    "bytes_moved",
    "bytes_demand",
    "bytes_prefetch_used",
    "bytes_prefetch_late",
    "bytes_prefetch_wasted",
    "bytes_cancelled",
    "bytes_prefetch_unused",
    "bytes_staged",
    "bytes_found_staged",
    "hits_resident",
    "hits_in_flight",
    "misses",
    "stall_ns",
    "busy_ns",
    "evictions",
    "evicted_before_use",
    "foresight_steps",
    "foresight_held_steps",
    "prefetch_held_steps",
)


@dataclass(frozen=True)
class Mark:
    """A moment of a run: time.perf_counter_ns() and Engine.counters() (empty without an engine)."""

    at_ns: int
    counters: Mapping[str, int]


@dataclass(frozen=True)
class Spread:
    """Mean and percentiles of decode steps, milliseconds; all None when there was none."""

    mean: float | None
    p50: float | None
    p90: float | None
    p99: float | None
    p999: float | None


@dataclass(frozen=True)
class Stall:
    """Time that layers waited for bytes, milliseconds: the whole run, and per decode step."""

    total: float
    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class Bytes:
    """Bytes moved in the whole run by what became of them; per_token: moved per decode step.

    The first six sum to what moved, but for what is still on its way when the run ends. `unused` waits in
    its slot; it is what the run adds to such bytes, so it can be below zero where a run uses what an
    earlier one of the same engine left.
    """

    demand: int
    prefetch_used: int
    prefetch_late: int
    prefetch_wasted: int
    cancelled: int
    unused: int
    per_token: float | None

    @property
    def moved(self) -> int:
        """All of them."""
        early = self.prefetch_used + self.prefetch_late + self.prefetch_wasted + self.unused
        return self.demand + early + self.cancelled


@dataclass(frozen=True)
class HostPool:
    """Between files and a device: bytes read into the pool, and of what moved those that were there."""

    bytes_staged: int
    bytes_found_staged: int


@dataclass(frozen=True)
class Hits:
    """Where experts stood when the router asked for them."""

    resident: int
    in_flight: int
    miss: int


@dataclass(frozen=True)
class Held:
    """Layer steps in which foresight was held back because it cost more than it saved."""

    eviction: int  # its gaps did not choose the victims
    prefetch: int  # nothing was brought early


@dataclass(frozen=True)
class Foresight:
    """What the predictor did and cost. Times are of the processor, per decode step, beside the layers."""

    predictor: str  # its kind
    steps: int  # layer steps that it saw
    ms_per_token: float | None
    share_of_tpot: float | None
    held: Held
    failure: str | None  # why it was switched off

    def told(self) -> str | None:
        """For people: whether it was held back; None when it never was."""
        shares = [
            f"{what} in {count / self.steps:.0%} of {self.steps} layer steps"
            for what, count in (("eviction", self.held.eviction), ("prefetching", self.held.prefetch))
            if count and self.steps
        ]
        return (
            f"foresight held back, because it cost more than it saved: {', '.join(shares)}"
            if shares
            else None
        )


@dataclass(frozen=True)
class RunReport:
    """One run; field for field the JSON object that `--json` prints."""

    model: str
    backend: str
    system: str
    exact: bool | None
    budget_bytes: int
    expert_slots: int
    experts_total: int
    expert_bytes: int
    prompt_tokens: int
    new_tokens: int
    token_ids: list[int]
    text: str | None
    ttft_ms: float | None
    tpot_ms: Spread
    bytes: Bytes
    host_pool: HostPool | None = field(default=None, kw_only=True)
    hits: Hits
    stall_ms: Stall
    overlap_fraction: float | None
    link_busy_fraction: float | None
    evictions: int
    evicted_before_use: int
    foresight: Foresight | None
    peak_rss_bytes: int | None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, keys in the order of the schema."""
        return asdict(self)

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(self.to_dict(), ensure_ascii=False, allow_nan=False)

    @property
    def hit_rate(self) -> float | None:
        """Share of routed experts that were resident when asked for; None when none was asked for."""
        asked = self.hits.resident + self.hits.in_flight + self.hits.miss
        return self.hits.resident / asked if asked else None


def percentile(values: Sequence[float], share: float) -> float | None:
    """The value that `share` of all values do not exceed (interpolated); None of nothing."""
    if not values:
        return None
    ordered = sorted(values)
    place = (len(ordered) - 1) * share
    low, high = math.floor(place), math.ceil(place)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _delta(later: Mark, earlier: Mark, key: str) -> int:
    return later.counters.get(key, 0) - earlier.counters.get(key, 0)


def _host_pool(backend: str, counters: Mapping[str, int]) -> HostPool | None:
    """None where no pool stands below a device."""
    if not backend.startswith("cuda"):
        return None
    return HostPool(counters["bytes_staged"], counters["bytes_found_staged"])


def _spread(steps: Sequence[float]) -> Spread:
    mean = sum(steps) / len(steps) if steps else None
    return Spread(mean, *(percentile(steps, share) for share in (0.5, 0.9, 0.99, 0.999)))


def build_report(
    begun: Mark,
    marks: Sequence[Mark],
    *,
    model: str,
    backend: str,
    system: str,
    exact: bool,
    budget_bytes: int,
    expert_slots: int,
    experts_total: int,
    expert_bytes: int,
    prompt_tokens: int,
    token_ids: Sequence[int],
    text: str | None,
    peak_rss_bytes: int,
    predictor: str = "",
    foresight_failure: str = "",
) -> RunReport:
    """A report from the mark before the prefill and one mark for each token.

    predictor: its kind, "" without one; foresight_failure: why it was switched off, "" while it works.
    """
    last = marks[-1] if marks else begun
    pairs = list(itertools.pairwise(marks))
    total = {key: _delta(last, begun, key) for key in COUNTERS}
    stalls = [_delta(later, earlier, "stall_ns") / 1e6 for earlier, later in pairs]
    busy, wall = total["busy_ns"], last.at_ns - begun.at_ns
    tpot = _spread([(later.at_ns - earlier.at_ns) / 1e6 for earlier, later in pairs])
    thinking = _delta(marks[-1], marks[0], "foresight_ns") / 1e6 / len(pairs) if pairs else None
    return RunReport(
        model=model,
        backend=backend,
        system=system,
        exact=exact,
        budget_bytes=budget_bytes,
        expert_slots=expert_slots,
        experts_total=experts_total,
        expert_bytes=expert_bytes,
        prompt_tokens=prompt_tokens,
        new_tokens=len(token_ids),
        token_ids=list(token_ids),
        text=text,
        ttft_ms=(marks[0].at_ns - begun.at_ns) / 1e6 if marks else None,
        tpot_ms=tpot,
        bytes=Bytes(
            demand=total["bytes_demand"],
            prefetch_used=total["bytes_prefetch_used"],
            prefetch_late=total["bytes_prefetch_late"],
            prefetch_wasted=total["bytes_prefetch_wasted"],
            cancelled=total["bytes_cancelled"],
            unused=total["bytes_prefetch_unused"],
            per_token=_delta(marks[-1], marks[0], "bytes_moved") / len(pairs) if pairs else None,
        ),
        host_pool=_host_pool(backend, total),
        hits=Hits(total["hits_resident"], total["hits_in_flight"], total["misses"]),
        stall_ms=Stall(total["stall_ns"] / 1e6, percentile(stalls, 0.5), percentile(stalls, 0.99)),
        overlap_fraction=min(1.0, max(0.0, 1 - total["stall_ns"] / busy)) if busy > 0 else None,
        link_busy_fraction=min(1.0, busy / wall) if wall > 0 else None,
        evictions=total["evictions"],
        evicted_before_use=total["evicted_before_use"],
        foresight=Foresight(
            predictor=predictor,
            steps=total["foresight_steps"],
            ms_per_token=thinking,
            share_of_tpot=thinking / tpot.mean if thinking is not None and tpot.mean else None,
            held=Held(total["foresight_held_steps"], total["prefetch_held_steps"]),
            failure=foresight_failure or None,
        )
        if predictor
        else None,
        peak_rss_bytes=peak_rss_bytes,
    )


def counted(engine: Engine) -> dict[str, Any]:
    """What an engine has done so far, in the names of the report. Raises StateError after close."""
    counters = engine.counters()
    pool = _host_pool(engine.backend, counters)
    return {
        "arena_bytes": engine.arena_bytes,
        "bytes": {
            kind: counters[f"bytes_{kind}"]
            for kind in ("demand", "prefetch_used", "prefetch_late", "prefetch_wasted")
        },
        "host_pool": None if pool is None else asdict(pool),
        "hits": {
            "resident": counters["hits_resident"],
            "in_flight": counters["hits_in_flight"],
            "miss": counters["misses"],
        },
        "stall_ms": counters["stall_ns"] / 1e6,
        "evictions": counters["evictions"],
        "evicted_before_use": counters["evicted_before_use"],
        "layer_steps": counters["layer_steps"],
    }
