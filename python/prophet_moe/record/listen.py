"""Listens to the routers of a running model, Prophet's or stock, without a line in its forward path.

Every experts module is called with what the router decided: a forward pre-hook reads the arguments
as they pass. The tensor that the router itself read is taken from the module beside the experts that
is named `gate` or `router`; in nearly all families it is also the experts' input, in Gemma 4 it is
not, and a trace holds what the router read. What enters a layer, before its norms and its attention, is
what its decoder layer is called with. Without hooks nothing of this exists.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prophet_moe.errors import UnsupportedModelError
from prophet_moe.models.families import decoder_layer, require_experts

ROUTER_NAMES = ("gate", "router")
WIDEST_F16 = 65504.0


@dataclass(frozen=True)
class Routed:
    """What the routers said about the n tokens of one forward pass."""

    experts: NDArray[np.int64]  # [n, L, K]
    gate_probs: NDArray[np.float32]  # [n, L, K]
    gate_input: NDArray[Any] | None  # [n, L, H], float16 or float32
    entering: NDArray[Any] | None  # the same


@contextmanager
def listening(
    model: Any, told: Callable[[Routed], None], hidden: str = "", entering: str = ""
) -> Iterator[None]:
    """Calls `told` after the last MoE layer of every forward pass of `model`, while the context lasts.

    hidden: "F16" or "F32" copies each router's input too; entering: the same of what enters each layer.
    Inputs are of one sequence. Raises UnsupportedModelError: no experts, no router or layer to be found,
    layers that run in another order than they stand in, choose different numbers of experts, or read other
    widths; what `told` raises passes through.
    """
    ears = _Ears(model, told, hidden, entering)
    try:
        yield
    finally:
        ears.remove()


class _Ears:
    def __init__(self, model: Any, told: Callable[[Routed], None], hidden: str, entering: str) -> None:
        self._told, self._family = told, model.config.model_type
        self._hidden, self._entering = hidden, entering
        experts = require_experts(model)
        self._layers = len(experts)
        self._inputs: list[torch.Tensor] = []
        self._entered: list[torch.Tensor] = []
        self._ids: list[torch.Tensor] = []
        self._weights: list[torch.Tensor] = []
        self._handles: list[Any] = []
        try:
            for number, (name, module) in enumerate(experts.items()):
                self._listen(module, self._experts, number)
                if hidden:
                    self._listen(self._router_beside(model, name), self._router, number)
                if entering:
                    self._listen(decoder_layer(model, name), self._layer, number)
        except BaseException:
            self.remove()
            raise

    def _listen(self, module: Any, heard: Callable[..., None], number: int) -> None:
        def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            heard(number, *args, *kwargs.values())

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _router_beside(self, model: Any, experts: str) -> Any:
        block = model.get_submodule(experts.rpartition(".")[0])
        for name, module in block.named_children():
            if name in ROUTER_NAMES:
                return module
        raise UnsupportedModelError(
            f"{self._family} has no module named {' or '.join(ROUTER_NAMES)} beside {experts}: what its "
            "router reads cannot be recorded. Record without hidden states."
        )

    # A router speaks before its experts, layer after layer.

    def _layer(self, number: int, entered: torch.Tensor, *_: Any) -> None:
        wide = entered.flatten(2)  # of DeepSeek-V4: its several residual streams side by side
        self._entered.append(_kept(wide, self._entering, f"MoE layer {number} is entered by"))

    def _router(self, number: int, read: torch.Tensor, *_: Any) -> None:
        self._inputs.append(_kept(read, self._hidden, f"the router of MoE layer {number} reads"))

    def _experts(
        self, number: int, hidden: torch.Tensor, ids: torch.Tensor, weights: torch.Tensor, *_: Any
    ) -> None:
        # Copies: the caller may write into its tensors later.
        self._ids.append(ids.detach().to("cpu", torch.int64, copy=True))
        self._weights.append(weights.detach().to("cpu", torch.float32, copy=True))
        heard = {len(self._ids)}
        if self._hidden:
            heard.add(len(self._inputs))
        if self._entering:
            heard.add(len(self._entered))
        if heard != {number + 1}:
            raise UnsupportedModelError(
                f"{self._family}: MoE layer {number} ran out of turn; models whose layers run twice or in "
                "another order cannot be recorded."
            )
        if number + 1 == self._layers:
            self._tell()

    def _tell(self) -> None:
        for what, parts in (
            ("choose different numbers of experts", self._ids),
            ("read different widths", self._inputs),
            ("stand in layers of different widths", self._entered),
        ):
            if len({tuple(part.shape) for part in parts}) > 1:
                raise UnsupportedModelError(f"{self._family}: its routers {what}, which a trace cannot hold.")
        inputs = torch.stack(self._inputs, 1).numpy() if self._hidden else None
        entered = torch.stack(self._entered, 1).numpy() if self._entering else None
        ids, weights = torch.stack(self._ids, 1).numpy(), torch.stack(self._weights, 1).numpy()
        for parts in (self._ids, self._weights, self._inputs, self._entered):
            parts.clear()
        self._told(Routed(ids, weights, inputs, entered))


def _kept(states: torch.Tensor, dtype: str, who: str) -> torch.Tensor:
    """[n, H], a copy: the caller may write into its tensors later."""
    states = states.detach().reshape(-1, states.shape[-1]).to("cpu", torch.float32, copy=True)
    if dtype == "F32":
        return states
    if states.abs().max() > WIDEST_F16:
        raise UnsupportedModelError(
            f"{who} {float(states.abs().max()):g}, beyond float16: record with --hidden-dtype f32."
        )
    return states.to(torch.float16)
