"""The doctor's checks, on this machine and on machines that lack something."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

import prophet_ext
from prophet_moe import doctor, machine
from prophet_moe.doctor import Check

MIB = 1 << 20
SMALL = 8 * MIB


def by_name(checks: Iterator[Check]) -> dict[str, Check]:
    return {check.name: check for check in checks}


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MEASURE_SECONDS", 0.05)
    monkeypatch.setattr(doctor, "PROBE_BYTES", SMALL)


def test_this_machine(tmp_path: Path) -> None:
    steps: list[str] = []
    checks = list(doctor.examine(tmp_path, on_step=steps.append))
    names = [check.name for check in checks]
    for name in (
        "build",
        "kernels",
        "cores",
        "memory read",
        "memory",
        "locked memory",
        "file system",
        "disk read",
    ):
        assert name in names
    assert not [check for check in checks if check.level == "FAIL"]
    assert all(check.fix for check in checks if check.level != "ok")
    assert steps == ["libraries", "processor", "memory", "CUDA", "disk"]
    assert list(tmp_path.iterdir()) == []


def test_probe_file_is_removed_with_the_folders_made_for_it(tmp_path: Path) -> None:
    deep = tmp_path / "a" / "b"
    with doctor.probe_file(deep, SMALL) as file:
        assert file.stat().st_size == SMALL
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(RuntimeError), doctor.probe_file(deep, SMALL):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_measured_where_it_is_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "model"
    file.write_bytes(os.urandom(SMALL))
    checks = by_name(doctor.disk_checks(file, SMALL))
    assert "GB/s" in checks["disk read"].detail
    assert file.stat().st_size == SMALL


def test_little_memory_fails_with_the_fix() -> None:
    boxed = machine.Memory(8 << 30, 4 << 30, 100 * MIB, 50 * MIB)
    check = by_name(doctor.memory_checks(boxed))["memory"]
    assert check.level == "FAIL"
    assert "the cgroup allows 100 MiB" in check.detail
    assert "cgroup" in check.fix


@pytest.mark.parametrize(("kind", "level"), [("tmpfs", "warn"), ("nfs4", "warn"), ("ext4", "ok")])
def test_file_systems(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, level: str) -> None:
    monkeypatch.setattr(machine, "file_system", lambda _: machine.FileSystem(kind, "/x", "dev", 1 << 40))
    assert by_name(doctor.disk_checks(tmp_path, SMALL))["file system"].level == level


def test_a_full_disk_is_not_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "file_system", lambda _: machine.FileSystem("ext4", "/x", "dev", 10))
    checks = by_name(doctor.disk_checks(tmp_path, SMALL))
    assert checks["disk read"].level == "warn"
    assert "--path FILE" in checks["disk read"].fix


def test_a_slow_disk_warns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = {"bytes_per_second": 1e8, "seconds": 1.0, "bytes": 1e8, "p50_ms": 1.0, "p99_ms": 9.0}
    monkeypatch.setattr(prophet_ext, "read_bandwidth", lambda *_: slow)
    assert by_name(doctor.disk_checks(tmp_path, SMALL))["disk read"].level == "warn"


def test_io_uring_refused_and_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = prophet_ext.read_bandwidth

    def refuse(path: str, seconds: float, chunk: int, depth: int, io: str) -> Any:
        if io == "uring":
            raise prophet_ext.InvalidArgument("io_uring: operation not permitted")
        return real(path, seconds, chunk, depth, io)

    monkeypatch.setattr(prophet_ext, "read_bandwidth", refuse)
    monkeypatch.setattr(prophet_ext, "build_info", lambda: {"uring": "yes"})
    check = by_name(doctor.disk_checks(tmp_path, SMALL))["io_uring"]
    assert (check.level, "not permitted" in check.detail) == ("warn", True)
    monkeypatch.setattr(prophet_ext, "build_info", lambda: {"uring": "no"})
    assert "liburing" in by_name(doctor.disk_checks(tmp_path, SMALL))["io_uring"].fix


def test_versions_are_held_to_the_ranges() -> None:
    assert doctor._version(Requirement("torch>=2")).level == "ok"
    old = doctor._version(Requirement("torch>=999"))
    assert (old.level, old.fix) == ("FAIL", "pip install 'torch>=999'")
    assert doctor._version(Requirement("no-such-thing-here>=1")).detail == "not installed"


def test_a_check_that_breaks_is_a_failure_not_an_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> Any:
        raise prophet_ext.ProphetError("the probe fell over")

    monkeypatch.setattr(prophet_ext, "memory_bandwidth", broken)
    checks = by_name(doctor.examine(tmp_path))
    assert checks["processor"].level == "FAIL"
    assert checks["processor"].detail == "the probe fell over"
    assert "disk read" in checks


def test_the_last_line_says_what_to_do() -> None:
    good, bad = Check("ok", "a", ""), Check("FAIL", "b", "", "pip install b")
    assert doctor.next_step([good]) == "next: prophet demo"
    assert doctor.next_step([good, bad]) == "next: pip install b, then prophet doctor again"
    assert "warnings" in doctor.next_step([Check("warn", "c", "", "mend c")])
