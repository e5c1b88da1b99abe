"""prophet doctor: what this machine can do, and what to mend."""

from __future__ import annotations

from json import dumps

import typer
from rich.markup import escape

from prophet_moe.cli import options as flag
from prophet_moe.cli import options_sim as sim_flag
from prophet_moe.cli.console import data, guarded, log, print_json, spinner

HELP = """Example: prophet doctor --path .

Checks build, libraries, processor, memory, CUDA and disk, and measures the last four. Exits with 1 when
something must be mended before a model can run. --card writes what prophet simulate needs to know."""

COLOURS = {"ok": "green", "warn": "yellow", "FAIL": "bold red"}


@guarded
def doctor(
    path: flag.ProbePath = None,
    card: sim_flag.CardOut = None,
    json: flag.Json = False,
    quiet: flag.Quiet = False,
    verbose: flag.Verbose = False,
) -> None:
    from dataclasses import asdict

    from prophet_moe.doctor import examine, next_step
    from prophet_moe.doctor_check import Check

    if path is not None and not path.exists():
        raise ValueError(f"--path {path} does not exist: name a file or a folder on the disk to measure.")
    out = data()
    checks: list[Check] = []
    with spinner("starting", quiet) as told:
        for check in examine(path, on_step=lambda name: told(f"looking at {name}")):
            checks.append(check)
            if not json:
                mark = f"\\[{check.level}]"
                out.print(
                    f"[{COLOURS[check.level]}]{mark:<7}[/] {check.name}: {escape(check.detail)}",
                    soft_wrap=True,
                )
                if check.fix:
                    out.print(f"        fix: {check.fix}", markup=False, soft_wrap=True)
    if json:
        print_json(dumps({"checks": [asdict(check) for check in checks], "next": next_step(checks)}))
    else:
        out.print(next_step(checks), markup=False, soft_wrap=True)
    if any(check.level == "FAIL" for check in checks):
        raise typer.Exit(1)
    if card is not None:
        from prophet_moe.sim.machine_card import write_machine
        from prophet_moe.sim.measure import measure_card

        with spinner("measuring", quiet) as told:
            found = measure_card(card.stem, path, lambda name: told(f"measuring {name}"))
        write_machine(found, card)
        if not quiet:
            log().print(f"{card}: a machine card for prophet simulate --machine", markup=False)
