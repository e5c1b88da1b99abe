"""Where a control group is made and what is read from it, on texts and folders of both versions."""

from pathlib import Path

import pytest
from control_group import ControlGroup, Hierarchies, NoControlGroup, find_hierarchies

V1 = "33 24 0:29 {root} {point} rw,relatime - cgroup cgroup rw,memory\n"
V2 = "34 24 0:30 {root} {point} rw,relatime shared:9 - cgroup2 cgroup2 rw,nsdelegate\n"
OTHER = "25 1 254:0 / / rw - ext4 /dev/vda rw\n36 24 0:31 / /elsewhere rw - cgroup cgroup rw,cpu,cpuacct\n"


def unified(folder: Path, children_get: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cgroup.controllers").write_text("cpu io memory\n")
    (folder / "cgroup.subtree_control").write_text(children_get)


def test_version_1_is_found_below_our_own_group(tmp_path: Path) -> None:
    (tmp_path / "user" / "me").mkdir(parents=True)
    mounts = OTHER + V1.format(root="/", point=tmp_path)
    found = find_hierarchies(mounts, "9:cpu,cpuacct:/x\n4:memory:/user/me\n0::/\n")
    assert found == Hierarchies(None, tmp_path / "user" / "me")


def test_a_container_sees_a_part_of_the_tree(tmp_path: Path) -> None:
    (tmp_path / "job").mkdir()
    mounts = V1.format(root="/docker/abc", point=tmp_path)
    assert find_hierarchies(mounts, "4:memory:/docker/abc/job\n").memory == tmp_path / "job"
    assert find_hierarchies(mounts, "4:memory:/docker/abc\n").memory == tmp_path
    assert find_hierarchies(mounts, "4:memory:/docker/abcjob\n").memory == tmp_path
    assert find_hierarchies(mounts, "4:memory:/other/place\n").memory == tmp_path


def test_version_2_climbs_to_a_group_that_hands_the_controller_on(tmp_path: Path) -> None:
    unified(tmp_path, "cpu io memory")
    unified(tmp_path / "user.slice", "cpu memory pids\n")
    unified(tmp_path / "user.slice" / "session", "")
    found = find_hierarchies(V2.format(root="/", point=tmp_path), "0::/user.slice/session\n")
    assert found == Hierarchies(tmp_path / "user.slice", None)


def test_a_hybrid_machine_keeps_memory_in_version_1(tmp_path: Path) -> None:
    unified(tmp_path / "unified", "")
    (tmp_path / "memory").mkdir()
    mounts = V2.format(root="/", point=tmp_path / "unified")
    mounts += V1.format(root="/", point=tmp_path / "memory")
    found = find_hierarchies(mounts, "4:memory:/\n0::/\n")
    assert found == Hierarchies(None, tmp_path / "memory")


def test_no_controller_gets_a_sentence_with_a_way_out() -> None:
    found = find_hierarchies(OTHER, "9:cpu,cpuacct:/\n")
    assert found == Hierarchies(None, None)
    with pytest.raises(NoControlGroup, match=r"systemd-run --scope .*--limit none"):
        ControlGroup(1 << 30, hierarchies=found)


def test_a_place_that_cannot_be_written_gets_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(NoControlGroup, match="Run as root"):
        ControlGroup(1 << 30, hierarchies=Hierarchies(None, tmp_path / "file"))


def test_version_2_is_limited_and_read(tmp_path: Path) -> None:
    group = ControlGroup(1 << 30, hierarchies=Hierarchies(tmp_path, None))
    assert (group.folder / "memory.max").read_text() == str(1 << 30)
    assert group.usage() == {"peak_memory_bytes": None, "oom_kills": None}
    (group.folder / "memory.peak").write_text("123456\n")
    (group.folder / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n")
    assert group.usage() == {"peak_memory_bytes": 123456, "oom_kills": 1}


def test_version_1_is_limited_and_read(tmp_path: Path) -> None:
    group = ControlGroup(1 << 30, hierarchies=Hierarchies(None, tmp_path))
    assert (group.folder / "memory.limit_in_bytes").read_text() == str(1 << 30)
    (group.folder / "memory.max_usage_in_bytes").write_text("777\n")
    (group.folder / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert group.usage() == {"peak_memory_bytes": 777, "oom_kills": 3}
