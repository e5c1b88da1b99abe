"""prophet bench: decode steps over fixed tokens, systems interleaved, so that drift shows as deviation."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_sim as sim_flag
from prophet_moe.cli.console import data, guarded, number, print_json, spinner

if TYPE_CHECKING:
    from prophet_moe.models.inspect import ModelInfo
    from prophet_moe.runreport import RunReport

STOCK = "stock"

HELP = """Example: prophet bench reference-moe --systems lru,expected-next-use --slots 25% -n 32

Feeds fixed tokens, so neither tokenizer nor sampling matters and every system sees the same
routing. Runs are interleaved A B A; --json prints one run report per run."""


def schedule(systems: Sequence[str], repeat: int) -> list[str]:
    """The order of runs: all systems in turn, `repeat` times, and the first once more at the end."""
    return [*list(systems) * repeat, systems[0]] if len(systems) > 1 else list(systems) * repeat


def parse_systems(text: str, known: Sequence[str]) -> list[str]:
    """Names of `a,b`. Raises ValueError for unknown, repeated and no names."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"{name!r} is not a system: the names are {', '.join(known)}.")
    if not names or len(set(names)) < len(names):
        raise ValueError(f"--systems {text!r} must name one or more different systems of {', '.join(known)}.")
    return names


def spread(values: Sequence[float | None], form: str = ".1f") -> str:
    """`12.3 ± 0.4` over runs; `-` of nothing."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = format(statistics.fmean(known), form)
    return f"{mean} ± {statistics.stdev(known):{form}}" if len(known) > 1 else mean


HEADINGS = (
    "system",
    "runs",
    "slots",
    "TTFT ms",
    "TPOT ms",
    "p99 ms",
    "hits",
    "MiB/token",
    "stalled",
    "peak MiB",
    "vs stock",
)


def rows(reports: Sequence[RunReport]) -> list[list[str]]:
    """One row per system: means and deviations over its runs."""
    names = list(dict.fromkeys(report.system for report in reports))
    tpots = {name: [r.tpot_ms.p50 for r in reports if r.system == name and r.tpot_ms.p50] for name in names}
    stock = statistics.median(tpots[STOCK]) if tpots.get(STOCK) else None
    table = []
    for name in names:
        mine = [report for report in reports if report.system == name]
        ratio = statistics.median(tpots[name]) / stock if stock and tpots[name] else None
        table.append([
            name,
            str(len(mine)),
            f"{mine[0].expert_slots}/{mine[0].experts_total}",
            spread([r.ttft_ms for r in mine]),
            spread([r.tpot_ms.mean for r in mine], ".2f"),
            spread([r.tpot_ms.p99 for r in mine], ".2f"),
            number(mine[0].hit_rate, ".1%"),
            spread([None if r.bytes.per_token is None else r.bytes.per_token / 2**20 for r in mine], ".2f"),
            spread([stalled_share(r) for r in mine], ".2f"),
            spread([None if r.peak_rss_bytes is None else r.peak_rss_bytes / 2**20 for r in mine], ".0f"),
            number(ratio, ".2f", "x"),
        ])  # fmt: skip
    return table


def stalled_share(report: RunReport) -> float | None:
    """The part of a run that layers spent waiting for bytes."""
    wall = (report.ttft_ms or 0) + (report.tpot_ms.mean or 0) * max(0, report.new_tokens - 1)
    return report.stall_ms.total / wall if wall else None


def notes(reports: Sequence[RunReport]) -> list[str]:
    """A sentence for each system whose foresight was held back or failed, about its last run."""
    last = {report.system: report.foresight for report in reports if report.foresight is not None}
    found = []
    for system, foresight in last.items():
        if (held := foresight.told()) is not None:
            found.append(f"{system}: {held}.")
        if foresight.failure is not None:
            found.append(f"{system}: the predictor was switched off ({foresight.failure}).")
    return found


def as_markdown(table: Sequence[Sequence[str]]) -> str:
    """A Markdown table of HEADINGS and rows."""
    lines = [HEADINGS, ["---"] * len(HEADINGS), *table]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def stock_run(info: ModelInfo, threads: int, prompt: list[int], forced: list[int]) -> RunReport:
    """The same steps by transformers alone: whole model in memory, eager experts."""
    from prophet_moe import machine
    from prophet_moe.generate import decode
    from prophet_moe.models.stock import load_stock
    from prophet_moe.runreport import build_report

    model = load_stock(info.directory)
    recording = decode(model, prompt, max_new_tokens=len(forced), forced=forced).whole()
    return build_report(
        recording.begun,
        recording.marks,
        model=info.name,
        backend="cpu",
        system=STOCK,
        exact=True,
        budget_bytes=0,
        expert_slots=info.experts_total,
        experts_total=info.experts_total,
        expert_bytes=info.expert_bytes,
        prompt_tokens=recording.prompt_tokens,
        token_ids=recording.token_ids,
        text=None,
        peak_rss_bytes=machine.peak_rss(),
    )


def trained_for(system: str, files: str | None) -> str | None:
    """Of the files that --predictor names, the one for this system. Raises ValueError, PredictorError."""
    from prophet_moe.cli.simulate import predictors_of, split_list
    from prophet_moe.predict import shipped
    from prophet_moe.systems import PROPHET

    if files is None:
        return None
    own, rivals = predictors_of([shipped.find(one) for one in split_list(files)])
    file = own if system in ("auto", PROPHET) else dict(rivals).get(system)
    return None if file is None else str(file)


@guarded
def bench(
    model: flag.Model,
    max_tokens: flag.BenchTokens = 32,
    prompt_tokens: flag.PromptTokens = 16,
    systems: flag.Systems = "auto",
    predictor: sim_flag.Predictors = None,
    stock: flag.Stock = False,
    repeat: flag.Repeat = 1,
    cold: flag.Cold = False,
    budget: flag.Budget = "auto",
    slots: flag.Slots = None,
    backend: flag.Backend = "auto",
    device_budget: flag.DeviceBudget = "auto",
    exact: flag.Exact = False,
    pool: flag.Pool = "global",
    context: flag.Context = None,
    threads: flag.Threads = None,
    serve: flag.Serve = False,
    concurrency: flag.Concurrency = "1,4,16",
    requests: flag.Requests = None,
    json: flag.Json = False,
    markdown: flag.Markdown = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    if json and markdown:
        raise ValueError("--json and --markdown both claim stdout: choose one.")
    import gc

    from prophet_moe import machine
    from prophet_moe.cli.session import Session, Wish, known_systems, look_at, set_threads
    from prophet_moe.generate import end_tokens, fixed_tokens

    names = parse_systems(systems, known_systems())
    info = look_at(model, quiet)
    if context is not None and context < prompt_tokens + max_tokens:
        raise ValueError(
            f"--context {context} cannot hold {prompt_tokens} + {max_tokens} tokens: give at least their sum."
        )
    needed = context or prompt_tokens + max_tokens
    count = set_threads(threads)
    if serve:
        if stock or cold:
            raise ValueError("--stock and --cold are of single requests: leave them out with --serve.")
        from prophet_moe.cli.bench_serve import SYSTEMS, available, bench_serve, concurrencies, domain_prompts

        at_once = concurrencies(concurrency)
        bench_serve(
            Wish(
                model,
                budget,
                slots,
                exact=exact,
                pool=pool,
                threads=count,
                context=needed,
                quiet=True,
                predictor=predictor,
                sequences=at_once[-1],
                backend=backend,
                device_budget=device_budget,
            ),
            info,
            available(SYSTEMS if systems == "auto" else names, info, predictor),
            at_once,
            prompts=domain_prompts(info, requests or 2 * at_once[-1], prompt_tokens),
            max_tokens=max_tokens,
            repeat=repeat,
            json=json,
            markdown=markdown,
            quiet=quiet,
        )
        return
    fed = fixed_tokens(prompt_tokens + max_tokens, info.vocab_size, end_tokens(info))
    prompt, forced = fed[:prompt_tokens], fed[prompt_tokens:]
    order = schedule([*names, STOCK] if stock else names, repeat)
    reports: list[RunReport] = []

    def one(name: str, told: Callable[[str], None], title: str) -> RunReport:
        if name == STOCK:
            return stock_run(info, count, prompt, forced)
        foresight = trained_for(name, predictor)
        wish = Wish(
            model,
            budget,
            slots,
            name,
            exact,
            pool,
            count,
            needed,
            quiet=True,
            predictor=foresight,
            backend=backend,
            device_budget=device_budget,
        )
        with Session(wish, info) as session:
            told(title)
            return session.report(session.decode(prompt, max_tokens, forced=forced).whole())

    with spinner("starting", quiet) as told:
        for turn, name in enumerate(order, 1):
            title = f"run {turn} of {len(order)}: {name}"
            told(f"{title}, loading")
            if cold:
                for file in info.files:
                    machine.evict_from_page_cache(file)
            machine.reset_peak_rss()
            reports.append(one(name, told, title))
            if json:
                print_json(reports[-1].to_json())
            gc.collect()
            machine.return_free_memory()
    table = rows(reports)
    if markdown:
        print("\n\n".join([as_markdown(table), *notes(reports)]))
    elif not json:
        from rich.table import Table

        steps = f"{model}: {max_tokens - 1} decode steps after {prompt_tokens} tokens, {count} threads"
        shown = Table(HEADINGS[0], *(row[0] for row in table), title=steps)
        for heading, *figures in list(zip(HEADINGS, *table, strict=True))[1:]:
            shown.add_row(heading, *figures)
        data().print(shown)
        for note in notes(reports):
            data().print(note, markup=False, soft_wrap=True)
