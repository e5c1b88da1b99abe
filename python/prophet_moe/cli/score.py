"""prophet score: how good a predictor is on sequences it never saw, and against what needs no training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_learn as own
from prophet_moe.cli.console import data, guarded, print_json, print_warning, spinner
from prophet_moe.cli.train import names, steps_bar

if TYPE_CHECKING:
    from prophet_moe.predict.export import Predictor

HELP = """Example: prophet score reference-moe routes.safetensors

Misses of a cache that evicts by these forecasts, beside classical policies and the clairvoyant bound; then
how well the layers ahead are forecast, beside forecasts that need no training. Coverage counts the absent
experts alone, with --slots of them resident. Only held-out sequences are scored, parted as in training."""

AHEAD = ("top-1", "@k", "@2k", "exact", "F1", "Brier", "ECE")
KEYS = ("top1", "recall_k", "recall_2k", "exact", "f1", "brier", "ece")


@guarded
def score(
    predictor: own.Learned,
    trace: flag.Trace,
    slots: own.CoverageSlots = "25%",
    by: own.By = None,
    reliability: own.Reliability = False,
    model: own.RouterModel = None,
    blind: own.Blind = False,
    cross_domain: own.CrossDomain = False,
    steps: own.Steps = 600,
    test: own.LearnTest = None,
    val: own.LearnVal = None,
    hold_out: own.HoldOut = None,
    only: own.Only = None,
    label: own.Label = None,
    split_seed: own.LearnSplit = None,
    keep: own.Keep = False,
    threads: flag.Threads = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from json import dumps

    from prophet_moe.cli.session import set_threads
    from prophet_moe.formats.trace import TraceReader
    from prophet_moe.predict import export
    from prophet_moe.predict.evaluate import evaluate, summary
    from prophet_moe.predict.held_out import HeldOut, relabel
    from prophet_moe.predict.shipped import find

    if by not in (None, "layer", "domain"):
        raise ValueError(f"--by is layer or domain, not {by!r}.")
    share = as_share(slots)
    set_threads(threads)
    path = find(predictor)
    made = export.load(path)
    routes = TraceReader(trace)
    made.require(routes.layers, routes.experts_per_layer, routes.top_k)
    routes.check_ids()
    noted = label or made.training.get("label")
    if noted is not None and (label is not None or any(noted in note for note in routes.notes)):
        relabel(routes, noted)
    if cross_domain:
        _cross_domain(routes, made, share, steps, json, quiet)
        return
    given = {
        "test": test,
        "val": val,
        "seed": split_seed,
        "test_domains": names(hold_out) or None,
        "only": names(only) or None,
    }
    rule = HeldOut.from_dict(made.training.get("split", {})).changed(given)
    with spinner(f"scoring {path.name} on {trace}", quiet):
        routers = None if model is None else _routers(model, routes)
        report = evaluate(made, routes, rule.split(routes), share, routers=routers, blind=blind)
    if keep:
        made.scores = summary(report)
        export.save(made, path)
    if json:
        print_json(dumps({"predictor": str(path), "split": rule.as_dict()} | report))
        return
    _tables(made, report, by, reliability, quiet)


def as_share(text: str) -> float:
    """`25%` or `0.25` -> 0.25. Raises ValueError unless it is above 0 and at most 1."""
    number, divisor = (text[:-1], 100) if text.endswith("%") else (text, 1)
    try:
        share = float(number) / divisor
    except ValueError:
        share = -1.0
    if not 0 < share <= 1:
        raise ValueError(f"--slots {text!r} is not a share of all experts: write 25% or 0.25.")
    return share


def _routers(model: str, routes: Any) -> Any:
    from prophet_moe.models.locate import locate
    from prophet_moe.predict.next_gate import router_weights

    width = routes.map("gate_input").shape[2]
    return router_weights(Path(locate(model)), routes.layers, routes.experts_per_layer, width)


def _cross_domain(routes: Any, made: Predictor, share: float, steps: int, json: bool, quiet: bool) -> None:
    from dataclasses import fields
    from json import dumps

    from rich.table import Table

    from prophet_moe.predict.cross_domain import cross_domain
    from prophet_moe.predict.train import Recipe

    known = {field.name for field in fields(Recipe)} - {"steps", "every", "seconds"}
    recipe = Recipe(**{k: v for k, v in made.training.get("recipe", {}).items() if k in known},
                    steps=steps, every=max(1, steps // 5))  # fmt: skip
    with steps_bar(quiet) as progress:
        matrix = cross_domain(routes, made, recipe, share, progress=progress)
    if json:
        print_json(dumps(matrix))
        return
    for name, title in (("recall_k", "recall@k, one layer ahead"), ("gap_closed", "share of the gap closed")):
        table = Table("trained on", "tokens", *matrix["domains"], title=title)
        for trained, row in matrix["rows"].items():
            cells = (f"{row[tested][name]:.3f}" for tested in matrix["domains"])
            table.add_row(trained, f"{matrix['tokens'][trained]:,}", *cells)
        data().print(table)


def _tables(
    made: Predictor, report: Mapping[str, Any], by: str | None, reliability: bool, quiet: bool
) -> None:
    out = data()
    told = report["trained for"] or "an unnamed model"
    out.print(f"{made.kind} for {told}, on {report['sequences']} sequences, {report['tokens']:,} tokens",
              markup=False, soft_wrap=True)  # fmt: skip
    if report["seen"] and not quiet:
        print_warning(f"{report['seen']} of them were in its training: these scores flatter.")
    if report["scored on"] != report["trained for"] and not quiet:
        print_warning(f"the trace is of {report['scored on'] or 'an unnamed model'}: this scores a transfer.")
    eviction = report["eviction"]
    table = _table("uses that miss, by slots", *(f"{100 * share:g}%" for share in eviction["slots"]))
    rows = dict(eviction["policies"]) | {
        name: eviction[name] for name in ("best classical", "prophet", "clairvoyant")
    }
    for name, rates in rows.items():
        table.add_row(name, *(f"{rate:.4f}" for rate in rates))
    table.add_row("share of the gap closed", *(f"{share:.1%}" for share in eviction["gap closed"]))
    out.print(table)
    out.print()
    if not report["ahead"]["prophet"]:
        return
    tops = list(report["ahead"]["prophet"]["1"]["all"]["coverage"])
    columns = (*AHEAD, *(f"+{m}" for m in tops))
    table = _table("layers ahead", *columns)
    for name, horizon, part in _ahead(report["ahead"]):
        table.add_row(f"{name}, {horizon}", *_figures(part, tops))
    out.print(table)
    out.print(
        f"@k, @2k: recall; +{', +'.join(tops)}: absent experts covered with {report['slots']:.0%} of slots"
    )
    first = report["ahead"]["prophet"]["1"]
    if by:
        out.print()
        table = _table(f"1 ahead, by {by}", *columns)
        for name, part in first[by + "s"].items():
            table.add_row(name, *_figures(part, tops))
        out.print(table)
    if reliability:
        out.print()
        table = _table("forecast, 1 ahead", "observed", "forecasts")
        for row in first["reliability"]:
            table.add_row(f"{row['forecast']:.3f}", f"{row['observed']:.3f}", f"{row['count']:,.0f}")
        out.print(table)


def _ahead(table: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Baselines one layer ahead, then the predictor at every horizon, then the control."""
    for name, horizons in table.items():
        if name not in ("prophet", "zero staleness"):
            yield name, "1", horizons["1"]["all"]
    for horizon, part in table["prophet"].items():
        yield "prophet", horizon, part["all"]
    yield "control: answer", "1", table["zero staleness"]["1"]["all"]


def _figures(part: Mapping[str, Any], tops: list[str]) -> Iterator[str]:
    yield from (_short(part[key], 3) for key in KEYS[:-2])
    yield from (_short(part[key], 4) for key in KEYS[-2:])
    yield from (_short(part["coverage"][m], 3) if m in part["coverage"] else "-" for m in tops)


def _short(value: float, places: int) -> str:
    """.791 for 0.791, and 1 for what is just that."""
    return "1" if value == 1 else f"{value:.{places}f}".removeprefix("0")


def _table(first: str, *columns: str) -> Any:
    """A table narrow enough for 80 columns: figures to the right, names unbroken."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column(first, no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    return table
