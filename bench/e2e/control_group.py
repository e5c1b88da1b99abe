"""A fresh memory control group for one command, version 1 or 2.

The group is a child of the one that the caller runs in (version 2: of the nearest ancestor that hands
its children the memory controller). Limits of ancestors hold as well. Needs the right to write there: root.
"""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path

MOUNTS = Path("/proc/self/mountinfo")
MEMBERSHIP = Path("/proc/self/cgroup")


class NoControlGroup(Exception):
    """A memory limit cannot be set here; the sentence says why and what else to do."""


@dataclass(frozen=True)
class Hierarchies:
    """Folders in which a new group can be made; None where the controller is not mounted."""

    unified: Path | None  # version 2 with the memory controller
    memory: Path | None  # version 1


def find_hierarchies(mounts: str, membership: str) -> Hierarchies:
    """From the texts of /proc/self/mountinfo and /proc/self/cgroup."""
    own: dict[str, str] = {}
    for line in membership.splitlines():
        _, controllers, path = line.split(":", 2)
        own |= dict.fromkeys(controllers.split(","), path)
    found: dict[str, Path] = {}
    for line in mounts.splitlines():
        left, _, right = line.partition(" - ")
        kind, _, options = right.split(" ", 2)
        root, point = left.split()[3:5]
        names = ["unified"] if kind == "cgroup2" else options.split(",") if kind == "cgroup" else []
        for name in set(names) & {"unified", "memory"}:
            path = own.get("" if name == "unified" else name, "/")
            # In a container the mount may show a part of the tree only.
            top = root.rstrip("/") + "/"
            inside = (path + "/").removeprefix(top) if (path + "/").startswith(top) else ""
            folder = Path(point) / inside.strip("/")
            found[name] = folder if folder.is_dir() else Path(point)
    return Hierarchies(_delegating(found.get("unified")), found.get("memory"))


def _delegating(folder: Path | None) -> Path | None:
    """The nearest ancestor of `folder`, itself included, whose children get the memory controller."""
    while folder is not None and (folder / "cgroup.controllers").exists():
        if "memory" in (folder / "cgroup.subtree_control").read_text().split():
            return folder
        folder = folder.parent
    return None


class ControlGroup:
    """Exists from construction to remove(). `limit` bounds memory in bytes, swap included where counted."""

    def __init__(self, limit: int, name: str = "measure", hierarchies: Hierarchies | None = None) -> None:
        tree = hierarchies or find_hierarchies(MOUNTS.read_text(), MEMBERSHIP.read_text())
        base = tree.memory or tree.unified
        if base is None:
            raise NoControlGroup(
                "No memory control group can be made here: neither version 1's memory controller nor a "
                "version 2 group that hands it on is mounted. Start this tool inside "
                "`systemd-run --scope -p MemoryMax=1G -p MemorySwapMax=0` with --limit none."
            )
        self.version = 1 if tree.memory else 2
        self.folder = base / f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        try:
            self.folder.mkdir()
            if self.version == 1:
                (self.folder / "memory.limit_in_bytes").write_text(str(limit))
                self._write_if_present("memory.memsw.limit_in_bytes", str(limit))
            else:
                (self.folder / "memory.max").write_text(str(limit))
                self._write_if_present("memory.swap.max", "0")
        except OSError as error:
            self.remove()
            raise NoControlGroup(
                f"Cannot make the control group {self.folder}: {error.strerror or error}. Run as root, or "
                f"start this tool inside a limit of its own and use --limit none."
            ) from error

    def _write_if_present(self, name: str, value: str) -> None:
        if (self.folder / name).exists():  # absent where the kernel does not count swap
            (self.folder / name).write_text(value)

    def enter(self) -> None:
        """Moves the calling process in; for the child between fork and exec."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def usage(self) -> dict[str, int | None]:
        """peak_memory_bytes (page cache included) and oom_kills; None where the kernel counts none."""
        peak = self._read("memory.max_usage_in_bytes" if self.version == 1 else "memory.peak")
        events = self._read("memory.oom_control" if self.version == 1 else "memory.events")
        counts = dict(line.split() for line in (events or "").splitlines())
        return {
            "peak_memory_bytes": int(peak) if peak else None,
            "oom_kills": int(counts["oom_kill"]) if "oom_kill" in counts else None,
        }

    def _read(self, name: str) -> str | None:
        file = self.folder / name
        return file.read_text() if file.exists() else None

    def remove(self, patience: float = 5.0) -> None:
        """Ends what the command left running inside and removes the group. Raises OSError naming it when
        that takes more than `patience` seconds."""
        deadline = time.monotonic() + patience
        while self.folder.is_dir():
            for process in (self._read("cgroup.procs") or "").split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(process), signal.SIGKILL)
            try:
                return self.folder.rmdir()
            except OSError:  # a process that has ended leaves its group a moment later
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
