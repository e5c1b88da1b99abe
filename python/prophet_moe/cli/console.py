"""How the command line speaks: data on stdout, everything else on stderr, errors as one sentence."""

from __future__ import annotations

import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    SpinnerColumn,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from prophet_moe.budget import format_size
from prophet_moe.errors import ProphetError

if TYPE_CHECKING:
    from prophet_moe.generate import Recording
    from prophet_moe.runreport import RunReport

P = ParamSpec("P")
USER_ERROR = 2
INTERRUPTED = 130


def log() -> Console:
    """stderr; colour only on a terminal, and not with NO_COLOR."""
    return Console(stderr=True, highlight=False)


def data() -> Console:
    """stdout, for tables that were asked for."""
    return Console(highlight=False)


def complain(error: BaseException, verbose: bool) -> None:
    """One sentence on stderr, and the way there with --verbose."""
    if verbose:
        traceback.print_exception(error, file=sys.stderr)
    if isinstance(error, OSError) and not isinstance(error, ProphetError) and error.filename is not None:
        said = f"{error.filename} cannot be used: {error.strerror}."
    else:
        said = str(error)
    sentence = " ".join(said.split()) or type(error).__name__
    rank = f"rank {os.environ['RANK']}: " if "TORCHELASTIC_RUN_ID" in os.environ else ""
    log().print(f"[bold red]error:[/] {escape(rank + sentence)}", soft_wrap=True)


def guarded(verb: Callable[P, None]) -> Callable[P, None]:
    """Wraps a verb: what the user can mend exits with 2 and a sentence, Ctrl-C with 130."""

    @functools.wraps(verb)
    def inner(*args: P.args, **kwargs: P.kwargs) -> None:
        verbose = bool(kwargs.get("verbose"))
        try:
            verb(*args, **kwargs)
        except BrokenPipeError:  # the reader of stdout has gone: `| head`
            sys.stderr.close()
            raise typer.Exit(1) from None
        except (ProphetError, ValueError, OSError) as error:
            complain(error, verbose)
            raise typer.Exit(USER_ERROR) from None
        except KeyboardInterrupt:
            log().print("interrupted.")
            raise typer.Exit(INTERRUPTED) from None

    return inner


def print_json(line: str) -> None:
    """One object on stdout, at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


@contextmanager
def bytes_bar(title: str, quiet: bool) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr for `progress(done, total)` in bytes; None when quiet."""
    if quiet:
        yield None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(True), TransferSpeedColumn())
    with Progress(*columns, console=log(), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def progress(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield progress


@contextmanager
def tokens_bar(title: str, total: int, quiet: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr for `progress(tokens so far)` of `total`; nothing is shown when quiet."""
    if quiet:
        yield lambda _done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=log(), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextmanager
def spinner(title: str, quiet: bool) -> Iterator[Callable[[str], None]]:
    """A turning wheel on stderr while something runs that tells no progress; retitled by calling it."""
    if quiet:
        yield lambda _title: None
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=log(),
                  transient=True) as bar:  # fmt: skip
        task = bar.add_task(title, total=None)
        yield lambda again: bar.update(task, description=again)


def per_second(report: RunReport) -> tuple[float | None, float | None]:
    """(prefill, decode) tokens per second."""
    prefill = report.prompt_tokens / report.ttft_ms * 1000 if report.ttft_ms else None
    decode = 1000 / report.tpot_ms.mean if report.tpot_ms.mean else None
    return prefill, decode


def number(value: float | None, form: str = ".1f", unit: str = "") -> str:
    """A figure for people; `-` for what was not measured."""
    return "-" if value is None else f"{value:{form}}{unit}"


def end_of_run(report: RunReport, recording: Recording, dtype: str) -> list[str]:
    """The block to paste into an issue: what ran, in how much memory, how fast, and where time went."""
    last = recording.marks[-1] if recording.marks else recording.begun
    wall_ns = last.at_ns - recording.begun.at_ns
    busy_ns = last.counters.get("busy_ns", 0) - recording.begun.counters.get("busy_ns", 0)
    prefill, decode = per_second(report)
    rate = number(report.bytes.moved / busy_ns if busy_ns else None, ".2f", " GB/s")  # bytes per ns
    stalled = number(report.stall_ms.total * 1e6 / wall_ns if wall_ns else None, ".0%")
    per_token = report.bytes.per_token
    mebibytes = number(None if per_token is None else per_token / 2**20, ".2f", " MiB")
    mode = "resident" if report.expert_slots >= report.experts_total else "streaming"
    exact = ", exact" if report.exact else ""
    slots, experts = report.expert_slots, report.experts_total
    peak, budget = format_size(report.peak_rss_bytes or 0), format_size(report.budget_bytes)
    first = number(report.ttft_ms, ".0f", " ms")
    pool, moved = report.host_pool, report.bytes.moved
    share = number(pool.bytes_found_staged / moved if pool is not None and moved else None, ".0%")
    held = report.foresight.told() if report.foresight is not None else None
    return [
        f"mode     {mode}, {report.backend}, system {report.system}{exact}",
        f"model    {report.model}, {dtype}, {experts} experts of {format_size(report.expert_bytes)}",
        f"memory   peak RSS {peak} of a budget of {budget}",
        f"slots    {slots} of {experts} ({slots / experts:.0%})",
        f"prefill  {report.prompt_tokens} tokens, {number(prefill)} tok/s, first token after {first}",
        f"decode   {report.new_tokens} tokens, {number(decode, '.2f')} tok/s",
        f"experts  hit rate {number(report.hit_rate, '.1%')}, {mebibytes} read per token",
        f"disk     {rate} while reading, reading {number(report.link_busy_fraction, '.0%')} of the time",
        f"stalled  {stalled} of the time, waiting for bytes",
        *([] if pool is None else [f"pool     {share} of what went to the GPU was in host memory already"]),
        *([] if held is None else [held]),
    ]


def print_block(lines: list[str]) -> None:
    """Writes lines to stderr, dimmed on a terminal."""
    console = log()
    for line in lines:
        console.print(line, style="dim", markup=False, soft_wrap=True)


def print_warning(text: Any) -> None:
    """A line on stderr that begins with `warning:`."""
    log().print(f"[yellow]warning:[/] {escape(str(text))}", soft_wrap=True)
