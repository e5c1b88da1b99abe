"""The tables that a CUDA library offers, and what is said of libraries that are not ours."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

import prophet_ext

OLD_TABLE = """
static const unsigned table[2] = {99, 8};
const void *prophet_cuda_api(void) { return table; }
"""


def test_exports(cuda_library: Path | None) -> None:
    if cuda_library is None:
        pytest.skip("a real device is in use; tests/house looks at its library")
    told = subprocess.run(
        ["nm", "-D", "--defined-only", str(cuda_library)], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in told.stdout.splitlines()}
    assert exported == {"prophet_cuda_api", "prophet_cuda_kernels", "prophet_emulation"}


@pytest.mark.parametrize(
    ("source", "words"),
    [(OLD_TABLE, "belongs to another release of Prophet (version 99"), ("int other;", "no prophet_cuda_api")],
)
def test_another_library(source: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = os.environ.get("CC") or shutil.which("cc") or shutil.which("gcc")
    assert compiler is not None, "the tests need the compiler that built Prophet"
    (tmp_path / "other.c").write_text(source)
    library = tmp_path / "libother.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, tmp_path / "other.c"], check=True)
    monkeypatch.setenv("PROPHET_CUDA_LIB", str(library))
    info = prophet_ext.cuda_info()
    assert not info["loaded"]
    assert info["devices"] == 0
    assert words in info["reason"]
    assert info["reason"].endswith(".")
