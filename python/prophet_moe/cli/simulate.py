"""prophet simulate: a routing trace on a machine that need not exist, system by system."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_sim as sim_flag
from prophet_moe.cli.console import data, guarded, log, number, print_json, print_warning, tokens_bar

if TYPE_CHECKING:
    from pathlib import Path

    from prophet_moe.sim.results import Line

HELP = """Example: prophet simulate TRACE --model reference-moe --machine cpu-nvme -o results.jsonl

Replays the trace through the engine on a virtual clock: same policies, cache and queue as on real bytes.
Every number is simulated. prophet report draws the results."""

SERVING = ("n", "TPOT ms", "p99", "TTFT ms", "hits", "MB/tok", "union")  # n sequences at once
HEADINGS = ("slots", "TPOT ms", "p99.9", "stalled", "late", "miss", "MB/token")


def split_list(text: str) -> list[str]:
    """The words of `a,b`, each once."""
    return list(dict.fromkeys(word.strip() for word in text.split(",") if word.strip()))


def scales(text: str) -> tuple[float, ...]:
    """Numbers of `0.5,1`. Raises ValueError."""
    try:
        return tuple(float(word) for word in split_list(text))
    except ValueError:
        raise ValueError(f"--link-scale {text!r} is no list of numbers: write 0.5,1,2.") from None


def counts(text: str | None) -> tuple[int, ...]:
    """Numbers of `1,4`; none of None. Raises ValueError."""
    try:
        return tuple(int(word) for word in split_list(text or ""))
    except ValueError:
        raise ValueError(f"--concurrency {text!r} is no list of whole numbers: write 1,4,16.") from None


def serving_row(line: Line) -> list[str]:
    """One line of requests side by side, as SERVING."""
    served, hits, asked = line["serving"], line["hits"], line["accesses"] or 1
    per_token = line["bytes"]["per_token"]
    return [
        str(served["concurrency"]),
        number(line["tpot_ms"]["mean"], ".2f"),
        number(line["tpot_ms"]["p99"], ".2f"),
        number(served["ttft_ms"]["mean"], ".1f"),
        f"{hits['resident'] / asked:.1%}",
        number(None if per_token is None else per_token / 1e6, ".1f"),
        number(served["union"], ".1f"),
    ]


def break_even(lines: Sequence[Line], machine: str) -> list[str]:
    """Where caching stops paying, for each number of slots of requests side by side."""
    from prophet_moe.break_even import Point, verdicts

    said = []
    for size in dict.fromkeys(line["slots"] for line in lines if line["serving"]):
        points = [
            Point(line["system"], line["serving"]["concurrency"], line["tpot_ms"]["mean"])
            for line in lines
            if line["slots"] == size and line["link_scale"] == 1 and not line["options"]
        ]
        said += verdicts(points, f"at {size} of slots on {machine} (simulated)")
    return said


def row(line: Line) -> list[str]:
    """One line of results for people, as HEADINGS."""
    tpot, hits, asked = line["tpot_ms"], line["hits"], line["accesses"] or 1
    per_token = line["bytes"]["per_token"]
    wall = (tpot["mean"] or 0) * line["new_tokens"]
    return [
        line["slots"],
        number(tpot["mean"], ".2f"),
        number(tpot["p999"], ".2f"),
        number(line["stall_ms"]["total"] / wall if wall else None, ".0%"),
        f"{hits['in_flight'] / asked:.1%}",
        f"{hits['miss'] / asked:.1%}",
        number(None if per_token is None else per_token / 1e6, ".1f"),
    ]


def show(lines: Sequence[Line], title: str) -> None:
    """The table on stdout, in the order of the systems."""
    from rich.table import Table

    named = any(line["options"] or line["link_scale"] != 1 for line in lines)
    served = any(line["serving"] for line in lines)
    sizes = list(dict.fromkeys(line["slots"] for line in lines))
    headings = (*(["slots"] if len(sizes) > 1 else []), *SERVING) if served else HEADINGS
    table = Table("system", *(["options"] if named else []), *headings, title=title, pad_edge=False)
    for line in lines:
        options = line["options"] | ({} if line["link_scale"] == 1 else {"link": line["link_scale"]})
        told = [" ".join(f"{name}={value}" for name, value in options.items())] if named else []
        size = [line["slots"]] if len(sizes) > 1 else []
        figures = [*size, *serving_row(line)] if served else row(line)
        table.add_row(line["system"], *told, *figures)
    table.columns[0].no_wrap = table.columns[named].no_wrap = True
    if served:
        table.caption = "n sequences at once; union: distinct experts of a layer step; bytes with prompts'"
    if not all(line["fits"] for line in lines):
        said = "some of these slots do not fit into the machine's fast memory"
        table.caption = f"{table.caption}; {said}" if table.caption else said
    data().print(table)


def swept(texts: Sequence[str]) -> tuple[tuple[str, tuple[float | int | str, ...]], ...]:
    """Options of `least=0.3,0.8`. Raises ValueError."""
    found = []
    for text in texts:
        name, equals, values = text.partition("=")
        if not name or not equals or not split_list(values):
            raise ValueError(f"--sweep {text!r} is no option with values: write least=0.3,0.5,0.8.")
        found.append((name, tuple(_value(word) for word in split_list(values))))
    return tuple(found)


def _value(word: str) -> float | int | str:
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(word)
    return word


def predictors_of(files: Sequence[Path]) -> tuple[Path | None, tuple[tuple[str, Path], ...]]:
    """The file of system prophet, and those of other systems with their names, by what each file says.

    Raises ValueError: two for one system.
    """
    from prophet_moe.predict.rivals import load
    from prophet_moe.systems import PROPHET

    named: dict[str, Path] = {}
    for file in files:
        rival = load(file)
        system = PROPHET if rival is None else rival.system
        if system in named:
            raise ValueError(f"--predictor names two files for {system}: {named[system]} and {file}.")
        named[system] = file
    return named.pop(PROPHET, None), tuple(named.items())


@guarded
def simulate(
    trace: sim_flag.TraceFile,
    model: sim_flag.Geometry,
    machine: sim_flag.MachineCard,
    slots: sim_flag.SlotsList = "25%,50%,75%",
    systems: sim_flag.SystemsList = "all",
    out: sim_flag.Results = None,
    predictor: sim_flag.Predictors = None,
    routers: sim_flag.Routers = None,
    weights: sim_flag.Weights = None,
    lane: sim_flag.Lane = None,
    link_scale: sim_flag.LinkScale = "1",
    sweep: sim_flag.SweepOptions = None,
    pool: flag.Pool = "global",
    cold: sim_flag.Cold = False,
    concurrency: sim_flag.Concurrency = None,
    seed: sim_flag.OrderSeed = 0,
    prompt_tokens: sim_flag.PromptTokens = 0,
    held_out: sim_flag.HeldOut = None,
    jobs: sim_flag.Jobs = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.machine import cpu_count
    from prophet_moe.models.locate import locate
    from prophet_moe.sim.geometry import read_geometry
    from prophet_moe.sim.machine_card import read_machine
    from prophet_moe.sim.results import ResultsFile, to_json
    from prophet_moe.sim.sweep import Sweep, cells_of, run_cells
    from prophet_moe.sim.systems import parse_systems, system_named

    names = parse_systems(systems)
    geometry, card = read_geometry(model, weights), read_machine(machine)
    found: Path | None = None
    rivals: tuple[tuple[str, Path], ...] = ()
    if any(system_named(name).predictor for name in names):
        from prophet_moe.predict import shipped

        shape = (geometry.layers, geometry.experts_per_layer, geometry.top_k)
        found, rivals = predictors_of([shipped.find(one) for one in split_list(predictor or "")])
        found = found or shipped.matching(*shape)
    cells, left = cells_of(
        Sweep(
            trace=trace,
            geometry=geometry,
            card=card,
            slots=tuple(split_list(slots)),
            systems=tuple(names),
            lane=lane,
            link_scales=scales(link_scale),
            pool=pool,
            cold=cold,
            held_out=held_out,
            predictor=found,
            rivals=rivals,
            routers=None if routers is None else locate(routers),
            options=swept(sweep or ()),
            concurrency=counts(concurrency),
            seed=seed,
            prompt_tokens=prompt_tokens,
        )
    )
    for why in left:
        print_warning(f"left out: {why}.")
    if seen := max((cell.predictor_seen or 0 for cell in cells), default=0):
        print_warning(
            f"the predictor has learned from {seen} of the sequences that are replayed, so its figures "
            "flatter it: replay others (--held-out)."
        )
    results = None if out is None else ResultsFile(out)
    done = {} if results is None else {line["cell"]: line for line in results.lines}
    lines = {cell.key: done[cell.key] for cell in cells if cell.key in done}
    todo = [cell for cell in cells if cell.key not in lines]
    if lines and not quiet:
        log().print(f"{len(lines)} of {len(cells)} results are in {out} already.", markup=False)
    if json:
        for line in lines.values():
            print_json(to_json(line))
    total = sum(cell.tokens for cell in todo)
    with tokens_bar(f"replaying {len(todo)} cells", total, quiet) as progress:
        for line in run_cells(todo, jobs or cpu_count(), progress):
            lines[line["cell"]] = line
            if results is not None:
                results.append(line)
            if json:
                print_json(to_json(line))
    if not json:
        title = f"{geometry.name} ({geometry.weights}) on {card.name}, simulated"
        show([lines[cell.key] for cell in cells], title)
        for sentence in break_even([lines[cell.key] for cell in cells], card.name):
            data().print(sentence, markup=False, soft_wrap=True)
    if out is not None and not quiet:
        log().print(f"next: prophet report {out} -o report.html", markup=False)
