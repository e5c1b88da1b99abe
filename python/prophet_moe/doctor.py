"""Can this machine run Prophet well? Each check looks, measures where it can, and names the fix."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import resource
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from packaging.requirements import Requirement

import prophet_ext
from prophet_moe import machine
from prophet_moe.budget import MIB, format_size
from prophet_moe.doctor_check import Check
from prophet_moe.doctor_cuda import cuda_checks
from prophet_moe.errors import ProphetError

DISTRIBUTION = "prophet-moe"
PROBE_BYTES = 256 * MIB
MEASURE_SECONDS = 0.5
SLOW_DISK = 0.5e9  # bytes per second; below, a missed GiB costs more than two seconds
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "lustre"}


def library_checks() -> Iterator[Check]:
    """The native module and the libraries it needs, against the ranges this release was made for."""
    info = prophet_ext.build_info()
    yield Check("ok", "build", f"prophet_ext {info['version']}, compiler {info['compiler']}")
    isa, known = prophet_ext.kernel_isa(), prophet_ext.kernel_isas()
    if isa == "portable":
        yield Check(
            "warn", "kernels", f"portable code only, of {', '.join(known)}",
            "expert arithmetic is slow here: use a processor with AVX2 or AVX-512",
        )  # fmt: skip
    else:
        yield Check("ok", "kernels", f"{isa} on {machine.processor_name()}")
    yield Check("ok", "python", platform.python_version())
    try:
        wanted = [Requirement(line) for line in importlib.metadata.requires(DISTRIBUTION) or []]
    except importlib.metadata.PackageNotFoundError:
        yield Check("warn", "package", f"{DISTRIBUTION} is not installed as a package", "pip install .")
        wanted = []
    for need in wanted:
        if need.marker is None and need.name in ("torch", "transformers", "safetensors"):
            yield _version(need)


def _version(need: Requirement) -> Check:
    try:
        found = importlib.metadata.version(need.name)
    except importlib.metadata.PackageNotFoundError:
        return Check("FAIL", need.name, "not installed", f"pip install '{need}'")
    if need.specifier.contains(found, prereleases=True):
        return Check("ok", need.name, found)
    return Check("FAIL", need.name, f"{found} is outside {need.specifier}", f"pip install '{need}'")


def processor_checks() -> Iterator[Check]:
    """Cores that may be used, and how fast they read memory."""
    cores, all_cores = machine.cpu_count(), os.cpu_count() or 1
    limited = f" of {all_cores}: affinity or a cgroup quota limits this process" if cores < all_cores else ""
    yield Check("ok", "cores", f"{cores}{limited}")
    rate = prophet_ext.memory_bandwidth(cores, MEASURE_SECONDS)
    yield Check("ok", "memory read", f"{rate / 1e9:.1f} GB/s with {cores} threads (measured)")


def memory_checks(memory: machine.Memory | None = None) -> Iterator[Check]:
    """Memory of the machine and of the control group, and the limit on locked memory."""
    memory = memory or machine.memory()
    detail = f"{format_size(memory.available)} of {format_size(memory.total)} available"
    if memory.limit is not None:
        detail += f"; the cgroup allows {format_size(memory.limit)}, {format_size(memory.used or 0)} used"
    if memory.free_to_use < 512 * MIB:
        yield Check("FAIL", "memory", detail, "free at least 512 MiB, or raise the cgroup's memory limit")
    else:
        yield Check("ok", "memory", detail)
    soft, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if soft == resource.RLIM_INFINITY or soft >= 8 * MIB:
        yield Check(
            "ok", "locked memory", "no limit" if soft == resource.RLIM_INFINITY else format_size(soft)
        )
    else:
        yield Check(
            "warn", "locked memory", f"limited to {format_size(soft)}",
            "raise it (ulimit -l 8192): kernels before 5.12 charge io_uring's queues to it",
        )  # fmt: skip


@contextmanager
def probe_file(path: Path, size: int = PROBE_BYTES) -> Iterator[Path]:
    """A file to read: `path` itself, or a temporary one in the folder `path`, removed afterwards."""
    if path.is_file():
        yield path
        return
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.NamedTemporaryFile(dir=path, prefix="prophet-doctor-") as file:
            block = os.urandom(MIB)
            for _ in range(size // MIB):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            yield Path(file.name)
    finally:
        for folder in made:  # only folders of our making, and only empty ones
            try:
                folder.rmdir()
            except OSError:
                break


def default_probe_folder() -> Path:
    """$XDG_CACHE_HOME/prophet, as for everything this program keeps for a while."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prophet"


