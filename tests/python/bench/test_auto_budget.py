"""An auto budget under a memory limit: the limit is used, and nobody is killed for it."""

import sys
from pathlib import Path

import pytest
from compare import HERE
from control_group import ControlGroup, NoControlGroup
from limited import run_limited
from make_checkpoint import Shape, make_checkpoint

MIB = 1 << 20


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Qwen3-MoE of about 600 MB."""
    folder = tmp_path_factory.mktemp("auto") / "checkpoint"
    make_checkpoint(folder, Shape(layers=4, hidden=512, expert_width=384, experts=128))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("limit", [560 * MIB, 704 * MIB])
def test_a_prefill_of_the_whole_context_survives_the_limit(checkpoint: Path, limit: int) -> None:
    """The runner's context is 512 tokens; every slot is filled before the last step."""
    try:
        ControlGroup(64 * MIB).remove()
    except NoControlGroup as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    command = [sys.executable, str(HERE / "peers/run_prophet.py"), str(checkpoint)]
    record = run_limited(
        [*command, "--prompt-tokens", "500", "--steps", "8"], limit=limit, cold=[checkpoint], timeout=300
    )
    assert record["exit_status"] == 0, record
    assert record["oom_kills"] == 0
    report = record["result"]["report"]
    assert 8 <= report["expert_slots"] < report["experts_total"]
    # The limit is used: the arena and what cannot be dropped take most of it.
    assert record["peak_memory_bytes"] > 0.8 * limit
