"""What the machine says of itself, on machines made of files."""

import mmap
import os
from pathlib import Path

import pytest

from prophet_moe import machine

GIB = 1 << 30


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    root = tmp_path / "proc"
    write(root / "meminfo", "MemTotal:  16777216 kB\nMemFree: 1 kB\nMemAvailable:  8388608 kB\n")
    return root


def test_without_groups_there_is_no_limit(proc: Path, tmp_path: Path) -> None:
    found = machine.memory(proc, tmp_path / "none")
    assert found == machine.Memory(16 * GIB, 8 * GIB, None, None)
    assert found.free_to_use == 8 * GIB


def test_version_1_limit_counts_droppable_cache_as_free(proc: Path, tmp_path: Path) -> None:
    write(proc / "self/cgroup", "4:memory:/box/inner\n0::/\n")
    group = tmp_path / "cg/memory/box/inner"
    write(group / "memory.limit_in_bytes", str(2 * GIB))
    write(group / "memory.usage_in_bytes", str(GIB))
    write(
        group / "memory.stat",
        f"inactive_file 7\ntotal_inactive_file {GIB // 4}\ntotal_active_file {GIB // 4}\n",
    )
    write(tmp_path / "cg/memory/memory.limit_in_bytes", str(2**63 - 4096))
    write(tmp_path / "cg/memory/memory.usage_in_bytes", "1")
    found = machine.memory(proc, tmp_path / "cg")
    assert (found.limit, found.used) == (2 * GIB, GIB // 2)
    assert found.free_to_use == 2 * GIB - GIB // 2


def test_version_2_takes_the_tightest_ancestor(proc: Path, tmp_path: Path) -> None:
    write(proc / "self/cgroup", "0::/a/b\n")
    for folder, limit, used in (("a/b", "max", "5"), ("a", str(GIB), str(GIB // 2))):
        write(tmp_path / "cg" / folder / "memory.max", limit)
        write(tmp_path / "cg" / folder / "memory.current", used)
    found = machine.memory(proc, tmp_path / "cg")
    assert (found.limit, found.used) == (GIB, GIB // 2)


def test_a_group_seen_from_inside_a_container(proc: Path, tmp_path: Path) -> None:
    """The path of /proc/self/cgroup is the host's; only the root of the mount can be seen."""
    write(proc / "self/cgroup", "0::/../../kubepods/pod1\n")
    write(tmp_path / "cg/memory.max", str(GIB))
    write(tmp_path / "cg/memory.current", "0")
    assert machine.memory(proc, tmp_path / "cg").limit == GIB


def test_file_pages_of_the_process_are_told(proc: Path, tmp_path: Path) -> None:
    write(proc / "self/cgroup", "0::/x\n")
    write(proc / "self/status", "VmRSS:\t 900 kB\nRssAnon:\t 700 kB\nRssFile:\t 200 kB\n")
    assert machine.memory(proc, tmp_path / "cg").mapped == 200 << 10
    assert 0 < machine.memory().mapped < machine.rss()


def test_garbage_in_the_files_is_no_limit(proc: Path, tmp_path: Path) -> None:
    write(proc / "self/cgroup", "nonsense\n\n9:memory\n0::/x\n")
    write(tmp_path / "cg/x/memory.max", "a lot")
    write(tmp_path / "cg/x/memory.current", "")
    assert machine.memory(proc, tmp_path / "cg").limit is None


@pytest.mark.parametrize(
    ("quota", "cores"), [("100000 100000", 1), ("150000 100000", 2), ("max 100000", None), ("1 0", None)]
)
def test_quota_limits_cores(proc: Path, tmp_path: Path, quota: str, cores: int | None) -> None:
    write(proc / "self/cgroup", "0::/x\n")
    write(tmp_path / "cg/x/cpu.max", quota)
    allowed = len(os.sched_getaffinity(0))
    assert machine.cpu_count(proc, tmp_path / "cg") == (allowed if cores is None else min(cores, allowed))


def test_version_1_quota(proc: Path, tmp_path: Path) -> None:
    write(proc / "self/cgroup", "2:cpu,cpuacct:/\n")
    write(tmp_path / "cg/cpu/cpu.cfs_quota_us", "100000")
    write(tmp_path / "cg/cpu/cpu.cfs_period_us", "100000")
    assert machine.cpu_count(proc, tmp_path / "cg") == 1


def test_rss_follows_what_is_touched() -> None:
    machine.return_free_memory()  # what other tests left on the heap, so that only the block counts
    before = machine.rss()
    with mmap.mmap(-1, 64 << 20) as block:  # not from the heap, which may have free pages
        for at in range(0, 64 << 20, 1 << 20):
            block[at : at + (1 << 20)] = b"x" * (1 << 20)
        assert machine.rss() - before > 48 << 20
        assert machine.peak_rss() >= machine.rss()
    machine.return_free_memory()
    assert machine.reset_peak_rss()
    assert machine.peak_rss() < before + (48 << 20)


def test_library_caches_are_bounded_unless_the_user_chose(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    monkeypatch.setenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "1")
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    machine.bound_library_memory()
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
    assert int(os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"]) < 1024


def test_file_system_is_the_longest_mount(tmp_path: Path) -> None:
    deep = tmp_path / "with space" / "deep"
    deep.mkdir(parents=True)
    shown = str(deep.parent).replace(" ", "\\040")
    write(
        tmp_path / "proc/self/mountinfo",
        f"1 0 8:1 / / rw - ext4 /dev/sda rw\n2 1 8:2 / {shown} rw,x shared:1 - xfs /dev/sdb rw\nbroken\n",
    )
    found = machine.file_system(deep / "not" / "there", tmp_path / "proc")
    assert (found.kind, found.mount, found.device) == ("xfs", str(deep.parent), "/dev/sdb")
    assert found.free > 0
