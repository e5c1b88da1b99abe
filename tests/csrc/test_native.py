"""The C++ tests, built by CMake and run room by room; under sanitizers with `-m sanitize`."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import emulated_cuda
import pytest

ROOT = Path(__file__).resolve().parents[2]
ROOMS = sorted({path.parent.name for path in (ROOT / "tests" / "csrc").glob("*/*_test.cc")})
JOBS = str(len(os.sched_getaffinity(0)))
SANITIZERS = {
    "address,undefined": {
        "ASAN_OPTIONS": "detect_leaks=1",
        "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1",
    },
    "thread": {"TSAN_OPTIONS": "halt_on_error=1"},
}


def have_gtest(folder: Path) -> bool:
    """Whether CMake finds GoogleTest here."""
    (folder / "CMakeLists.txt").write_text(
        "cmake_minimum_required(VERSION 3.24)\nproject(probe CXX)\nfind_package(GTest REQUIRED)\n"
    )
    done = subprocess.run(
        ["cmake", "-S", str(folder), "-B", str(folder / "build"), "-G", "Ninja"], capture_output=True
    )
    return done.returncode == 0


def run(command: list[str], *, env: dict[str, str] | None = None, limit: float) -> str:
    """What the command prints; fails the test if the command does."""
    done = subprocess.run(
        command, env={**os.environ, **(env or {})}, capture_output=True, text=True, timeout=limit
    )
    said = (done.stdout + done.stderr)[-8000:]
    assert done.returncode == 0, f"{' '.join(command)} exited with {done.returncode}\n{said}"
    return done.stdout


def build(folder: Path, sanitizer: str = "") -> Path:
    """Configures and builds all C++ tests in `folder`."""
    for tool in ("cmake", "ninja"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not on PATH: pip install '.[test]'")
    (folder / "probe").mkdir()
    if not have_gtest(folder / "probe"):
        pytest.skip("GoogleTest was not found (Debian: apt-get install libgtest-dev libgmock-dev)")
    run(
        [
            "cmake", "-S", str(ROOT), "-B", str(folder / "build"), "-G", "Ninja",
            "-DPROPHET_TESTS=ON", "-DPROPHET_PYTHON=OFF", f"-DPROPHET_SANITIZE={sanitizer}",
            "-DPROPHET_CUDA=OFF", f"-DPROPHET_CUDA_EMULATION={'ON' if emulated_cuda.toolkit() else 'OFF'}",
            f"-DCMAKE_BUILD_TYPE={'RelWithDebInfo' if sanitizer else 'Release'}",
            *os.environ.get("CMAKE_ARGS", "").split(),
        ],
        limit=300,
    )  # fmt: skip
    run(["cmake", "--build", str(folder / "build"), "--parallel", JOBS], limit=1800)
    return folder / "build"


def run_room(folder: Path, room: str, env: dict[str, str] | None = None) -> None:
    """Runs one room's tests; if some skip themselves, the room shows as a skip with their reasons."""
    said = run([str(folder / f"{room}_test"), "--gtest_brief=1"], env=env, limit=900)
    ran = re.search(r"^\[=+\] (\d+) tests? from", said, re.MULTILINE)
    assert ran is not None, said
    assert int(ran[1]) > 0, f"{room}_test ran no test"
    if skips := re.findall(r": Skipped\n(.+)", said):
        reasons = "; ".join(sorted(set(skips)))
        pytest.skip(f"{len(skips)} of {ran[1]} C++ tests of {room} skipped, the others passed: {reasons}")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("native"))


@pytest.fixture(scope="module", params=SANITIZERS)
def sanitized(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    return build(tmp_path_factory.mktemp("sanitized"), request.param), request.param


@pytest.mark.parametrize("room", ROOMS)
def test_room(plain: Path, room: str) -> None:
    run_room(plain, room)


@pytest.mark.sanitize
@pytest.mark.parametrize("room", ROOMS)
def test_room_under_sanitizer(sanitized: tuple[Path, str], room: str) -> None:
    folder, sanitizer = sanitized
    run_room(folder, room, SANITIZERS[sanitizer])


def test_every_room_with_code_has_tests() -> None:
    with_code = {path.parent.name for path in (ROOT / "csrc").glob("*/*.cc")} - {"bindings"}
    assert with_code <= set(ROOMS), f"no tests/csrc/ROOM/*_test.cc for {sorted(with_code - set(ROOMS))}"
