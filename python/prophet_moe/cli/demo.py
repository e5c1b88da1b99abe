"""prophet demo: the same tokens with fewer and fewer experts, by several systems, and the bound."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import typer

from prophet_moe.cli import options as flag
from prophet_moe.cli.console import data, guarded, log, number, print_json, spinner

if TYPE_CHECKING:
    from prophet_moe.cli.session import Session
    from prophet_moe.generate import Recording
    from prophet_moe.runreport import RunReport
    from prophet_moe.sim.machine import Machine

HELP = """Example: prophet demo

Runs the model inside the package resident, with 50 % and with 25 % of its experts in memory, the last
on demand, by the best rule and by a trained predictor, and compares the tokens with stock
transformers'. The bound is what knowing the future could reach. Under a minute."""

PROMPT = "It was a dark and stormy night, and the captain"
RULE = "expected-next-use"
BOUND = "clairvoyant"
RUNS = (("100%", RULE), ("50%", RULE), ("25%", "on-demand"), ("25%", RULE), ("25%", "prophet"))
HEADINGS = (
    "in\nmemory",
    "system",
    "as\nstock",
    "median\nms per\ntoken",
    "stalled",
    "hits",
    "MiB per\ntoken",
    "peak\nMiB",
)


def same_tokens(mine: list[int], theirs: list[int]) -> str:
    """`yes`, or where two continuations part."""
    if mine == theirs:
        return "yes"
    pairs = zip(mine, theirs, strict=False)
    first = next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(mine), len(theirs)))
    return f"no, from token {first + 1}"


@dataclass(frozen=True)
class Row:
    """One line of the table; `verdict` is None for the bound, which decodes nothing.

    stalled: the part of decode steps that layers spent waiting for bytes.
    """

    share: str
    report: RunReport
    stalled: float | None
    verdict: str | None

    def cells(self) -> list[str]:
        """As HEADINGS. A bound's times are simulated, and say so."""
        report, bound = self.report, self.verdict is None
        per_token, peak = report.bytes.per_token, report.peak_rss_bytes
        times = [number(report.tpot_ms.p50), number(self.stalled, ".0%")]
        return [
            self.share,
            f"{report.system} bound" if bound else report.system,
            self.verdict or "",
            *(f"~{text}" if bound and text != "-" else text for text in times),
            number(report.hit_rate, ".1%"),
            number(None if per_token is None else per_token / 2**20, ".2f"),
            number(None if peak is None else peak / 2**20, ".0f"),
        ]


def machine_of(runs: Sequence[RunReport], on_demand: RunReport, layers: int) -> Machine:
    """This machine, by its runs: the least that a token computed, and how fast what it waited for came.

    Where they measured nothing, for want of decode steps, any machine: counts do not depend on it.
    """
    from prophet_moe.sim.machine import Machine

    moved, stall = on_demand.bytes.per_token, on_demand.stall_ms.p50
    rate = moved / stall * 1e3 if moved and stall else 1e9
    computed = [run.tpot_ms.p50 - (run.stall_ms.p50 or 0.0) for run in runs if run.tpot_ms.p50]
    compute = max(0.0, min(computed, default=0.0))
    return Machine("this machine", bytes_per_second=rate, layer_ns=round(compute * 1e6 / layers))


def stalled(recording: Recording) -> float | None:
    """The part of a run's decode steps that layers spent waiting for bytes; None without a step."""
    if len(recording.marks) < 2:
        return None
    first, last = recording.marks[0], recording.marks[-1]
    return (last.counters["stall_ns"] - first.counters["stall_ns"]) / (last.at_ns - first.at_ns)


