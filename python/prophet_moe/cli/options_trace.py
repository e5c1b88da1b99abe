"""The flags of prophet trace; those that it shares with other verbs are in options."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prophet_moe.cli.options import _flag

TraceOut = Annotated[Path, _flag("-o", "--out", metavar="TRACE", text="The trace to write.")]
Prompts = Annotated[
    Path | None,
    _flag(
        "--prompts",
        metavar="PATH",
        text="A .jsonl or .txt file or a folder of them. Default: six domains in the package.",
    ),
]
TraceTokens = Annotated[
    int | None,
    _flag(
        "-n",
        "--max-tokens",
        min=1,
        metavar="N",
        text="Tokens to decode after each prompt (64), or of each text to feed (all).",
    ),
]
PerDomain = Annotated[
    int | None, _flag("--per-domain", min=1, metavar="N", text="Only the first N prompts of each domain.")
]
TeacherForced = Annotated[
    bool, _flag("--teacher-forced", text="Feed the texts themselves, in one pass each; generate nothing.")
]
StepByStep = Annotated[
    bool, _flag("--step-by-step", text="With --teacher-forced: really token by token (slow).")
]
LabelAs = Annotated[
    str, _flag("--as", metavar="NAME", text="Label teacher-forced tokens as decode or as prefill.")
]
Hidden = Annotated[bool, _flag("--hidden", text="Also record the tensor that each router reads (large).")]
Entering = Annotated[
    bool, _flag("--entering", text="Also record what enters each layer, before its attention (large).")
]
HiddenDtype = Annotated[str, _flag("--hidden-dtype", metavar="TYPE", text="Keep these as f16 or f32.")]
Resume = Annotated[bool, _flag("--resume", text="Go on with an interrupted recording, same settings.")]
Workers = Annotated[
    int | None,
    _flag("--workers", min=1, metavar="N", text="Record by N processes, which share the budget."),
]
Ray = Annotated[
    str | None,
    _flag("--ray", metavar="ADDRESS", text="Workers are Ray's, of the cluster at ADDRESS (auto) or local."),
]
Traces = Annotated[list[Path], typer.Argument(metavar="TRACES...", help="Traces to put one after another.")]
SplitBy = Annotated[str, _flag("--by", metavar="NAME", text="sequence, or domain: a file for each.")]
TestShare = Annotated[str, _flag("--test", metavar="N", text="Sequences held out: 12 or 20%.")]
ValShare = Annotated[str, _flag("--val", metavar="N", text="Sequences kept for choices: 12 or 10%.")]
HoldOut = Annotated[
    str | None, _flag("--hold-out", metavar="A,B", text="Hold out these domains instead of sequences.")
]
SplitSeed = Annotated[int, _flag("--seed", min=0, metavar="N", text="Seed of the shuffle.")]
IdsFile = Annotated[Path, typer.Argument(metavar="IDS", help="Expert ids: .npy, [tokens, layers, top_k].")]
ExpertsPerLayer = Annotated[
    int, _flag("--experts-per-layer", min=1, metavar="E", text="Experts that a layer has.")
]
GatesFile = Annotated[Path | None, _flag("--gates", metavar="FILE", text="Gate probabilities, .npy, as ids.")]
TokensFile = Annotated[Path | None, _flag("--tokens", metavar="FILE", text="Token ids, .npy.")]
StartsFile = Annotated[
    Path | None, _flag("--starts", metavar="FILE", text="Where sequences begin, and the end, .npy.")
]
GateInputsFile = Annotated[
    Path | None, _flag("--gate-inputs", metavar="FILE", text="What routers read, .npy, [tokens, layers, H].")
]
EnteringFile = Annotated[
    Path | None,
    _flag("--entering-states", metavar="FILE", text="What enters layers, before attention, .npy, the same."),
]
LabelsFile = Annotated[
    Path | None, _flag("--labels", metavar="FILE", text="A JSON list with the domain of each sequence.")
]
ModelName = Annotated[str, _flag("--model", metavar="NAME", text="The model that was recorded.")]
