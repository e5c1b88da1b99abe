"""Sweeps: every system with every number of slots, over as many processes as there are cores."""

from __future__ import annotations

import itertools
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prophet_moe.budget import parse_slots
from prophet_moe.errors import InvalidArgument, ProphetError
from prophet_moe.formats.trace import TraceReader, split_sequences
from prophet_moe.record.divide import share
from prophet_moe.sim.cell import LOSSY, Cell, Option, fingerprint, run_cell
from prophet_moe.sim.geometry import Geometry, require_same
from prophet_moe.sim.machine_card import MachineCard
from prophet_moe.sim.results import Line
from prophet_moe.sim.systems import left_out
from prophet_moe.systems import PROPHET, System, system_named

EVERYTHING = "100%"
_TOLD_EVERY = 0.2  # seconds


@dataclass(frozen=True)
class Sweep:
    """What a simulation asks for."""

    trace: Path
    geometry: Geometry
    card: MachineCard
    slots: tuple[str, ...]  # counts or shares
    systems: tuple[str, ...]
    lane: str | None = None
    link_scales: tuple[float, ...] = (1.0,)
    pool: str = "global"
    cold: bool = False
    held_out: str | None = None  # sequences, "60" or "20%"; None: all of the trace
    predictor: Path | None = None  # of system prophet
    rivals: tuple[tuple[str, Path], ...] = ()  # system, the predictor trained for it
    routers: Path | None = None  # a checkpoint of the trace's model
    concurrency: tuple[int, ...] = ()  # sequences that live at once; none: one after the other
    seed: int = 0  # of their order
    prompt_tokens: int = 0  # of sequences without phases, that are taken for a prompt
    options: tuple[tuple[str, tuple[Option, ...]], ...] = ()  # swept, of systems with a predictor


def cells_of(sweep: Sweep) -> tuple[list[Cell], list[str]]:
    """The cells, and a sentence for each system that is left out.

    Raises InvalidArgument, TraceError: a trace of another geometry, ids out of range, slots that cannot be.
    """
    trace = TraceReader(sweep.trace)
    require_same(trace, sweep.geometry)
    trace.check_ids()
    sequences, tokens = None, trace.tokens
    if sweep.held_out is not None:
        count = max(1, share(sweep.held_out, trace.sequences, "--held-out"))
        sequences = split_sequences(trace, count, 0).test
        tokens = sum(len(trace.sequence(s)) for s in sequences)
    seen = _seen(trace, sequences, sweep.predictor)
    files = dict(sweep.rivals) | ({} if sweep.predictor is None else {PROPHET: sweep.predictor})
    of_trace = fingerprint(sweep.trace)
    _check_serving(sweep)
    single = not sweep.concurrency  # a pass of several sequences shows the states of one
    given = (
        files,
        trace.has("gate_input") and single,
        sweep.routers is not None,
        trace.has("entering") and single,
        trace.has("token_id"),
    )
    missing = [why for name in sweep.systems if (why := _left_out(sweep, name, *given))]
    cells = []
    for scale, concurrency, name in itertools.product(
        sweep.link_scales, sweep.concurrency or (None,), sweep.systems
    ):
        if _left_out(sweep, name, *given):
            continue
        system = system_named(name)
        sizes = (EVERYTHING,) if system.bound == "resident" else sweep.slots
        file = files.get(name)
        for asked, options in itertools.product(sizes, _options(sweep, system)):
            cell = Cell(
                trace=str(sweep.trace),
                fingerprint=of_trace,
                geometry=sweep.geometry,
                machine=sweep.card.machine(sweep.geometry, sweep.lane, scale),
                fast_bytes=sweep.card.fast_bytes,
                lane=sweep.lane or sweep.card.lane,
                link_scale=scale,
                system=name,
                slots=slots_of(asked, sweep.geometry, sweep.card, sweep.pool),
                asked=asked,
                pool=sweep.pool,
                cold=sweep.cold,
                sequences=sequences,
                tokens=tokens,
                held_out=None if sequences is None else len(sequences),
                predictor=None if file is None else str(file),
                predictor_print=None if file is None else fingerprint(file),
                predictor_seen=seen if name == PROPHET else None,
                routers=str(sweep.routers) if sweep.routers and _reads_routers(system, trace) else None,
                options=options,
                concurrency=concurrency,
                seed=sweep.seed,
                prompt_tokens=sweep.prompt_tokens,
            )
            cells.append(cell)
    return cells, missing


