"""What nvcc made of the kernels, for every architecture that is shipped; no device is needed.

Budgets are bounds, not counts: a new compiler may move within them. Outside them something has changed that
a device would feel: spilled registers, narrow loads, a block that does not fit.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import emulated_cuda
import pytest

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURES = ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120")  # the order of occupancy.cc


@dataclass(frozen=True)
class Budget:
    """Bounds of one kernel, which is known by a part of its mangled name."""

    registers: int
    threads: int
    wide_loads: int = 0  # 16 bytes at a time, at least
    wide_stores: int = 0
    barriers: int = 0  # at least, and none where it is 0
    dynamic: int = 0  # bytes of shared memory, the most that a launch asks for
    blocks: int = 1  # beside each other on a multiprocessor, on every architecture


BUDGETS = {
    "7gate_up": Budget(128, 256, wide_loads=2, blocks=2),
    "11down_of_one": Budget(128, 256, wide_loads=1, blocks=2),
    "12down_of_many": Budget(128, 256, wide_loads=1, blocks=2),
    "7prepare": Budget(64, 256, barriers=3, blocks=3),
    "7combine": Budget(64, 256, blocks=4),
    "10dequantise": Budget(48, 256, wide_stores=1, blocks=4),
    "5top_k": Budget(128, 128, blocks=4),
    "7predict": Budget(128, 256, wide_loads=8, barriers=10, dynamic=(99 - 12) << 10),
    "5route": Budget(64, 128, barriers=2),
    "4seal": Budget(32, 256),
    "5image": Budget(32, 1),
}


@dataclass
class Kernel:
    registers: int
    shared: int
    stack: int
    local: int
    code: Counter[str]

    def count(self, opcode: str) -> int:
        return sum(n for name, n in self.code.items() if name.startswith(opcode))


def tool(name: str) -> Path:
    """cuobjdump or nvdisasm: the toolkit's, or the package's, which may lack its execute bit."""
    found = shutil.which(name)
    toolkit = emulated_cuda.toolkit()
    if found is None and toolkit and (toolkit / "bin" / name).exists():
        found = str(toolkit / "bin" / name)
    spec = importlib.util.find_spec("nvidia")
    for place in spec.submodule_search_locations or () if spec and found is None else ():
        found = next((str(p) for p in Path(place).glob(f"*/bin/{name}")), found)
    assert found, f"{name} is neither in the toolkit nor installed: pip install '.[test]'"
    if not os.access(found, os.X_OK):
        os.chmod(found, os.stat(found).st_mode | stat.S_IXUSR)
    return Path(found)


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """libprophet_cuda.so for all architectures, with warnings as errors."""
    toolkit = emulated_cuda.toolkit()
    if toolkit is None or not (toolkit / "bin" / "nvcc").exists():
        pytest.skip("no CUDA toolkit with nvcc here (set CUDA_HOME)")
    folder = tmp_path_factory.mktemp("machine_code")
    configure = [
        "cmake", "-S", str(ROOT), "-B", str(folder), "-G", "Ninja", "-DCMAKE_BUILD_TYPE=Release",
        "-DPROPHET_PYTHON=OFF", "-DPROPHET_CUDA=ON", "-DCMAKE_CUDA_FLAGS=-Werror all-warnings",
        f"-DCMAKE_CUDA_COMPILER={toolkit / 'bin' / 'nvcc'}",
    ]  # fmt: skip
    for command in (configure, ["cmake", "--build", str(folder), "--target", "prophet_cuda"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{' '.join(command)}\n{(done.stdout + done.stderr)[-8000:]}"
    return next(folder.rglob("libprophet_cuda.so"))


def dump(library: Path, *options: str) -> str:
    path = f"{tool('nvdisasm').parent}{os.pathsep}{os.environ['PATH']}"
    command = [str(tool("cuobjdump")), *options, str(library)]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, check=True, capture_output=True, text=True
    )
    return done.stdout


def parts(text: str, header: re.Pattern[str]) -> Iterator[tuple[str, str]]:
    """(name, what follows it) of every header."""
    pieces = header.split(text)
    yield from zip(pieces[1::2], pieces[2::2], strict=True)


# Offset, perhaps a predicate, opcode:   /*0a10*/   @!P0 LDG.E.128 R4, ...
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)")


@pytest.fixture(scope="module")
def kernels(library: Path) -> dict[str, dict[str, Kernel]]:
    """By architecture and mangled name."""
    made: dict[str, dict[str, Kernel]] = {}
    for arch in ARCHITECTURES:
        usage = dump(library, "-res-usage", "-arch", arch)
        code = dict(parts(dump(library, "-sass", "-arch", arch), re.compile(r"\s*Function : (\S+)")))
        made[arch] = {}
        for name, text in parts(usage, re.compile(r"Function (\S+):")):
            use = {key: int(n) for key, n in re.findall(r"([A-Z]+):(\d+)", text)}
            made[arch][name] = Kernel(
                use["REG"],
                use["SHARED"],
                use["STACK"],
                use["LOCAL"],
                Counter(INSTRUCTION.findall(code[name])),
            )
    return made


def budgeted(kernels: dict[str, dict[str, Kernel]]) -> Iterator[tuple[str, Kernel, Budget]]:
    for arch, of_arch in kernels.items():
        for name, kernel in of_arch.items():
            budget = next((b for part, b in BUDGETS.items() if part in name), None)
            assert budget, f"{name} has no budget: add it to BUDGETS"
            yield f"{name} on {arch}", kernel, budget


def test_there_is_code_for_every_architecture(library: Path) -> None:
    cubins, ptx = dump(library, "-lelf"), dump(library, "-lptx")
    missing = [arch for arch in ARCHITECTURES if f".{arch}.cubin" not in cubins]
    assert not missing
    assert f".{ARCHITECTURES[-1]}.ptx" in ptx, "newer devices need PTX of the newest architecture"


def test_every_budget_is_of_a_kernel(kernels: dict[str, dict[str, Kernel]]) -> None:
    for arch, of_arch in kernels.items():
        gone = [part for part in BUDGETS if not any(part in name for name in of_arch)]
        assert not gone, f"{arch} has no such kernel"


def test_nothing_is_spilled(kernels: dict[str, dict[str, Kernel]]) -> None:
    bad = [
        name
        for name, k, _ in budgeted(kernels)
        if k.stack or k.local or k.count("LDL") or k.count("STL") or not k.code
    ]
    assert not bad


def test_registers_stay_within_their_budget(kernels: dict[str, dict[str, Kernel]]) -> None:
    over = [f"{name}: {k.registers}" for name, k, b in budgeted(kernels) if k.registers > b.registers]
    assert not over


def test_memory_bound_kernels_move_sixteen_bytes_at_a_time(kernels: dict[str, dict[str, Kernel]]) -> None:
    narrow = [
        f"{name}: {k.count('LDG.E.128')} loads, {k.count('STG.E.128')} stores"
        for name, k, b in budgeted(kernels)
        if k.count("LDG.E.128") < b.wide_loads or k.count("STG.E.128") < b.wide_stores
    ]
    assert not narrow


def test_barriers_are_where_they_should_be(kernels: dict[str, dict[str, Kernel]]) -> None:
    wrong = [
        f"{name}: {k.count('BAR')}"
        for name, k, b in budgeted(kernels)
        if k.count("BAR") < b.barriers or (b.barriers == 0 and k.count("BAR") > 0)
    ]
    assert not wrong


def test_every_kernel_fits_on_every_architecture(
    kernels: dict[str, dict[str, Kernel]], tmp_path: Path
) -> None:
    program = tmp_path / "occupancy"
    source = Path(__file__).with_name("occupancy.cc")
    include = f"-isystem{emulated_cuda.toolkit()}/include"
    subprocess.run(["g++", "-std=c++20", "-w", include, str(source), "-o", str(program)], check=True)
    listed = list(budgeted(kernels))
    lines = "".join(f"{k.registers} {b.threads} {k.shared} {b.dynamic}\n" for _, k, b in listed)
    done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
    few = []
    for (name, _, budget), line in zip(listed, done.stdout.splitlines(), strict=True):
        blocks = int(line.split()[ARCHITECTURES.index(name.rsplit(" ", 1)[1])])
        if blocks < budget.blocks:
            few.append(f"{name}: {blocks} blocks, {budget.blocks} wanted")
    assert not few


def test_the_gate_sees_what_does_not_fit(tmp_path: Path) -> None:
    toolkit = emulated_cuda.toolkit()
    if toolkit is None:
        pytest.skip("no CUDA toolkit here (set CUDA_HOME)")
    program = tmp_path / "occupancy"
    source = Path(__file__).with_name("occupancy.cc")
    include = f"-isystem{toolkit}/include"
    subprocess.run(["g++", "-std=c++20", "-w", include, str(source), "-o", str(program)], check=True)
    cases = f"128 256 0 {126 << 10}\n255 1024 0 0\n"
    done = subprocess.run([program], input=cases, capture_output=True, text=True, check=True)
    large, wide = ([int(n) for n in line.split()] for line in done.stdout.splitlines())
    assert [n > 0 for n in large] == [True, False, False, True, False]
    assert not any(wide)
