"""Which files belong to the repository: what git tracks, plus new files it does not ignore."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOT_OURS = {".git", "build", "dist", ".venv"}


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture(scope="session")
def files() -> list[Path]:
    """Every file of the repository, relative to its root."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
        found = [Path(name) for name in listed if name]
    except (OSError, subprocess.CalledProcessError):  # an unpacked source archive
        found = [path.relative_to(ROOT) for path in ROOT.rglob("*")]
        found = [path for path in found if not NOT_OURS & set(path.parts)]
    return sorted(path for path in found if (ROOT / path).is_file())


@pytest.fixture(scope="session")
def texts(files: list[Path]) -> dict[Path, str]:
    """Every text file of the repository and what it says; binary files are left out."""
    found = {}
    for path in files:
        data = (ROOT / path).read_bytes()
        if b"\0" not in data[:4096] and path.suffix != ".safetensors":
            found[path] = data.decode("utf-8")
    return found
