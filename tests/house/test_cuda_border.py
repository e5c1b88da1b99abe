"""Nothing but the CUDA library knows CUDA; the library itself needs nothing that a machine may lack."""

import re
import subprocess
from pathlib import Path

import pytest

import prophet_ext

MODULE = Path(prophet_ext.__file__)
LIBRARY = MODULE.with_name("libprophet_cuda.so")
CUDA_SYMBOL = re.compile(r"^(cuda[A-Z]|cu[A-Z]|__cuda)")
CUDA_LIBRARY = re.compile(r"lib(cuda|cublas|nvrtc|nv)")


def symbols(path: Path, which: str) -> set[str]:
    """Dynamic symbols: --undefined-only or --defined-only."""
    told = subprocess.run(["nm", "-D", which, str(path)], capture_output=True, text=True, check=True)
    return {line.split()[-1].split("@")[0] for line in told.stdout.splitlines()}


def needed(path: Path) -> set[str]:
    told = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True)
    return set(re.findall(r"\(NEEDED\).*\[(.+)\]", told.stdout))


@pytest.fixture
def library() -> Path:
    if not LIBRARY.exists():
        pytest.skip("no CUDA toolkit was found when this build was made: there is no libprophet_cuda.so")
    return LIBRARY


def test_the_module_knows_no_cuda() -> None:
    assert not {name for name in symbols(MODULE, "--undefined-only") if CUDA_SYMBOL.match(name)}
    assert not {name for name in needed(MODULE) if CUDA_LIBRARY.match(name)}


def test_the_check_itself_sees_cuda() -> None:
    assert CUDA_SYMBOL.match("cudaMalloc")
    assert CUDA_SYMBOL.match("cuInit")
    assert CUDA_LIBRARY.match("libcudart.so.13")


def test_the_library_carries_its_runtime_and_exports_two_tables(library: Path) -> None:
    assert not {name for name in needed(library) if CUDA_LIBRARY.match(name)}
    assert not {name for name in symbols(library, "--undefined-only") if CUDA_SYMBOL.match(name)}
    assert symbols(library, "--defined-only") == {"prophet_cuda_api", "prophet_cuda_kernels"}


def test_the_library_loads_whatever_the_machine(library: Path) -> None:
    info = prophet_ext.cuda_info()
    if info["library"] != str(library):
        pytest.skip("a real device is in use by another library (PROPHET_CUDA_LIB)")
    assert info["loaded"], info["reason"]
    assert (info["devices"] > 0) == (info["reason"] == "")
    assert info["devices"] > 0 or info["reason"].endswith(".")
