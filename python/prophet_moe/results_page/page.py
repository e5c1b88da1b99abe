"""One self-contained HTML page from result files: it opens without a network, on a phone and on a desk."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import jinja2

from prophet_moe.errors import InvalidArgument
from prophet_moe.results_page.load import loads
from prophet_moe.results_page.part import Part, Row, Table, text
from prophet_moe.results_page.review import Given, Material, review
from prophet_moe.results_page.sources import Sources
from prophet_moe.results_page.steps import Steps
from prophet_moe.results_page.study import (
    BOUNDS,
    CLAIRVOYANT_EVICTION,
    ON_DEMAND,
    RESIDENT,
    Study,
    bytes_per_token,
    miss_rate,
    ratio,
    served,
    stalled_share,
    studies,
    tpot,
)
from prophet_moe.results_page.summary import Saying, of_load, of_study
from prophet_moe.sim.results import Line

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
NOTE = 'Bounds are in italics. "of resident": the speed with everything in fast memory that is reached.'


def render(sources: Sources, title: str = "Prophet: results") -> str:
    """The page. Raises InvalidArgument where plotly is not installed."""
    if find_spec("plotly") is None:
        raise InvalidArgument("the page needs plotly: pip install 'prophet-moe[report]'.")
    from plotly.offline import get_plotlyjs

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATE), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    page = Page(sources)
    return environment.get_template("page.html").render(
        title=title, page=page, simulated=bool(sources.lines), plotly=get_plotlyjs()
    )


class Page:
    """What the template shows: sayings, parts, answers."""

    def __init__(self, sources: Sources) -> None:
        from prophet_moe.results_page import crowd, forecasts, lanes, routing

        self.parts: list[Part] = []
        self.sayings: list[Saying] = []
        material = Material()
        crowds = loads(sources.lines, sources.served)
        for number, study in enumerate(studies(line for line in sources.lines if not served(line)), 1):
            key = f"study{number}"
            self._say(of_study(study, key))
            material.add_study(study)
            self.parts.append(study_part(study, key))
        for number, load in enumerate(crowds, 1):
            part = crowd.part(load, f"load{number}")
            self._say(of_load(load, part.key))
            material.loads.append(Given(load.title, load.command, load))
            self.parts.append(part)
        for number, (name, timeline) in enumerate(sources.timelines, 1):
            steps = Steps(timeline)
            part = lanes.part(steps, f"timeline{number}", name)
            self._say(Saying(part.key, part.title, tuple(part.sentences)))
            material.timelines.append(Given(part.title, part.command, steps))
            self.parts.append(part)
        for number, found in enumerate(sources.analyses, 1):
            part = routing.part(found, f"routing{number}")
            material.analyses.append(Given(part.title, part.command, found))
            self.parts.append(part)
        for number, found in enumerate(sources.scores, 1):
            part = forecasts.part(found, f"score{number}")
            material.scores.append(Given(part.title, part.command, found))
            self.parts.append(part)
        self.answers = review(material)

    def _say(self, saying: Saying | None) -> None:
        if saying is not None:
            self.sayings.append(saying)


def study_part(study: Study, key: str) -> Part:
    from prophet_moe.results_page.figures import drawings

    return Part(
        key, study.title, study.subtitle, study.command(), drawings(study), tables=tables(study), note=NOTE
    )


def tables(study: Study) -> list[Table]:
    """For each number of slots: its title, and a row of texts per system, fastest first, bounds marked."""
    found = []
    for slots in study.slots:
        lines = [line for name in study.systems if (line := study.line(name, slots))]
        floor, bound, top = (study.line(name, slots) for name in (ON_DEMAND, CLAIRVOYANT_EVICTION, RESIDENT))
        fits = all(line["fits"] for line in lines if line["system"] != RESIDENT)
        lines.sort(key=lambda line: (tpot(line) is None, tpot(line) or 0))
        rows = [
            Row(_cells(study.name(line), line, floor, bound, top), line["system"] in BOUNDS) for line in lines
        ]
        more = "" if fits else ", more than the fast memory holds"
        found.append(Table(f"{study.share(slots)} of experts ({slots} slots){more}", HEADINGS, rows))
    return found


def _cells(name: str, line: Line, floor: Line | None, bound: Line | None, top: Line | None) -> list[str]:
    def against(other: Line | None) -> str:
        return text(None if other is None else ratio(tpot(line), tpot(other)), ".2f", "x")

    reached = None if top is None else ratio(tpot(top), tpot(line))
    moved = bytes_per_token(line)
    return [
        name,
        text(tpot(line), ".2f"),
        text(line["tpot_ms"]["p999"], ".2f"),
        against(floor),
        against(bound),
        text(reached, ".0%"),
        text(miss_rate(line), ".1%"),
        text(None if moved is None else moved / 1e6, ".1f"),
        text(stalled_share(line), ".0%"),
    ]
