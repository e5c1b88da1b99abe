"""Whatever call of CUDA fails: the right answer or a sentence, nothing left behind, the next use works."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from emulated_cuda import EmulatedCuda
from numpy.typing import NDArray

import prophet_ext
from prophet_moe.errors import DeviceError, ProphetError, ReadError

LAYERS, EXPERTS, TOP_K, HIDDEN, INTER, SLOTS, TOKENS = 2, 5, 2, 16, 24, 4, 3
POOL = 1 << 26
PART = 4 * HIDDEN * INTER
OUT_OF_MEMORY, LAUNCH_FAILURE = 2, 719


class Scenario:
    """Two layers of experts in a file, computed for a few tokens, with more experts than slots."""

    def __init__(self, path: Path) -> None:
        random = np.random.default_rng(5)
        weights = random.standard_normal((LAYERS, EXPERTS, 3, PART // 4), np.float32) * 0.1
        weights.tofile(path)
        self.path = path
        self.pieces = np.zeros((LAYERS, EXPERTS, 3, 3), np.uint64)
        self.pieces[..., 1] = np.arange(LAYERS * EXPERTS * 3).reshape(LAYERS, EXPERTS, 3) * PART
        self.pieces[..., 2] = PART
        self.x = random.standard_normal((TOKENS, HIDDEN), np.float32)
        self.ids = np.stack([[random.permutation(EXPERTS)[:TOP_K] for _ in range(TOKENS)] for _ in range(8)])
        self.gates = np.full((TOKENS, TOP_K), 0.5, np.float32)

    def run(self, backend: str = "cuda") -> NDArray[np.float32]:
        """What the layers give, [steps, TOKENS, HIDDEN]."""
        given = np.zeros((len(self.ids), TOKENS, HIDDEN), np.float32)
        with prophet_ext.Engine(
            files=[str(self.path)], pieces=self.pieces, top_k=TOP_K, slots=SLOTS, threads=1,
            direct=False, backend=backend, pool_bytes=POOL if backend == "cuda" else 0,
        ) as engine:  # fmt: skip
            engine.set_ffn(
                hidden=HIDDEN, inter=INTER, dtype="f32", activation="silu", has_gate=True,
                gate=(0, 0), up=(1, 0), down=(2, 0),
            )  # fmt: skip
            for step, ids in enumerate(self.ids.astype(np.int64)):
                engine.forward(
                    step % LAYERS, TOKENS, self.x.ctypes.data, "f32", ids.ctypes.data,
                    self.gates.ctypes.data, "f32", given[step].ctypes.data, TOP_K,
                )  # fmt: skip
        return given


@pytest.fixture(scope="module")
def scenario(tmp_path_factory: pytest.TempPathFactory) -> Scenario:
    return Scenario(tmp_path_factory.mktemp("experts") / "experts.bin")


def test_the_scenario_is_right_when_nothing_fails(scenario: Scenario) -> None:
    np.testing.assert_allclose(scenario.run("cuda"), scenario.run("cpu"), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("code", [OUT_OF_MEMORY, LAUNCH_FAILURE])
def test_any_call_may_fail(emulated: EmulatedCuda, scenario: Scenario, code: int) -> None:
    expected = scenario.run("cpu")
    emulated.machine()
    scenario.run()
    calls, before = emulated.calls(), emulated.live()
    # Every call of the beginning, where most is made, and then a spread over the rest.
    beginning = range(1, min(calls, 60) + 1)
    rest = np.linspace(61, calls, 40, dtype=int).tolist() if calls > 60 else []
    raised: list[ProphetError] = []
    for n in [*beginning, *rest]:
        emulated.fail(f"*:{n}={code}")
        try:
            given = scenario.run()
        except (DeviceError, ReadError) as error:  # ReadError: the bytes of an expert did not arrive
            raised.append(error)
        else:
            np.testing.assert_allclose(given, expected, rtol=1e-4, atol=1e-6, err_msg=f"call {n}")
        emulated.machine()
        assert emulated.live() == before, f"call {n} of {calls} left something behind"
    assert len(raised) > 20, "most failures should be seen"
    assert all(str(error).endswith(".") for error in raised)
    np.testing.assert_allclose(scenario.run(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("machine", "words"),
    [
        ({"DRIVER": 0}, "No NVIDIA driver is installed"),
        ({"DRIVER": 11040}, "supports CUDA 11.4"),
        ({"IMAGE": 0, "CAPABILITY": "7.5"}, "CMAKE_CUDA_ARCHITECTURES=75"),
        ({"FAIL": "cudaMalloc:1=2"}, "out of memory"),
    ],
)
def test_what_a_machine_lacks(
    emulated: EmulatedCuda, scenario: Scenario, machine: dict[str, object], words: str
) -> None:
    emulated.machine(**machine)
    with pytest.raises(DeviceError, match=words):
        scenario.run()


def test_page_locking_refused_is_slower_and_right(emulated: EmulatedCuda, scenario: Scenario) -> None:
    expected = scenario.run("cpu")
    emulated.fail("cudaHostRegister:0=801")
    np.testing.assert_allclose(scenario.run(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_delays_change_nothing(emulated: EmulatedCuda, scenario: Scenario, seed: int) -> None:
    expected = scenario.run()
    emulated.machine(SEED=seed, LATENCY_US=50)
    assert np.array_equal(scenario.run(), expected)


def test_a_device_lost_in_the_middle_ends_the_run(emulated: EmulatedCuda, scenario: Scenario) -> None:
    emulated.machine(LATENCY_US=2000)
    told: list[BaseException] = []

    def run() -> None:
        try:
            scenario.run()
        except (DeviceError, ReadError) as error:
            told.append(error)

    thread = Thread(target=run)
    thread.start()
    while emulated.calls("cudaLaunchKernel") < 3:
        thread.join(0.001)
        assert thread.is_alive(), "it should still be at work"
    emulated.lose_device()
    thread.join(60)
    assert not thread.is_alive(), "a lost device must not hang anything"
    assert len(told) == 1
    assert "unspecified launch failure" in str(told[0])


def test_two_engines_share_a_device(scenario: Scenario) -> None:
    expected = scenario.run()
    with ThreadPoolExecutor(2) as pool:
        for given in pool.map(lambda _: scenario.run(), range(2)):
            assert np.array_equal(given, expected)
