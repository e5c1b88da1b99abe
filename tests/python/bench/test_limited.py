"""Commands under a limit: what is recorded, what is refused, and that nobody else is touched."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from control_group import ControlGroup, NoControlGroup
from limited import Record, last_object, run_limited
from page_cache import cached_bytes, evict, files_of

MIB = 1 << 20


def python(code: str, **options: object) -> Record:
    return run_limited([sys.executable, "-c", code], **{"limit": None, "timeout": 60, **options})


@pytest.fixture
def big(tmp_path: Path) -> Path:
    """A file of 8 MiB that the page cache holds."""
    path = tmp_path / "big"
    path.write_bytes(os.urandom(8 * MIB))
    evict(path)
    if cached_bytes(path):
        pytest.skip("the folder for temporary files keeps its pages (a tmpfs: no eviction, no O_DIRECT)")
    path.read_bytes()
    return path


@pytest.fixture
def limit() -> Iterator[int]:
    try:
        ControlGroup(64 * MIB).remove()
    except NoControlGroup as error:
        pytest.skip(f"no memory cgroup can be made here: {error}")
    return 64 * MIB


def test_eviction_empties_the_page_cache(big: Path) -> None:
    assert cached_bytes(big) == 8 * MIB
    evict(big)
    assert cached_bytes(big) == 0
    with big.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)  # no read-ahead
        os.pread(file.fileno(), 4096, MIB)
    assert cached_bytes(big) == 4096


def test_an_empty_file_has_no_pages(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    evict(tmp_path / "empty")
    assert cached_bytes(tmp_path / "empty") == 0


def test_files_to_evict_are_found_or_named(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()
    (tmp_path / "b").touch()
    assert list(files_of([tmp_path / "a", tmp_path / "b"])) == [tmp_path / "a" / "x", tmp_path / "b"]
    with pytest.raises(FileNotFoundError, match="gone does not exist"):
        list(files_of([tmp_path / "gone"]))


def test_the_command_reads_from_the_device_what_was_evicted(big: Path) -> None:
    record = python(f"open({str(big)!r}, 'rb').read()", cold=[big])
    assert record["evicted_bytes"] == 8 * MIB
    assert record["still_cached_bytes"] == 0
    assert record["process_read_bytes"] >= 8 * MIB
    warm = python(f"open({str(big)!r}, 'rb').read()")
    assert warm["process_read_bytes"] < 8 * MIB


def test_the_last_object_is_the_result() -> None:
    record = python("print('{\"a\": 1}'); print('{\"a\": 2}'); print('[3]'); print('done')")
    assert record["exit_status"] == 0
    assert record["result"] == {"a": 2}
    assert record["limit_bytes"] is None
    assert record["oom_kills"] is None


def test_output_need_not_be_text() -> None:
    record = python("import sys; sys.stdout.buffer.write(bytes(range(256)) + b'\\n{\"ok\": true}\\n')")
    assert record["result"] == {"ok": True}


@pytest.mark.parametrize("text", ["", "3\n", "nothing", "{broken", "[1]\n"])
def test_no_object_is_none(text: str) -> None:
    assert last_object(text) is None


def test_failure_is_recorded_not_raised() -> None:
    assert python("raise SystemExit(7)")["exit_status"] == 7


def test_time_runs_out_for_the_command_and_what_it_started(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import os, signal, subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'])\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid))\n"
        "signal.pause()\n"
    )
    record = python(code, timeout=3)
    assert record["timed_out"]
    assert record["exit_status"] == -9
    with pytest.raises(ProcessLookupError):
        _reaped(int(pids.read_text()))


def _reaped(pid: int) -> None:
    """Raises ProcessLookupError when the process is gone or only waits for its parent to notice."""
    while True:
        os.kill(pid, 0)
        if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX":
            raise ProcessLookupError


def test_memory_beyond_the_limit_ends_the_command_and_is_recorded(limit: int) -> None:
    record = python("print('{}', flush=True); x = bytearray(256 << 20)", limit=limit)
    assert record["exit_status"] == -9
    assert not record["timed_out"]
    assert record["oom_kills"] == 1
    assert record["peak_memory_bytes"] is not None
    assert record["peak_memory_bytes"] <= limit
    assert record["result"] == {}


def test_page_cache_counts_as_memory_of_the_group(limit: int, tmp_path: Path) -> None:
    path = tmp_path / "wide"
    path.write_bytes(bytes(2 * limit))
    record = python(f"open({str(path)!r}, 'rb', buffering=0).readinto(bytearray(1 << 20))", limit=limit)
    small = record["peak_memory_bytes"]
    code = f"f = open({str(path)!r}, 'rb', buffering=0); b = bytearray(1 << 20)\nwhile f.readinto(b): pass"
    record = python(code, limit=limit, cold=[path])
    assert record["exit_status"] == 0
    assert record["oom_kills"] == 0
    assert small is not None
    assert small + 8 * MIB < (record["peak_memory_bytes"] or 0) <= limit


def test_nothing_is_left_behind(limit: int, tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal; signal.pause()'],\n"
        "    stdout=subprocess.DEVNULL, start_new_session=True)\n"
        f"open({str(pids)!r}, 'w').write(str(child.pid))\n"
    )
    before = _groups()
    assert python(code, limit=limit)["exit_status"] == 0
    with pytest.raises(ProcessLookupError):
        _reaped(int(pids.read_text()))
    assert _groups() <= before


def _groups() -> set[Path]:
    group = ControlGroup(64 * MIB, name="look")
    try:
        return set(group.folder.parent.glob("measure-*"))
    finally:
        group.remove()


def limited(e2e: Path, *words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, str(e2e / "limited.py"), *words], capture_output=True, text=True, timeout=120
    )


def test_the_command_line_prints_one_record(e2e: Path, big: Path) -> None:
    run = limited(e2e, "--limit", "none", "--evict", str(big), "--", sys.executable, "-c", "print('{}')")
    assert run.returncode == 0, run.stderr
    (line,) = run.stdout.splitlines()
    assert set(json.loads(line)) == set(Record.__annotations__)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--limit", "lots", "--", "true"], "'lots' is not a size"),
        (["--limit", "none"], "no command"),
        (["--limit", "none", "--evict", "/nowhere/at/all", "--", "true"], "/nowhere/at/all does not exist"),
        (["--limit", "none", "--", "no-such-command-anywhere"], "no-such-command-anywhere"),
    ],
)
def test_bad_input_gets_a_sentence(e2e: Path, words: list[str], sentence: str) -> None:
    run = limited(e2e, *words)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
