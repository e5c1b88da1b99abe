"""Kernels under ThreadSanitizer, one fiber per CUDA thread; and that every barrier they have is needed.

The emulator is built without the sanitizer and in an object of its own, kernels with it: only what orders
memory on a device then orders it here (kernel_emulator.h).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import emulated_cuda
import pytest

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "tests" / "cuda_emulation"
KERNELS = ROOT / "csrc" / "kernels"
CASES = ("one_token", "experts", "int4", "top_k", "dequantise", "predict")
# The case that runs through the barriers of each file.
CASE_OF = {
    "expert_ffn_cuda.cu": "experts",
    "predictor_cuda.cu": "predict",
    "predictor_rows_cuda.cuh": "predict",
}
ORDER = re.compile(r"__sync(threads|warp)\(|__threadfence\(")


def places() -> list[str]:
    """file:line of every barrier and fence of those files."""
    return [
        f"{name}:{number}"
        for name in CASE_OF
        for number, line in enumerate((KERNELS / name).read_text().splitlines(), 1)
        if ORDER.search(line)
    ]


@pytest.fixture(scope="module")
def races(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if emulated_cuda.toolkit() is None:
        pytest.skip("no CUDA toolkit here: the kernel emulator needs its headers (set CUDA_HOME)")
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("no g++ here to build kernels with ThreadSanitizer")
    folder = tmp_path_factory.mktemp("races")
    flags = [
        compiler, "-std=c++20", "-O1", "-g1", "-fPIC", "-w", "-ffp-contract=off", "-DPROPHET_CUDA_EMULATED",
        f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'tests'}", f"-isystem{emulated_cuda.toolkit()}/include",
    ]  # fmt: skip

    def build(*more: object) -> None:
        command = [*flags, *map(str, more)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stderr[-4000:]}"

    emulator = [HERE / "fibers.cc", HERE / "kernel_emulator.cc", HERE / "immediate" / "launch.cc"]
    exports = f"-Wl,--version-script={HERE / 'races' / 'exports.map'}"
    build("-shared", *emulator, exports, "-o", folder / "libemulator.so")
    sources = [*sorted(KERNELS.glob("*_cuda.cu")), HERE / "races" / "kernel_races.cc"]
    link = [f"-L{folder}", "-lemulator", f"-Wl,-rpath,{folder}"]
    build("-fsanitize=thread", "-x", "c++", *sources, "-x", "none", *link, "-o", folder / "kernel_races")
    return folder / "kernel_races"


def found(program: Path, case: str, without: str, seeds: int) -> int:
    """Under how many of the seeds a race was found."""
    done = subprocess.run(
        [program, case, without, str(seeds)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "TSAN_OPTIONS": "symbolize=0:history_size=0"},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return int(done.stdout.split()[-1])


@pytest.mark.parametrize("case", CASES)
def test_kernels_have_no_race(races: Path, case: str) -> None:
    assert found(races, case, "none", 2) == 0


@pytest.mark.parametrize("place", places())
def test_a_dropped_barrier_is_a_race(races: Path, place: str) -> None:
    assert found(races, CASE_OF[place.split(":")[0]], place, 1) == 1, f"{place} could go unnoticed"


@pytest.mark.parametrize("file", ["expert_ffn_cuda.cu", "predictor_rows_cuda.cuh"])
def test_a_dropped_barrier_is_found_by_every_schedule(races: Path, file: str) -> None:
    first = next(place for place in places() if place.startswith(file))
    assert found(races, CASE_OF[file], first, 20) == 20


def test_every_kernel_with_a_barrier_is_run() -> None:
    ordered = {p.name for p in KERNELS.glob("*_cuda.cu*") if "__syncthreads(" in p.read_text()}
    assert ordered == {*CASE_OF, "hit_path_cuda.cu"}  # that one waits for a host: tests/csrc/engine
