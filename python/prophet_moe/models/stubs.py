"""Experts modules without parameters, put in place while a model is built.

The loader materialises a checkpoint tensor only if its parameter is in the model's state
dict: where there is no parameter, no expert byte is allocated, initialised or read. A stub is a
subclass, so it keeps `_apply_gate`, the decorator's flags and isinstance().
"""

import contextlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn


def without_parameters(experts_class: type[nn.Module], parts: int = 1) -> type[nn.Module]:
    """A subclass of a decorated experts class that drops its own parameters at birth.

    Parameters of submodules (a norm after the experts) stay: they are resident weights. parts: ranks over
    which the experts are divided. The library counts a rank's experts while it shards their parameters, and
    its dispatch copies the count before weights are loaded: without parameters, nobody would.
    """

    class Stub(experts_class):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            with torch.device("meta"):
                super().__init__(*args, **kwargs)
            self._parameters.clear()
            if parts > 1:
                self.num_experts //= parts
                self._is_expert_parallel = True
            self._is_hf_initialized = True  # else the library initialises parameters by name

    Stub.__name__, Stub.__qualname__ = experts_class.__name__, experts_class.__qualname__
    Stub.__module__ = experts_class.__module__
    return Stub


@contextlib.contextmanager
def parameterless(classes: Sequence[type[nn.Module]], parts: int = 1) -> Iterator[None]:
    """While inside, the modeling modules build stubs in the place of `classes`.

    The library's own patch mapping is global, matches by regular expression and imports unrelated
    modules; this touches the named classes alone and restores them on any exit.
    """
    try:
        for cls in classes:
            setattr(sys.modules[cls.__module__], cls.__name__, without_parameters(cls, parts))
        yield
    finally:
        for cls in classes:
            setattr(sys.modules[cls.__module__], cls.__name__, cls)
