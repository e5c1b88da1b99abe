"""The rule about skips holds: an unexpected one fails the run, an expected one does not."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("strict", "reason", "code"),
    [
        ("1", "liburing is not installed", pytest.ExitCode.TESTS_FAILED),
        ("0", "liburing is not installed", pytest.ExitCode.OK),
        ("1", "no GPU here", pytest.ExitCode.OK),
    ],
)
@pytest.mark.parametrize("where", ["test", "module"])
def test_unexpected_skips_fail(tmp_path: Path, strict: str, reason: str, code: int, where: str) -> None:
    (tmp_path / "conftest.py").write_text((ROOT / "tests" / "conftest.py").read_text())
    inside = f"    pytest.skip({reason!r})\n"
    module = f"pytest.skip({reason!r}, allow_module_level=True)\n" if where == "module" else ""
    (tmp_path / "test_a.py").write_text(f"import pytest\n{module}def test_it():\n{inside}")
    (tmp_path / "test_b.py").write_text("def test_passes():\n    pass\n")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, str(tmp_path)],
        env={**os.environ, "PROPHET_STRICT_SKIPS": strict},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert (reason in done.stdout) or code == pytest.ExitCode.OK
