"""prophet train: a predictor of routing from a recorded trace, or a comparison of several."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_learn as own
from prophet_moe.cli.console import data, guarded, log, number, print_json

if TYPE_CHECKING:
    from prophet_moe.predict.train import Progress

HELP = """Example: prophet train routes.safetensors -o reference-moe.safetensors --size small

Learns from a trace which experts are needed next and when each is used again. Sequences are split into
training, choices (stopping, calibration) and testing; `prophet score` tells how good it is on the last.
An interrupted training goes on where it validated last when the same command is given again.

--kind promoe (or another system's name) trains that system's network instead, for prophet simulate and run.

--sweep size=small,large --sweep context=1,2 trains one for every combination and compares them."""


@contextmanager
def steps_bar(quiet: bool) -> Iterator[Callable[[str, Progress], None]]:
    """A bar on stderr for `progress(title, step)`; a new title begins anew."""
    if quiet:
        yield lambda _title, _step: None
        return
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
               TimeRemainingColumn())  # fmt: skip
    with Bar(*columns, console=log(), transient=True) as bar:
        task = bar.add_task("reading the trace", total=None)
        judged: dict[str, float] = {}

        def progress(title: str, step: Progress) -> None:
            if step.validated is not None:
                judged[title] = step.validated
            held_out = f", held out {judged[title]:.3f}" if title in judged else ""
            shown = f"{title}: loss {step.loss:.3f}{held_out}"
            bar.update(task, total=step.steps, completed=step.step, description=shown)

        yield progress


@contextmanager
def rival_bar(steps: int, quiet: bool) -> Iterator[Callable[[int, float], None]]:
    """A bar on stderr for `on_step(step, loss)`."""
    if quiet:
        yield lambda _step, _loss: None
        return
    from rich.progress import Progress as Bar

    with Bar(console=log(), transient=True) as bar:
        task = bar.add_task("training", total=steps)
        yield lambda step, loss: bar.update(task, completed=step, description=f"training: loss {loss:.3f}")


def settings(texts: list[str]) -> dict[str, Any]:
    """["rate=0.001"] -> {"rate": 0.001}; lists become tuples. Raises ValueError."""
    from json import loads

    found: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        try:
            parsed = loads(value)
        except ValueError as error:
            raise ValueError(f"--set {text!r}: write NAME=VALUE with a JSON value, as rate=0.001.") from error
        if not equals or not name:
            raise ValueError(f"--set {text!r}: write NAME=VALUE, as rate=0.001.")
        found[name] = _tuples(parsed)
    return found


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def names(text: str | None) -> tuple[str, ...]:
    """`a,b` as a tuple; nothing of None."""
    return tuple(name.strip() for name in (text or "").split(",") if name.strip())


@guarded
def train(
    trace: flag.Trace,
    out: own.LearnOut = None,
    kind: own.Kind = "bank",
    size: own.Size = "medium",
    context: own.LearnContext = None,
    horizons: own.Horizons = 3,
    inputs: own.Inputs = "history",
    steps: own.Steps = 2000,
    seconds: own.Seconds = None,
    patience: own.Patience = 6,
    start: own.Start = None,
    refit: own.Refit = False,
    int8: own.Int8 = False,
    seed: own.LearnSeed = 0,
    chosen: own.Set = None,
    sweep: own.Sweep = None,
    test: own.LearnTest = None,
    val: own.LearnVal = None,
    hold_out: own.HoldOut = None,
    only: own.Only = None,
    label: own.Label = None,
    split_seed: own.LearnSplit = None,
    threads: flag.Threads = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from dataclasses import fields
    from json import dumps

    from prophet_moe.cli.session import set_threads
    from prophet_moe.formats.trace import TraceReader
    from prophet_moe.predict import export
    from prophet_moe.predict.fit import fit, parameters
    from prophet_moe.predict.held_out import HeldOut, relabel
    from prophet_moe.predict.presets import Design
    from prophet_moe.predict.shipped import find
    from prophet_moe.predict.sweep import parse_axes
    from prophet_moe.predict.train import Recipe

    if kind in rivals():
        if start is not None or sweep or chosen or refit or int8:
            raise ValueError(
                f"--start, --refit, --int8, --set and --sweep are for Prophet's own designs, not {kind}."
            )
        _rival(trace, kind, out, steps, seed, HeldOut().changed({"test": test, "val": val, "seed": split_seed,
               "test_domains": names(hold_out), "only": names(only)}), threads, json, quiet)  # fmt: skip
        return
    if start is not None and sweep:
        raise ValueError("--start and --sweep cannot go together: a sweep trains other networks.")
    if out is None and not sweep:
        raise ValueError("where should the predictor be written? Name a file with -o.")
    axes = parse_axes(sweep or [])
    set_threads(threads)
    routes = TraceReader(trace)
    routes.check_ids()
    if label is not None:
        relabel(routes, label)
    given = {
        "test": test,
        "val": val,
        "seed": split_seed,
        "test_domains": names(hold_out),
        "only": names(only),
    }
    rule = HeldOut().changed(given)
    of_recipe = {field.name for field in fields(Recipe)}
    all_set = settings(chosen or [])
    design = Design(kind, size, context or 0, horizons, inputs,
                    {k: v for k, v in all_set.items() if k not in of_recipe})  # fmt: skip
    how = {"steps": steps, "patience": patience, "seed": seed, "seconds": seconds,
           **{k: v for k, v in all_set.items() if k in of_recipe}}  # fmt: skip
    how["every"] = all_set.get("every", max(1, min(200, int(how["steps"]) // 5)))
    split = rule.split(routes)
    if axes:
        _sweep(routes, split, design, how, axes, out, json, quiet)
        return
    assert out is not None
    checkpoint = out.with_name(out.name + ".checkpoint")
    if checkpoint.exists() and not quiet:
        log().print(f"going on from {checkpoint}", markup=False, soft_wrap=True)
    with steps_bar(quiet) as progress:
        made = fit(
            routes,
            split,
            design.recipe(**how),
            design.kind,
            design.inputs,
            design.network_options(),
            lambda step: progress("training", step),
            checkpoint,
            refit,
            None if start is None else export.load(find(start)),
        )
    made.training |= {"split": rule.as_dict()} | ({"label": label} if label is not None else {})
    made.int8 = int8
    export.save(made, out)
    for left in (checkpoint, checkpoint.with_name(checkpoint.name + ".refit")):
        left.unlink(missing_ok=True)
    count, size_on_disk = parameters(made), out.stat().st_size
    about = {"predictor": str(out), "kind": made.kind, "parameters": count, "bytes": size_on_disk,
             **{k: v for k, v in made.training.items() if k != "seen"}}  # fmt: skip
    if json:
        print_json(dumps(about))
    elif not quiet:
        from prophet_moe.budget import format_size

        log().print(
            f"{made.kind} with {count:,} parameters, {format_size(size_on_disk)}, after "
            f"{made.training['steps']} steps on {made.training['tokens']:,} tokens in {out}; "
            f"how good it is: prophet score {out} {trace}",
            markup=False,
            soft_wrap=True,
        )


def rivals() -> tuple[str, ...]:
    """Systems whose networks are trained here besides Prophet's own."""
    from prophet_moe.systems import SYSTEMS

    return tuple(name for name, system in SYSTEMS.items() if system.predictor in ("layer-mlp", "text"))


def _rival(
    trace: Any, system: str, out: Any, steps: int, seed: int, rule: Any, threads: Any, json: bool, quiet: bool
) -> None:
    from json import dumps

    from prophet_moe.cli.session import set_threads
    from prophet_moe.formats.trace import TraceReader
    from prophet_moe.predict import rivals as networks

    if out is None:
        raise ValueError("where should the predictor be written? Name a file with -o.")
    set_threads(threads)
    routes = TraceReader(trace)
    routes.check_ids()
    split = rule.split(routes)
    with rival_bar(steps, quiet) as on_step:
        made = networks.train(routes, split, system, steps=steps, seed=seed, on_step=on_step)
    networks.save(made, out, split=rule.as_dict())
    count = sum(array.size for array in made.tensors.values())
    about = {"predictor": str(out), "kind": system, "parameters": count, "bytes": out.stat().st_size,
             **{k: v for k, v in made.training.items() if k != "seen"}}  # fmt: skip
    if json:
        print_json(dumps(about))
    elif not quiet:
        log().print(
            f"{system} with {count:,} parameters, held-out loss {made.training['loss']:.4f}, in {out}; "
            f"prophet simulate --predictor {out} replays it",
            markup=False,
            soft_wrap=True,
        )


def _sweep(
    routes: Any, split: Any, design: Any, how: dict[str, Any], axes: Any, folder: Any, json: bool, quiet: bool
) -> None:
    from json import dumps

    from prophet_moe.predict.sweep import sweep

    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    rows = []
    with steps_bar(quiet) as progress:

        def tell(chosen: Any, step: Progress) -> None:
            progress(" ".join(f"{k}={v}" for k, v in chosen.items()), step)

        for row in sweep(routes, split, design, how, axes, tell, folder):
            rows.append(row)
            if json:
                print_json(dumps(row))
    if json:
        return
    from rich.table import Table

    sizes = [f"{share:.4g}" for share in rows[0]["slots"]]
    table = Table(*axes, "parameters", "steps", "s", "recall@k", "recall@2k", "coverage",
                  *(f"closed {share}" for share in sizes))  # fmt: skip
    for row in rows:
        covered = row["coverage"][max(row["coverage"], key=int)] if row["coverage"] else None
        table.add_row(
            *(row[axis] for axis in axes),
            f"{row['parameters']:,}",
            str(row["steps"]),
            str(row["seconds"]),
            *(number(row[name], ".3f") for name in ("recall_k", "recall_2k")),
            number(covered, ".3f"),
            *(f"{share:.1%}" for share in row["gap_closed"]),
        )
    data().print(table)
