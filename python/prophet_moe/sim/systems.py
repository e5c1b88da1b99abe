"""Which systems a replay knows, and what each asks of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import prophet_ext
from prophet_moe.errors import InvalidArgument

ON_DEMAND, PROPHET, BELADY, RESIDENT = "on-demand", "prophet", "belady", "resident"


@dataclass(frozen=True)
class System:
    """A combination of decisions with a name."""

    name: str
    policy: str
    keep: bool = True  # False: every expert is dropped after its use
    predictor: bool = False  # needs a trained one
    everything: bool = False  # all experts are in fast memory and nothing moves


def systems_known() -> list[str]:
    """The names that --systems takes, floors first, bounds last."""
    return [ON_DEMAND, *prophet_ext.eviction_policies(), PROPHET, BELADY, RESIDENT]


def system_named(name: str) -> System:
    """Raises InvalidArgument: an unknown name; the sentence lists the known ones."""
    if name == ON_DEMAND:
        return System(name, "lru", keep=False)
    if name == PROPHET:
        return System(name, "expected-next-use", predictor=True)
    if name == RESIDENT:
        return System(name, "lru", everything=True)
    if name in systems_known():
        return System(name, name)
    raise InvalidArgument(f"{name!r} is not a system: the names are {', '.join(systems_known())}.")


def parse_systems(text: str) -> list[str]:
    """Names of `all` or `a,b`, each once. Raises InvalidArgument: unknown names, or none."""
    names = systems_known() if text.strip() == "all" else [name.strip() for name in text.split(",")]
    found = [system_named(name).name for name in names if name]
    if not found:
        raise InvalidArgument(f"--systems names none: the names are {', '.join(systems_known())}, or all.")
    return list(dict.fromkeys(found))


def left_out(name: str, predictor: bool) -> str | None:
    """Why a system cannot be replayed here; None where it can."""
    if system_named(name).predictor and not predictor:
        return f"{name} needs a predictor trained for this geometry (--predictor FILE)"
    return None


def bounds(names: Sequence[str]) -> list[str]:
    """Those of the names that no real system can be: they know the future or hold everything."""
    return [name for name in names if name in (BELADY, RESIDENT)]
