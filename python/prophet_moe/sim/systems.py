"""Which systems a replay can be, and why one is left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from prophet_moe.errors import InvalidArgument
from prophet_moe.systems import SYSTEMS, System, system_named

__all__ = ["System", "bounds", "left_out", "parse_systems", "system_named", "systems_known"]


def systems_known() -> list[str]:
    """The names that --systems takes, floors first, bounds last."""
    return list(SYSTEMS)


def parse_systems(text: str) -> list[str]:
    """Names of `all` or `a,b`, each once. Raises InvalidArgument: unknown names, or none."""
    names = systems_known() if text.strip() == "all" else [name.strip() for name in text.split(",")]
    found = [system_named(name).name for name in names if name]
    if not found:
        raise InvalidArgument(f"--systems names none: the names are {', '.join(systems_known())}, or all.")
    return list(dict.fromkeys(found))


def left_out(
    name: str,
    trained: Collection[str] = (),
    hidden: bool = False,
    routers: bool = False,
    entering: bool = False,
    tokens: bool = False,
) -> str | None:
    """Why a system cannot be replayed here; None where it can.

    trained: systems for which there is a predictor's file; hidden, entering, tokens: the trace has what
    routers read, what enters layers, token ids; routers: the weights of the model's routers are at hand.
    """
    system = system_named(name)
    if system.hidden and not hidden:
        return f"{name} needs hidden states (gate_input), which this trace does not have"
    if system.entering and not entering:
        return f"{name} needs states before attention (entering), which this trace does not have"
    if system.tokens and not tokens:
        return f"{name} needs token ids (token_id), which this trace does not have"
    if system.router and not routers:
        return f"{name} needs the weights of the model's routers (--routers MODEL)"
    if system.trained and name not in trained:
        return f"{name} needs a predictor trained for it (prophet train --kind {name}, then --predictor FILE)"
    return None


def bounds(names: Sequence[str]) -> list[str]:
    """Those of the names that no real system can be: they know the future or hold everything."""
    return [name for name in names if system_named(name).bounded]
