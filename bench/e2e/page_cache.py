"""What the page cache holds of a file, how to make it let go, and the device below. Linux."""

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.mincore.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p]


def files_of(paths: Iterable[Path]) -> Iterator[Path]:
    """Every regular file among and below `paths`. FileNotFoundError names a path that is not there."""
    for path in paths:
        if path.is_dir():
            yield from (file for file in sorted(path.rglob("*")) if file.is_file())
        elif path.exists():
            yield path
        else:
            raise FileNotFoundError(f"{path} does not exist: nothing to evict.")


def cached_bytes(path: Path) -> int:
    """Bytes of the file in the page cache, in whole pages, whichever control group paid for them."""
    size = path.stat().st_size
    if not size:
        return 0
    with path.open("rb") as file:
        # The address is needed, which Python's mmap keeps to itself for read-only maps.
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, file.fileno(), 0)
    if address == ctypes.c_void_p(-1).value:
        raise OSError(ctypes.get_errno(), f"cannot map {path}")
    try:
        pages = ctypes.create_string_buffer(-(-size // mmap.PAGESIZE))
        if _libc.mincore(address, size, pages):
            raise OSError(ctypes.get_errno(), f"cannot ask which pages of {path} are cached")
    finally:
        _libc.munmap(address, size)
    return sum(map((1).__and__, pages.raw)) * mmap.PAGESIZE


def evict(path: Path) -> None:
    """Asks the kernel to drop the file's pages. Those that a process maps stay: look at cached_bytes."""
    with path.open("rb") as file:
        os.fsync(file.fileno())  # a page still to be written cannot be dropped
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _device(path: Path) -> str:
    number = path.stat().st_dev
    return f"{os.major(number)}:{os.minor(number)}"


def read_ahead_file(path: Path) -> Path | None:
    """Where the kernel tells (and takes) the read-ahead in KiB of the device that holds `path`."""
    file = Path(f"/sys/class/bdi/{_device(path)}/read_ahead_kb")
    return file if file.exists() else None


def device_read_bytes(path: Path) -> int | None:
    """Bytes that anybody has read from the block device that holds `path`; None where it is not one."""
    file = Path(f"/sys/dev/block/{_device(path)}/stat")
    return 512 * int(file.read_text().split()[2]) if file.exists() else None
