"""The flags of simulate and report; those that they share with other verbs are in options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prophet_moe.cli.options import _flag

TraceFile = Annotated[Path, typer.Argument(metavar="TRACE", help="A routing trace, .safetensors.")]
ResultsFiles = Annotated[
    list[Path],
    typer.Argument(
        metavar="RESULTS...",
        help="Files of simulate -o and run --timeline, and of analyze, score and bench --serve with --json.",
    ),
]

Geometry = Annotated[
    str,
    _flag("--model", metavar="NAME", text="Geometry card of the trace's model: a name, or a TOML file."),
]
MachineCard = Annotated[
    str,
    _flag("--machine", metavar="NAME", text="Machine card: a name such as rtx4090-pcie4, or a TOML file."),
]
SlotsList = Annotated[
    str,
    _flag(
        "--slots", metavar="A,B", text="Experts kept in fast memory: 25%, 96, or fit (as many as it holds)."
    ),
]
SystemsList = Annotated[str, _flag("--systems", metavar="A,B", text="Systems to replay, or all.")]
Results = Annotated[
    Path | None,
    _flag("-o", "--out", metavar="FILE", text="Append results here, and skip those that it already has."),
]
Weights = Annotated[
    str | None,
    _flag("--weights", metavar="TYPE", text="Element type of experts: bf16, 4bit. Default: as released."),
]
Lane = Annotated[
    str | None, _flag("--lane", metavar="NAME", text="Experts come by link or disk. Default: the card's.")
]
LinkScale = Annotated[
    str, _flag("--link-scale", metavar="A,B", text="Multiply the lane's bandwidth, one sweep for each.")
]
SweepOptions = Annotated[
    list[str] | None,
    _flag(
        "--sweep",
        metavar="NAME=A,B",
        text="Values of a field of the prefetch rule, for systems with a predictor; repeat to combine.",
    ),
]
Predictors = Annotated[
    str | None,
    _flag("--predictor", metavar="A,B", text="Trained predictors, each of the system that it names."),
]
Routers = Annotated[
    str | None,
    _flag(
        "--routers",
        metavar="MODEL",
        text="The trace's model, for systems that apply its routers: a folder or reference-moe.",
    ),
]
HeldOut = Annotated[
    str | None,
    _flag(
        "--held-out", metavar="N", text="Only the sequences that training with seed 0 holds out: 60 or 20%."
    ),
]
Concurrency = Annotated[
    str | None,
    _flag(
        "--concurrency",
        metavar="A,B",
        text="Serve so many sequences at once, domains mixed, as continuous batching does: 1,4,16.",
    ),
]
OrderSeed = Annotated[int, _flag("--seed", min=0, metavar="N", text="Seed of the sequences' order.")]
PromptTokens = Annotated[
    int,
    _flag(
        "--prompt-tokens",
        min=0,
        metavar="N",
        text="Where the trace has no phases, take the first N tokens of a sequence for its prompt.",
    ),
]
Cold = Annotated[bool, _flag("--cold", text="Empty the cache before each sequence.")]
Jobs = Annotated[
    int | None, _flag("-j", "--jobs", min=1, metavar="N", text="Processes. Default: one per core allowed.")
]
Page = Annotated[Path, _flag("-o", "--out", metavar="FILE", text="The HTML file to write.")]
CardOut = Annotated[
    Path | None,
    _flag("--card", metavar="FILE", text="Measure a machine card of this machine, and write it as TOML."),
]
