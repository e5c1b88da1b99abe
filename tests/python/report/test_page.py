"""The page from made-up lines: figures hold the numbers, gaps are named, and a browser draws it."""

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prophet_moe.errors import InvalidArgument
from prophet_moe.results_page import crowd, forecasts, lanes, routing
from prophet_moe.results_page.figures import drawings
from prophet_moe.results_page.load import loads
from prophet_moe.results_page.page import Page, render, tables
from prophet_moe.results_page.part import Drawing
from prophet_moe.results_page.sources import Facts, Sources, read_all
from prophet_moe.results_page.steps import Steps
from prophet_moe.results_page.study import studies
from prophet_moe.sim.results import Line, to_json
from prophet_moe.timeline import Timeline

KEYS = {"tpot", "tails", "bytes", "hits", "misses", "thresholds", "bandwidth", "waste", "drift", "churn",
        "stays", "layers", "intensity"}  # fmt: skip


def drawn(lines: list[Line]) -> dict[str, Drawing]:
    (study,) = studies(lines)
    return {one.key: one for one in drawings(study)}


def curve(drawing: Drawing, name: str) -> tuple[list[float], list[float]]:
    assert drawing.figure is not None
    (trace,) = [trace for trace in drawing.figure.data if trace.name == name]
    return list(trace.x), list(trace.y)


def test_studies_are_what_was_replayed_alike(lines: list[Line]) -> None:
    other = [line | {"machine": "h100-pcie5", "cell": "h" + line["cell"]} for line in lines]
    again = lines[0] | {"wall_s": 9.0}
    found = studies([*lines, *other, again])
    assert [study.head["machine"] for study in found] == ["rtx4090-pcie4", "h100-pcie5"]
    assert len(found[0].lines) == len(lines)
    assert found[0].lines[0]["wall_s"] == 9.0, "of equal cells the last one counts"
    assert found[0].slots == (24, 48, 72)
    assert found[0].systems[-2:] == ("belady", "resident")


def test_figures_hold_the_numbers_of_the_lines(full_lines: list[Line]) -> None:
    figures = drawn(full_lines)
    assert set(figures) == KEYS
    assert all(one.figure is not None for one in figures.values())
    means = {
        line["expert_slots"]: line["tpot_ms"]["mean"]
        for line in full_lines
        if line["system"] == "lru" and line["link_scale"] == 1
    }
    assert curve(figures["tpot"], "lru") == ([25, 50, 75], [means[n] for n in (24, 48, 72)])
    assert curve(figures["tpot"], "belady")[1][0] < means[24]
    x, y = curve(figures["bandwidth"], "lru")
    assert x == [12.5, 25, 50]
    assert y[0] > y[1] > y[2]
    wasted = curve(figures["waste"], "promoe")[1]
    assert len(wasted) == 3
    assert all(0 < share < 10 for share in wasted)
    assert curve(figures["thresholds"], "promoe by threshold, 25%")[0] == [0.3, 0.8]


def test_stays_are_shares_of_evictions(full_lines: list[Line]) -> None:
    figure = drawn(full_lines)["stays"].figure
    assert figure is not None
    first = figure.data[0]
    assert list(first.x) == ["0–1", "2–3"]
    assert "on-demand" not in first.y, "it evicts nothing: every expert goes after its use"
    for shares in first.z:
        assert sum(shares) == pytest.approx(100)


def test_a_system_has_one_colour_everywhere(full_lines: list[Line], served_lines: list[Line]) -> None:
    (load,) = loads(served_lines, [])
    figures = [
        drawn(full_lines)["tpot"].figure,
        drawn(full_lines)["churn"].figure,
        crowd.drawings(load)[0].figure,
    ]
    colours = [
        {t.name: t.line.color for t in figure.data if t.name != "belady"} for figure in figures if figure
    ]
    for name in set(colours[0]) & set(colours[2]):
        assert len({each[name] for each in colours}) == 1, name
    real = {name: colour for name, colour in colours[0].items() if name != "resident" and " " not in name}
    assert len(set(real.values())) == len(real), "and no other system has it"


