"""What this process may use of the machine: memory, processors, file systems.

Linux only reads `/proc` and the cgroup file systems, version 1 and 2; every function takes their
place as an argument, so that a test can hand in a machine of its own. Sizes are bytes. A figure
that the system does not tell is None, never a guess.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
CGROUPS = Path("/sys/fs/cgroup")
# Limits above this are the kernel's spelling of "no limit" (v1 writes nearly 2**63).
UNLIMITED = 1 << 60
PAGE = 4096
# Shapes that decoding repeats: about a dozen in one kind of layer.
_KERNEL_CACHES = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "16", "LRU_CACHE_CAPACITY": "16"}


@dataclass(frozen=True)
class Memory:
    """Bytes of memory: the machine's, and what the tightest control group leaves of it."""

    total: int
    available: int
    limit: int | None  # the tightest cgroup limit on the way to the root; None: no limit
    used: int | None  # charged to that cgroup, page cache that can be dropped not counted
    mapped: int = 0  # file pages in rss() of this process, libraries mostly: the kernel can drop them

    @property
    def free_to_use(self) -> int:
        """Bytes that this process could add now without being killed or swapping."""
        if self.limit is None:
            return self.available
        return max(0, min(self.available, self.limit - (self.used or 0)))


def _fields(path: Path) -> dict[str, int]:
    """Lines such as `MemTotal:  123 kB` or `inactive_file 123` as bytes; {} if there is no such file."""
    out: dict[str, int] = {}
    try:
        lines = path.read_text().splitlines()
    except OSError:
        return out
    for line in lines:
        words = line.replace(":", " ").split()
        if len(words) >= 2 and words[1].isdigit():
            out[words[0]] = int(words[1]) * (1024 if words[2:] == ["kB"] else 1)
    return out


def _number(path: Path) -> int | None:
    try:
        text = path.read_text().strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None


def _own_groups(proc: Path, controller: str) -> tuple[str | None, str | None]:
    """Where this process stands: its path under version 1's `controller`, and under version 2."""
    first = second = None
    try:
        lines = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return None, None
    for line in lines:
        number, _, rest = line.partition(":")
        names, _, path = rest.partition(":")
        if number == "0" and not names:
            second = path
        elif controller in names.split(","):
            first = path
    return first, second


def _up_to_root(root: Path, path: str) -> Iterator[Path]:
    """The group and its ancestors that can be seen here, the innermost first."""
    parts = [part for part in path.split("/") if part and part != ".."]
    for depth in range(len(parts), -1, -1):
        folder = root.joinpath(*parts[:depth])
        if folder.is_dir():
            yield folder


