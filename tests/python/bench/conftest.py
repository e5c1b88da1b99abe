"""The tools of bench/e2e are scripts, not a package: their folders join the module path."""

import sys
from pathlib import Path

import pytest

E2E = Path(__file__).resolve().parents[3] / "bench" / "e2e"
for folder in (E2E, E2E / "peers"):
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


@pytest.fixture(scope="session")
def e2e() -> Path:
    """The folder bench/e2e."""
    return E2E


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete checkpoint of 2 layers with 8 experts, under a megabyte."""
    from make_checkpoint import Shape, make_checkpoint

    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    shape = Shape(
        layers=2, hidden=64, experts=8, top_k=2, expert_width=32, heads=4, kv_heads=2, head_dim=16, vocab=300
    )
    make_checkpoint(folder, shape)
    return folder
