"""Result lines made up to have every outcome, and a real browser."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import open_chromium
from report_lines import SLOTS, SYSTEMS, make_line, make_report, make_served, make_timeline

from prophet_moe.analysis import Options, analyze
from prophet_moe.formats.trace import TraceReader, TraceWriter
from prophet_moe.predict.evaluate import evaluate
from prophet_moe.predict.fit import fit
from prophet_moe.predict.held_out import HeldOut
from prophet_moe.predict.train import Recipe
from prophet_moe.sim.results import Line
from prophet_moe.timeline import Timeline, read_timeline


@pytest.fixture
def lines() -> list[Line]:
    """Every system at three sizes; eviction alone."""
    found = [make_line(system, slots) for system in SYSTEMS[:-1] for slots in SLOTS]
    return [*found, make_line("resident", "100%")]


@pytest.fixture
def full_lines(lines: list[Line]) -> list[Line]:
    """The same with a system that prefetches, other bandwidths, and an option."""
    more = [make_line("promoe", slots, prefetch=True) for slots in SLOTS]
    more += [
        make_line(name, "25%", scale, name == "promoe") for name in ("lru", "promoe") for scale in (0.5, 2.0)
    ]
    more += [make_line("promoe", "25%", prefetch=True, options={"threshold": x}) for x in (0.3, 0.8)]
    return lines + more


@pytest.fixture
def served_lines() -> list[Line]:
    """Three systems and a bound at two sizes and three counts of requests."""
    names = ("on-demand", "expected-next-use", "prophet", "belady")
    return [make_served(name, slots, n) for name in names for slots in ("25%", "50%") for n in (1, 4, 16)]


@pytest.fixture
def reports() -> list[dict[str, Any]]:
    """Two rounds of three systems, one and four at once."""
    names = ("on-demand", "expected-next-use", "prophet")
    return [make_report(name, n, scale) for scale in (1.0, 1.2) for name in names for n in (1, 4)]


@pytest.fixture
def timeline() -> Timeline:
    return read_timeline(make_timeline(), "toy.json")


@pytest.fixture(scope="session")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> TraceReader:
    """Eight sequences of two domains."""
    path = tmp_path_factory.mktemp("report") / "routes.safetensors"
    random = np.random.default_rng(0)
    with TraceWriter(path, model="toy", layers=3, experts_per_layer=8, top_k=2, phase=False) as writer:
        for number in range(8):
            experts = np.argsort(random.random((80, 3, 8)) * np.arange(1, 9) ** 0.5, axis=2)[:, :, :2]
            writer.append(experts, gate_probs=np.full(experts.shape, 0.5), token_id=np.zeros(80, np.int64))
            writer.end_sequence(label="code" if number % 2 else "</script><b>law")
    return TraceReader(path)


@pytest.fixture(scope="session")
def analysis(recorded: TraceReader) -> dict[str, Any]:
    """What prophet analyze --json prints."""
    found = analyze(recorded, Options(horizons=(1, 2), lags=(1, 4), shuffles=2, bootstrap=4))
    return dict(json.loads(json.dumps(found.to_dict())))


@pytest.fixture(scope="session")
def scored(recorded: TraceReader) -> dict[str, Any]:
    """What prophet score --json prints."""
    split = HeldOut("2", "2").split(recorded)
    recipe = Recipe(steps=2, windows=2, tokens=4, head_weights=(1, 1, 1))
    made = fit(recorded, split, recipe, options={"rank": 8, "heads": (1, 3, 8), "ahead": 2})
    report = {"predictor": "toy.safetensors"} | evaluate(made, recorded, split)
    return dict(json.loads(json.dumps(report)))


@pytest.fixture(scope="session")
def browser() -> Iterator[Callable[[int, bool], Any]]:
    """browser(width, dark) -> a Chromium of its own, as narrow as a phone or as wide as a desk."""
    opened: list[Any] = []

    def open_one(width: int, dark: bool) -> Any:
        opened.append(open_chromium(width, dark, offline=True))
        return opened[-1]

    yield open_one
    for one in opened:
        one.quit()


@pytest.fixture
def page(tmp_path: Path) -> Path:
    return tmp_path / "report.html"
