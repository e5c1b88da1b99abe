"""Result lines made up to have every outcome, and a real browser."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chromium import open_chromium

from prophet_moe.analysis import Options, analyze
from prophet_moe.formats.trace import TraceReader, TraceWriter
from prophet_moe.predict.evaluate import evaluate
from prophet_moe.predict.fit import fit
from prophet_moe.predict.held_out import HeldOut
from prophet_moe.predict.train import Recipe
from prophet_moe.sim.results import VERSION, Line

SLOTS = {"25%": 24, "50%": 48, "75%": 72}
SYSTEMS = ("on-demand", "lru", "expected-next-use", "prophet", "belady", "resident")


def make_line(system: str, slots: str, scale: float = 1.0, prefetch: bool = False, **changes: Any) -> Line:
    """A consistent line of 1000 tokens, 4 layers of 24 experts, top-2; `changes` replace keys."""
    place = SYSTEMS.index(system) if system in SYSTEMS else 1
    share = SLOTS.get(slots, 96) / 96
    asked = 1000 * 4 * 2
    rate = {"on-demand": 1.0, "resident": 0.0}.get(system, (1 - share) / (1 + place))
    misses = round(asked * rate)
    late = misses // 10 if prefetch else 0
    used = misses // 5 if prefetch else 0
    tpot = 2.0 + 10.0 * rate / scale
    line: Line = {
        "model": "toy", "backend": "sim", "system": system, "exact": None, "budget_bytes": 10**9,
        "expert_slots": SLOTS.get(slots, 96), "experts_total": 96, "expert_bytes": 10**6, "prompt_tokens": 0,
        "new_tokens": 1000, "token_ids": [], "text": None, "ttft_ms": None,
        "tpot_ms": {"mean": tpot, "p50": tpot, "p90": tpot * 1.2, "p99": tpot * 1.5, "p999": tpot * 2},
        "bytes": {"demand": misses * 10**6, "prefetch_used": used * 10**6, "prefetch_late": late * 10**6,
                  "prefetch_wasted": used * 10**5, "cancelled": 0, "unused": 0,
                  "per_token": misses * 10**3 + used * 1100.0},
        "hits": {"resident": asked - misses - late, "in_flight": late, "miss": misses},
        "stall_ms": {"total": 1000 * (tpot - 2.0), "p50": tpot - 2.0, "p99": tpot},
        "overlap_fraction": 0.25, "link_busy_fraction": 0.5,
        "evictions": misses, "evicted_before_use": used // 9, "foresight": None,
        "peak_rss_bytes": None, "results_version": VERSION, "cell": f"{system}-{slots}-{scale}-{prefetch}",
        "trace": "toy.safetensors", "machine": "rtx4090-pcie4", "slots": slots, "weights": "bf16",
        "lane": "link",
        "link_scale": scale, "pool": "global", "cold": False, "sequences": 3, "held_out": None,
        "predictor": "toy.safetensors" if system == "prophet" else None, "predictor_seen": None,
        "serving": None, "options": {},
        "times": {"name": "rtx4090-pcie4", "bytes_per_second": 25e9 * scale, "latency_ns": 0,
                  "overhead_ns": 0,
                  "chunk_bytes": 1 << 20, "pass_ns": 0, "layer_ns": 250_000, "layer_token_ns": 0,
                  "expert_ns": 125_000, "expert_token_ns": 0},
        "resident_ms": 2.0, "fits": slots != "75%", "accesses": asked,
        "layer_misses": [misses // 4] * 4, "flops_per_token": 1e9,
        "domains": {
            name: {"tokens": 500, "decode_ns": 500 * int(tpot * 1e6), "bytes_moved": misses * 10**6 // 2,
                   "hits_resident": (asked - misses) // 2 + shift, "hits_in_flight": 0,
                   "misses": misses // 2 - shift}
            for name, shift in (("code", 0), ("</script><b>law", min(40, misses // 4)))
        },
        "wall_s": 0.1,
    }  # fmt: skip
    return line | {"cell": line["cell"] + repr(sorted(changes.items()))} | changes


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
