"""prophet analyze: how predictable a model's routing is, from a recorded trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prophet_moe.cli import options as flag
from prophet_moe.cli.console import data, guarded, log, print_json, print_warning

if TYPE_CHECKING:
    from rich.table import Table

    from prophet_moe.analysis import Analysis, Step
    from prophet_moe.analysis.study import Progress

HELP = """Example: prophet analyze reference-moe.safetensors

Popularity, mutual information between layers and between tokens, the misses of a cache of every size,
drift, and what they mean in plain sentences. Figures are explained in docs/analysis.md."""


@guarded
def analyze(
    trace: flag.Trace,
    slots: flag.SlotsList = None,
    phase: flag.Phase = "auto",
    horizons: flag.Horizons = "1,2,3,6,12",
    lags: flag.Lags = "1,2,4,8,16,64",
    by_domain: flag.ByDomain = False,
    shuffles: flag.Shuffles = 8,
    bootstrap: flag.Bootstrap = 100,
    seed: flag.Seed = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from json import dumps

    from prophet_moe.analysis import Options
    from prophet_moe.analysis import analyze as study
    from prophet_moe.formats.trace import TraceReader

    reader = TraceReader(trace)
    options = Options(
        phase=phase,
        horizons=numbers(horizons, "--horizons"),
        lags=numbers(lags, "--lags"),
        slots=None if slots is None else sizes(slots, reader.layers * reader.experts_per_layer),
        shuffles=shuffles,
        bootstrap=bootstrap,
        seed=seed or 0,
        by_domain=by_domain,
    )
    with _bar(quiet) as progress:
        found = study(reader, options, progress)
    if json:
        print_json(dumps(found.to_dict()))
        return
    for note in found.notes:
        if not quiet:
            print_warning(note)
    for table in tables(found, by_domain):
        data().print(table)
    for sentence in found.verdict:
        data().print(f"- {sentence}", markup=False, soft_wrap=True)


def numbers(text: str, name: str) -> tuple[int, ...]:
    """1,2,3 as numbers; an empty text is none."""
    try:
        return tuple(int(word) for word in text.split(",") if word.strip())
    except ValueError:
        raise ValueError(f"{name} are whole numbers such as 1,2,3, not '{text}'.") from None


def sizes(text: str, total: int) -> tuple[int, ...]:
    """192,50% as numbers of slots."""
    out = []
    for word in text.split(","):
        word = word.strip()
        try:
            out.append(int(total * float(word[:-1]) / 100) if word.endswith("%") else int(word))
        except ValueError:
            raise ValueError(f"--slots are numbers or shares such as 192,50%, not '{text}'.") from None
    return tuple(out)


@contextmanager
def _bar(quiet: bool) -> Iterator[Progress | None]:
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description:<18}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=log(), transient=True) as bar:
        tasks: dict[str, object] = {}

        def progress(what: str, done: int, of: int) -> None:
            if what not in tasks:
                tasks[what] = bar.add_task(what, total=of)
            bar.update(tasks[what], completed=done, total=of)  # type: ignore[arg-type]

        yield progress


# Tables -------------------------------------------------------------------------------------------


def tables(found: Analysis, by_domain: bool) -> Iterator[Table]:
    yield _popularity(found)
    yield _sizes(found)
    for steps, unit, target in (
        (found.cross_layer, "layers", "a later layer, same token"),
        (found.cross_token, "tokens", "a later token, same layer"),
    ):
        if steps:
            yield _dominant(steps, unit, f"Information about {target}: the dominant expert")
            yield _sets(steps, unit, f"Information about {target}: sets")
    if by_domain and found.domains is not None:
        yield _domains(found)


def _table(title: str, *columns: str) -> Table:
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, justify="left" if column == columns[0] else "right")
    return table


def _popularity(found: Analysis) -> Table:
    table = _table(
        f"Popularity: {found.model or found.trace}, {found.tokens} tokens in {found.sequences} sequences, "
        f"{found.layers} layers of {found.experts_per_layer} experts, top-{found.top_k}",
        "layer", "top 20 %", "in text", "bits", "of max", "Zipf s", "KS", "p", "exp. KS", "logn. KS",
    )  # fmt: skip
    for number, layer in enumerate(found.popularity):
        zipf = layer.fits["zipf"]
        table.add_row(
            str(number),
            f"{layer.top_share:.1%}",
            f"{layer.top_share_in_sequence:.1%}",
            f"{layer.entropy:.2f}",
            f"{layer.of_maximum:.1%}",
            f"{zipf.parameters[0]:.2f}",
            f"{zipf.ks:.3f}",
            f"{zipf.p_value:.2f}",
            f"{layer.fits['exponential'].ks:.3f}",
            f"{layer.fits['lognormal'].ks:.3f}",
        )
    return table


def _sizes(found: Analysis) -> Table:
    table = _table("Misses of one pool of slots", "slots", "share", "fixed set", "LRU", "clairvoyant")
    for size in found.sizes:
        table.add_row(
            str(size.slots),
            f"{size.fraction:.1%}",
            f"{size.fixed:.2%}",
            f"{size.lru:.2%}",
            f"{size.clairvoyant:.2%}",
        )
    return table


def _dominant(steps: list[Step], unit: str, title: str) -> Table:
    table = _table(title, unit, "bits", "null", "share", "95 %", "of log2 E", "moment")
    for step in steps:
        dominant = step.forms["dominant"]
        interval = dominant.of_entropy_interval
        table.add_row(
            str(step.distance),
            f"{dominant.corrected:.3f}",
            f"{dominant.null:.4f}",
            f"{dominant.of_entropy:.1%}",
            "-" if interval is None else f"{100 * interval[0]:.1f}-{100 * interval[1]:.1f}",
            f"{dominant.of_maximum:.1%}",
            f"{dominant.beyond_popularity_of_entropy:.1%}",
        )
    return table


def _sets(steps: list[Step], unit: str, title: str) -> Table:
    table = _table(title, unit, "member", "best single", "whole set", "in both", "by chance")
    for step in steps:
        table.add_row(
            str(step.distance),
            f"{step.forms['member'].of_entropy:.1%}",
            f"{step.forms['best_single'].of_entropy:.1%}",
            "-" if step.whole_set is None else f">= {step.whole_set.of_entropy:.1%}",
            f"{step.overlap:.1%}",
            f"{step.overlap_by_chance:.1%}",
        )
    return table


def _domains(found: Analysis) -> Table:
    drift = found.domains
    assert drift is not None
    table = _table("Jensen-Shannon divergence of popularity between domains, bits", "domain", *drift.domains)
    for name, row in zip(drift.domains, drift.matrix, strict=True):
        table.add_row(name, *(f"{value:.3f}" for value in row))
    return table
