"""The command `prophet`: one module for each verb; heavy imports happen inside them."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from typing import Annotated

import typer

from prophet_moe.cli import (
    analyze,
    bench,
    chat,
    demo,
    doctor,
    pack,
    plan,
    ranks,
    report,
    run,
    score,
    serve,
    simulate,
    trace,
    train,
)
from prophet_moe.cli.console import USER_ERROR, complain
from prophet_moe.errors import InvalidArgument

USE, UNDERSTAND, STUDY = "use", "understand", "study"

app = typer.Typer(
    name="prophet",
    help="Runs Mixture-of-Experts models larger than memory, exactly, in your budget.",
    epilog="Start with: prophet demo",
    add_completion=False,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            print(f"prophet {version('prophet-moe')}")
        except PackageNotFoundError:
            import prophet_ext

            print(f"prophet {prophet_ext.__version__}")
        raise typer.Exit


@app.callback()
def prophet(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _group, _verb, _help, _short in (
    (USE, run.run, run.HELP, "Continue a prompt."),
    (USE, chat.chat, chat.HELP, "Talk to a model, turn by turn."),
    (USE, serve.serve, serve.HELP, "Serve it to several users, as OpenAI's API."),
    (USE, pack.pack, pack.HELP, "Rewrite a checkpoint for fewer, aligned reads."),
    (USE, demo.demo, demo.HELP, "See it work on the model in the package."),
    (UNDERSTAND, plan.plan, plan.HELP, "Will it fit, and how fast? Loads nothing."),
    (UNDERSTAND, doctor.doctor, doctor.HELP, "Check and measure this machine."),
    (STUDY, bench.bench, bench.HELP, "Measure systems against each other and stock."),
    (STUDY, simulate.simulate, simulate.HELP, "Replay a trace on any machine, by any system."),
    (STUDY, report.report, report.HELP, "Draw results as one HTML page."),
    (STUDY, analyze.analyze, analyze.HELP, "How predictable is routing, and what is that worth?"),
    (STUDY, train.train, train.HELP, "Learn to forecast routing from a trace."),
    (STUDY, score.score, score.HELP, "How good is a predictor, and against what?"),
):
    app.command(help=_help, short_help=_short, rich_help_panel=_group)(_verb)
app.add_typer(trace.app, name="trace", short_help="Record what the routers choose.", rich_help_panel=STUDY)


def main() -> None:
    """The console script."""
    # Before torch is imported, which happens inside the verbs. By default its OpenMP workers spin
    # between operations; beside any other work on the machine that costs more than tenfold
    # (docs/measuring.md), and alone it gains little.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        ranks.require_alone(sys.argv[1:])
    except InvalidArgument as error:
        complain(error, verbose=False)
        sys.exit(USER_ERROR)
    app(prog_name="prophet")
