"""A model as the simulator knows it: how many experts, how large, and what else a token reads."""

from __future__ import annotations

from dataclasses import dataclass

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceReader
from prophet_moe.sim.cards import Table, find

FOLDER = "geometries"
DENSE_BYTES = 2  # of a parameter outside of the experts


@dataclass(frozen=True)
class Geometry:
    """One model, its experts in one element type and everything else in bf16. Sizes are bytes."""

    name: str
    source: str
    layers: int  # with experts
    experts_per_layer: int
    top_k: int
    weights: str  # element type of experts, a key of the card's [expert_bytes]
    expert_bytes: int  # all tensors of one expert
    expert_parameters: int
    layer_parameters: int  # of one MoE layer, read for every token: attention, norms, router, shared experts
    once_parameters: int  # read once for every token: dense layers, output head
    idle_parameters: int  # held and hardly read: input embedding where it is not the output head
    kv_bytes_per_token: int  # of one layer, bf16

    @property
    def experts_total(self) -> int:
        return self.layers * self.experts_per_layer

    @property
    def dense_bytes(self) -> int:
        """What fast memory holds besides experts and key-value cache."""
        dense = self.layers * self.layer_parameters + self.once_parameters + self.idle_parameters
        return dense * DENSE_BYTES

    @property
    def routed_bytes_per_token(self) -> int:
        """L x K x S: what a token would move with no cache at all."""
        return self.layers * self.top_k * self.expert_bytes

    @property
    def flops_per_token(self) -> float:
        """Two operations per parameter that a token meets; attention over the context is not in it."""
        per_layer = self.layer_parameters + self.top_k * self.expert_parameters
        return 2.0 * (self.layers * per_layer + self.once_parameters)


def read_geometry(name_or_path: str, weights: str | None = None) -> Geometry:
    """A geometry card by name or file, its experts in element type `weights` (None: as released).

    Raises InvalidArgument: unknown names (the sentence lists the known ones), missing or negative numbers.
    """
    card = Table.read(find(name_or_path, FOLDER))
    sizes = card.table("expert_bytes")
    released = card.text("released")
    chosen = weights or released
    if not sizes.has(chosen):
        raise InvalidArgument(
            f"{card.text('name')} has no expert size for weights {chosen!r}: "
            f"known are {', '.join(sizes.keys())}."
        )
    geometry = Geometry(
        name=card.text("name"),
        source=card.text("source"),
        layers=card.count("layers", 1),
        experts_per_layer=card.count("experts_per_layer", 1),
        top_k=card.count("top_k", 1),
        weights=chosen,
        expert_bytes=sizes.count(chosen, 1),
        expert_parameters=card.count("expert_parameters", 1),
        layer_parameters=card.count("layer_parameters"),
        once_parameters=card.count("once_parameters"),
        idle_parameters=card.count("idle_parameters"),
        kv_bytes_per_token=card.count("kv_bytes_per_token"),
    )
    card.done()
    if geometry.top_k > geometry.experts_per_layer:
        raise card.refuse("top_k", f"is {geometry.top_k}, of {geometry.experts_per_layer} experts per layer")
    return geometry


def require_same(trace: TraceReader, geometry: Geometry) -> None:
    """Raises InvalidArgument where a trace is of another geometry."""
    theirs = (trace.layers, trace.experts_per_layer, trace.top_k)
    ours = (geometry.layers, geometry.experts_per_layer, geometry.top_k)
    if theirs != ours:
        raise InvalidArgument(
            f"{trace.path} has {theirs[0]} layers of {theirs[1]} experts, top-{theirs[2]}, "
            f"but {geometry.name} has {ours[0]} of {ours[1]}, top-{ours[2]}: "
            "name the model of the trace by --model."
        )
