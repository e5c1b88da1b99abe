"""Runs a command under a memory limit, on cold files, and records what it used.

    python bench/e2e/limited.py --limit 1GiB --evict MODEL -- prophet bench MODEL -n 16 --json

The files named by --evict leave the page cache first: a page belongs to the group that read it first, so
pages that others left behind would be free memory. Then the command starts in a control group of its own
(version 1 or 2; needs root). One JSON record on stdout: `result` is the last JSON object that the command
printed, the other fields are below in `Record`. --limit none measures without a group. When --timeout
passes, the command and what it started are ended; nothing else ever is.
"""

import argparse
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypedDict

from control_group import ControlGroup, NoControlGroup
from page_cache import cached_bytes, device_read_bytes, evict, files_of, read_ahead_file
from units import MIB, parse_size


class Record(TypedDict):
    """Sizes in bytes, times in seconds. Optional values are None where they are not counted."""

    command: list[str]
    limit_bytes: int | None
    exit_status: int  # negative: ended by that signal
    timed_out: bool
    oom_kills: int | None
    wall_s: float
    cpu_s: float  # of all the command's processes
    process_read_bytes: int  # from block devices, by the kernel's count of the command's processes
    device_read_bytes: int | None  # by anybody, from the device that holds the first file to evict
    peak_memory_bytes: int | None  # charged to the group: page cache included
    peak_rss_bytes: int  # of the largest process
    evicted_bytes: int  # what the cache held of the files to evict
    still_cached_bytes: int  # what it would not let go
    read_ahead_kb: int | None  # of that device
    load_average: list[float]  # one minute, before and after
    result: Any


def process_read_bytes() -> int:
    """Bytes that this process and its waited-for children fetched from block devices."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("read_bytes"))


def last_object(text: str) -> Any:
    """The last line of `text` that is a JSON object, None if there is none."""
    for line in reversed(text.splitlines()):
        with contextlib.suppress(ValueError):
            value = json.loads(line)
            if isinstance(value, dict):
                return value
    return None


@contextlib.contextmanager
def read_ahead(path: Path, kib: int | None) -> Iterator[int | None]:
    """Sets the read-ahead of the device that holds `path` and restores it; yields what holds. None leaves
    it alone. The setting belongs to the whole machine."""
    file = read_ahead_file(path)
    before = int(file.read_text()) if file else None
    if kib is None or kib == before:
        yield before
        return
    if file is None:
        raise OSError(f"the device of {path} does not show its read-ahead: leave out --read-ahead-kb.")
    file.write_text(str(kib))
    try:
        yield int(file.read_text())
    finally:
        file.write_text(str(before))


def run_limited(
    command: Sequence[str],
    *,
    limit: int | None,
    cold: Sequence[Path] = (),
    timeout: float = 900,
    read_ahead_kb: int | None = None,
) -> Record:
    """Runs `command` with at most `limit` bytes of memory after evicting the files of `cold`.

    The command's standard error passes through; its standard output is kept for `result`. Raises
    NoControlGroup, FileNotFoundError.
    """
    files = list(files_of(cold))
    cached = sum(map(cached_bytes, files))
    for file in files:
        evict(file)
    left = sum(map(cached_bytes, files))
    place = files[0] if files else Path.cwd()
    with read_ahead(place, read_ahead_kb) as ahead:
        group = ControlGroup(limit) if limit else None
        try:
            load = os.getloadavg()[0]
            before, cpu, device = process_read_bytes(), _cpu_of_children(), device_read_bytes(place)
            begin = time.perf_counter()
            status, output, timed_out = _run(command, group, timeout)
            wall = time.perf_counter() - begin
            device_after = device_read_bytes(place)
            usage = group.usage() if group else {}
        finally:
            if group:
                group.remove()
    return {
        "command": list(command),
        "limit_bytes": limit,
        "exit_status": status,
        "timed_out": timed_out,
        "oom_kills": usage.get("oom_kills"),
        "wall_s": round(wall, 3),
        "cpu_s": round(_cpu_of_children() - cpu, 3),
        "process_read_bytes": process_read_bytes() - before,
        "device_read_bytes": None if device is None or device_after is None else device_after - device,
        "peak_memory_bytes": usage.get("peak_memory_bytes"),
        "peak_rss_bytes": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024,
        "evicted_bytes": cached - left,
        "still_cached_bytes": left,
        "read_ahead_kb": ahead,
        "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
        "result": last_object(output),
    }


def _cpu_of_children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _run(command: Sequence[str], group: ControlGroup | None, timeout: float) -> tuple[int, str, bool]:
    """Exit status, standard output, and whether time ran out."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        text=True,
        errors="replace",
        start_new_session=True,  # so that its own children can be ended with it, and nobody else
        preexec_fn=group.enter if group else None,
    )
    try:
        output, _ = child.communicate(timeout=timeout)
        return child.returncode, output, False
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGKILL)
        output, _ = child.communicate()
        return child.returncode, output, True
    except BaseException:
        os.killpg(child.pid, signal.SIGKILL)  # not waited for yet, so the number is still its own
        child.wait()
        raise


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--limit", required=True, help="1GiB, 512MiB, ... or none")
    parser.add_argument("--evict", type=Path, action="append", default=[], help="file or folder; repeatable")
    parser.add_argument("--timeout", type=float, default=900, help="seconds")
    parser.add_argument("--read-ahead-kb", type=int, help="for this run; belongs to the whole machine")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- and the command")
    given = parser.parse_args()
    command = given.command[1:] if given.command[:1] == ["--"] else given.command
    if not command:
        parser.error("no command: write it after --.")
    try:
        limit = None if given.limit == "none" else parse_size(given.limit)
        record = run_limited(
            command,
            limit=limit,
            cold=given.evict,
            timeout=given.timeout,
            read_ahead_kb=given.read_ahead_kb,
        )
    except (NoControlGroup, OSError, argparse.ArgumentTypeError) as error:
        parser.error(str(error))
    if record["still_cached_bytes"]:
        kept = record["still_cached_bytes"] / MIB
        print(f"{kept:.0f} MiB stay cached: some process maps them.", file=sys.stderr)
    print(json.dumps(record))
    if record["exit_status"]:
        sys.exit(1)


if __name__ == "__main__":
    main()