def _reads_routers(system: System, trace: TraceReader) -> bool:
    return system.router or (system.gates and trace.has("gate_input"))


def _seen(trace: TraceReader, sequences: tuple[int, ...] | None, predictor: Path | None) -> int | None:
    """How many of the sequences the predictor has learned from or was chosen on."""
    if predictor is None:
        return None
    from prophet_moe.predict.export import read
    from prophet_moe.predict.held_out import seen

    training = read(predictor)[2]["training"]
    return len(seen(trace, range(trace.sequences) if sequences is None else sequences, training))


def _left_out(sweep: Sweep, name: str, *given: Any) -> str | None:
    if sweep.concurrency and system_named(name).emulated:
        return f"{name} emulates a predictor for one sequence at a time"
    return left_out(name, *given) or _misread(sweep, name)


def _misread(sweep: Sweep, name: str) -> str | None:
    """Why a predictor of the text would misread the token ids of the trace; None where it would not."""
    if not system_named(name).tokens:
        return None
    from prophet_moe.predict.text_network import load

    if load(dict(sweep.rivals)[name]).numbering == TraceReader(sweep.trace).numbering:
        return None
    return f"{name} needs a predictor trained on the numbering of tokens that this trace has"


def _check_serving(sweep: Sweep) -> None:
    if any(count < 1 for count in sweep.concurrency):
        raise InvalidArgument(f"{min(sweep.concurrency)} sequences at a time are none: give at least 1.")
    if sweep.cold and sweep.concurrency:
        raise InvalidArgument(
            "a cache cannot be emptied before each of several sequences that share it: leave out one of "
            "--cold and --concurrency."
        )
    if sweep.prompt_tokens and not sweep.concurrency:
        raise InvalidArgument("--prompt-tokens is of requests side by side: give --concurrency as well.")


def _options(sweep: Sweep, system: System) -> list[tuple[tuple[str, Option], ...]]:
    """Every combination of the options that are swept and that the system has; one empty one without any."""
    swept = [(name, values) for name, values in sweep.options if name != LOSSY or system.lossy]
    if not system.predictor or not swept:
        return [()]
    names = [name for name, _ in swept]
    choices = itertools.product(*(values for _, values in swept))
    return [tuple(zip(names, values, strict=True)) for values in choices]


def slots_of(asked: str, geometry: Geometry, card: MachineCard, pool: str) -> int:
    """Slots of `96`, `25%`, or `fit`: what the machine's fast memory holds beside everything else.

    Raises InvalidArgument: too few to serve a token, or no such number.
    """
    if asked == "fit":
        free = card.fast_bytes - geometry.dense_bytes
        slots = min(geometry.experts_total, max(0, free) // geometry.expert_bytes)
    else:
        slots = parse_slots(asked, geometry.experts_total)
    least = geometry.top_k * (geometry.layers if pool == "per-layer" else 1)
    if slots < least:
        raise InvalidArgument(
            f"{asked} of {geometry.experts_total} experts are {slots} slots: "
            f"one token of {geometry.name} needs {least} with pool {pool}."
        )
    return slots


_told: Any = None  # a shared counter of tokens, in worker processes


def _begin(told: Any) -> None:
    global _told
    _told = told


def _add(tokens: int) -> None:
    with _told.get_lock():
        _told.value += tokens


def _work(cell: Cell) -> Line:
    return run_cell(cell, _add)


def run_cells(
    cells: Sequence[Cell], jobs: int, on_tokens: Callable[[int], None] = lambda _: None
) -> Iterator[Line]:
    """Results as they come, in no order. on_tokens is told how many tokens of all cells have been served.

    jobs: processes. An error in one cell ends the sweep; what was yielded before stays done.
    """
    context = multiprocessing.get_context("spawn")
    told = context.Value("q", 0)
    pool = ProcessPoolExecutor(
        max(1, min(jobs, len(cells))), mp_context=context, initializer=_begin, initargs=(told,)
    )
    try:
        waiting: set[Future[Line]] = {pool.submit(_work, cell) for cell in cells}
        while waiting:
            done, waiting = wait(waiting, timeout=_TOLD_EVERY, return_when=FIRST_COMPLETED)
            on_tokens(told.value)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ProphetError(
            "a process that replayed was ended from outside, perhaps for want of memory: what was finished "
            "is kept; try again with fewer --jobs."
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
