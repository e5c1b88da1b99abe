"""At which concurrency does keeping experts stop paying, and foreseeing them? For real runs and simulations.

Keeping pays while a token takes at most PAYS of the time that on-demand takes, which keeps nothing; foresight
while it takes at most FORESIGHT_PAYS of the best rule's without one. It stops where it never pays again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

FLOOR, PAYS = "on-demand", 0.9
RULE, FORESIGHT, FORESIGHT_PAYS = "expected-next-use", "prophet", 0.97


@dataclass(frozen=True)
class Point:
    """One system at one concurrency."""

    system: str
    concurrency: int
    tpot_ms: float


def ratios(points: Sequence[Point], floor: str = FLOOR) -> dict[str, dict[int, float]]:
    """Time per token of each system over that of `floor`, by concurrency, where that was measured."""
    least = {one.concurrency: one.tpot_ms for one in points if one.system == floor}
    found: dict[str, dict[int, float]] = {}
    for one in points:
        if one.system != floor and least.get(one.concurrency):
            found.setdefault(one.system, {})[one.concurrency] = one.tpot_ms / least[one.concurrency]
    return found


def stops_at(ratio: Mapping[int, float], pays: float = PAYS) -> int | None:
    """The concurrency from which on, to the largest, the ratio is above `pays`; None: it pays to the end."""
    stop = None
    for concurrency in sorted(ratio, reverse=True):
        if ratio[concurrency] <= pays:
            break
        stop = concurrency
    return stop


def verdicts(points: Sequence[Point], where: str = "on this machine") -> list[str]:
    """A sentence for each system that keeps experts, and one for foresight, where its floor was measured."""
    said = [
        _verdict(f"expert caching by {system}", ratio, FLOOR, PAYS, where)
        for system, ratio in ratios(points).items()
    ]
    if ratio := ratios(points, RULE).get(FORESIGHT):
        said.append(_verdict(f"foresight ({FORESIGHT})", ratio, RULE, FORESIGHT_PAYS, where))
    return said


def _verdict(what: str, ratio: Mapping[int, float], floor: str, pays: float, where: str) -> str:
    stop = stops_at(ratio, pays)
    told = ", ".join(f"{ratio[n]:.2f} at {n}" for n in sorted(ratio))
    criterion = f"time per token over that of {floor} is {told}, and at most {pays:.2f} counts as paying."
    if stop is None:
        return f"{what} pays {where} up to concurrency {max(ratio)}, the largest measured: its {criterion}"
    return f"from concurrency {stop} on, {what} stops paying {where}: its {criterion}"
