"""Prophet: Mixture-of-Experts language models whose experts do not fit in memory.

import prophet_moe
model = prophet_moe.load("path/or/hub-id", budget="8GiB")
tokens = model.generate(...)          # as with any transformers model
prophet_moe.report(model)
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prophet_moe.errors import (
        BudgetError,
        CheckpointError,
        InvalidArgument,
        ProphetError,
        ReadError,
        StateError,
        UnsupportedModelError,
        WriteError,
    )
    from prophet_moe.formats.packed import pack
    from prophet_moe.models.inspect import ModelInfo, inspect
    from prophet_moe.models.load import load
    from prophet_moe.models.offload import Offload, close, report

    __version__: str

# Loaded at first use: importing torch and transformers takes seconds, `prophet --help` must not.
_HOMES = {
    "prophet_moe.errors": (
        "BudgetError",
        "CheckpointError",
        "InvalidArgument",
        "ProphetError",
        "ReadError",
        "StateError",
        "UnsupportedModelError",
        "WriteError",
    ),
    "prophet_moe.formats.packed": ("pack",),
    "prophet_moe.models": ("ModelInfo", "Offload", "close", "inspect", "load", "report"),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BudgetError",
    "CheckpointError",
    "InvalidArgument",
    "ModelInfo",
    "Offload",
    "ProphetError",
    "ReadError",
    "StateError",
    "UnsupportedModelError",
    "WriteError",
    "__version__",
    "close",
    "inspect",
    "load",
    "pack",
    "report",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return importlib.metadata.version("prophet-moe")
    if name not in _HOME_OF:
        raise AttributeError(f"module 'prophet_moe' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
