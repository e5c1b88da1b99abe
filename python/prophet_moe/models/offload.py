"""What a loaded model carries besides its weights: the engine, the plan, and how to let go of both."""

import weakref
from dataclasses import dataclass, field
from typing import Any, NoReturn

from prophet_ext import Engine
from prophet_moe.errors import ProphetError, StateError
from prophet_moe.models.experts import LAYER
from prophet_moe.models.inspect import ModelInfo
from prophet_moe.models.parallel import Ranks
from prophet_moe.runreport import counted

OFFLOAD = "_prophet_offload"  # key in model.__dict__


@dataclass
class Offload:
    """The engine behind one loaded model, and what was decided when it was loaded."""

    engine: Engine
    info: ModelInfo  # where ranks share the experts: of this rank's part
    plan: Any  # prophet_moe.budget.MemoryPlan
    system: str
    backend: str
    exact: bool
    native: bool  # whether decode-sized batches run on the native kernels
    activation: str | None  # as the native kernels name it
    dense_bytes_read: int  # bytes of resident weights read at load
    modules: list[Any] = field(default_factory=list, repr=False)
    ranks: Ranks | None = None  # None: this process has all experts
    arena: Any = field(default=None, repr=False)  # torch's memory that the engine works in, if any
    closed: bool = False

    def close(self) -> None:
        """Frees the arena; the model then raises StateError at its next layer. Idempotent."""
        self.closed = True
        self.engine.close()
        self.arena = None
        for module in self.modules:
            layer = module.__dict__.get(LAYER)
            if layer is not None:
                layer.arena = None


def attach(model: Any, offload: Offload) -> None:
    """Binds the offload to the model: whoever drops the model (and its shallow copies) frees the arena."""
    model.__dict__[OFFLOAD] = offload
    model.__dict__["save_pretrained"] = _refuse_to_save
    weakref.finalize(offload, _give_back, offload.engine, offload.arena)


def _give_back(engine: Engine, arena: Any) -> None:
    """Closes the engine before the memory that it works in goes."""
    engine.close()
    del arena


def offload_of(model: Any) -> Offload:
    """The Offload of a model. Raises StateError for models that prophet_moe.load did not make."""
    offload = getattr(model, "__dict__", {}).get(OFFLOAD)
    if not isinstance(offload, Offload):
        raise StateError(
            f"{type(model).__name__} was not loaded by prophet_moe.load: it has no offloaded experts."
        )
    return offload


def close(model: Any) -> None:
    """Frees the arena and the files of a loaded model, which then raises StateError. Idempotent."""
    offload_of(model).close()


def report(model: Any) -> dict[str, Any]:
    """What happened so far, in the names of the run report (docs/formats.md): sizes in bytes, times in ms.

    Counts begin when the model was loaded. Under expert parallelism they are this rank's, which "rank" names.
    Raises StateError after close.
    """
    offload = offload_of(model)
    info, engine = offload.info, offload.engine
    mine = {} if offload.ranks is None else {"rank": offload.ranks.rank, "ranks": offload.ranks.size}
    return {
        **mine,
        "model": info.name,
        "backend": offload.backend,
        "system": offload.system,
        "exact": offload.exact,
        "budget_bytes": getattr(offload.plan, "budget_bytes", None),
        "expert_slots": engine.slots,
        "experts_total": info.experts_total,
        "expert_bytes": info.expert_bytes,
        **counted(engine),
    }


def _refuse_to_save(*_: Any, **__: Any) -> NoReturn:
    raise ProphetError(
        "save_pretrained would write this model without its experts: copy the original checkpoint, or use "
        "prophet_moe.pack to write a packed one."
    )
