"""The simulator against reality: real runs, and the replay of their own routing on this machine's own card.

    python bench/e2e/sim_vs_real.py reference-moe --slots 25%,50% --steps 64 --rounds 5

Every system decodes the same fixed tokens on a packed copy of the model, systems in turn, then all again.
The router's choices, taken from the timeline of a run, are replayed. Hits, bytes and evictions must be equal
to the count.

Times are those of a quiet machine, as far as a shared one can tell: a step does the same work in every
round, so its time is its least over the rounds, and a system's time is the mean over steps. The card is made
the same way from measurements between the rounds: the disk with the model's own file, in bursts as a layer
demands them, a layer and an expert by decoding with every expert in memory, and what waiting costs beside
the disk's own time by decoding with none. These are runs of their own; nothing is fitted to those that are
compared, though `on-demand` among them does what the last of these does.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import prophet_ext
from prophet_moe.formats.packed import pack
from prophet_moe.generate import decode, end_tokens, fixed_tokens
from prophet_moe.models.inspect import inspect
from prophet_moe.models.load import load
from prophet_moe.models.offload import offload_of
from prophet_moe.runreport import RunReport, build_report
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.measure import ON_DEMAND, DecodeTimes, decode_times
from prophet_moe.sim.own_run import OwnRoutes, replay_own, routes_of
from prophet_moe.sim.replay import ReplayReport
from prophet_moe.sim.systems import system_named

SYSTEMS = "on-demand,lru,lfu,lfru,expected-next-use"
CHUNK = 1 << 20  # the runtime's own


@dataclass(frozen=True)
class Run:
    """One real run: its report, what its router chose, and the time of each decode step."""

    report: RunReport
    routes: OwnRoutes
    steps_ms: list[float]
    stalls_ms: list[float]  # of each step: layers waiting for bytes
    experts_ms: list[float]  # of each step: expert arithmetic


def real_run(model: Path, system: str, slots: str, fed: list[int]) -> Run:
    """Feeds these tokens one by one, from an empty cache."""
    loaded = load(str(model), system=system, slots=slots, timeline=True)
    offload = offload_of(loaded)
    try:
        engine, info = offload.engine, offload.info
        recording = decode(
            loaded, fed[:1], max_new_tokens=len(fed) - 1, forced=fed[1:], counters=engine.counters
        ).whole()
        routes = routes_of(engine.timeline(), engine.timeline_kinds(), info.layers, info.top_k, len(fed) - 2)
        report = build_report(
            recording.begun, recording.marks, model=info.name, backend="cpu", system=system, exact=False,
            budget_bytes=0, expert_slots=engine.slots, experts_total=info.experts_total,
            expert_bytes=info.expert_bytes, prompt_tokens=1, token_ids=recording.token_ids, text=None,
            peak_rss_bytes=0,
        )  # fmt: skip
    finally:
        offload.close()
    steps = list(itertools.pairwise(recording.marks))

    def spent(key: str) -> list[float]:
        return [(later.counters[key] - earlier.counters[key]) / 1e6 for earlier, later in steps]

    walls = [(later.at_ns - earlier.at_ns) / 1e6 for earlier, later in steps]
    return Run(report, routes, walls, spent("stall_ns"), spent("compute_ns"))


@dataclass(frozen=True)
class Measured:
    """This machine at one time."""

    bytes_per_second: float
    latency_ns: float
    resident: DecodeTimes
    demanded: DecodeTimes


def measure(model: Path, expert_bytes: int, top_k: int, seconds: float) -> Measured:
    """This machine just now, by the model's own file of experts.

    The bandwidth is that of one layer's demand: as many chunks at once as top_k experts have, 16 at most, in
    the median time that the last of them takes, less the latency of a small read.
    """
    file = str(model / "experts.safetensors")
    chunk = min(CHUNK, expert_bytes)
    depth = min(16, top_k * -(-expert_bytes // chunk))
    burst = prophet_ext.read_bandwidth(file, seconds, chunk, depth, "auto")
    small = prophet_ext.read_bandwidth(file, seconds, 4096, 1, "auto")
    moving = max(burst["p50_ms"] - small["p50_ms"], 0.1 * burst["p50_ms"]) / 1e3
    return Measured(
        bytes_per_second=depth * chunk / moving,
        latency_ns=small["p50_ms"] * 1e6,
        resident=decode_times(str(model)),
        demanded=decode_times(str(model), system=ON_DEMAND),
    )


def quiet(rounds: Sequence[Measured]) -> Machine:
    """What a quiet machine would have shown: the best of each number, and of each step its best round."""
    layer_ns = least([one.resident.layer_ns for one in rounds])
    bytes_per_second = max(one.bytes_per_second for one in rounds)
    latency_ns = min(one.latency_ns for one in rounds)
    model = rounds[0].resident
    reading_ns = latency_ns + model.top_k * model.expert_bytes / bytes_per_second * 1e9
    waited_ns = least([one.demanded.whole_ns for one in rounds]) - layer_ns - reading_ns
    return Machine(
        name="this machine",
        bytes_per_second=bytes_per_second,
        latency_ns=round(latency_ns),
        chunk_bytes=CHUNK,
        layer_ns=round(layer_ns),
        expert_ns=round(least([one.resident.expert_ns for one in rounds])),
        wait_ns=max(0, round(waited_ns)),
    )


def simulated(routes: OwnRoutes, report: RunReport, machine: Machine, experts_per_layer: int) -> ReplayReport:
    """The same routes replayed; the first token is the prefill, as in the run."""
    return replay_own(
        routes,
        system_named(report.system),
        machine,
        experts_per_layer=experts_per_layer,
        slots=report.expert_slots,
        expert_bytes=report.expert_bytes,
    )


def least(rounds: Sequence[Sequence[float]]) -> float:
    """Mean over steps of each step's least over the rounds."""
    return statistics.fmean(min(times) for times in zip(*rounds, strict=True))