def test_splits_sum_to_the_whole(full_lines: list[Line]) -> None:
    figures = drawn(full_lines)
    hits, moved = figures["hits"].figure, figures["bytes"].figure
    assert hits is not None
    assert moved is not None
    for first in (0, 3, 6):  # three outcomes for each size
        for shares in zip(*(trace.x for trace in hits.data[first : first + 3]), strict=True):
            assert sum(shares) == pytest.approx(100)
    at = list(moved.data[0].y).index("promoe")
    line = next(line for line in full_lines if line["system"] == "promoe")
    assert [trace.x[at] for trace in moved.data[:4]] == pytest.approx(
        [line["bytes"][key] / 1e9 for key in ("demand", "prefetch_used", "prefetch_late", "prefetch_wasted")]
    )
    visible = [trace.visible for trace in moved.data]
    assert visible == [True] * 4 + [False] * 8
    assert [button.args[0]["visible"] for button in moved.layout.updatemenus[0].buttons] == [
        [place // 4 == chosen for place in range(12)] for chosen in range(3)
    ]


def test_what_the_lines_lack_is_named(lines: list[Line]) -> None:
    figures = drawn(lines)
    lacking = {key: one.missing for key, one in figures.items() if one.figure is None}
    assert set(lacking) == {"thresholds", "bandwidth", "waste"}
    old = [line | {"residence": None} for line in lines]
    assert "do not say how long" in drawn(old)["stays"].missing
    assert "--link-scale" in lacking["bandwidth"]
    assert "prefetches" in lacking["waste"]
    alone = [line | {"domains": {"": {}}} for line in lines if line["system"] == "on-demand"]
    lacking = {key for key, one in drawn(alone).items() if one.figure is None}
    assert lacking == {"thresholds", "bandwidth", "waste", "drift", "stays", "layers"}


def test_a_line_without_decoded_tokens_is_no_number(lines: list[Line]) -> None:
    nothing = dict.fromkeys(("mean", "p50", "p90", "p99", "p999"))
    empty = [
        line | {"tpot_ms": nothing, "new_tokens": 0, "accesses": 0,
                "bytes": line["bytes"] | {"per_token": None}, "domains": {}, "residence": None}
        for line in lines
    ]  # fmt: skip
    text = render(Sources(empty))
    assert "NaN" not in re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    page = Page(Sources(empty))
    assert all(answer.lacks for answer in page.answers)
    assert page.sayings == []


def test_tables_rank_and_mark_bounds(lines: list[Line]) -> None:
    (study,) = studies(lines)
    first = tables(study)[0]
    names = [row.cells[0] for row in first.rows]
    assert names == ["resident", "belady", "prophet", "expected-next-use", "lru", "on-demand"]
    assert [row.bound for row in first.rows] == [True, True, False, False, False, False]
    assert first.rows[-1].cells[3] == "1.00x"
    assert "more than the fast memory holds" in tables(study)[2].title


def test_the_page_is_one_file_that_asks_nobody(full_lines: list[Line]) -> None:
    text = render(Sources(full_lines))
    outside = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["'](?!#|data:)""", outside)
    assert "</script><b>law" not in text, "a label of the trace must not end a script"


def test_files_without_results_are_refused(tmp_path: Path, lines: list[Line]) -> None:
    empty, good = tmp_path / "empty.jsonl", tmp_path / "good.jsonl"
    empty.write_text("")
    good.write_text("".join(to_json(line) + "\n" for line in lines))
    assert len(read_all([empty, good]).lines) == len(lines)
    with pytest.raises(InvalidArgument, match=r"no result in .*empty.jsonl"):
        read_all([empty])


def test_files_are_told_apart_by_what_they_hold(
    tmp_path: Path, lines: list[Line], analysis: Facts, scored: Facts
) -> None:
    files = {"lines": to_json(lines[0]) + "\n", "analysis": json.dumps(analysis), "score": json.dumps(scored)}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    found = read_all([tmp_path / name for name in files])
    assert (found.lines, found.analyses, found.scores) == ([lines[0]], [analysis], [scored])
    (tmp_path / "other").write_text(json.dumps({"model": "x"}) + "\n")
    with pytest.raises(InvalidArgument, match=r"other, line 1, is no result"):
        read_all([tmp_path / "other"])


def test_an_analysis_is_drawn_as_it_says(analysis: Facts) -> None:
    figures = {one.key: one for one in routing.drawings(analysis)}
    assert all(one.figure is not None for one in figures.values())
    assert curve(figures["sizes"], "clairvoyant")[1] == analysis["reuse"]["clairvoyant"]
    assert curve(figures["sizes"], "LRU")[0][-1] == 100
    x, y = curve(figures["layers"], "dominant expert")
    assert x == [one["distance"] for one in analysis["cross_layer"]]
    assert y == [one["forms"]["dominant"]["of_entropy"] for one in analysis["cross_layer"]]
    text = render(Sources(analyses=[analysis]))
    assert "is simulated" not in text
    assert html.escape(analysis["verdict"][0], quote=False) in html.unescape(text)
    alone = {**analysis, "domains": None, "cross_token": []}
    lacking = {one.key for one in routing.drawings(alone) if one.figure is None}
    assert lacking == {"drift", "tokens"}


def test_a_score_is_drawn_as_it_says(scored: Facts) -> None:
    figures = {one.key: one for one in forecasts.drawings(scored)}
    rows = scored["ahead"]["prophet"]["1"]["reliability"]
    assert curve(figures["calibration"], "1 ahead") == (
        [row["forecast"] for row in rows],
        [row["observed"] for row in rows],
    )
    assert curve(figures["eviction"], "this predictor")[1] == scored["eviction"]["prophet"]
    drawn_names = {trace.name for trace in figures["recall"].figure.data}
    assert "this predictor" in drawn_names
    assert "zero staleness" not in drawn_names


@pytest.mark.parametrize(("width", "dark"), [(390, False), (1280, False), (1280, True)])
def test_a_browser_draws_every_figure(
    browser: Callable[[int, bool], Any],
    page: Path,
    full_lines: list[Line],
    analysis: Facts,
    scored: Facts,
    served_lines: list[Line],
    timeline: Timeline,
    width: int,
    dark: bool,
) -> None:
    from selenium.webdriver.support.ui import WebDriverWait

    everything = Sources([*full_lines, *served_lines], [analysis], [scored], [], [("t.json", timeline)])
    page.write_text(render(everything), encoding="utf-8")
    chrome = browser(width, dark)
    chrome.get(page.as_uri())
    WebDriverWait(chrome, 120).until(
        lambda it: it.execute_script("return document.documentElement.dataset.drawn") == "yes"
    )
    assert chrome.get_log("browser") == []
    figures = chrome.execute_script("""
      return [...document.querySelectorAll('.figure')].map(one => {
        const plot = one.querySelector('.main-svg'), box = one.getBoundingClientRect();
        const marks = one.querySelectorAll('.points path, .point path, .hm image, .box, .js-line').length;
        const high = plot ? plot.getBoundingClientRect().height : 0;
        return {id: one.id, wide: box.width, high: high, marks: marks};
      });""")
    others = {f"routing1-{one.key}" for one in routing.drawings(analysis)}
    others |= {f"score1-{one.key}" for one in forecasts.drawings(scored) if one.figure is not None}
    (load,) = loads(served_lines, [])
    others |= {f"load1-{one.key}" for one in crowd.drawings(load)}
    others |= {f"timeline1-{one.key}" for one in lanes.part(Steps(timeline), "", "").drawings}
    assert {one["id"] for one in figures} == {f"study1-{key}" for key in KEYS} | others
    for one in figures:
        assert one["marks"] > 0, one
        assert one["high"] > 150, one
        assert 0 < one["wide"] <= width, one
    assert chrome.execute_script("return document.documentElement.scrollWidth") <= width, (
        "no sideways scrolling"
    )
    unnamed = chrome.execute_script("""
      return [...document.querySelectorAll('.figure')].filter(one => {
        const axis = one._fullLayout.xaxis;
        return axis && !(axis.title.text || '').trim() && axis.visible && one.id !== 'routing1-drift';
      }).map(one => one.id);""")
    assert unnamed == [], "every axis says what it shows"
    covered = chrome.execute_script("""
      return [...document.querySelectorAll('.figure')].filter(one => {
        const legend = one.querySelector('.legend'), plot = one.querySelector('.xy .plot, .plot');
        if (!legend || !plot) return false;
        const low = one.querySelector('.nsewdrag').getBoundingClientRect().bottom;
        return legend.getBoundingClientRect().top < low;
      }).map(one => one.id);""")
    assert covered == [], "no legend lies over data"
    ink = chrome.execute_script("return document.querySelector('#study1-tpot')._fullLayout.font.color")
    assert ink == ("#e6e9ee" if dark else "#1d2430")
    shown = (
        "return document.querySelector('#study1-hits')._fullData.filter(one => one.visible === true).length"
    )
    assert chrome.execute_script(shown) == 3
    second = chrome.find_elements("css selector", "#study1-hits .updatemenu-button")[1]
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", second)
    second.click()
    first_seen = (
        "return document.querySelector('#study1-hits')._fullData.findIndex(one => one.visible === true)"
    )
    WebDriverWait(chrome, 30).until(lambda it: it.execute_script(first_seen) == 3)
    assert chrome.get_log("browser") == []