@guarded
def demo(
    prompt: flag.DemoPrompt = PROMPT,
    max_tokens: flag.MaxTokens = 48,
    threads: flag.Threads = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    with spinner("starting", quiet):
        from prophet_moe import machine
        from prophet_moe.cli.session import Session, Wish, look_at, read_prompt, set_threads
        from prophet_moe.generate import TextStream, decode
        from prophet_moe.models.stock import load_stock
        from prophet_moe.sim.own_run import replay_own, routes_of
        from prophet_moe.sim.replay import run_report
        from prophet_moe.systems import system_named
    name = "reference-moe"
    info = look_at(name, quiet)
    tokens, tokenizer = read_prompt(info, prompt, None, None)
    count = set_threads(threads)
    with spinner("stock transformers, for comparison", quiet):
        stock = load_stock(info.directory)
        expected = decode(stock, tokens, max_new_tokens=max_tokens).whole().token_ids
        del stock

    def tell(text: str) -> None:
        if not quiet:
            log().print(text, end="", markup=False, soft_wrap=True)

    def told(session: Session) -> Recording:
        stream = TextStream(lambda ids: str(tokenizer.decode(ids)))
        recording = session.decode(tokens, max_tokens, on_token=lambda token: tell(stream.feed(token)))
        tell(stream.end() + "\n")
        return recording.whole()

    rows: list[Row] = []
    for share, system in RUNS:
        machine.return_free_memory()
        machine.reset_peak_rss()
        # Exact, so that equal tokens are a promise and not luck with rounding.
        wish = Wish(
            name, "auto", share, system, True, "global", count, len(tokens) + max_tokens, True, quiet=True
        )
        with Session(wish, info, tokenizer) as session:
            tell(f"\n{share} of the experts in memory, {system}:\n{prompt}")
            recording = told(session)
            verdict = same_tokens(recording.token_ids, expected)
            rows.append(Row(share, session.report(recording), stalled(recording), verdict))
            engine, steps = session.offload.engine, len(recording.marks) - 1
            # Every run took the same routes, or its tokens differ: the last one's serve.
            routes = routes_of(engine.timeline(), engine.timeline_kinds(), info.layers, info.top_k, steps)
        if json:
            print_json(rows[-1].report.to_json())
    on_demand, last = rows[2].report, rows[-1].report
    bound = replay_own(
        routes,
        system_named(BOUND),
        machine_of([row.report for row in rows], on_demand, info.layers),
        experts_per_layer=info.experts_per_layer,
        slots=last.expert_slots,
        # As the disk gives them, with the slack of aligned reads.
        expert_bytes=on_demand.bytes.demand // on_demand.hits.miss,
    )
    report = replace(
        run_report(
            bound,
            model=name,
            system=BOUND,
            budget_bytes=last.budget_bytes,
            experts_total=info.experts_total,
            expert_bytes=info.expert_bytes,
        ),
        prompt_tokens=last.prompt_tokens,
        new_tokens=last.new_tokens,
    )
    waited = bound.stall_ms.mean / bound.tpot_ms.mean if bound.tpot_ms.mean else None
    rows.append(Row(RUNS[-1][0], report, waited, None))
    if json:
        print_json(report.to_json())
    else:
        show(rows)
    if any(row.verdict not in (None, "yes") for row in rows):
        log().print(
            "the tokens differ from stock transformers': please report it with the output of prophet doctor."
        )
        raise typer.Exit(1)
    if not quiet:
        log().print('next: prophet run reference-moe -p "Call me Ishmael." --slots 25%', markup=False)


def show(rows: Sequence[Row]) -> None:
    """The table on stdout, within 80 columns, and what its last row means."""
    from rich import box
    from rich.table import Table

    table = Table(*HEADINGS, box=box.SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        if row.share != rows[0].share and row.verdict is None:
            table.add_section()
        table.add_row(*row.cells())
    data().print(table)
    notes = [
        "bound: no choice of experts reads fewer bytes for these tokens. Its hits and",
        "bytes are exact, replayed from the run's own routing; ~ marks simulated times.",
    ]
    for row in rows:
        if row.report.foresight is not None and (held := row.report.foresight.told()) is not None:
            notes.append(f"{row.report.system}: {held}.")
    for note in notes:
        data().print(note, markup=False, soft_wrap=True)
