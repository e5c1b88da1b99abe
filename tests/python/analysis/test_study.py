"""The whole analysis: what it promises as JSON, as figures and in words, and what it refuses."""

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from analysis_traces import chain, noisy_copy, write

from prophet_moe.analysis import Analysis, Options, analyze, figures
from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import TraceError, TraceReader

QUICK = Options(horizons=(1, 2), lags=(1, 4), shuffles=4, bootstrap=20)
KINDS = {"lines", "bars", "heat"}


def routes(n: int = 1200, seed: int = 0) -> Any:
    """[n, 3, 2] of 8: two experts that follow a chain."""
    random = np.random.default_rng(seed)
    path = chain([n // 6] * 6, 3, 8, 0.8, random)[:, :, 0]
    return np.stack([path, (path + random.integers(1, 8, size=path.shape)) % 8], 2)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Analysis:
    gates = np.tile([0.7, 0.3], (1200, 3, 1))
    folder = tmp_path_factory.mktemp("study")
    return analyze(write(folder, routes(), [200] * 6, of=8, labels=("code", "prose"), gates=gates), QUICK)


def leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for item in value:
            yield from leaves(item)
    else:
        yield value


def test_json_is_plain_and_finite(found: Analysis) -> None:
    text = json.dumps(found.to_dict(), allow_nan=False)
    back = json.loads(text)
    assert (back["tokens"], back["layers"], back["experts_per_layer"], back["top_k"]) == (1200, 3, 8, 2)
    assert back["dominant_by"] == "largest gate"
    assert back["notes"] == []
    assert [step["distance"] for step in back["cross_layer"]] == [1, 2]
    assert [step["distance"] for step in back["cross_token"]] == [1, 4]
    assert len(back["cross_layer"][1]["by_layer"]["dominant"]) == 1
    assert all(np.isfinite(leaf) for leaf in leaves(back) if isinstance(leaf, float))


def test_figures_come_from_the_json(found: Analysis) -> None:
    charts = figures(json.loads(json.dumps(found.to_dict())))
    names = [chart["name"] for chart in charts]
    assert names == [
        "popularity", "reuse", "reuse_per_layer", "cross_layer_decay", "cross_layer_by_layer",
        "cross_token_decay", "cross_token_by_layer", "drift_domains", "drift_context",
    ]  # fmt: skip
    for chart in charts:
        assert chart["kind"] in KINDS
        assert chart["title"]
        assert chart["x"]
        assert chart["y"]
        if chart["kind"] == "heat":
            assert np.shape(chart["values"]) == (len(chart["rows"]), len(chart["columns"]))
            continue
        assert chart["series"]
        for series in chart["series"]:
            assert series["name"]
            assert len(series["x"]) == len(series["y"]) > 0
            for edge in ("low", "high"):
                assert len(series.get(edge, series["y"])) == len(series["y"])


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    trace = write(tmp_path, routes(), [200] * 6, of=8)
    one, other = analyze(trace, QUICK), analyze(trace, replace(QUICK, seed=1))
    assert analyze(trace.path, QUICK) == one
    nulls = [seen.cross_layer[0].forms["dominant"].null for seen in (one, other)]
    assert nulls[0] != nulls[1]
    assert other.reuse == one.reuse


def test_verdict_speaks_of_slots_and_forecasts(found: Analysis) -> None:
    text = " ".join(found.verdict)
    for word in ("LRU misses", "Zipf", "uncertainty", "domain", "12 slots"):
        assert word in text, text


def test_verdict_of_pure_chance(tmp_path: Path) -> None:
    experts = np.random.default_rng(0).integers(8, size=(2000, 2, 1))
    seen = analyze(write(tmp_path, experts, [100] * 20, of=8), QUICK)
    assert sum("says nothing that chance would not say" in line for line in seen.verdict) == 2


def test_progress_reaches_its_end(tmp_path: Path) -> None:
    told: dict[str, tuple[int, int]] = {}

    def progress(what: str, done: int, of: int) -> None:
        assert told.get(what, (0, of))[0] <= done <= of
        told[what] = (done, of)

    analyze(write(tmp_path, routes(), [200] * 6, of=8), QUICK, progress)
    assert set(told) == {"popularity", "reuse", "mutual information"}
    assert all(done == of for done, of in told.values())


# What a trace may lack ------------------------------------------------------------


def test_without_gates_the_first_listed_stands_in_and_it_is_said(tmp_path: Path) -> None:
    experts, _ = noisy_copy(600, 8, 0.2, np.random.default_rng(0))
    seen = analyze(write(tmp_path, experts, [100] * 6, of=8), QUICK)
    assert seen.dominant_by == "first listed expert"
    assert any("no gate probabilities" in note for note in seen.notes)


def test_the_dominant_expert_has_the_largest_gate(tmp_path: Path) -> None:
    """Listed in any order: gates decide."""
    random = np.random.default_rng(0)
    experts = routes()
    gates = np.tile([0.7, 0.3], (1200, 3, 1))
    swap = random.random((1200, 3, 1)) < 0.5
    turned = np.where(swap, experts[:, :, ::-1], experts), np.where(swap, gates[:, :, ::-1], gates)
    plain = analyze(write(tmp_path, experts, [200] * 6, of=8, gates=gates), QUICK)
    mixed = analyze(write(tmp_path, turned[0], [200] * 6, of=8, gates=turned[1]), QUICK)
    assert plain.cross_token == mixed.cross_token


def test_one_sequence_has_no_intervals_and_says_so(tmp_path: Path) -> None:
    seen = analyze(write(tmp_path, routes(), [1200], of=8), QUICK)
    dominant = seen.cross_token[0].forms["dominant"]
    assert dominant.interval is None
    assert dominant.corrected > 0.3
    assert seen.cross_token[0].whole_set is None
    assert any("One sequence" in note for note in seen.notes)
    json.dumps(seen.to_dict(), allow_nan=False)


def test_distances_beyond_the_trace_are_left_out_and_it_is_said(tmp_path: Path) -> None:
    seen = analyze(
        write(tmp_path, routes(), [20] * 60, of=8), replace(QUICK, horizons=(1, 3), lags=(1, 19, 30))
    )
    assert [step.distance for step in seen.cross_layer] == [1]
    assert [step.distance for step in seen.cross_token] == [1]
    assert any("3 layers" in note for note in seen.notes)
    assert any("19, 30 tokens" in note for note in seen.notes)


def test_one_layer_and_one_expert(tmp_path: Path) -> None:
    """Nothing to forecast, nothing to divide by."""
    seen = analyze(write(tmp_path, np.zeros((200, 1, 1), int), [100, 100], of=1), QUICK)
    json.dumps(seen.to_dict(), allow_nan=False)
    assert seen.cross_layer == []
    assert seen.reuse.lru[1] == pytest.approx(1 / 200)


def test_top_k_of_all_experts(tmp_path: Path) -> None:
    experts = np.tile(np.arange(4), (200, 2, 1))
    seen = analyze(write(tmp_path, experts, [100, 100], of=4), QUICK)
    json.dumps(seen.to_dict(), allow_nan=False)
    assert seen.cross_layer[0].forms["best_single"].corrected == pytest.approx(0)
    assert seen.cross_layer[0].overlap == 1


# What is refused ------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (replace(QUICK, by_domain=True), "needs two domains"),
        (replace(QUICK, slots=(1,)), r"1 slots cannot be: .* needs 2, and there are 24"),
        (replace(QUICK, slots=(25,)), "25 slots cannot be"),
        (replace(QUICK, horizons=(0,)), "horizons are distances of 1 or more"),
        (replace(QUICK, lags=(-1,)), "lags are distances of 1 or more"),
        (replace(QUICK, shuffles=1), "2 shuffles at least"),
        (replace(QUICK, bootstrap=-1), "bootstrap draws"),
        (replace(QUICK, phase="night"), "phase is one of"),
        (replace(QUICK, phase="prefill"), "has 0 tokens of phase 'prefill'"),
    ],
)
def test_sentences(tmp_path: Path, options: Options, said: str) -> None:
    trace = write(tmp_path, routes(), [200] * 6, of=8, labels=("code",))
    with pytest.raises(InvalidArgument, match=said):
        analyze(trace, options)


def test_a_trace_too_short(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match=r"has 60 tokens .* needs 64"):
        analyze(write(tmp_path, routes(60), [10] * 6, of=8), QUICK)


def test_ids_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises((TraceError, InvalidArgument)):
        analyze(write(tmp_path, routes() + 3, [200] * 6, of=8), QUICK)


# The supplied trace ------------------------------------------------------------


@pytest.mark.slow
def test_gpt_oss_routes() -> None:
    """Against figures that other code found (docs/analysis.md)."""
    path = os.environ.get("PROPHET_ROUTES")
    if path is None:
        pytest.skip("no supplied trace: name it in PROPHET_ROUTES")
    options = Options(horizons=(1, 12), lags=(1, 16), bootstrap=0, shuffles=2)
    seen = analyze(TraceReader(path), options)
    share = [step.forms["dominant"].of_entropy for step in seen.cross_layer + seen.cross_token]
    assert share == pytest.approx([0.350, 0.218, 0.191, 0.062], abs=0.01)
    assert seen.cross_layer[0].forms["best_single"].of_entropy == pytest.approx(0.226, abs=0.01)