def compared(runs: Sequence[Run], simulation: ReplayReport, machine: Machine) -> dict[str, Any]:
    """What agreed. Runs are rounds of one system and differ in their times alone; ms are per decode step."""
    real = {
        "step": least([run.steps_ms for run in runs]),
        "stall": least([run.stalls_ms for run in runs]),
        "experts": least([run.experts_ms for run in runs]),
    }
    _, layers, top_k = runs[0].routes.first.shape
    replayed = {
        "step": simulation.tpot_ms.mean,
        "stall": simulation.stall_ms.mean,
        "experts": layers * top_k * machine.expert_ns / 1e6,
    }
    moved = dataclasses.replace(simulation.bytes, per_token=None)
    first = runs[0].report
    return {
        "system": first.system,
        "slots": first.expert_slots,
        "hits_equal": all(run.report.hits == simulation.hits for run in runs),
        "bytes_equal": all(dataclasses.replace(run.report.bytes, per_token=None) == moved for run in runs),
        "evictions_equal": all(run.report.evictions == simulation.evictions for run in runs),
        "misses": first.hits.miss,
        "error": round(replayed["step"] / real["step"] - 1, 4),
        "real_ms": {key: round(value, 3) for key, value in real.items()},
        "simulated_ms": {key: round(value, 3) for key, value in replayed.items()},
        "round_means_ms": [round(statistics.fmean(run.steps_ms), 3) for run in runs],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--slots", default="25%")
    parser.add_argument("--systems", default=SYSTEMS)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement of the disk")
    options = parser.parse_args()
    cases = list(itertools.product(options.slots.split(","), options.systems.split(",")))
    runs: dict[tuple[str, str], list[Run]] = {case: [] for case in cases}
    measured, loads = [], []
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        packed = pack(options.model, folder / "packed")
        info = inspect(str(packed))
        fed = fixed_tokens(options.steps + 1, info.vocab_size, end_tokens(info))
        for turn in range(options.rounds):
            measured.append(measure(packed, info.expert_bytes, info.top_k, options.seconds))
            loads.append(round(os.getloadavg()[0], 1))
            for slots, system in cases:
                runs[slots, system].append(real_run(packed, system, slots, fed))
                print(f"round {turn + 1}: {system} {slots}", file=sys.stderr)
        machine = quiet(measured)
        for rounds in runs.values():
            simulation = simulated(rounds[0].routes, rounds[0].report, machine, info.experts_per_layer)
            print(json.dumps(compared(rounds, simulation, machine)), flush=True)
    machine_facts = {key: value for key, value in dataclasses.asdict(machine).items() if value}
    print(json.dumps({"machine": machine_facts, "load_averages": loads}), flush=True)


if __name__ == "__main__":
    main()
