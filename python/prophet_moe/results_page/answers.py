"""What a study answers: a number from its lines, or the sentence that says what they lack."""

from __future__ import annotations

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
    domain_times,
    lossless,
    miss_rate,
    moved,
    per_token,
    prefetched,
    ratio,
    residence,
    tpot,
)
from prophet_moe.sim.results import Line
from prophet_moe.sim.systems import systems_known

ORACLE = "oracle"
HYPOTHETICAL = (4, 1.3e9)  # experts a layer, and bytes of each: what a reviewer of the field once supposed


class LackingError(Exception):
    """What the results would need to have."""


@dataclass(frozen=True)
class Case:
    """What most answers speak of: the fastest real system with the fewest slots."""

    study: Study
    slots: int
    line: Line

    @property
    def name(self) -> str:
        return f"{self.study.name(self.line)} at {self.study.share(self.slots)} of experts"

    def other(self, system: str) -> Line | None:
        return self.study.line(system, self.slots)

    @property
    def layers(self) -> int:
        return len(self.study.head["layer_misses"])

    def top_k(self) -> float:
        """Experts of a layer and token, from what on-demand was asked for. Raises LackingError."""
        floor = need(self.other(ON_DEMAND), ON_DEMAND)
        if floor["prompt_tokens"] or not floor["new_tokens"]:
            raise LackingError("prompts share experts among tokens, so requests do not tell top-k")
        return float(floor["accesses"] / floor["new_tokens"] / self.layers)


def case_of(study: Study) -> Case | None:
    """None where no real system was replayed at the machine's own bandwidth."""
    line = best(study, study.slots[0]) if study.slots else None
    return None if line is None else Case(study, study.slots[0], line)


def need(line: Line | None, system: str) -> Line:
    """Raises LackingError where there is none."""
    if line is None:
        raise LackingError(f"{system} was not replayed beside the others")
    return line


def number(value: float | None, form: str = ".2f") -> str:
    return "unknown" if value is None else format(value, form)


def overlap(case: Case) -> str:
    head, rate = case.study.head, case.study.bytes_per_second
    layer_ms = head["resident_ms"] / case.layers
    cross_ms = head["expert_bytes"] / rate * 1e3
    count, size = HYPOTHETICAL
    says = (
        f"An expert has {head['expert_bytes'] / 1e6:.1f} MB and crosses in {cross_ms:.2f} ms. A resident "
        "layer takes "
        f"{layer_ms:.2f} ms, which hides {layer_ms / cross_ms:.2f} experts ({count} experts of "
        f"{size / 1e9:g} GB would need "
        f"{count * size / rate * 1e3:.0f} ms a layer here: no forecast hides that). {case.name}: "
        f"{number(case.line['overlap_fraction'], '.0%')} of transfers overlap with computing, the lane is "
        "busy "
        f"{number(case.line['link_busy_fraction'], '.0%')} of the time."
    )
    try:
        top_k = case.top_k()
    except LackingError:
        return says
    needed = max(0.0, 1 - layer_ms / (cross_ms * top_k))
    hits = case.line["hits"]["resident"] / case.line["accesses"]
    return (
        f"{says} Computing would be the limit from {needed:.1%} of requests resident on, if transfers were "
        "hidden "
        f"perfectly; {hits:.1%} are."
    )


def waste(case: Case) -> str:
    study = case.study
    parts = []
    for name in study.systems:
        lines = [line for n in study.slots if (line := study.line(name, n)) and prefetched(line)]
        if name.split(" ")[0] in BOUNDS or not lines:
            continue
        told = [
            f"{line['bytes']['prefetch_wasted'] / prefetched(line):.1%} at "
            f"{study.share(line['expert_slots'])}"
            for line in lines
        ]
        first = lines[0]["bytes"]
        early = prefetched(lines[0])
        parts.append(
            f"{name} {', '.join(told)} (at {study.share(lines[0]['expert_slots'])} that is "
            f"{first['prefetch_wasted'] / moved(lines[0]):.1%} of all bytes; "
            f"{first['prefetch_used'] / early:.0%} of "
            f"the prefetched ones were used, {first['prefetch_late'] / early:.0%} late, "
            f"{first['cancelled'] / early:.0%} cancelled)"
        )
    if not parts:
        raise LackingError("no system of these lines prefetches, so no byte is wasted")
    return f"Of prefetched bytes: {'; '.join(parts)}."