def _group_memory(proc: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """(limit, bytes used without droppable page cache) of each limited group on the way up."""
    first, second = _own_groups(proc, "memory")
    if first is not None:
        for folder in _up_to_root(groups / "memory", first):
            limit = _number(folder / "memory.limit_in_bytes")
            used = _number(folder / "memory.usage_in_bytes")
            if limit is not None and limit < UNLIMITED and used is not None:
                stat = _fields(folder / "memory.stat")
                files = stat.get("total_inactive_file", 0) + stat.get("total_active_file", 0)
                yield limit, max(0, used - files)
    if second is not None:
        for root in (groups, groups / "unified"):
            for folder in _up_to_root(root, second):
                limit = _number(folder / "memory.max")
                used = _number(folder / "memory.current")
                if limit is not None and used is not None:
                    stat = _fields(folder / "memory.stat")
                    files = stat.get("inactive_file", 0) + stat.get("active_file", 0)
                    yield limit, max(0, used - files)


def memory(proc: Path = PROC, groups: Path = CGROUPS) -> Memory:
    """The machine's memory and the cgroup that leaves this process the least."""
    info = _fields(proc / "meminfo")
    total = info.get("MemTotal", 0)
    available = info.get("MemAvailable", info.get("MemFree", 0))
    mapped = _fields(proc / "self" / "status").get("RssFile", 0)
    limited = list(_group_memory(proc, groups))
    if not limited:
        return Memory(total, available, None, None, mapped)
    limit, used = min(limited, key=lambda group: group[0] - group[1])
    return Memory(total, available, limit, used, mapped)


def rss(proc: Path = PROC) -> int:
    """Bytes of this process in memory now (VmRSS)."""
    return _fields(proc / "self" / "status").get("VmRSS", 0)


def peak_rss(proc: Path = PROC) -> int:
    """The most that rss() has been since the process began or the mark was reset (VmHWM)."""
    return _fields(proc / "self" / "status").get("VmHWM", 0)


def reset_peak_rss(proc: Path = PROC) -> bool:
    """Sets the mark of peak_rss() back to rss(). False where the kernel does not allow it."""
    try:
        (proc / "self" / "clear_refs").write_text("5")
    except OSError:
        return False
    return True


def return_free_memory() -> None:
    """Gives memory that was freed back to the system at once, and keeps doing so for large blocks.

    glibc raises its own threshold after the first large free and then keeps what grows and
    shrinks (a KV cache, a load) inside the heap, where peak memory cannot be bounded.
    """
    if not sys.platform.startswith("linux"):
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim"):  # glibc
        libc.mallopt(-3, 1 << 20)  # M_MMAP_THRESHOLD: naming it ends its growth
        libc.malloc_trim(0)


def bound_library_memory() -> None:
    """Keeps libraries from growing without bound behind the budget's back; before their first use.

    torch's matrix products (oneDNN) keep up to 1024 generated kernels, one for each shape they
    meet, about 1 MiB each. A prefill meets a new number of rows in almost every expert, so
    hundreds of MiB were kept for shapes that never come back. A variable that the user has set stays.
    """
    for name, kept in _KERNEL_CACHES.items():
        os.environ.setdefault(name, kept)
    return_free_memory()


def cpu_count(proc: Path = PROC, groups: Path = CGROUPS) -> int:
    """Processors that this process may use: its affinity, cut by a cgroup's quota; at least 1."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    first, second = _own_groups(proc, "cpu")
    for folder in _up_to_root(groups / "cpu", first) if first is not None else ():
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota and period:
            count = min(count, max(1, round(quota / period)))
    for folder in _up_to_root(groups, second) if second is not None else ():
        try:
            words = (folder / "cpu.max").read_text().split()
        except OSError:
            continue
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[1]):
            count = min(count, max(1, round(int(words[0]) / int(words[1]))))
    return max(1, count)


@dataclass(frozen=True)
class FileSystem:
    """The file system that holds a path."""

    kind: str  # ext4, xfs, btrfs, tmpfs, nfs4, overlay ...
    mount: str
    device: str
    free: int  # bytes that this user can still write


def file_system(path: str | os.PathLike[str], proc: Path = PROC) -> FileSystem:
    """The file system that `path` (which need not exist yet) lies on."""
    place = Path(path).resolve()
    while not place.exists() and place != place.parent:
        place = place.parent
    free = os.statvfs(place)
    best = ("unknown", "/", "unknown")
    longest = -1
    try:
        lines = (proc / "self" / "mountinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        left, _, right = line.partition(" - ")
        fields, source = left.split(), right.split()
        if len(fields) < 5 or len(source) < 2:
            continue
        mount = fields[4].encode().decode("unicode_escape")
        if place.is_relative_to(mount) and len(mount) >= longest:
            longest, best = len(mount), (source[0], mount, source[1])
    return FileSystem(*best, free=free.f_bavail * free.f_frsize)


def processor_name(proc: Path = PROC) -> str:
    """The processor as it calls itself, or `unknown`."""
    try:
        for line in (proc / "cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return "unknown"


def evict_from_page_cache(path: str | os.PathLike[str]) -> None:
    """Drops the clean cached pages of one file, so that the next read is cold."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)  # a dirty page cannot be dropped
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)
