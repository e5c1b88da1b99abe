"""Ablations: the same data and recipe, one network per combination of what is varied."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import Split, TraceReader

from . import export
from .evaluate import Yardstick, evaluate, summary
from .fit import fit, parameters
from .presets import Design
from .train import Progress, Recipe

AXES = ("kind", "size", "context", "horizons", "inputs", "seed")


def parse_axes(texts: Sequence[str]) -> dict[str, list[str]]:
    """["size=small,large", "context=1,2"] -> {"size": ["small", "large"], ...}.

    Raises InvalidArgument for an unknown or repeated axis, and one without values or with a value twice.
    """
    axes: dict[str, list[str]] = {}
    for text in texts:
        name, _, values = text.partition("=")
        listed = [value.strip() for value in values.split(",") if value.strip()]
        if name not in AXES:
            raise InvalidArgument(f"a sweep varies {', '.join(AXES)}, not {name!r}: write size=small,large.")
        if name in axes or not listed or len(set(listed)) < len(listed):
            raise InvalidArgument(f"--sweep {text!r} must name different values of one axis, each axis once.")
        if name in ("context", "horizons", "seed") and not all(value.isdecimal() for value in listed):
            raise InvalidArgument(f"--sweep {text!r}: {name} takes whole numbers.")
        axes[name] = listed
    return axes


def combinations(axes: Mapping[str, Sequence[str]]) -> Iterator[dict[str, str]]:
    """Every choice of one value per axis, the last axis varying fastest."""
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def design_of(base: Design, chosen: Mapping[str, str]) -> Design:
    """The base design with the chosen values; "seed" is the recipe's and left alone. A kind other than
    the base's starts from that kind's own context."""
    fields: dict[str, Any] = {k: v for k, v in chosen.items() if k in ("kind", "size", "inputs")}
    fields |= {k: int(v) for k, v in chosen.items() if k in ("context", "horizons")}
    return replace(base, **fields)


def sweep(
    trace: TraceReader,
    split: Split,
    base: Design,
    settings: Mapping[str, Any],
    axes: Mapping[str, Sequence[str]],
    progress: Callable[[Mapping[str, str], Progress], None] | None = None,
    folder: Path | None = None,
) -> Iterator[dict[str, Any]]:
    """One row per combination, as soon as it is trained and tested on split.test.

    settings: fields of Recipe that are changed. With `folder`, predictors are kept there under the names
    of their combinations, and one that is there already is scored again instead of being trained.
    """
    designs = [design_of(base, chosen) for chosen in combinations(axes)]
    yardstick = Yardstick(trace, split, any(design.inputs != "history" for design in designs))
    for chosen, design in zip(combinations(axes), designs, strict=True):
        options = design.network_options()
        recipe: Recipe = design.recipe(
            **{**settings, **({"seed": int(chosen["seed"])} if "seed" in chosen else {})}
        )
        path = folder / ("-".join(f"{k}_{v}" for k, v in chosen.items()) + ".safetensors") if folder else None
        if path and path.is_file():
            made = export.load(path)
        else:
            checkpoint = path.with_suffix(".checkpoint") if path else None

            def tell(step: Progress, chosen: Mapping[str, str] = chosen) -> None:
                if progress:
                    progress(chosen, step)

            made = fit(trace, split, recipe, design.kind, design.inputs, options, tell, checkpoint)
        began = time.monotonic()
        report = evaluate(made, trace, split, yardstick=yardstick, compare=False)
        if path and not path.is_file():
            made.scores = summary(report)
            export.save(made, path)
            path.with_suffix(".checkpoint").unlink(missing_ok=True)
        yield row(chosen, made, report) | {"scored_seconds": round(time.monotonic() - began, 1)}


def row(chosen: Mapping[str, str], made: export.Predictor, report: Mapping[str, Any]) -> dict[str, Any]:
    """What a sweep says of one predictor, flat."""
    ahead = report["ahead"]["prophet"].get("1", {}).get("all", {})
    eviction = report["eviction"]
    return {
        **chosen,
        "parameters": parameters(made),
        "steps": made.training["steps"],
        "seconds": made.training["seconds"],
        "validation_loss": made.training["validation"].get("loss"),
        "recall_k": ahead.get("recall_k"),
        "recall_2k": ahead.get("recall_2k"),
        "ece": ahead.get("ece"),
        "coverage": ahead.get("coverage", {}),
        "slots": eviction["slots"],
        "miss_rate": eviction["prophet"],
        "gap_closed": eviction["gap closed"],
    }