def systems(case: Case) -> str:
    found = [
        (time, name)
        for name in case.study.systems
        if (line := case.other(name)) and (time := tpot(line)) is not None
    ]
    listed = ", ".join(f"{name} {time:.2f}" for time, name in sorted(found))
    here = {name.split(" ")[0] for name in case.study.systems}
    absent = [name for name in systems_known() if name not in here]
    rest = f" Not in these lines: {', '.join(absent)}." if absent else " No known system is missing."
    return (
        f"They are here, same slots, bytes and lanes. ms per token at {case.study.share(case.slots)}: "
        f"{listed}.{rest} "
        "docs/systems.md says what of each is modelled."
    )


def top_k(case: Case) -> str:
    head, found = case.study.head, case.top_k()
    each = case.layers * head["expert_bytes"] / case.study.bytes_per_second * 1e3
    others = ", ".join(
        f"{each * k:.1f} ms at {k}" for k in (1, 4, 8) if k <= head["experts_total"] // case.layers
    )
    return (
        f"{case.layers} layers of {head['experts_total'] // case.layers} experts, top-{found:g}, in trace "
        "and geometry card "
        f"alike; shared experts are resident and not counted. Bringing all of a token's experts takes "
        f"{each * found:.1f} ms; hypothetically, for another k is another model: {others}."
    )


def drift(case: Case) -> str:
    shares = {share: name for name, share in domain_misses(case.line).items()}
    if len(shares) < 2:
        raise LackingError("the trace names fewer than two domains")
    least, most = min(shares), max(shares)
    times = domain_times(case.line)
    spans = f", {min(times.values()):.2f} to {max(times.values()):.2f} ms per token" if times else ""
    return (
        f"{case.name}: misses from {least:.1%} ({shares[least]}) to {most:.1%} ({shares[most]}) over "
        f"{len(domain_misses(case.line))} domains{spans}; {number(miss_rate(case.line), '.1%')} missed in "
        "all."
    )


def volume(case: Case) -> str:
    mine = bytes_per_token(case.line)
    floor = bytes_per_token(need(case.other(ON_DEMAND), ON_DEMAND))
    megabytes = None if mine is None else mine / 1e6
    says = f"{case.name}: {number(megabytes, '.1f')} MB per token"
    says += f", {number(ratio(mine, floor), '.1%')} of {ON_DEMAND}"
    lru = case.other("lru")
    return f"{says}, {number(ratio(mine, bytes_per_token(lru)), '.1%')} of lru." if lru else f"{says}."


def churn(case: Case) -> str:
    evictions, unused = per_token(case.line, case.line["evictions"]), case.line["evicted_before_use"]
    says = (
        f"{case.name}: {number(evictions)} evictions per token, {unused:,} in all of experts that a "
        "prefetch had brought "
        "and nobody used."
    )
    stays = residence(case.line)
    if stays is None:
        return f"{says} These lines do not say how long experts stayed: simulate again."
    turns, back = stays["turns"], stays["back_within"]
    again = ", ".join(f"{share:.1%} within {soon}" for soon, share in back.items())
    lasted = f", {number(stays['ms']['p50'], '.1f')} ms" if stays["ms"] else ""
    return (
        f"{says} An expert that left had stayed {number(turns['p50'], '.0f')} turns of its layer{lasted} "
        "(medians; "
        f"one in ten {number(turns['p90'], '.0f')} turns or more). Of those that left, brought again: "
        f"{again} turns."
    )


def tails(case: Case) -> str:
    time = case.line["tpot_ms"]
    return (
        f"{case.name}: p50 {number(time['p50'])}, p99 {number(time['p99'])}, p99.9 {number(time['p999'])} ms."
    )


