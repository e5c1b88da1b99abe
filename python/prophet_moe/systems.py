"""The table of systems, as csrc/systems has it: what --system and --systems name, and what each needs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import prophet_ext
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import MODELS_OWN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from prophet_ext import Predictor

PROPHET = "prophet"
GATES_AHEAD = 3  # routers applied to one layer's hidden state
SMALL_ROUTER = 1 << 16  # weights; of a larger one only the next layer's is worth its reading
_SURE_AND_SOON = {"last": 3, "least": 0.9}  # docs/foresight.md, "On real bytes"

PolicyFactory = Callable[[int, int, int], object]


@dataclass(frozen=True)
class System:
    """One recipe. csrc/systems/recipe.h says what each field means."""

    name: str
    what: str
    source: str
    modelled: str
    not_modelled: str
    predictor: str  # "" where there is none
    trained: bool
    hidden: bool
    router: bool
    gates: bool
    entering: bool
    tokens: bool
    future: bool
    policy: str | PolicyFactory
    keep: bool
    prefetch: Mapping[str, Any] | None
    widen: int
    recall: float
    next_token: bool
    bound: str  # "", misses, foresight, time, resident
    lossy: str
    lossy_bytes: float

    @property
    def emulated(self) -> bool:
        """Only a replay has its predictor."""
        return self.predictor == "emulator"

    @property
    def bounded(self) -> bool:
        """No real system can be this one."""
        return bool(self.bound)

    def prefetch_from_disk(self) -> dict[str, Any] | None:
        """Its rule of prefetching where experts come from a disk.

        A copy over a link to host memory costs nothing but idle time of the link; a read costs processor
        time and memory bandwidth that the layers want. Prophet therefore reads early only what is all but
        certain. The rivals keep their own rules.
        """
        if self.prefetch is None:
            return None
        rule = dict(self.prefetch)
        return rule | _SURE_AND_SOON if self.name == PROPHET else rule


SYSTEMS: dict[str, System] = {fields["name"]: System(**fields) for fields in prophet_ext.systems()}


def register(name: str, policy: PolicyFactory, what: str) -> System:
    """Adds a system that evicts by a policy written in Python, and prefetches nothing, to this process.

    policy: called with (layers, experts_per_layer, top_k), returns the policy of a new cache; what it must
    have says prophet_ext.Replay. Only replays take it. Raises InvalidArgument: a name that is taken.
    """
    if name in SYSTEMS:
        raise InvalidArgument(f"there is a system {name!r} already: choose another name.")
    plain = SYSTEMS["lru"]
    source = "registered here"
    SYSTEMS[name] = replace(plain, name=name, what=what, source=source, policy=policy, future=True)
    return SYSTEMS[name]


def system_named(name: str) -> System:
    """Raises InvalidArgument: an unknown name; the sentence lists the known ones."""
    if name not in SYSTEMS:
        raise InvalidArgument(f"{name!r} is not a system: the names are {', '.join(SYSTEMS)}.")
    return SYSTEMS[name]


def runnable() -> list[str]:
    """The names of systems that a real run can be: those that know no future."""
    return [name for name, system in SYSTEMS.items() if not system.future and not system.bound]


def require_runnable(name: str) -> System:
    """Raises InvalidArgument: an unknown name, or one that only a replay can be."""
    system = system_named(name)
    if system.future or system.bound:
        raise InvalidArgument(
            f"{name} knows the future or is a bound: prophet simulate can replay it, a run can be one of "
            f"{', '.join(runnable())}."
        )
    return system


def make_predictor(
    system: System,
    *,
    layers: int,
    experts_per_layer: int,
    top_k: int,
    share: float,
    file: Path | None = None,
    routers: Mapping[str, NDArray[np.generic]] | None = None,
    numbering: str = MODELS_OWN,
) -> Predictor | None:
    """The system's predictor; None where it has none, or a replay emulates it.

    share: of experts that fast memory holds. file: where the system is trained. routers: the keyword
    arguments of prophet_ext.make_predictor, where it reads the routers' weights or does better with them.
    numbering: of the token ids that it will be shown (TraceReader.numbering). Raises InvalidArgument,
    PredictorError: something it needs is not there, or belongs to another geometry or numbering.
    """
    if not system.predictor or system.emulated:
        return None
    made: Predictor
    if system.trained:
        if file is None:
            raise InvalidArgument(
                f"{system.name} needs a predictor that was trained for it (--predictor FILE)."
            )
        if system.predictor == "bank":
            from prophet_moe.predict.export import native

            made = native(file, share)
        else:
            from prophet_moe.predict.rivals import native as native_rival

            made = native_rival(file, system.name, numbering)
    else:
        if system.router and routers is None:
            raise InvalidArgument(f"{system.name} needs the weights of the model's routers.")
        made = prophet_ext.make_predictor(
            system.predictor,
            layers=layers,
            experts_per_layer=experts_per_layer,
            top_k=top_k,
            **dict(routers or {}),  # type: ignore[arg-type]
        )
    if system.gates and routers is not None:
        made = _with_gates(made, routers)
    return made.narrowed(top_k + system.widen) if system.widen >= 0 else made


def _with_gates(made: Predictor, routers: Mapping[str, NDArray[np.generic]]) -> Predictor:
    """Joined with next-gate; as it is where it was made for another model, which engines refuse."""
    layers, experts, width = routers["router"].shape
    if made.hidden_width not in (0, width) or (made.layers, made.experts_per_layer) != (layers, experts):
        return made
    gate = prophet_ext.make_predictor(
        "next-gate",
        layers=made.layers,
        experts_per_layer=made.experts_per_layer,
        top_k=made.top_k,
        horizons=GATES_AHEAD if experts * width <= SMALL_ROUTER else 1,
        **dict(routers),  # type: ignore[arg-type]
    )
    return made.joined(gate)
