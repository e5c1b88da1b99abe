"""What the page says in words: a question has numbers or says what is missing; the first screen is true."""

import re
from typing import Any

import pytest
from report_lines import SLOTS, make_line, make_served

from prophet_moe.results_page.page import Page
from prophet_moe.results_page.review import QUESTIONS, Answer
from prophet_moe.results_page.sources import Facts, Sources
from prophet_moe.results_page.study import best, studies
from prophet_moe.sim.results import Line
from prophet_moe.timeline import Timeline


def asked(page: Page, part: str) -> Answer:
    (answer,) = [one for one in page.answers if part in one.question]
    return answer


def says(page: Page, part: str) -> str:
    return " ".join(one.says for one in asked(page, part).found)


def test_every_question_is_answered_from_all_results_together(
    full_lines: list[Line],
    served_lines: list[Line],
    analysis: Facts,
    scored: Facts,
    reports: list[dict[str, Any]],
    timeline: Timeline,
) -> None:
    horizon = scored["ahead"]["prophet"]["1"]
    domains = {"code": horizon["all"], "law": horizon["all"]}
    scored = {**scored, "ahead": {**scored["ahead"], "prophet": {"1": {**horizon, "domains": domains}}}}
    lossy = make_line("promoe", "25%", prefetch=True, options={"lossy": 1})
    found = Sources(
        [*full_lines, *served_lines, lossy], [analysis], [scored], reports, [("t.json", timeline)]
    )
    page = Page(found)
    assert len(page.answers) == len(QUESTIONS) >= 20
    lacking = [one.question for one in page.answers if one.lacks]
    assert lacking == ["Shifts and bursts over time?"], "the timeline by hand is too short for a course"
    for answer in page.answers:
        assert bool(answer.found) != bool(answer.lacks)
        assert answer.command.startswith("prophet ")
        for one in answer.found:
            assert one.command.startswith("prophet ")
            assert not re.search(r"\b(nan|None|inf)\b", one.says), one.says
    assert len(asked(page, "Interleaved").found) == 2, "the simulated and the measured ones"
    assert len(asked(page, "Tails").found) == 2


def test_nothing_is_answered_from_nothing(timeline: Timeline) -> None:
    page = Page(Sources(timelines=[("t.json", timeline)]))
    for part, lacks in (
        ("Mutual information", "no analysis"),
        ("recall@k", "no score"),
        ("Interleaved", "no requests side by side"),
        ("Why not the other systems", "no simulation"),
    ):
        assert lacks in asked(page, part).lacks
    assert asked(page, "Churn").found


def test_answers_are_the_numbers_of_the_lines(full_lines: list[Line], lines: list[Line]) -> None:
    page = Page(Sources(full_lines))
    (study,) = studies(full_lines)
    line = best(study, 24)
    assert line is not None
    assert line["system"] == "prophet"
    assert f"p99.9 {line['tpot_ms']['p999']:.2f}" in says(page, "Tails")
    assert "promoe 10.0% at 25 %, 10.0% at 50 %" not in says(page, "wasted")
    waste = make_line("promoe", "25%", prefetch=True)["bytes"]
    early = sum(value for key, value in waste.items() if key not in ("demand", "per_token"))
    assert f"promoe {waste['prefetch_wasted'] / early:.1%} at 25 %" in says(page, "wasted")
    assert "top-2" in says(page, "Which top-k")
    rates = {
        n: next(x for x in full_lines if x["system"] == n)["hits"]["miss"]
        for n in ("lru", "belady", "prophet")
    }
    share = (rates["lru"] - rates["prophet"]) / (rates["lru"] - rates["belady"])
    assert f"closes {share:.1%}" in says(page, "How far")
    assert "had stayed 3 turns of its layer, 30.0 ms" in says(page, "Churn")
    assert "10.0% within 1, 25.0% within 4, 50.0% within 16 turns" in says(page, "Churn")
    floor = next(x for x in full_lines if x["system"] == "on-demand")["bytes"]["per_token"]
    assert f"{line['bytes']['per_token'] / floor:.1%} of on-demand" in says(page, "Total bytes")
    assert "fate" in says(page, "Why not").split("Not in these lines:")[1]
    plain = Page(Sources(lines))
    assert "no system of these lines prefetches" in asked(plain, "wasted").lacks