def possible(case: Case) -> str:
    parts = [
        f"{number(ratio(tpot(case.line), tpot(bound)))}x that of {name}"
        for name in (CLAIRVOYANT_EVICTION, CLAIRVOYANT, RESIDENT)
        if (bound := case.other(name))
    ]
    if not parts:
        raise LackingError(f"none of {', '.join(BOUNDS)} was replayed")
    says = f"{case.name}: its time per token is {', '.join(parts)}."
    rates = [miss_rate(line) if (line := case.other(n)) else None for n in ("lru", CLAIRVOYANT_EVICTION)]
    mine = miss_rate(case.line)
    if mine is None or rates[0] is None or rates[1] is None or rates[0] <= rates[1]:
        return says
    closed = (rates[0] - mine) / (rates[0] - rates[1])
    return (
        f"{says} It closes {closed:.1%} of the gap in misses between lru and clairvoyant eviction, what it "
        "brings "
        "early included."
    )


def decomposition(case: Case) -> str:
    lru, line, asked = need(case.other("lru"), "lru"), case.line, case.line["accesses"]
    by_lru = lru["hits"]["resident"] / lru["accesses"]
    by_prefetch = line["bytes"]["prefetch_used"] / line["expert_bytes"] / asked
    kept = line["hits"]["resident"] / asked - by_lru - by_prefetch
    late, missed = line["hits"]["in_flight"] / asked, line["hits"]["miss"] / asked
    return (
        f"{case.name}: {by_lru:.1%} resident by lru alone, {kept:+.1%} by what it keeps, {by_prefetch:+.1%} "
        "by prefetches, "
        f"{late:.1%} late, {missed:.1%} missed."
    )


def forecast_worth(case: Case) -> str:
    """What perfect forecasts would gain, for prefetching, for eviction, for both."""
    mine = tpot(case.line)
    parts = [
        f"{number(ratio(tpot(line), mine))}x with {what} ({name})"
        for name, what in (
            (ORACLE, "perfect prefetching"),
            (CLAIRVOYANT_EVICTION, "perfect eviction"),
            (CLAIRVOYANT, "both"),
        )
        if (line := case.other(name)) and tpot(line) is not None
    ]
    if not parts:
        raise LackingError(f"none of {ORACLE}, {CLAIRVOYANT_EVICTION}, {CLAIRVOYANT} was replayed")
    return f"Of the time that {case.name} takes: {', '.join(parts)}."


def sensitivity(case: Case) -> str:
    """Slots and options of the fastest system."""
    study = case.study
    name = study.name(case.line)
    times = [
        f"{number(tpot(line))} ms at {study.share(n)}" for n in study.slots if (line := study.line(name, n))
    ]
    says = f"Slots, {name}: {', '.join(times)}."
    system = case.line["system"]
    swept = sorted(
        (time, study.name(line))
        for line in study.main
        if line["system"] == system
        and line["expert_slots"] == case.slots
        and (time := tpot(line)) is not None
    )
    if len(swept) < 2:
        return f"{says} No option of it was varied (--sweep)."
    return (
        f"{says} Its options at {study.share(case.slots)}: "
        + ", ".join(f"{n} {time:.2f}" for time, n in swept)
        + "."
    )


def compression(case: Case) -> str:
    lossy = [line for line in case.study.main if not lossless(line) and line["expert_slots"] == case.slots]
    if not lossy:
        raise LackingError("no line has smaller experts beside these (--weights 4bit, or --sweep lossy=0,1)")
    listed = ", ".join(f"{case.study.name(line)} {number(tpot(line))}" for line in lossy)
    return f"Beside {case.name}, {number(tpot(case.line))} ms per token, with lossy parts: {listed}."


def machine(case: Case) -> str:
    head = case.study.head
    return (
        f"{head['machine']}, by its card: {head['lane']} at {case.study.bytes_per_second / 1e9:.1f} GB/s in "
        "chunks of "
        f"{head['times']['chunk_bytes'] / 2**20:g} MiB, {head['resident_ms']:.2f} ms a token with "
        "everything resident. "
        "The card names the source of each number, and which of them are assumed."
    )