def disk_checks(path: Path, size: int = PROBE_BYTES) -> Iterator[Check]:
    """How the file system of `path` can be read, and how fast."""
    system = machine.file_system(path)
    where = f"{system.kind} at {system.mount}"
    if system.kind == "tmpfs":
        yield Check(
            "warn",
            "file system",
            f"{where}: files here occupy memory",
            "measure where the models lie: --path FOLDER",
        )
    elif system.kind in NETWORK:
        yield Check("warn", "file system", f"{where}: over a network", "keep the model on a local NVMe disk")
    else:
        yield Check("ok", "file system", f"{where}, {format_size(system.free)} free")
    if not path.is_file() and system.free < 2 * size:
        yield Check(
            "warn", "disk read", f"not measured: {path} has {format_size(system.free)} free",
            "measure a file that exists: --path FILE",
        )  # fmt: skip
        return
    with probe_file(path, size) as file:
        yield _direct(file)
        yield _uring(file)
        measured = prophet_ext.read_bandwidth(str(file), MEASURE_SECONDS, MIB, 16, "auto")
        rate, p99 = measured["bytes_per_second"], measured["p99_ms"]
        detail = f"{rate / 1e9:.2f} GB/s in random reads of 1 MiB, p99 {p99:.1f} ms (measured)"
        if rate < SLOW_DISK:
            yield Check("warn", "disk read", detail, "keep models on a faster disk, or give more --budget")
        else:
            yield Check("ok", "disk read", detail)


def _direct(file: Path) -> Check:
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_DIRECT))
    except OSError as error:
        return Check(
            "warn", "O_DIRECT", f"refused: {error.strerror}",
            "reads go through the page cache; keep the model on ext4, xfs or btrfs",
        )  # fmt: skip
    return Check("ok", "O_DIRECT", "reads go past the page cache")


def _uring(file: Path) -> Check:
    if prophet_ext.build_info()["uring"] != "yes":
        return Check(
            "warn", "io_uring", "not in this build: threads with pread serve instead",
            "install liburing's headers (Debian: liburing-dev) and build again",
        )  # fmt: skip
    try:
        prophet_ext.read_bandwidth(str(file), 0.05, MIB, 4, "uring")
    except (ProphetError, OSError) as error:
        return Check(
            "warn", "io_uring", f"refused by the system: {error}",
            "pread serves instead; to allow it: sysctl kernel.io_uring_disabled=0, or the container's rules",
        )  # fmt: skip
    return Check("ok", "io_uring", "works")


def examine(path: Path | None = None, on_step: Callable[[str], None] = lambda _: None) -> Iterator[Check]:
    """All checks, one after the other; on_step is told what comes next. A check that breaks is a FAIL."""
    groups: list[tuple[str, Callable[[], Iterator[Check]]]] = [
        ("libraries", library_checks),
        ("processor", processor_checks),
        ("memory", memory_checks),
        ("CUDA", lambda: cuda_checks(MEASURE_SECONDS / 2)),
        ("disk", lambda: disk_checks(path or default_probe_folder())),
    ]
    for name, group in groups:
        on_step(name)
        try:
            yield from group()
        except (ProphetError, OSError, RuntimeError) as error:
            yield Check(
                "FAIL", name, str(error), "mend what the sentence names, then run prophet doctor again"
            )


def next_step(checks: list[Check]) -> str:
    """One line: what to do now."""
    failed = [check for check in checks if check.level == "FAIL"]
    if failed:
        return f"next: {failed[0].fix}, then prophet doctor again"
    if any(check.level == "warn" for check in checks):
        return "next: prophet demo works here; mend the warnings above for speed"
    return "next: prophet demo"
