"""Result lines as studies: everything that was replayed alike, system by system, slots by slots."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prophet_moe.sim.results import Line
from prophet_moe.sim.systems import systems_known

SETTING = ("model", "weights", "machine", "lane", "trace", "sequences", "held_out", "pool", "cold")
SERVED = ("concurrency", "seed", "prompt_tokens")
ON_DEMAND, CLAIRVOYANT_EVICTION, CLAIRVOYANT, RESIDENT = "on-demand", "belady", "clairvoyant", "resident"
BOUNDS = (CLAIRVOYANT_EVICTION, "oracle", CLAIRVOYANT, RESIDENT)
LOSSY = "lossy"  # an option: 1 counts the bytes of a system's lossy part


@dataclass(frozen=True)
class Study:
    """Lines that differ in system, options, slots and bandwidth alone. At least one.

    A system whose options vary within the study counts as several, named by those options.
    """

    lines: tuple[Line, ...]

    @property
    def head(self) -> Line:
        return self.lines[0]

    @property
    def title(self) -> str:
        head = self.head
        at_once = served(head).get("concurrency")
        return (
            f"{head['model']} ({head['weights']}) on {head['machine']}, {head['sequences']} sequences"
            f"{f', {at_once} at once' if at_once else ''}"
        )

    @property
    def subtitle(self) -> str:
        """What was replayed, in one line."""
        head = self.head
        return (
            f"{head['new_tokens']:,} decoded tokens of {head['sequences']} sequences of {head['trace']}"
            f"{', held out from training' if head['held_out'] else ''}{self._seen()}; "
            f"{'cold' if head['cold'] else 'warm'} cache, pool {head['pool']}; experts of "
            f"{head['expert_bytes'] / 1e6:.1f} MB come by {head['lane']} at "
            f"{self.bytes_per_second / 1e9:.1f} GB/s; "
            f"{head['resident_ms']:.2f} ms a token with everything resident"
        )

    def _seen(self) -> str:
        seen = max((line["predictor_seen"] or 0 for line in self.lines), default=0)
        return f", {seen} of which its predictor has learned from" if seen else ""

    @property
    def bytes_per_second(self) -> float:
        """Of the lane, by the machine's card."""
        return float(self.head["times"]["bytes_per_second"] / self.head["link_scale"])

    @cached_property
    def main(self) -> tuple[Line, ...]:
        """At the card's own bandwidth."""
        return tuple(line for line in self.lines if line["link_scale"] == 1)

    def name(self, line: Line) -> str:
        """The system, and those of its options that vary here: `prophet least=0.5`."""
        told = [
            f"{key}={value}" for key, value in line["options"].items() if key in self._varied(line["system"])
        ]
        return " ".join([line["system"], *told])

    @cached_property
    def _options(self) -> dict[str, dict[str, set[Any]]]:
        """By system and option: its values; None where a line leaves it at the default."""
        found: dict[str, dict[str, set[Any]]] = {}
        for system in {line["system"] for line in self.lines}:
            mine = [line["options"] for line in self.lines if line["system"] == system]
            keys = {key for options in mine for key in options}
            found[system] = {key: {options.get(key) for options in mine} for key in keys}
        return found

    def _varied(self, system: str) -> set[str]:
        return {key for key, values in self._options[system].items() if len(values) > 1}

    @cached_property
    def systems(self) -> tuple[str, ...]:
        """Names in the order of the command line, bounds last."""
        order = {name: place for place, name in enumerate(systems_known())}
        named = {self.name(line): line["system"] for line in self.lines}
        return tuple(
            sorted(named, key=lambda name: (named[name] in BOUNDS, order.get(named[name], len(order)), name))
        )

    @cached_property
    def slots(self) -> tuple[int, ...]:
        """Counts of slots at which real systems were replayed, ascending."""
        return tuple(sorted({line["expert_slots"] for line in self.main if line["system"] != RESIDENT}))

    def share(self, slots: int) -> str:
        """Such as `25 %`."""
        return f"{100 * slots / self.head['experts_total']:.3g} %"

    @cached_property
    def _places(self) -> dict[tuple[str, int], Line]:
        return {(self.name(line), line["expert_slots"]): line for line in self.main}

    def line(self, name: str, slots: int) -> Line | None:
        """One of `main`; resident has one for all slots."""
        return self._places.get((name, self.head["experts_total"] if name == RESIDENT else slots))

    def command(self) -> str:
        """What makes these lines again."""
        head = self.head
        sizes = {line["slots"]: line["expert_slots"] for line in self.lines if line["system"] != RESIDENT}
        systems = dict.fromkeys(name.split(" ")[0] for name in self.systems)
        words = [
            "prophet simulate", head["trace"], "--model", head["model"], "--weights", head["weights"],
            "--machine", head["machine"], "--lane", head["lane"],
            "--slots", ",".join(sorted(sizes, key=lambda asked: sizes[asked])) or "100%",
            "--systems", ",".join(systems), "--pool", head["pool"],
        ]  # fmt: skip
        if head["held_out"]:
            words += ["--held-out", str(head["held_out"])]
        if files := sorted({line["predictor"] for line in self.lines} - {None}):
            words += ["--predictor", ",".join(map(_as_named, files))]
        for key, value in served(head).items():
            words += [f"--{key.replace('_', '-')}", str(value)] if value else []
        for key in dict.fromkeys(key for options in self._options.values() for key in options):
            values = {line["options"][key] for line in self.lines if key in line["options"]}
            words += ["--sweep", f"{key}={','.join(map(str, sorted(values, key=str)))}"]
        scales = sorted({line["link_scale"] for line in self.lines})
        if scales != [1.0]:
            words += ["--link-scale", ",".join(f"{scale:g}" for scale in scales)]
        return " ".join([*words, *(["--cold"] if head["cold"] else [])])


