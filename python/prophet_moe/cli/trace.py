"""prophet trace: records a routing trace; imports, describes and splits traces."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from typer.core import TyperGroup

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_trace as own
from prophet_moe.cli.console import data, guarded, log, print_block, print_json

if TYPE_CHECKING:
    from prophet_moe.formats.trace import TraceReader

RECORD = """Example: prophet trace reference-moe -n 32 -o routes.safetensors

Records which experts the model's routers choose, for prompts of yours or the package's own: each prompt
is prefilled and continued greedily, or, with --teacher-forced, a text is fed as it stands. Ctrl-C leaves
what is complete; --resume goes on. --workers divides the prompts over processes.

Also: prophet trace info TRACE, trace split TRACE OUT, trace merge TRACES..., trace import ids.npy."""

INFO = """Example: prophet trace info routes.safetensors

What a trace holds: geometry, sequences, domains, arrays."""

SPLIT = """Example: prophet trace split routes.safetensors parts --test 20% --val 10%

Writes a trace for each part into the folder OUT. By sequence, sequences are shuffled by --seed and
copies of held-out ones are left out of the other parts; no sequence is ever cut."""

IMPORT = """Example: prophet trace import ids.npy --experts-per-layer 32 -o routes.safetensors

Makes a trace of .npy arrays: ids [tokens, layers, top_k], gates the same, tokens [tokens],
starts [sequences + 1]."""

MERGE = """Example: prophet trace merge host1.safetensors host2.safetensors -o routes.safetensors

