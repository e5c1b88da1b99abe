"""A machine as the simulator knows it: one link and one processor."""

from __future__ import annotations

from dataclasses import dataclass

from prophet_moe.errors import InvalidArgument


@dataclass(frozen=True)
class Machine:
    """Times in nanoseconds, sizes in bytes; the model of csrc/device/sim and csrc/sim.

    A chunk holds the link for overhead + bytes / bandwidth and lands `latency` later. A forward pass of n
    tokens takes `pass_ns`; each of its MoE layers `layer_ns` + n * `layer_token_ns` until the router has
    spoken, and `wait_ns` more if any of its experts was not resident: what asking for them, being woken and
    colder caches cost beside the link's own time; each expert `expert_ns` + `expert_token_ns` per token that
    chose it.
    """

    name: str
    bytes_per_second: float
    latency_ns: int = 0
    overhead_ns: int = 0
    chunk_bytes: int = 1 << 20
    pass_ns: int = 0
    layer_ns: int = 0
    layer_token_ns: int = 0
    expert_ns: int = 0
    expert_token_ns: int = 0
    wait_ns: int = 0

    @classmethod
    def of_ratio(cls, transfer: float, top_k: int, expert_bytes: int, layer_ns: int = 1_000_000) -> Machine:
        """A machine known by one number: an expert's transfer takes `transfer` times as long as a layer.

        A layer with all experts resident takes `layer_ns`: the router has spoken after half of it, the
        top_k experts share the other half. Chunks take at most an eighth of a layer on the link, so that a
        demand never waits longer for a prefetch. Decoding one user.
        """
        if not (transfer > 0 and top_k > 0 and expert_bytes > 0 and layer_ns > 0):
            raise InvalidArgument(
                f"a machine needs times and sizes above 0, not a transfer of {transfer} layers, "
                f"top-{top_k}, {expert_bytes} bytes and {layer_ns} ns."
            )
        return cls(
            name=f"transfer/compute {transfer:g}",
            bytes_per_second=expert_bytes / (transfer * layer_ns) * 1e9,
            chunk_bytes=max(1, int(expert_bytes * min(1.0, 1 / (8 * transfer)))),
            layer_ns=layer_ns // 2,
            expert_ns=layer_ns // (2 * top_k),
        )