def _as_named(file: str) -> str:
    """As --predictor takes it: predictors of the package go by name."""
    shipped = Path(__file__).parent.parent / "assets" / "predictors" / file
    return shipped.stem if shipped.is_file() else file


def served(line: Line) -> dict[str, int]:
    """How many sequences lived at once, their order, their prompts; empty where they came one by one."""
    found = line.get("serving") or {}
    return {key: found[key] for key in SERVED if key in found}


def studies(lines: Iterable[Line]) -> list[Study]:
    """Groups lines by SETTING, in the order of their first line; of equal cells the last one counts."""
    latest = {line["cell"]: line for line in lines}
    groups: dict[tuple[Any, ...], list[Line]] = {}
    for line in latest.values():
        groups.setdefault((*(line[key] for key in SETTING), *served(line).values()), []).append(line)
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
    return sum(value for key, value in line["bytes"].items() if key != "per_token")


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


def domain_times(line: Line) -> dict[str, float]:
    """Milliseconds per decoded token in the sequences of each domain."""
    return {
        name or "unnamed": counts["decode_ns"] / counts["tokens"] / 1e6
        for name, counts in line["domains"].items()
        if counts["tokens"] and counts["decode_ns"]
    }


def residence(line: Line) -> dict[str, Any] | None:
    """How long experts stayed; None where the line does not say, or none left."""
    found: dict[str, Any] | None = line["residence"]
    return found if found and found["left"] else None


def lossless(line: Line) -> bool:
    """Whether the model's outputs are its own."""
    return not line["options"].get(LOSSY)


def per_token(line: Line, value: float) -> float | None:
    tokens = line["new_tokens"] + line["prompt_tokens"]
    return value / tokens if tokens else None


def ratio(of: float | None, to: float | None) -> float | None:
    return of / to if of is not None and to else None


def best(study: Study, slots: int, of: Callable[[Line], float | None] = tpot) -> Line | None:
    """The system with the least of something at these slots; bounds, lossy lines and unknowns left out."""
    found = [
        line
        for name in study.systems
        if name not in BOUNDS and (line := study.line(name, slots)) and lossless(line)
    ]
    known = [(value, place) for place, line in enumerate(found) if (value := of(line)) is not None]
    return found[min(known)[1]] if known else None
