"""The emulated CUDA library for Python tests: built once, asked and changed through its own table."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = ("device", "pinned", "stream", "event", "graph")
DEFAULTS = {
    "DEVICES": "1", "DRIVER": "99000", "CAPABILITY": "8.0", "IMAGE": "1", "MEMORY_MB": "1024",
    "PINNED_MB": "65536", "GBPS": "0", "LATENCY_US": "0", "FAIL": "",
    "SEED": os.environ.get("PROPHET_EMULATED_SEED", "0"),
}  # fmt: skip


def toolkit() -> Path | None:
    """A folder with CUDA's headers, found as csrc/cuda.cmake finds it."""
    for place in (os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"):
        if place and (Path(place) / "include" / "cuda_runtime_api.h").exists():
            return Path(place)
    return None


def build(folder: Path) -> Path:
    """libprophet_cuda_emulated.so, built in `folder`; skips the test where a toolkit's headers are missing.

    PROPHET_EMULATED_LIBRARY names one that is built already.
    """
    if ready := os.environ.get("PROPHET_EMULATED_LIBRARY"):
        return Path(ready)
    if toolkit() is None:
        pytest.skip("no CUDA toolkit here: the emulated library needs its headers (set CUDA_HOME)")
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH: pip install '.[test]'")
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DPROPHET_PYTHON=OFF", "-DPROPHET_CUDA=OFF", "-DPROPHET_CUDA_EMULATION=ON",
    ]  # fmt: skip
    jobs = str(len(os.sched_getaffinity(0)))
    for command in (
        configure,
        ["cmake", "--build", str(folder), "--target", "prophet_cuda_emulated", "--parallel", jobs],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{' '.join(command)}\n{(done.stdout + done.stderr)[-8000:]}"
    return folder / "tests" / "cuda_emulation" / "libprophet_cuda_emulated.so"


class _Table(ctypes.Structure):
    _fields_ = (
        ("version", ctypes.c_uint32),
        ("size", ctypes.c_uint32),
        ("set", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_char_p, ctypes.c_char_p)),
        ("lose_device", ctypes.CFUNCTYPE(None, ctypes.c_int)),
        ("revive", ctypes.CFUNCTYPE(None)),
        ("calls", ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_char_p)),
        ("live", ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_char_p)),
        ("reachable", ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64)),
    )


class EmulatedCuda:
    """tests/cuda_emulation/control.h, in Python."""

    def __init__(self, library: Path) -> None:
        self.library = library
        loaded = ctypes.CDLL(str(library))
        loaded.prophet_emulation.restype = ctypes.POINTER(_Table)
        self._table = loaded.prophet_emulation().contents
        assert self._table.version == 1
        assert self._table.size == ctypes.sizeof(_Table)

    def machine(self, **changes: object) -> None:
        """A machine as by default but for these settings (tests/cuda_emulation/settings.h), newly started."""
        unknown = changes.keys() - DEFAULTS.keys()
        assert not unknown, f"no such settings: {sorted(unknown)}"
        for name, value in {**DEFAULTS, **changes}.items():
            assert self._table.set(name.encode(), str(value).encode()) == 1
        self._table.revive()

    def fail(self, rules: str) -> None:
        """From now on, counting anew: "cudaMalloc:3=2" makes the third cudaMalloc return 2."""
        self.machine(FAIL=rules)

    def lose_device(self, code: int = 719) -> None:
        self._table.lose_device(code)

    def calls(self, name: str = "") -> int:
        """Calls by CUDA's name since machine(); all of them without a name."""
        return int(self._table.calls(name.encode()))

    def live(self) -> dict[str, int]:
        """What was made and not given back."""
        return {kind: int(self._table.live(kind.encode())) for kind in KINDS}


@contextmanager
def in_use(library: Path) -> Iterator[EmulatedCuda]:
    """PROPHET_CUDA_LIB names the library; a fresh machine."""
    before = os.environ.get("PROPHET_CUDA_LIB")
    os.environ["PROPHET_CUDA_LIB"] = str(library)
    emulated = EmulatedCuda(library)
    emulated.machine()
    try:
        yield emulated
    finally:
        emulated.machine()
        if before is None:
            del os.environ["PROPHET_CUDA_LIB"]
        else:
            os.environ["PROPHET_CUDA_LIB"] = before
