"""The emulated library and the real one offer the same tables."""

import subprocess
from pathlib import Path

import pytest


def test_exports(cuda_library: Path | None) -> None:
    if cuda_library is None:
        pytest.skip("a real device is in use; tests/house looks at its library")
    told = subprocess.run(
        ["nm", "-D", "--defined-only", str(cuda_library)], capture_output=True, text=True, check=True
    )
    exported = {line.split()[-1] for line in told.stdout.splitlines()}
    assert exported == {"prophet_cuda_api", "prophet_cuda_kernels", "prophet_emulation"}
