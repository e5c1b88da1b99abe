"""Requests side by side, as results tell of them: simulated ones and real ones in the same words."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prophet_moe.results_page.study import BOUNDS, RESIDENT, SETTING, miss_rate, moved, prefetched, served
from prophet_moe.sim.results import Line
from prophet_moe.sim.systems import systems_known

ORDER = ("seed", "prompt_tokens")
REAL = ("model", "backend", "experts_total", "requests", "prompt_tokens", "new_tokens")


@dataclass(frozen=True)
class Point:
    """One system with so many slots and so many requests at once. Unknown is None."""

    system: str
    slots: int
    at_once: int
    tpot: Mapping[str, float | None]  # ms: mean, p50, p99, p999 between two tokens of a request
    spread: tuple[float, float] | None  # of the mean over rounds, where there were several
    ttft: Mapping[str, float | None]  # ms: mean, p50, p99
    tokens_per_second: float | None  # of all requests
    hit_rate: float | None
    bytes_per_token: float | None
    wasted: float | None  # share of bytes that were brought early and never used
    union: float  # distinct experts of a layer step
    streamed: float  # share of layer steps


@dataclass(frozen=True)
class Load:
    """Points that differ in system, slots and requests at once alone. At least one."""

    title: str
    subtitle: str
    command: str
    simulated: bool
    experts_total: int
    points: tuple[Point, ...]

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """Ascending; that of `resident` left out where there are others."""
        found = {one.slots for one in self.points if one.system != RESIDENT}
        return tuple(sorted(found or {one.slots for one in self.points}))

    @cached_property
    def at_once(self) -> tuple[int, ...]:
        return tuple(sorted({one.at_once for one in self.points}))

    @cached_property
    def systems(self) -> tuple[str, ...]:
        """In the order of the command line, bounds last."""
        order = {name: place for place, name in enumerate(systems_known())}
        named = {one.system: one.system.split(" ")[0] for one in self.points}
        return tuple(
            sorted(named, key=lambda name: (named[name] in BOUNDS, order.get(named[name], len(order)), name))
        )

    def share(self, slots: int) -> str:
        return f"{100 * slots / self.experts_total:.3g} %"

    def at(self, system: str, slots: int) -> list[Point]:
        """Fewest requests first; resident has one number of slots for all."""
        mine = [
            one for one in self.points if one.system == system and (one.slots == slots or system == RESIDENT)
        ]
        return sorted(mine, key=lambda one: one.at_once)

    def best(self, slots: int, at_once: int) -> Point | None:
        """The fastest real system; None where no time is known."""
        found = [
            (mean, one.system, one)
            for one in self.points
            if (one.slots, one.at_once) == (slots, at_once)
            and one.system.split(" ")[0] not in BOUNDS
            and (mean := one.tpot["mean"]) is not None
        ]
        return min(found, key=lambda row: row[:2])[2] if found else None


def loads(lines: Iterable[Line], reports: Iterable[Mapping[str, Any]]) -> list[Load]:
    """Of simulated lines that have requests side by side, and of reports of prophet bench --serve."""
    simulated: dict[tuple[Any, ...], list[Line]] = {}
    for line in {line["cell"]: line for line in lines}.values():
        if at := served(line):
            key = (*(line[name] for name in SETTING), *(at[name] for name in ORDER), line["link_scale"])
            simulated.setdefault(key, []).append(line)
    real: dict[tuple[Any, ...], list[Mapping[str, Any]]] = {}
    for report in reports:
        real.setdefault(tuple(report[name] for name in REAL), []).append(report)
    return [*map(_simulated, simulated.values()), *map(_real, real.values())]


def _simulated(lines: Sequence[Line]) -> Load:
    head, at = lines[0], served(lines[0])
    counts = sorted({served(line)["concurrency"] for line in lines})
    sizes = {line["slots"]: line["expert_slots"] for line in lines if line["system"] != RESIDENT}
    systems = ",".join(dict.fromkeys(line["system"] for line in lines))
    held = f" --held-out {head['held_out']}" if head["held_out"] else ""
    more = f"; the first {at['prompt_tokens']} tokens of each are its prompt" if at["prompt_tokens"] else ""
    more += f", the lane at {head['link_scale']:g} times its bandwidth" if head["link_scale"] != 1 else ""
    listed = ",".join(sorted(sizes, key=lambda asked: sizes[asked])) or "100%"
    return Load(
        title=f"Requests side by side: {head['model']} ({head['weights']}) on {head['machine']}",
        subtitle=f"Simulated: {head['sequences']} sequences of {head['trace']}, domains mixed, "
        f"{_several(counts)} at once; experts come by {head['lane']}{more}",
        command=f"prophet simulate {head['trace']} --model {head['model']} --weights {head['weights']} "
        f"--machine {head['machine']} --lane {head['lane']} --slots {listed} --systems {systems}{held} "
        f"--concurrency {','.join(map(str, counts))} --prompt-tokens {at['prompt_tokens']} "
        f"--seed {at['seed']}",
        simulated=True,
        experts_total=head["experts_total"],
        points=tuple(map(_point_of_line, lines)),
    )


def _point_of_line(line: Line) -> Point:
    at, misses = line["serving"], miss_rate(line)
    late = line["hits"]["in_flight"] / line["accesses"] if line["accesses"] else 0.0
    options = " ".join(f"{key}={value}" for key, value in line["options"].items())
    return Point(
        system=f"{line['system']} {options}".strip(),
        slots=line["expert_slots"],
        at_once=at["concurrency"],
        tpot=line["tpot_ms"],
        spread=None,
        ttft=at["ttft_ms"],
        tokens_per_second=at["tokens_per_second"],
        hit_rate=None if misses is None else 1 - misses - late,
        bytes_per_token=line["bytes"]["per_token"],
        wasted=line["bytes"]["prefetch_wasted"] / moved(line) if prefetched(line) else None,
        union=at["union"],
        streamed=at["streamed"],
    )


def _real(reports: Sequence[Mapping[str, Any]]) -> Load:
    head = reports[0]
    rounds: dict[tuple[str, int, int], list[Mapping[str, Any]]] = {}
    for report in reports:
        rounds.setdefault((report["system"], report["expert_slots"], report["concurrency"]), []).append(
            report
        )
    counts = sorted({report["concurrency"] for report in reports})
    sizes = sorted({report["expert_slots"] for report in reports})
    most = max(map(len, rounds.values()))
    name = str(head["model"]).rstrip("/").rpartition("/")[2]
    return Load(
        title=f"Requests side by side: {name} ({head['backend']}), measured",
        subtitle=f"Measured: {head['requests']} requests of {head['prompt_tokens'] / head['requests']:.0f} "
        "prompt and "
        f"{head['new_tokens'] / head['requests']:.0f} new tokens, {_several(counts)} at once; "
        f"{f'medians of {most} rounds' if most > 1 else 'one round'}",
        command=f"prophet bench {name} --serve --concurrency {','.join(map(str, counts))} "
        f"--requests {head['requests']} --slots {sizes[0]} "
        f"--systems {','.join(dict.fromkeys(report['system'] for report in reports))} --repeat {most} --json",
        simulated=False,
        experts_total=head["experts_total"],
        points=tuple(_point_of_rounds(*key, found) for key, found in rounds.items()),
    )


def _point_of_rounds(system: str, slots: int, at_once: int, rounds: Sequence[Mapping[str, Any]]) -> Point:
    def middle(of: Callable[[Mapping[str, Any]], float | None]) -> float | None:
        known = [value for one in rounds if (value := of(one)) is not None]
        return statistics.median(known) if known else None

    def middles(key: str) -> dict[str, float | None]:
        def of(name: str) -> float | None:
            return middle(lambda one: one[key][name])

        return {name: of(name) for name in rounds[0][key]}

    means = [one["tpot_ms"]["mean"] for one in rounds]
    return Point(
        system=system,
        slots=slots,
        at_once=at_once,
        tpot=middles("tpot_ms"),
        spread=(min(means), max(means)) if len(means) > 1 else None,
        ttft=middles("ttft_ms"),
        tokens_per_second=middle(lambda one: one["tokens_per_second"]),
        hit_rate=middle(lambda one: one["hit_rate"]),
        bytes_per_token=middle(lambda one: one["bytes_per_token"]),
        wasted=None,
        union=middle(lambda one: one["union"]) or 0.0,
        streamed=middle(lambda one: one["streamed"]) or 0.0,
    )


def _several(counts: Sequence[int]) -> str:
    """Such as `1, 4 and 16`."""
    *others, last = map(str, counts)
    return f"{', '.join(others)} and {last}" if others else last