def test_computing_is_the_limit_from_some_share_on(lines: list[Line]) -> None:
    """By hand: 2 ms for 4 layers are .5 ms a layer; two experts of 1 MB at 25 GB/s take .08 ms."""
    says_ = says(Page(Sources(lines)), "overlap")
    assert "hides 12.50 experts" in says_
    assert "from 0.0% of requests resident on" in says_


def test_several_studies_are_told_apart(lines: list[Line]) -> None:
    other = [line | {"machine": "h100-pcie5", "cell": "h" + line["cell"]} for line in lines]
    answer = asked(Page(Sources([*lines, *other])), "Tails")
    assert [one.of.split(" on ")[1] for one in answer.found] == [
        "rtx4090-pcie4, 3 sequences",
        "h100-pcie5, 3 sequences",
    ]


def test_the_first_screen_names_the_fastest_real_system(lines: list[Line]) -> None:
    clairvoyant = [make_line("belady", slots) | {"system": "clairvoyant", "cell": slots} for slots in SLOTS]
    (saying,) = Page(Sources([*lines, *clairvoyant])).sayings
    fits, fastest, far = saying.sentences
    assert "whole model fits" in fits
    assert fastest.startswith("Run prophet, the fastest that changes no output at every size: ")
    (study,) = studies(lines)
    mean = {name: study.line(name, 24) for name in ("prophet", "on-demand", "belady")}
    times = {name: line["tpot_ms"]["mean"] for name, line in mean.items() if line}
    assert f"{times['prophet']:.2f} ms a token with 25 %" in fastest
    assert f"That is {times['on-demand'] / times['prophet']:.2f}x, " in far
    assert f"{times['prophet'] / times['belady']:.2f}x, " in far, "the bound was given belady's lines"


def test_reading_early_pays_or_costs_by_the_numbers(lines: list[Line]) -> None:
    """Reading early is 25 % faster at the fewest slots, alike at the second, slower at the third."""
    fastest = {line["slots"]: line["tpot_ms"]["mean"] for line in lines if line["system"] == "prophet"}
    more = []
    for slots, factor in (("25%", 0.75), ("50%", 1.01), ("75%", 1.3)):
        line = make_line("promoe", slots, prefetch=True)
        more.append(line | {"tpot_ms": dict.fromkeys(line["tpot_ms"], fastest[slots] * factor)})
    (saying,) = Page(Sources([*lines, *more])).sayings
    (early,) = [one for one in saying.sentences if one.startswith("Reading")]
    assert "pays with 25 % (-25%), changes little with 50 % (+1%), costs time with 75 % (+30%)" in early


def test_lossy_lines_are_never_advised(lines: list[Line]) -> None:
    fast = make_line("promoe", "25%", prefetch=True, options={"lossy": 1})
    fast["tpot_ms"] = dict.fromkeys(fast["tpot_ms"], 0.1)
    (saying,) = Page(Sources([*lines, fast])).sayings
    assert "promoe" not in " ".join(saying.sentences)


def test_a_predictor_that_saw_the_trace_is_said_to_be_flattered(lines: list[Line]) -> None:
    seen = [line | {"predictor_seen": 2 if line["system"] == "prophet" else None} for line in lines]
    (saying,) = Page(Sources(seen)).sayings
    assert "learned from 2 of these sequences" in " ".join(saying.sentences)


@pytest.mark.parametrize(
    ("fits", "said"),
    [
        (set(), "None of these sizes fits"),
        ({"25%"}, "that fits in this machine's fast memory is 25 %"),
        ({"25%", "50%", "75%"}, "All of these sizes fit"),
    ],
)
def test_what_fits_is_said(lines: list[Line], fits: set[str], said: str) -> None:
    (saying,) = Page(Sources([line | {"fits": line["slots"] in fits} for line in lines])).sayings
    assert said in saying.sentences[0]


def test_requests_side_by_side_are_advised_by_count() -> None:
    lines = [make_served(name, "25%", n) for name in ("lru", "prophet") for n in (1, 4)]
    swapped = {"lru": "prophet", "prophet": "lru"}
    lines = [
        one | {"system": swapped[one["system"]]} if one["serving"]["concurrency"] == 4 else one
        for one in lines
    ]
    (saying,) = Page(Sources(lines)).sayings
    assert "fastest are prophet at 1 and lru at 4" in saying.sentences[0]
