"""This machine's own card: `prophet doctor --card FILE`."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import prophet_ext
from prophet_moe import machine
from prophet_moe.budget import MIB
from prophet_moe.doctor import MEASURE_SECONDS, default_probe_folder, probe_file
from prophet_moe.sim.cards import Figure
from prophet_moe.sim.machine_card import MachineCard

REFERENCE, ON_DEMAND = "reference-moe", "on-demand"
SMALL_READ = 4096
_STEPS = 24  # decode steps of the reference model
_PRODUCT = 1024  # rows and columns of the matrices whose product is timed


def measure_card(name: str, path: Path | None, told: Callable[[str], None] = lambda _: None) -> MachineCard:
    """Reads memory and the disk of `path`, multiplies matrices, decodes with the reference model: seconds.

    Raises ReadError, OSError: the disk of `path` cannot be read.
    """
    cores, memory = machine.cpu_count(), machine.memory()
    told("memory")
    reads = prophet_ext.memory_bandwidth(cores, MEASURE_SECONDS)
    told("disk")
    with probe_file(path or default_probe_folder()) as file:
        disk = prophet_ext.read_bandwidth(str(file), MEASURE_SECONDS, MIB, 16, "auto")
        small = prophet_ext.read_bandwidth(str(file), MEASURE_SECONDS, SMALL_READ, 1, "auto")
    told("arithmetic")
    flops = _flops()
    told(f"decoding with {REFERENCE}")
    times, demanded = decode_times(REFERENCE), decode_times(REFERENCE, system=ON_DEMAND)
    layer_ns, expert_ns = statistics.median(times.layer_ns), statistics.median(times.expert_ns)
    reading_ns = small["p50_ms"] * 1e6 + times.top_k * times.expert_bytes / disk["bytes_per_second"] * 1e9
    wait_ns = statistics.median(demanded.whole_ns) - layer_ns - reading_ns
    limit = memory.total if memory.limit is None else min(memory.total, memory.limit)
    return MachineCard(
        name=name,
        about=f"{machine.processor_name()}, {cores} cores; experts on disk, fast memory is RAM; "
        f"measured at a load average of {os.getloadavg()[0]:.1f}",
        lane="disk",
        lanes={
            "disk": {
                "bytes_per_second": _measured(
                    disk["bytes_per_second"], "random reads of 1 MiB past the page cache, 16 at once"
                ),
                "latency_ns": _measured(small["p50_ms"] * 1e6, "median of single 4 KiB reads, one at a time"),
                "chunk_overhead_ns": Figure(0, "assumed", "contained in the bandwidth"),
                "chunk_bytes": Figure(MIB, "specification", "the runtime's chunk"),
            }
        },
        fast_memory={"bytes": _measured(limit, "what the machine has, or its control group allows")},
        compute={
            "memory_bytes_per_second": _measured(reads, f"{cores} threads reading memory"),
            "memory_share": Figure(
                0.81, "assumed", "the expert kernel on all cores of one machine, docs/measuring.md"
            ),
            "flops_per_second": _measured(flops, f"torch, bf16 product of {_PRODUCT} x {_PRODUCT} matrices"),
            "flops_share": Figure(1, "assumed", "the figure above is what a kernel reached"),
            "pass_ns": Figure(0, "assumed", "contained in layer_ns"),
            "layer_ns": _measured(
                layer_ns,
                f"a decode step of {REFERENCE}, all experts in memory, less their arithmetic, per layer",
            ),
            "expert_ns": _measured(
                expert_ns, f"the engine's time for one expert of {REFERENCE}: nearly all of it overhead"
            ),
            "wait_ns": _measured(
                max(0.0, wait_ns),
                f"a layer of {REFERENCE} that reads every expert, less one that reads none, less the disk's "
                "own time for these bytes",
            ),
        },
    )


@dataclass(frozen=True)
class DecodeTimes:
    """Decode steps of one token, nanoseconds, one entry a step."""

    top_k: int
    expert_bytes: int
    layer_ns: list[float]  # a step less the engine's expert arithmetic and waiting, per MoE layer
    whole_ns: list[float]  # the same with the waiting
    expert_ns: list[float]  # that arithmetic, per expert used


def decode_times(model: str, steps: int = _STEPS, system: str = "lru") -> DecodeTimes:
    """Loads the model with room for all experts and decodes 2 x steps tokens, the latter half timed.

    With system "on-demand" every expert is read all the same.
    Raises what load raises.
    """
    import itertools

    from prophet_moe.generate import decode, end_tokens, fixed_tokens
    from prophet_moe.models.load import load
    from prophet_moe.models.offload import offload_of

    loaded = load(model, slots="100%", system=system)
    offload = offload_of(loaded)
    try:
        info, engine = offload.info, offload.engine
        fed = fixed_tokens(2 * steps + 1, info.vocab_size, end_tokens(info))
        recording = decode(
            loaded, fed[:1], max_new_tokens=2 * steps, forced=fed[1:], counters=engine.counters
        )
        marks = recording.whole().marks[-steps - 1 :]
    finally:
        offload.close()
    found = DecodeTimes(info.top_k, info.expert_bytes, [], [], [])
    for earlier, later in itertools.pairwise(marks):
        spent = later.counters["compute_ns"] - earlier.counters["compute_ns"]
        waited = later.counters["stall_ns"] - earlier.counters["stall_ns"]
        whole = later.at_ns - earlier.at_ns - spent
        found.layer_ns.append((whole - waited) / info.layers)
        found.whole_ns.append(whole / info.layers)
        found.expert_ns.append(spent / (info.layers * info.top_k))
    return found


def _flops() -> float:
    import torch

    a = torch.randn(_PRODUCT, _PRODUCT, dtype=torch.bfloat16)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2 * _PRODUCT**3 / best


def _measured(value: float, source: str) -> Figure:
    return Figure(round(value), "measured", source)
