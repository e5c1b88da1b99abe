"""Before each layer the engine hears what is known by then: the tokens fed, and what enters its attention.

Only systems whose predictor reads either are told (expertflow, pre-attention); for all others no hook is
set. A GPU's hit path carries neither.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from prophet_ext import Engine, Predictor
from prophet_moe.models.experts import NATIVE_DTYPES
from prophet_moe.models.families import decoder_layer


def tell(model: Any, engine: Engine, predictor: Predictor, modules: Sequence[str]) -> None:
    """Sets the hooks that the predictor needs. modules: names of the experts modules, by MoE layer.

    Raises UnsupportedModelError: a layer whose decoder layer is not found.
    """
    if predictor.reads_tokens:
        model.register_forward_pre_hook(_fed(engine), with_kwargs=True)
    if predictor.entering_width:
        for number, name in enumerate(modules):
            layer = decoder_layer(model, name)
            layer.register_forward_pre_hook(_entering(engine, number), with_kwargs=True)


def _fed(engine: Engine) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        given = kwargs.get("input_ids", args[0] if args else None)
        if isinstance(given, torch.Tensor) and not given.is_floating_point() and given.numel():
            ids = given.detach().reshape(-1).to("cpu", torch.int64).contiguous()
            engine.approach(0, len(ids), ids.data_ptr())

    return hook


def _entering(engine: Engine, number: int) -> Any:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        entered = args[0] if args else kwargs.get("hidden_states")
        if not isinstance(entered, torch.Tensor) or entered.ndim < 3 or not entered.numel():
            return
        rows = entered.detach().flatten(2).flatten(0, 1)
        last = rows[-1].cpu().contiguous()
        engine.approach(
            number,
            len(rows),
            entering=last.data_ptr(),
            width=len(last),
            dtype=NATIVE_DTYPES[last.dtype],
        )

    return hook
