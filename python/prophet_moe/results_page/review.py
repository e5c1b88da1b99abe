"""The review page: what reviewers of offloading papers ask, the numbers that answer it, and their commands.

An answer is taken from results, or it is missing; then the page says what is missing and which command makes
it. Nothing is estimated here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from prophet_moe.results_page import answers, told
from prophet_moe.results_page.answers import Case, LackingError, case_of
from prophet_moe.results_page.load import Load
from prophet_moe.results_page.sources import Facts
from prophet_moe.results_page.steps import Steps
from prophet_moe.results_page.study import Study

SIMULATE = "prophet simulate TRACE --model NAME --machine CARD --systems all -o results.jsonl"
ANALYZE = "prophet analyze TRACE --json > analysis.json"
SCORE = "prophet score PREDICTOR TRACE --json > score.json"
CROWD = f"{SIMULATE} --concurrency 1,4,16 --prompt-tokens 32"
TIMELINE = "prophet run MODEL --timeline timeline.json"


@dataclass(frozen=True)
class Told:
    """One answer: what it is of, the answer, and the command that made its results."""

    of: str
    says: str
    command: str


@dataclass(frozen=True)
class Answer:
    """One question with its answers; `lacks` and `command` say how to get one where there is none."""

    question: str
    found: tuple[Told, ...]
    lacks: str
    command: str


@dataclass(frozen=True)
class Given:
    """One result of any kind: its name on the page, the command that made it, and itself."""

    of: str
    command: str
    it: Any


@dataclass
class Material:
    """All that a page is made of, by kind."""

    studies: list[Given] = field(default_factory=list)  # of Case: studies in which a real system was replayed
    analyses: list[Given] = field(default_factory=list)  # of Facts
    scores: list[Given] = field(default_factory=list)  # of Facts
    loads: list[Given] = field(default_factory=list)  # of Load
    timelines: list[Given] = field(default_factory=list)  # of Steps

    def add_study(self, study: Study) -> None:
        case = case_of(study)
        if case is not None:
            self.studies.append(Given(study.title, study.command(), case))


@dataclass(frozen=True)
class Question:
    """Who can answer it, and what to run where nobody does."""

    asked: str
    command: str
    study: Callable[[Case], str] | None = None
    analysis: Callable[[Facts], str] | None = None
    score: Callable[[Facts], str] | None = None
    load: Callable[[Load], str] | None = None
    steps: Callable[[Steps], str] | None = None
    lacks: str = "no simulation in which a real system ran at the machine's own bandwidth"


QUESTIONS = (
    Question("Mutual information: estimated how, normalised how?", ANALYZE, analysis=told.information,
             lacks="no analysis of a trace"),
    Question("Large experts, high top-k: bytes, windows, bandwidth, overlap?", SIMULATE,
             study=answers.overlap, steps=told.measured_overlap),
    Question("How many prefetched bytes are wasted?", SIMULATE, study=answers.waste),
    Question("What do cache size and thresholds change?", f"{SIMULATE} --sweep least=0.3,0.5,0.8",
             study=answers.sensitivity),
    Question("Top-1 or recall@k? Trained for which model and routing?", SCORE, score=told.forecasts,
             lacks="no score of a predictor"),
    Question("Why not the other systems?", SIMULATE, study=answers.systems),
    Question("Which top-k, and what does it cost?", SIMULATE, study=answers.top_k),
    Question("Interleaved requests, continuous batching, serving?", CROWD, load=told.served,
             lacks="no requests side by side"),
    Question("Several tenants: what do they share, and what do they cost each other?", CROWD,
             load=told.shared, lacks="no requests side by side"),
    Question("Drift across domains and along the context?", SIMULATE, study=answers.drift,
             analysis=told.routing_drift),
    Question("Total bytes moved against on-demand?", SIMULATE, study=answers.volume),
    Question("Churn: how many evictions, how long do experts stay, how soon are they back?", SIMULATE,
             study=answers.churn, steps=told.measured_stays),
    Question("Shifts and bursts over time?", TIMELINE, steps=told.measured_series,
             lacks="no timeline; simulations hold sums, not their course"),
    Question("Tails?", SIMULATE, study=answers.tails, steps=told.measured_tails),
    Question("How far from what is possible?", SIMULATE, study=answers.possible),
    Question("What would better forecasts be worth?", SIMULATE, study=answers.forecast_worth),
    Question("Horizons, layers, capacity: what does a forecast reach?", SCORE, score=told.by_horizon,
             lacks="no score of a predictor"),
    Question("Where do hits come from?", SIMULATE, study=answers.decomposition),
    Question("Does a predictor hold in other domains and for other models?", SCORE, score=told.by_domain,
             lacks="no score of a predictor"),
    Question("How fast is the machine, and who says so?", SIMULATE, study=answers.machine),
    Question("With smaller experts?", f"{SIMULATE} --sweep lossy=0,1", study=answers.compression),
)  # fmt: skip


def review(material: Material) -> list[Answer]:
    """Every question, in the order of the table."""
    return [_answer(question, material) for question in QUESTIONS]


def _answer(question: Question, material: Material) -> Answer:
    found, lacks = [], ""
    for given, of in _asked(question, material):
        try:
            found.append(Told(given.of, of(given.it), given.command))
        except LackingError as error:
            lacks = lacks or str(error)
    return Answer(question.asked, tuple(found), "" if found else lacks or question.lacks, question.command)


def _asked(question: Question, material: Material) -> Iterator[tuple[Given, Callable[[Any], str]]]:
    pairs: Sequence[tuple[list[Given], Callable[[Any], str] | None]] = (
        (material.studies, question.study),
        (material.loads, question.load),
        (material.timelines, question.steps),
        (material.analyses, question.analysis),
        (material.scores, question.score),
    )
    for given, of in pairs:
        if of is not None:
            yield from ((one, of) for one in given)
