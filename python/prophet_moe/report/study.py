"""Result lines as studies: everything that was replayed alike, system by system, slots by slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prophet_moe.sim.results import Line
from prophet_moe.sim.systems import systems_known

SETTING = ("model", "weights", "machine", "lane", "trace", "sequences", "pool", "cold")
ON_DEMAND, CLAIRVOYANT_EVICTION, CLAIRVOYANT, RESIDENT = "on-demand", "belady", "clairvoyant", "resident"
BOUNDS = (CLAIRVOYANT_EVICTION, "oracle", CLAIRVOYANT, RESIDENT)


@dataclass(frozen=True)
class Study:
    """Lines that differ in system, slots, bandwidth and options alone. At least one."""

    lines: tuple[Line, ...]

    @property
    def head(self) -> Line:
        return self.lines[0]

    @property
    def title(self) -> str:
        head = self.head
        return f"{head['model']} ({head['weights']}) on {head['machine']}"

    @property
    def subtitle(self) -> str:
        """What was replayed, in one line."""
        head = self.head
        warm = "cold" if head["cold"] else "warm"
        return (
            f"{head['new_tokens']:,} decoded tokens of {head['sequences']} sequences ({head['trace']}), "
            f"{warm} cache, pool {head['pool']}; experts of {head['expert_bytes'] / 1e6:.1f} MB come by "
            f"{head['lane']} at {self.bytes_per_second / 1e9:.1f} GB/s; "
            f"{head['resident_ms']:.2f} ms a token with everything resident"
        )

    @property
    def bytes_per_second(self) -> float:
        """Of the lane, by the machine's card."""
        return float(self.head["times"]["bytes_per_second"] / self.head["link_scale"])

    @property
    def main(self) -> tuple[Line, ...]:
        """At the card's own bandwidth, every system with its default options."""
        return tuple(line for line in self.lines if line["link_scale"] == 1 and not line["options"])

    def systems(self, lines: Sequence[Line] | None = None) -> list[str]:
        """In the order of the command line, unknown ones last."""
        order = {name: place for place, name in enumerate(systems_known())}
        named = {line["system"] for line in (self.main if lines is None else lines)}
        return sorted(named, key=lambda name: (name in BOUNDS, order.get(name, 999), name))

    def slots(self) -> list[int]:
        """Counts of slots at which real systems were replayed, ascending."""
        return sorted({line["expert_slots"] for line in self.main if line["system"] != RESIDENT})

    def share(self, slots: int) -> str:
        """Such as `25 %`."""
        return f"{100 * slots / self.head['experts_total']:.3g} %"

    def line(self, system: str, slots: int) -> Line | None:
        """One of `main`; resident has one for all slots."""
        for line in self.main:
            if line["system"] == system and (line["expert_slots"] == slots or system == RESIDENT):
                return line
        return None

    def command(self) -> str:
        """What makes these lines again."""
        head, main = self.head, self.main or self.lines
        asked = dict.fromkeys(line["slots"] for line in main if line["system"] != RESIDENT)
        words = [
            "prophet simulate", head["trace"], "--model", head["model"], "--weights", head["weights"],
            "--machine", head["machine"], "--lane", head["lane"], "--slots", ",".join(asked) or "100%",
            "--systems", ",".join(self.systems()), "--pool", head["pool"],
        ]  # fmt: skip
        predictors = {line["predictor"] for line in self.lines} - {None}
        for name in sorted(predictors)[:1]:
            words += ["--predictor", name.removesuffix(".safetensors")]
        scales = sorted({line["link_scale"] for line in self.lines})
        if scales != [1.0]:
            words += ["--link-scale", ",".join(f"{scale:g}" for scale in scales)]
        return " ".join([*words, *(["--cold"] if head["cold"] else [])])


def studies(lines: Iterable[Line]) -> list[Study]:
    """Groups lines by SETTING, in the order of their first line; of equal cells the last one counts."""
    latest = {line["cell"]: line for line in lines}
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in latest.values():
        groups.setdefault(tuple(line[key] for key in SETTING), []).append(line)
    return [Study(tuple(group)) for group in groups.values()]


# What figures and tables show of a line.


def tpot(line: Line) -> float | None:
    return line["tpot_ms"]["mean"]


def miss_rate(line: Line) -> float | None:
    return line["hits"]["miss"] / line["accesses"] if line["accesses"] else None


def bytes_per_token(line: Line) -> float | None:
    return line["bytes"]["per_token"]


def moved(line: Line) -> int:
    """Bytes of the whole replay, whatever became of them."""
    return sum(line["bytes"][key] for key in ("demand", "prefetch_used", "prefetch_late", "prefetch_wasted"))


def prefetched(line: Line) -> int:
    return moved(line) - int(line["bytes"]["demand"])


def stalled_share(line: Line) -> float | None:
    wall = (tpot(line) or 0) * line["new_tokens"]
    return line["stall_ms"]["total"] / wall if wall else None


def domain_misses(line: Line) -> dict[str, float]:
    """Miss rate in the sequences of each domain."""
    asked = {
        name: counts["hits_resident"] + counts["hits_in_flight"] + counts["misses"]
        for name, counts in line["domains"].items()
    }
    return {
        name or "unnamed": line["domains"][name]["misses"] / count for name, count in asked.items() if count
    }


def per_token(line: Line, value: float) -> float | None:
    tokens = line["new_tokens"] + line["prompt_tokens"]
    return value / tokens if tokens else None


def ratio(of: float | None, to: float | None) -> float | None:
    return of / to if of is not None and to else None


def best(study: Study, slots: int, of: Callable[[Line], float | None] = tpot) -> Line | None:
    """The system with the least of something at these slots, bounds and unknowns left out."""
    found = [line for name in study.systems() if name not in BOUNDS if (line := study.line(name, slots))]
    known = [(value, place) for place, line in enumerate(found) if (value := of(line)) is not None]
    return found[min(known)[1]] if known else None
