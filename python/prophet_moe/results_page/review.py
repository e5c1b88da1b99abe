"""The review page: what reviewers of offloading papers ask, the number that answers it, and its command.

An answer is taken from the lines of a study, or it is missing; then the page says what is missing and which
command makes it. Nothing is estimated here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from prophet_moe.results_page.study import (
    BOUNDS,
    CLAIRVOYANT,
    CLAIRVOYANT_EVICTION,
    ON_DEMAND,
    RESIDENT,
    Study,
    best,
    bytes_per_token,
    domain_misses,
    miss_rate,
    moved,
    per_token,
    prefetched,
    ratio,
    tpot,
)
from prophet_moe.sim.results import Line


@dataclass(frozen=True)
class Answer:
    """One row; either says or lacks is empty."""

    question: str
    says: str
    lacks: str
    command: str


@dataclass(frozen=True)
class _Case:
    """What most answers speak of: the fastest real system with the fewest slots."""

    study: Study
    slots: int
    line: Line

    @property
    def name(self) -> str:
        return f"{self.study.name(self.line)} at {self.study.share(self.slots)} of experts"

    def other(self, system: str) -> Line | None:
        return self.study.line(system, self.slots)


def review(study: Study) -> list[Answer]:
    """Every row of the table, in its order."""
    trace = study.head["trace"]
    elsewhere = {
        "Mutual information: estimated how, normalised how?": (
            "simulations do not estimate information",
            f"prophet analyze {trace}",
        ),
        "Top-1 or recall@k? Trained for which model and routing?": (
            "simulations do not score forecasts",
            f"prophet score PREDICTOR {trace}",
        ),
        "Interleaved requests, continuous batching, serving?": (
            "these lines replay one request after another",
            "",
        ),
    }
    makers: dict[str, Callable[[_Case], str]] = {
        "Large experts, high top-k: bytes, bandwidth, overlap?": _overlap,
        "How many prefetched bytes are wasted?": _waste,
        "Why not the other systems?": _systems,
        "Which top-k?": _top_k,
        "Drift across domains?": _drift,
        "Total bytes moved against on-demand?": _bytes,
        "Churn and evictions?": _churn,
        "Tails?": _tails,
        "How far from what is possible?": _possible,
        "Where do hits come from?": _decomposition,
        "How fast is the machine, and who says so?": _machine,
    }
    sizes = study.slots
    line = best(study, sizes[0]) if sizes else None
    answers = []
    for question, make in makers.items():
        says, lacks = "", "no real system was replayed at the machine's own bandwidth"
        if line is not None:
            try:
                says, lacks = make(_Case(study, sizes[0], line)), ""
            except _LackingError as error:
                lacks = str(error)
        answers.append(Answer(question, says, lacks, study.command()))
    return answers + [Answer(question, "", *rest) for question, rest in elsewhere.items()]


class _LackingError(Exception):
    """What the lines would need to have."""


def _need(line: Line | None, system: str) -> Line:
    if line is None:
        raise _LackingError(f"{system} was not replayed beside the others")
    return line


def _number(value: float | None, form: str = ".2f") -> str:
    return "unknown" if value is None else format(value, form)


def _overlap(case: _Case) -> str:
    head, rate = case.study.head, case.study.bytes_per_second
    layer_ms = head["resident_ms"] / len(head["layer_misses"])
    cross_ms = head["expert_bytes"] / rate * 1e3
    return (
        f"An expert has {head['expert_bytes'] / 1e6:.1f} MB and crosses in {cross_ms:.2f} ms. A resident "
        "layer takes "
        f"{layer_ms:.2f} ms, which hides {layer_ms / cross_ms:.2f} experts. {case.name}: "
        f"{_number(case.line['overlap_fraction'], '.0%')} of transfers overlap with computing, the lane "
        "is busy "
        f"{_number(case.line['link_busy_fraction'], '.0%')} of the time."
    )


def _waste(case: _Case) -> str:
    parts = [
        f"{case.study.name(line)} at {line['slots']}: {wasted / prefetched(line):.1%} of prefetched bytes, "
        f"{wasted / moved(line):.1%} of all"
        for line in case.study.main
        if prefetched(line) and ((wasted := line["bytes"]["prefetch_wasted"]) is not None)
    ]
    if not parts:
        raise _LackingError("no system of these lines prefetches, so no byte is wasted")
    return "; ".join(parts) + "."


def _systems(case: _Case) -> str:
    found = [
        (time, name)
        for name in case.study.systems
        if (line := case.other(name)) and (time := tpot(line)) is not None
    ]
    listed = ", ".join(f"{name} {time:.2f}" for time, name in sorted(found))
    return (
        f"They are here, same slots, bytes and lanes. ms per token at {case.study.share(case.slots)}: "
        f"{listed}."
    )


def _top_k(case: _Case) -> str:
    head = case.study.head
    depth = len(head["layer_misses"])
    floor = _need(case.other(ON_DEMAND), ON_DEMAND)
    if floor["prompt_tokens"] or not floor["new_tokens"]:
        raise _LackingError("prompts share experts among tokens, so requests do not tell top-k")
    top_k = floor["accesses"] / floor["new_tokens"] / depth
    return (
        f"{depth} layers of {head['experts_total'] // depth} experts, top-{top_k:g}, in trace and "
        "geometry card alike; "
        "shared experts are resident and not counted."
    )


def _drift(case: _Case) -> str:
    shares = {share: name for name, share in domain_misses(case.line).items()}
    if len(shares) < 2:
        raise _LackingError("the trace names fewer than two domains")
    least, most = min(shares), max(shares)
    return (
        f"{case.name}: misses from {least:.1%} ({shares[least]}) to {most:.1%} ({shares[most]}) over "
        f"{len(domain_misses(case.line))} domains, {_number(miss_rate(case.line), '.1%')} in all."
    )


def _bytes(case: _Case) -> str:
    floor = bytes_per_token(_need(case.other(ON_DEMAND), ON_DEMAND))
    mine = bytes_per_token(case.line)
    megabytes = None if mine is None else mine / 1e6
    share = _number(ratio(mine, floor), ".1%")
    return f"{case.name}: {_number(megabytes, '.1f')} MB per token, {share} of {ON_DEMAND}."


def _churn(case: _Case) -> str:
    evictions, unused = per_token(case.line, case.line["evictions"]), case.line["evicted_before_use"]
    return (
        f"{case.name}: {_number(evictions)} evictions per token, {unused} in all of experts that a "
        "prefetch had "
        "brought and nobody used. How long experts stayed is not recorded."
    )


def _tails(case: _Case) -> str:
    time = case.line["tpot_ms"]
    return (
        f"{case.name}: p50 {_number(time['p50'])}, p99 {_number(time['p99'])}, p99.9 {_number(time['p999'])} "
        "ms."
    )


def _possible(case: _Case) -> str:
    parts = [
        f"{_number(ratio(tpot(case.line), tpot(bound)))}x that of {name}"
        for name in (CLAIRVOYANT_EVICTION, CLAIRVOYANT, RESIDENT)
        if (bound := case.other(name))
    ]
    if not parts:
        raise _LackingError(f"none of {', '.join(BOUNDS)} was replayed")
    says = f"{case.name}: its time per token is {', '.join(parts)}."
    rates = [miss_rate(line) if (line := case.other(n)) else None for n in ("lru", CLAIRVOYANT_EVICTION)]
    mine = miss_rate(case.line)
    if mine is None or rates[0] is None or rates[1] is None or rates[0] <= rates[1]:
        return says
    closed = (rates[0] - mine) / (rates[0] - rates[1])
    return f"{says} It closes {closed:.1%} of the gap in misses between lru and clairvoyant eviction."


def _decomposition(case: _Case) -> str:
    lru, line, asked = _need(case.other("lru"), "lru"), case.line, case.line["accesses"]
    by_lru = lru["hits"]["resident"] / lru["accesses"]
    by_prefetch = line["bytes"]["prefetch_used"] / line["expert_bytes"] / asked
    kept = line["hits"]["resident"] / asked - by_lru - by_prefetch
    late, missed = line["hits"]["in_flight"] / asked, line["hits"]["miss"] / asked
    return (
        f"{case.name}: {by_lru:.1%} resident by lru alone, {kept:+.1%} by what it keeps, "
        f"{by_prefetch:+.1%} by "
        f"prefetches, {late:.1%} late, {missed:.1%} missed."
    )


def _machine(case: _Case) -> str:
    head = case.study.head
    return (
        f"{head['machine']}, by its card: {head['lane']} at {case.study.bytes_per_second / 1e9:.1f} GB/s "
        "in chunks of "
        f"{head['times']['chunk_bytes'] / 2**20:g} MiB, {head['resident_ms']:.2f} ms a token with "
        "everything resident. "
        "The card names the source of each number, and which of them are assumed."
    )