One trace of the sequences of all, in this order, such as hosts or ranks have recorded of one model."""

HIDDEN_TYPES = {"f16": "F16", "f32": "F32"}


class _RecordByDefault(TyperGroup):
    """A first word that is no sub-verb begins a recording: `prophet trace MODEL`. A model folder that is
    named like one is reached as ./info."""

    unsaid = "record"

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in self.commands:
            args = [self.unsaid, *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_RecordByDefault, add_completion=False, rich_markup_mode="rich")


@contextmanager
def _sequences_bar(quiet: bool) -> Iterator[Callable[[int, int, int], None] | None]:
    """A bar on stderr for `progress(done, total, tokens)`; None when quiet."""
    if quiet:
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log(), transient=True) as bar:
        task = bar.add_task("recording", total=None)

        def progress(done: int, total: int, tokens: int) -> None:
            bar.update(task, completed=done, total=total, description=f"recording, {tokens} tokens")

        yield progress


@app.command("record", help=RECORD, short_help="Record a model; the word may be left out.")
@guarded
def record(
    model: flag.Model,
    output: own.TraceOut,
    prompts: own.Prompts = None,
    max_tokens: own.TraceTokens = None,
    per_domain: own.PerDomain = None,
    teacher_forced: own.TeacherForced = False,
    step_by_step: own.StepByStep = False,
    label_as: own.LabelAs = "decode",
    hidden: own.Hidden = False,
    entering: own.Entering = False,
    hidden_dtype: own.HiddenDtype = "f16",
    resume: own.Resume = False,
    workers: own.Workers = None,
    ray: own.Ray = None,
    budget: flag.Budget = "auto",
    slots: flag.Slots = None,
    system: flag.System = "auto",
    exact: flag.Exact = False,
    pool: flag.Pool = "global",
    threads: flag.Threads = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.cli.session import Session, Wish, look_at
    from prophet_moe.models.stock import load_tokenizer
    from prophet_moe.record import read_prompts, tokenise
    from prophet_moe.record import record as record_trace
    from prophet_moe.record.prompts import shipped

    if label_as not in ("decode", "prefill"):
        raise ValueError(f"--as is decode or prefill, not {label_as!r}.")
    if step_by_step and not teacher_forced:
        raise ValueError("--step-by-step is a way of --teacher-forced: give both, or neither.")
    if label_as == "prefill" and (step_by_step or not teacher_forced):
        raise ValueError(
            "--as prefill labels texts that one pass reads: give --teacher-forced alone with it."
        )
    if hidden_dtype not in HIDDEN_TYPES:
        raise ValueError(f"--hidden-dtype is {' or '.join(HIDDEN_TYPES)}, not {hidden_dtype!r}.")
    several = workers is not None or ray is not None
    _require_free(output, resume, several)
    info = look_at(model, quiet)
    found = read_prompts(prompts or shipped(), ids_only=not info.has_tokenizer, per_domain=per_domain)
    tokenizer = load_tokenizer(info.directory) if info.has_tokenizer else None
    ids = tokenise(found, tokenizer, info.vocab_size)
    if max_tokens is None and not teacher_forced:
        max_tokens = 64
    needed = 0
    for prompt, row in zip(found, ids, strict=True):
        length = min(len(row), max_tokens or len(row)) if teacher_forced else len(row) + (max_tokens or 0)
        needed = max(needed, length + 1)
        if info.max_context is not None and length > info.max_context:
            way = (
                "cut texts by -n"
                if teacher_forced
                else "give a smaller -n, or cut texts: --teacher-forced -n"
            )
            raise ValueError(
                f"{prompt.source} needs {length} tokens of context, the model has {info.max_context}: {way}."
            )
    name = info.directory.resolve().name if Path(model).expanduser().is_dir() else model
    settings: dict[str, Any] = {
        "tokens": max_tokens,
        "feed": "steps" if step_by_step else "forced" if teacher_forced else "greedy",
        "phase": label_as,
        "hidden": HIDDEN_TYPES[hidden_dtype] if hidden else "",
        "entering": HIDDEN_TYPES[hidden_dtype] if entering else "",
    }
    if several:
        from prophet_moe.cli.trace_workers import Crew

        crew = Crew(workers, ray, budget, threads)
        options = {"slots": slots, "exact": exact, "system": system, "pool": pool, "context": needed}
        order = crew.order(model, name, settings, options)
        with _told_where(output), _sequences_bar(quiet) as progress:
            _told(crew.collect(order, found, ids, output, resume, progress), json, quiet)
        return
    wish = Wish(model, budget, slots, system, exact, pool, threads, needed, quiet=quiet)
    with Session(wish, info) as session, _sequences_bar(quiet) as progress:
        if verbose:
            print_block(session.offload.plan.lines())
        with _told_where(output):
            trace = record_trace(
                session.model, found, ids, output, name=name, resume=resume, progress=progress, **settings
            )
    _told(trace, json, quiet)


def _require_free(output: Path, resume: bool, several: bool) -> None:
    """Raises TraceError where the output exists, or was begun by the other way to record."""
    from prophet_moe.formats.trace import TraceError, TraceWriter
    from prophet_moe.record import shards

    if several:
        shards.require_free(output, resume=resume)
        return
    TraceWriter.require_free(output, resume=resume)
    if shards.shards_of(output).exists():
        raise TraceError(
            f"{shards.shards_of(output)} holds a recording that several workers began: go on by --workers "
            "and --resume, or remove it."
        )


@contextmanager
def _told_where(output: Path) -> Iterator[None]:
    """At Ctrl-C, says where the complete sequences are."""
    from prophet_moe.formats.trace import TraceWriter
    from prophet_moe.record import shards

    try:
        yield
    except KeyboardInterrupt:
        for parts in (TraceWriter.parts_of(output), shards.shards_of(output)):
            if parts.exists():
                log().print(f"what is complete is in {parts}: go on with --resume.",
                            markup=False, soft_wrap=True)  # fmt: skip
        raise


@app.command("info", help=INFO, short_help="What a trace holds.")
@guarded
def info(trace: flag.Trace, json: flag.Json = False, verbose: flag.Verbose = False) -> None:
    from json import dumps

    from rich.table import Table

    from prophet_moe.budget import format_size
    from prophet_moe.formats.trace import TraceReader
    from prophet_moe.record.describe import describe

    found = describe(TraceReader(trace))
    if json:
        print_json(dumps(found, ensure_ascii=False))
        return
    table = Table(show_header=False)
    rows = {
        "model": found["model"] or "not said",
        "routing": f"{found['layers']} layers of {found['experts_per_layer']} experts, top-{found['top_k']}",
        "tokens": f"{found['tokens']}: {found['prefill_tokens']} prefill, {found['decode_tokens']} decode",
        "sequences": f"{found['sequences']} of {found['shortest_sequence']} to {found['longest_sequence']}",
        "never used": f"{found['experts_never_used']} experts",
        "size": format_size(found["bytes"]),
    }
    rows |= {
        f"domain {label or '(none)'}": f"{part['sequences']} sequences, {part['tokens']} tokens"
        for label, part in found["domains"].items()
    }
    rows |= {f"array {name}": f"{part['type']} {part['shape']}" for name, part in found["arrays"].items()}
    rows |= found["about"]
    for name, value in rows.items():
        table.add_row(name, value)
    data().print(table, markup=False)


@app.command("split", help=SPLIT, short_help="Part a trace by sequence or by domain.")
@guarded
def split(
    trace: flag.Trace,
    out: flag.Out,
    by: own.SplitBy = "sequence",
    test: own.TestShare = "20%",
    val: own.ValShare = "0",
    hold_out: own.HoldOut = None,
    seed: own.SplitSeed = 0,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from json import dumps

    from prophet_moe.formats.trace import TraceReader
    from prophet_moe.record import divide

    whole = TraceReader(trace)
    if by not in ("sequence", "domain"):
        raise ValueError(f"--by is sequence or domain, not {by!r}.")
    count = divide.share(val, whole.sequences, "--val")
    if hold_out is not None:
        domains = [name.strip() for name in hold_out.split(",") if name.strip()]
        parts = divide.by_held_out_domain(whole, domains, count, seed)
    elif by == "domain":
        parts = divide.each_domain(whole)
    else:
        parts = divide.by_sequence(whole, divide.share(test, whole.sequences, "--test"), count, seed)
    written = divide.write_parts(whole, parts, out)
    if json:
        rows = {
            name: {"path": str(part.path), "sequences": list(parts[name]), "tokens": part.tokens}
            for name, part in written.items()
        }
        print_json(dumps(rows, ensure_ascii=False))
    elif not quiet:
        for name, part in written.items():
            log().print(f"{name}: {part.sequences} sequences, {part.tokens} tokens in {part.path}",
                        markup=False, soft_wrap=True)  # fmt: skip
        left = whole.sequences - sum(part.sequences for part in written.values())
        if left:
            log().print(f"left out as copies of held-out ones: {left} sequences")


@app.command("import", help=IMPORT, short_help="Make a trace of .npy arrays.")
@guarded
def import_(
    ids: own.IdsFile,
    output: own.TraceOut,
    experts_per_layer: own.ExpertsPerLayer,
    gates: own.GatesFile = None,
    tokens: own.TokensFile = None,
    starts: own.StartsFile = None,
    labels: own.LabelsFile = None,
    gate_inputs: own.GateInputsFile = None,
    entering: own.EnteringFile = None,
    model: own.ModelName = "",
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.record.arrays import import_arrays

    made = import_arrays(ids, output, experts_per_layer=experts_per_layer, gates=gates, tokens=tokens,
                         starts=starts, labels=labels, gate_inputs=gate_inputs, entering=entering,
                         model=model)  # fmt: skip
    _told(made, json, quiet)


@app.command("merge", help=MERGE, short_help="Put traces of one model together.")
@guarded
def merge(
    traces: own.Traces,
    output: own.TraceOut,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from prophet_moe.formats.trace import TraceReader
    from prophet_moe.record import merge_traces

    _told(merge_traces([TraceReader(path) for path in traces], output), json, quiet)


def _told(trace: TraceReader, json: bool, quiet: bool) -> None:
    """One JSON object on stdout, or one line on stderr."""
    from json import dumps

    from prophet_moe.record.describe import describe

    if json:
        print_json(dumps(describe(trace), ensure_ascii=False))
    elif not quiet:
        log().print(
            f"{trace.tokens} tokens of {trace.sequences} sequences in {trace.path}; "
            f"look: prophet trace info {trace.path}",
            markup=False,
            soft_wrap=True,
        )
