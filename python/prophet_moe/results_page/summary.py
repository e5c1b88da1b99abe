"""The first screen: what to run, in plain words, derived from the results below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from prophet_moe.results_page.load import Load
from prophet_moe.results_page.study import (
    BOUNDS,
    CLAIRVOYANT,
    ON_DEMAND,
    RESIDENT,
    Study,
    best,
    lossless,
    prefetched,
    ratio,
    tpot,
)
from prophet_moe.sim.results import Line

ALIKE = 0.02  # times that differ by less are called the same


@dataclass(frozen=True)
class Saying:
    """What is said of one part of the page, and where it stands there."""

    key: str
    title: str
    sentences: tuple[str, ...]


def of_study(study: Study, key: str) -> Saying | None:
    """None where no real system was replayed."""
    found = [(slots, line) for slots in study.slots if (line := best(study, slots))]
    if not found:
        return None
    sentences = [_fits(study), _fastest(study, found), _how_far(study, found), _early(study, found)]
    return Saying(key, study.title, tuple(one for one in sentences if one))


def _fastest(study: Study, found: Sequence[tuple[int, Line]]) -> str:
    names = dict.fromkeys(study.name(line) for _, line in found)
    seen = max(line["predictor_seen"] or 0 for _, line in found)
    flattered = (
        f" Its predictor has learned from {seen} of these sequences, which flatters it." if seen else ""
    )
    if len(names) == 1:
        times = [f"{tpot(line):.2f} ms a token with {study.share(slots)}" for slots, line in found]
        (name,) = names
        listed = f"{_listed(times)} of experts in memory"
        return f"Run {name}, the fastest that changes no output at every size: {listed}.{flattered}"
    times = [
        f"{study.name(line)} with {study.share(slots)} of experts ({tpot(line):.2f} ms a token)"
        for slots, line in found
    ]
    return f"The fastest that changes no output: {_listed(times)}.{flattered}"


def _how_far(study: Study, found: Sequence[tuple[int, Line]]) -> str:
    """From keeping nothing, and from knowing everything."""
    gains, far = [], []
    for slots, line in found:
        floor, bound = study.line(ON_DEMAND, slots), study.line(CLAIRVOYANT, slots)
        gains.append(ratio(tpot(floor), tpot(line)) if floor else None)
        far.append(ratio(tpot(line), tpot(bound)) if bound else None)
    parts = []
    if None not in gains:
        parts.append(f"{_times(gains)} as fast as keeping nothing ({ON_DEMAND})")
    if None not in far:
        parts.append(f"{_times(far)} the time of the bound that no system can pass ({CLAIRVOYANT})")
    return f"That is {', and '.join(parts)}." if parts else ""


def _times(ratios: Sequence[float | None]) -> str:
    return _listed([f"{value:.2g}x" if value and value >= 10 else f"{value:.2f}x" for value in ratios])


def _early(study: Study, found: Sequence[tuple[int, Line]]) -> str:
    """The best that reads early against the best that does not."""
    pays: list[str] = []
    alike: list[str] = []
    costs: list[str] = []
    for slots, _ in found:
        lines = [
            line
            for name in study.systems
            if name not in BOUNDS and (line := study.line(name, slots)) and lossless(line)
        ]
        early = [time for line in lines if prefetched(line) and (time := tpot(line)) is not None]
        late = [time for line in lines if not prefetched(line) and (time := tpot(line)) is not None]
        if not early or not late:
            continue
        change = min(early) / min(late) - 1
        told = f"{study.share(slots)} ({change:+.0%})"
        (alike if abs(change) < ALIKE else pays if change < 0 else costs).append(told)
    parts = [f"pays with {_listed(pays)}"] if pays else []
    parts += [f"changes little with {_listed(alike)}"] if alike else []
    parts += [f"costs time with {_listed(costs)}"] if costs else []
    if not parts:
        return ""
    told = ", ".join(parts)
    return f"Reading experts early {told}: the best system that does, against the best that does not."


def _fits(study: Study) -> str:
    whole = study.line(RESIDENT, 0)
    if whole is not None and whole["fits"]:
        return (
            "The whole model fits in this machine's fast memory: nothing needs to be offloaded unless "
            "something "
            "else needs the room."
        )
    fitting = [
        slots
        for slots in study.slots
        if any(line["fits"] for line in study.main if line["expert_slots"] == slots)
    ]
    if not fitting:
        return "None of these sizes fits in this machine's fast memory: simulate with --slots fit."
    if fitting[-1] != study.slots[-1]:
        return f"The most of these that fits in this machine's fast memory is {study.share(fitting[-1])}."
    return "All of these sizes fit in this machine's fast memory."


def of_load(load: Load, key: str) -> Saying | None:
    sentences = []
    for slots in load.slots:
        found = [(count, one) for count in load.at_once if (one := load.best(slots, count))]
        if not found:
            continue
        names = list(dict.fromkeys(one.system for _, one in found))
        if len(names) == 1:
            who = f"{names[0]} is fastest at {_listed([str(count) for count, _ in found])} at once"
        else:
            who = "fastest are " + _listed([f"{one.system} at {count}" for count, one in found])
        first, last = found[0][1], found[-1][1]
        waits = f"{first.tpot['mean']:.1f} ms between tokens at {first.at_once}"
        waits += f", {last.tpot['mean']:.1f} at {last.at_once}" if last is not first else ""
        sentences.append(f"With {load.share(slots)} of experts {who}: {waits}.")
    return Saying(key, load.title, tuple(sentences)) if sentences else None


def _listed(words: Sequence[str]) -> str:
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last
