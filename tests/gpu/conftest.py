"""The GPU suite runs on the emulated CUDA library, or with PROPHET_GPU=real on a real device.

`gpu` says which: None on a real one, else the emulated machine, new for every test. After each test
whatever it made on the device must be gone.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import emulated_cuda
import pytest

REAL = os.environ.get("PROPHET_GPU") == "real"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.gpu)


@pytest.fixture(scope="session")
def cuda_library(tmp_path_factory: pytest.TempPathFactory) -> Path | None:
    """The emulated library; None: what Prophet itself finds."""
    return None if REAL else emulated_cuda.build(tmp_path_factory.mktemp("cuda"))


@pytest.fixture(autouse=True)
def gpu(cuda_library: Path | None) -> Iterator[emulated_cuda.EmulatedCuda | None]:
    if cuda_library is None:
        yield None
        return
    with emulated_cuda.in_use(cuda_library) as machine:
        before = machine.live()
        yield machine
        gc.collect()
        machine.machine()
        assert machine.live() == before, "made on the device and not given back"


@pytest.fixture
def emulated(gpu: emulated_cuda.EmulatedCuda | None) -> emulated_cuda.EmulatedCuda:
    """For tests that need faults or another machine: they have nothing to do on a real device."""
    if gpu is None:
        pytest.skip("a real device is in use (PROPHET_GPU=real); this test changes the emulated one")
    return gpu
