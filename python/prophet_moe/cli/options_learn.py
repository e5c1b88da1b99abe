"""The flags of prophet train and prophet score."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from prophet_moe.cli.options import _flag

Learned = Annotated[
    str, typer.Argument(metavar="PREDICTOR", help="A file of `prophet train`, or a name in the package.")
]
LearnOut = Annotated[
    Path | None,
    _flag("-o", "--out", metavar="FILE", text="The predictor to write; with --sweep, a folder for all."),
]
Kind = Annotated[
    str, _flag("--kind", metavar="NAME", text="The design: bank, transformer, or a rival's name.")
]
Size = Annotated[str, _flag("--size", metavar="NAME", text="small, medium, large, or a width.")]
LearnContext = Annotated[
    int | None,
    _flag(
        "--context",
        min=1,
        metavar="C",
        text="Latest turns (bank) or layers (transformer) seen one by one. Default: 2, 3.",
    ),
]
Horizons = Annotated[int, _flag("--horizons", min=0, metavar="H", text="Layers ahead to forecast.")]
Inputs = Annotated[str, _flag("--inputs", metavar="NAME", text="What it sees: history, hidden or both.")]
Steps = Annotated[int, _flag("--steps", min=1, metavar="N", text="Training steps at most.")]
Seconds = Annotated[
    float | None, _flag("--seconds", min=0.0, metavar="S", text="Stop training after this time.")
]
Patience = Annotated[
    int, _flag("--patience", min=1, metavar="N", text="Stop after so many validations without a gain.")
]
LearnSeed = Annotated[int, _flag("--seed", min=0, metavar="N", text="Seed of the weights and the order.")]
Set = Annotated[
    list[str] | None,
    _flag("--set", metavar="NAME=JSON", text="Any setting of network or recipe, as rate=0.001. Repeatable."),
]
Start = Annotated[
    str | None,
    _flag(
        "--start", metavar="PREDICTOR", text="Begin with its weights and design, to fit it to a new trace."
    ),
]
Refit = Annotated[
    bool, _flag("--refit", text="Train once more, on the sequences for choices as well; ship that.")
]
Int8 = Annotated[
    bool, _flag("--int8", text="Store matrices as 8-bit integers: half the file, nearly the same numbers.")
]
Sweep = Annotated[
    list[str] | None,
    _flag(
        "--sweep",
        metavar="AXIS=A,B",
        text="Train one per value of kind, size, context, horizons, inputs or seed. Repeatable.",
    ),
]
LearnTest = Annotated[
    str | None, _flag("--test", metavar="N", text="Sequences held out for testing: 12 or 20%.")
]
LearnVal = Annotated[str | None, _flag("--val", metavar="N", text="Sequences kept for choices: 12 or 10%.")]
LearnSplit = Annotated[
    int | None, _flag("--split-seed", min=0, metavar="N", text="Seed of the split by sequence.")
]
HoldOut = Annotated[
    str | None, _flag("--hold-out", metavar="A,B", text="Hold out these domains instead of sequences.")
]
Only = Annotated[str | None, _flag("--only", metavar="A,B", text="Use the sequences of these domains alone.")]
Label = Annotated[
    str | None, _flag("--label", metavar="KEY", text="The note of a sequence that names its domain.")
]
By = Annotated[str | None, _flag("--by", metavar="NAME", text="Also a table by layer or by domain.")]
Reliability = Annotated[bool, _flag("--reliability", text="Also forecast against observed, in bins.")]
CoverageSlots = Annotated[
    str, _flag("--slots", metavar="X%", text="The cache whose absent experts count as covered.")
]
RouterModel = Annotated[
    str | None,
    _flag("--model", metavar="MODEL", text="Its routers make the next-gate baseline (hidden states needed)."),
]
Blind = Annotated[
    bool, _flag("--blind", text="Keep hidden states from the predictor, as a replay of routes alone does.")
]
CrossDomain = Annotated[
    bool, _flag("--cross-domain", text="Train this design on each domain, and score it on every other.")
]
Keep = Annotated[bool, _flag("--keep", text="Write the scores into the predictor file.")]
