"""One cell of a sweep: a system with so many slots on one machine, replayed, as one line of results."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import prophet_ext
from prophet_moe.formats.trace import TraceReader
from prophet_moe.sim import replay as replays
from prophet_moe.sim.concurrent import Serving, serve
from prophet_moe.sim.geometry import Geometry
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.results import VERSION, Line
from prophet_moe.systems import make_predictor, system_named

Option = float | int | str
LOSSY = "lossy"  # an option: 1 counts the bytes of a system's lossy part
INSTANT = 1e18  # bytes per second of a link that delivers at once


@dataclass(frozen=True)
class Cell:
    """All that decides a result. Plain data, so that another process can replay it."""

    trace: str  # path
    fingerprint: str  # of the trace
    geometry: Geometry
    machine: Machine
    fast_bytes: int  # of the machine's card
    lane: str
    link_scale: float
    system: str
    slots: int
    asked: str  # slots as they were named, such as 25%
    pool: str
    cold: bool
    sequences: tuple[int, ...] | None  # None: all
    tokens: int  # of these sequences
    held_out: int | None  # how many they are, where they are those that training leaves out
    predictor: str | None  # path
    predictor_print: str | None
    predictor_seen: int | None  # how many of the sequences it has learned from
    routers: str | None = None  # path of a checkpoint whose routers the system applies
    options: tuple[tuple[str, Option], ...] = ()  # fields of the rule of prefetching
    concurrency: int | None = None  # sequences that live at once; None: one after the other
    seed: int = 0  # of their order
    prompt_tokens: int = 0  # of sequences without phases, that are taken for a prompt

    @property
    def key(self) -> str:
        """Equal for equal cells of one release; a result found under it need not be computed again."""
        facts = asdict(self) | {"trace": None, "predictor": None, "version": prophet_ext.__version__}
        facts["routers"] = self.routers and Path(self.routers).name
        facts["results"] = VERSION
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(path: Path) -> str:
    """Of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()[:16]


def resident_ms(machine: Machine, geometry: Geometry) -> float:
    """T_g: a decode step of one token with every expert in fast memory."""
    experts = geometry.top_k * (machine.expert_ns + machine.expert_token_ns)
    layer = machine.layer_ns + machine.layer_token_ns + experts
    return (machine.pass_ns + geometry.layers * layer) / 1e6


def run_cell(cell: Cell, progress: Callable[[int], None] | None = None) -> Line:
    """Replays the cell. Raises InvalidArgument, TraceError, PredictorError."""
    began = time.perf_counter()
    system = system_named(cell.system)
    trace, geometry, machine = TraceReader(cell.trace), cell.geometry, cell.machine
    if system.bound == "resident":
        machine = replace(machine, bytes_per_second=INSTANT, latency_ns=0, overhead_ns=0)
    predictor = make_predictor(
        system,
        layers=trace.layers,
        experts_per_layer=trace.experts_per_layer,
        top_k=trace.top_k,
        share=cell.slots / geometry.experts_total,
        file=None if cell.predictor is None else Path(cell.predictor),
        routers=None if cell.routers is None else _routers(Path(cell.routers), trace),
        numbering=trace.numbering,
    )
    options = dict(cell.options)
    moved = system.lossy_bytes if options.pop(LOSSY, 0) else 1.0  # of each expert's bytes
    prefetch = None if system.prefetch is None else dict(system.prefetch) | options
    domains = _Domains(trace.labels)
    settings: dict[str, Any] = {
        "slots": cell.slots,
        "expert_bytes": round(geometry.expert_bytes * moved),
        "policy": system.policy,
        "pool": cell.pool,
        "keep": system.keep,
        "predictor": predictor,
        "prefetch": prefetch,
        "clairvoyant": system.bound == "time",
        "sequences": cell.sequences,
        "progress": progress,
    }
    serving: Serving | None = None
    if cell.concurrency is not None:
        report, serving = serve(
            trace, machine, concurrency=cell.concurrency, seed=cell.seed, prompt_tokens=cell.prompt_tokens,
            **settings,
        )  # fmt: skip
    else:
        emulate = (system.recall, trace.layers if system.next_token else 0) if system.emulated else None
        report = replays.replay(
            trace, machine, cold=cell.cold, emulate=emulate, watch=domains.watch, **settings
        )
    run = replays.run_report(
        report,
        model=geometry.name,
        system=cell.system,
        budget_bytes=cell.fast_bytes,
        experts_total=geometry.experts_total,
        expert_bytes=geometry.expert_bytes,
    )
    return run.to_dict() | {
        "results_version": VERSION,
        "cell": cell.key,
        "trace": Path(cell.trace).name,
        "machine": machine.name,
        "slots": cell.asked,
        "weights": geometry.weights,
        "lane": cell.lane,
        "link_scale": cell.link_scale,
        "pool": cell.pool,
        "cold": cell.cold,
        "sequences": trace.sequences if cell.sequences is None else len(cell.sequences),
        "held_out": cell.held_out,
        "predictor": Path(cell.predictor).name if predictor is not None and cell.predictor else None,
        "predictor_seen": cell.predictor_seen,
        "options": dict(cell.options),
        "times": asdict(cell.machine),
        "resident_ms": resident_ms(cell.machine, geometry),
        "fits": geometry.dense_bytes + cell.slots * geometry.expert_bytes <= cell.fast_bytes,
        "accesses": report.accesses,
        "layer_misses": report.layer_misses,
        "residence": _stayed(report.residence, bound=system.bound == "time"),
        "flops_per_token": geometry.flops_per_token,
        "domains": domains.found,
        "serving": None if serving is None else asdict(serving),
        "wall_s": round(time.perf_counter() - began, 3),
    }


def _stayed(residence: replays.Residence | None, bound: bool) -> dict[str, Any] | None:
    """As a line has it; the clock of a bound says nothing of how long an expert stayed."""
    if residence is None:
        return None
    return asdict(replace(residence, ms=None) if bound else residence)


def _routers(model: Path, trace: TraceReader) -> dict[str, NDArray[np.generic]]:
    """The routers' weights of a checkpoint, as make_predictor takes them."""
    from prophet_moe.predict.next_gate import router_weights

    width = trace.arrays["gate_input"][1][-1]
    return {"router": router_weights(model, trace.layers, trace.experts_per_layer, width)}


class _Domains:
    """Counts of each domain's sequences, from what the replay has counted by the end of each."""

    KEYS = ("hits_resident", "hits_in_flight", "misses", "bytes_moved")

    def __init__(self, labels: Sequence[str]) -> None:
        self._labels = labels
        self._before: dict[str, int] = dict.fromkeys((*self.KEYS, "tokens", "decode_ns"), 0)
        self.found: dict[str, dict[str, int]] = {}

    def watch(self, sequence: int, so_far: dict[str, Any]) -> None:
        now = {key: int(so_far["counters"][key]) for key in self.KEYS}
        now["tokens"] = int(so_far["tokens"])
        now["decode_ns"] = round(so_far["tpot_ns"]["mean"] * so_far["passes"])
        mine = self.found.setdefault(self._labels[sequence], dict.fromkeys(now, 0))
        for key, value in now.items():
            mine[key] += value - self._before[key]
        self._before = now
