"""A replay of a real run's own routing counts what the run counted."""

import dataclasses
from pathlib import Path

import pytest
import sim_vs_real

from prophet_moe.formats.packed import pack
from prophet_moe.models.inspect import inspect
from prophet_moe.sim.machine import Machine
from prophet_moe.sim.measure import DecodeTimes

MACHINE = Machine("a test", bytes_per_second=1e9, latency_ns=50_000, layer_ns=100_000, expert_ns=10_000)


@pytest.fixture(scope="module")
def packed(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(tiny, tmp_path_factory.mktemp("packed") / "model")


@pytest.mark.parametrize("system", sim_vs_real.SYSTEMS.split(","))
def test_hits_bytes_and_evictions_are_equal(packed: Path, system: str) -> None:
    info = inspect(str(packed))
    run = sim_vs_real.real_run(packed, system, "50%", [3, 17, 99, 4, 17, 230, 8, 8, 120, 61, 5, 200])
    assert run.routes.first.shape == (1, info.layers, info.top_k)
    assert run.routes.decoded.shape == (10, info.layers, info.top_k)
    assert len(run.steps_ms) == 10
    simulation = sim_vs_real.simulated(run.routes, run.report, MACHINE, info.experts_per_layer)
    found = sim_vs_real.compared([run, run], simulation, MACHINE)
    assert found["hits_equal"]
    assert found["bytes_equal"]
    assert found["evictions_equal"]
    assert found["misses"] > 0
    assert found["real_ms"]["step"] == pytest.approx(sum(run.steps_ms) / 10, abs=0.001)
    assert 0 < found["real_ms"]["stall"] < found["real_ms"]["step"]
    assert found["error"] == pytest.approx(
        found["simulated_ms"]["step"] / found["real_ms"]["step"] - 1, abs=0.01
    )
    other = dataclasses.replace(simulation.hits, miss=simulation.hits.miss + 1)
    wrong = sim_vs_real.compared([run], dataclasses.replace(simulation, hits=other), MACHINE)
    assert not wrong["hits_equal"]


def test_a_step_counts_by_its_quietest_round() -> None:
    assert sim_vs_real.least([[3.0, 9.0], [5.0, 1.0]]) == 2.0


def times(layer_ns: list[float], expert_ns: list[float], waited_ns: float = 0.0) -> DecodeTimes:
    return DecodeTimes(2, 1000, layer_ns, [layer + waited_ns for layer in layer_ns], expert_ns)


def test_the_quiet_machine_has_the_best_of_each() -> None:
    first = sim_vs_real.Measured(
        1e9, 5e4, times([100.0, 300.0], [9.0]), times([400.0, 400.0], [50.0], 45_000.0)
    )
    second = sim_vs_real.Measured(
        5e8, 4e4, times([200.0, 200.0], [8.0]), times([500.0, 380.0], [50.0], 45_000.0)
    )
    best = sim_vs_real.quiet([first, second])
    assert (best.bytes_per_second, best.latency_ns, best.layer_ns, best.expert_ns) == (1e9, 40_000, 150, 8)
    reading = 40_000 + 2 * 1000  # two experts at 1 GB/s
    assert best.wait_ns == 390 + 45_000 - 150 - reading
