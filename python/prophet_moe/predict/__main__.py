"""The commands behind the tables: train TRACE PREDICTOR, score PREDICTOR TRACE."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from prophet_moe.formats.trace import TraceReader, split_sequences

from . import export
from .fit import evaluate, fit, summary
from .train import Progress, Recipe


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m prophet_moe.predict", description=__doc__)
    parser.add_argument("verb", choices=("train", "score"))
    parser.add_argument("first", type=Path, help="train: the trace; score: the predictor")
    parser.add_argument("second", type=Path, help="train: the predictor to write; score: the trace")
    parser.add_argument("--test", type=int, default=60, help="sequences held out")
    parser.add_argument("--val", type=int, default=30, help="sequences for choices and calibration")
    parser.add_argument("--split-seed", type=int, default=0)
    parser.add_argument("--kind", default="bank", choices=("bank", "transformer"))
    parser.add_argument("--inputs", default="history", choices=("history", "hidden", "both"))
    parser.add_argument("--options", type=json.loads, default={}, help="JSON: sizes of the network")
    parser.add_argument("--recipe", type=json.loads, default={}, help="JSON: fields of Recipe")
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("--keep", action="store_true", help="score: write the scores into the predictor file")
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    trace = TraceReader(args.first if args.verb == "train" else args.second)
    split = split_sequences(trace, args.test, args.val, args.split_seed)
    if args.verb == "score":
        made = export.load(args.first)
        report = evaluate(made, trace, split)
        print(json.dumps(report))
        if args.keep:
            made.scores = summary(report)
            export.save(made, args.first)
        return

    def tell(step: Progress) -> None:
        if step.validated is not None:
            print(
                f"step {step.step}/{step.steps} {step.seconds:.0f} s, held out {step.validated:.4f}",
                file=sys.stderr,
            )

    recipe = replace(Recipe(), **args.recipe)
    made = fit(trace, split, recipe, args.kind, args.inputs, args.options, tell, args.checkpoint)
    made.training["split"] = {"test": args.test, "val": args.val, "seed": args.split_seed}
    export.save(made, args.second)


if __name__ == "__main__":
    main()
