"""At which concurrency does keeping experts stop paying? One criterion, for real runs and for simulations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

PAYS = 0.9  # of the floor's time per token, at most
FLOOR = "on-demand"


@dataclass(frozen=True)
class Point:
    """One system at one concurrency."""

    system: str
    concurrency: int
    tpot_ms: float


def ratios(points: Sequence[Point]) -> dict[str, dict[int, float]]:
    """Time per token of each system over on-demand's, by concurrency; without systems that lack the floor."""
    floor = {one.concurrency: one.tpot_ms for one in points if one.system == FLOOR}
    found: dict[str, dict[int, float]] = {}
    for one in points:
        if one.system != FLOOR and floor.get(one.concurrency):
            found.setdefault(one.system, {})[one.concurrency] = one.tpot_ms / floor[one.concurrency]
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
    """A sentence for each system that keeps experts; none where on-demand was not among them."""
    said = []
    for system, ratio in ratios(points).items():
        stop, last = stops_at(ratio), max(ratio)
        told = ", ".join(f"{ratio[n]:.2f} at {n}" for n in sorted(ratio))
        if stop is None:
            said.append(
                f"{system} pays {where} up to concurrency {last}, the largest measured: its time per token "
                f"over on-demand's is {told}, and at most {PAYS:.2f} counts as paying."
            )
        else:
            said.append(
                f"from concurrency {stop} on, expert caching by {system} stops paying {where}: its time per "
                f"token over on-demand's is {told}, and at most {PAYS:.2f} counts as paying."
            )
    return said
