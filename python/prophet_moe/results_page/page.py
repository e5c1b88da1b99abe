"""One self-contained HTML page from result files: it opens without a network, on a phone and on a desk."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from prophet_moe.errors import InvalidArgument
from prophet_moe.results_page.sources import Sources
from prophet_moe.results_page.study import (
    BOUNDS,
    CLAIRVOYANT_EVICTION,
    ON_DEMAND,
    RESIDENT,
    Study,
    bytes_per_token,
    miss_rate,
    ratio,
    stalled_share,
    studies,
    tpot,
)
from prophet_moe.sim.results import Line

if TYPE_CHECKING:
    from prophet_moe.results_page.figures import Drawing

TEMPLATE = Path(__file__).resolve().parent.parent / "assets" / "report"
HEADINGS = (
    "system",
    "ms/token",
    "p99.9",
    "vs on-demand",
    "vs belady",
    "of resident",
    "misses",
    "MB/token",
    "stalled",
)


def render(sources: Sources, title: str = "Prophet: results") -> str:
    """The page. Raises InvalidArgument where plotly is not installed."""
    if find_spec("plotly") is None:
        raise InvalidArgument("the page needs plotly: pip install 'prophet-moe[report]'.")
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    return environment.get_template("page.html").render(
        title=title, parts=_parts(sources), simulated=bool(sources.lines), plotly=get_plotlyjs()
    )


def _parts(sources: Sources) -> list[dict[str, Any]]:
    """One a study, then one an analysis, then one a score; as the template takes them."""
    from prophet_moe.results_page import forecasts, routing
    from prophet_moe.results_page.figures import drawings
    from prophet_moe.results_page.review import review

    parts = [
        {
            "key": f"study{number}",
            "title": study.title,
            "subtitle": study.subtitle,
            "command": study.command(),
            "headings": HEADINGS,
            "tables": tables(study),
            "drawings": [_drawn(one) for one in drawings(study)],
            "review": review(study),
            "sentences": [],
        }
        for number, study in enumerate(studies(sources.lines), 1)
    ]
    for kind, found, of in (("routing", sources.analyses, routing), ("score", sources.scores, forecasts)):
        for number, facts in enumerate(found, 1):
            parts.append({
                "key": f"{kind}{number}",
                "title": of.title(facts),
                "subtitle": of.subtitle(facts),
                "command": of.command(facts),
                "headings": (),
                "tables": [],
                "drawings": [_drawn(one) for one in of.drawings(facts)],
                "review": [],
                "sentences": facts.get("verdict", []),
            })  # fmt: skip
    return parts


def _drawn(one: Drawing) -> dict[str, Any]:
    return {**vars(one), "json": None if one.figure is None else _inert(one.figure.to_json())}


def _inert(json: str) -> str:
    """JSON that cannot end the script element it stands in, whatever the labels of a trace say."""
    return json.replace("<", "\\u003c")


def tables(study: Study) -> list[dict[str, Any]]:
    """For each number of slots: its title, and a row of texts per system, fastest first, bounds marked."""
    found = []
    for slots in study.slots:
        lines = [line for name in study.systems if (line := study.line(name, slots))]
        floor, bound, top = (study.line(name, slots) for name in (ON_DEMAND, CLAIRVOYANT_EVICTION, RESIDENT))
        fits = all(line["fits"] for line in lines if line["system"] != RESIDENT)
        lines.sort(key=lambda line: (tpot(line) is None, tpot(line) or 0))
        rows = [
            {"bound": line["system"] in BOUNDS, "cells": _cells(study.name(line), line, floor, bound, top)}
            for line in lines
        ]
        more = "" if fits else ", more than the fast memory holds"
        found.append({"title": f"{study.share(slots)} of experts ({slots} slots){more}", "rows": rows})
    return found


def _cells(name: str, line: Line, floor: Line | None, bound: Line | None, top: Line | None) -> list[str]:
    def against(other: Line | None) -> str:
        return _text(None if other is None else ratio(tpot(line), tpot(other)), ".2f", "x")

    reached = None if top is None else ratio(tpot(top), tpot(line))
    moved = bytes_per_token(line)
    return [
        name,
        _text(tpot(line), ".2f"),
        _text(line["tpot_ms"]["p999"], ".2f"),
        against(floor),
        against(bound),
        _text(reached, ".0%"),
        _text(miss_rate(line), ".1%"),
        _text(None if moved is None else moved / 1e6, ".1f"),
        _text(stalled_share(line), ".0%"),
    ]


def _text(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else f"{value:{form}}{unit}"
