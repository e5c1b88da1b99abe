"""A folder of safetensors shards as one table of tensors: which bytes of which file.

Nothing here knows about models. Headers are validated before a single offset is believed; tensor
bytes are read by preads of our own, and their pages are given back to the kernel, so that a
load never fills the page cache with weights it will not touch again.
"""

import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from prophet_moe.errors import CheckpointError, UnsupportedModelError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PACKED_NAME = "experts.safetensors"
PACKED_FORMAT = "prophet-packed"
PACKED_VERSION = "1"

CACHE_LINE = 64

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True, slots=True)
class TensorPlace:
    """One tensor of a checkpoint: `bytes` bytes at `offset` of file number `file`."""

    file: int
    offset: int
    bytes: int
    dtype: str  # as safetensors names it: F32, BF16 ...
    shape: tuple[int, ...]

    def part(self, begin: int, count: int) -> "TensorPlace":
        """`count` of its bytes from byte `begin` on, as bytes."""
        return TensorPlace(self.file, self.offset + begin, count, "U8", (count,))


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one folder. `metadata` is that of a packed experts file, else empty."""

    directory: Path
    files: tuple[Path, ...]
    tensors: dict[str, TensorPlace]
    metadata: dict[str, str]
    stamps: tuple[tuple[int, int], ...]  # (bytes, mtime in ns) of each file when its header was read

    @property
    def packed(self) -> bool:
        return self.metadata.get("format") == PACKED_FORMAT

    def file_of(self, name: str) -> Path:
        return self.files[self.tensors[name].file]

    def require_unchanged(self) -> None:
        """Raises CheckpointError when a file is no longer the one whose header was read."""
        for path, stamp in zip(self.files, self.stamps, strict=True):
            if _stamp(path) != stamp:
                raise CheckpointError(
                    f"{path} changed while the checkpoint was read; try again once nothing writes to it."
                )


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise CheckpointError(f"{path} could not be read ({error.strerror}): get it again.") from error
    if not stat.S_ISREG(status.st_mode):  # opening a named pipe would wait for its writer
        raise CheckpointError(f"{path} could not be read (it is not a regular file): get it again.")
    return status.st_size, status.st_mtime_ns


def open_checkpoint(directory: Path) -> Checkpoint:
    """Reads and validates every header under `directory`; no tensor byte is read.

    Raises CheckpointError naming the file: truncated or lying headers, overlapping or absent
    tensors, a missing shard, a tensor in two shards, no safetensors at all.
    """
    if not directory.is_dir():
        raise CheckpointError(
            f"{directory} is not a folder: give the folder that holds config.json and the shards."
        )
    names, promised = _shards(directory)
    packed = directory / PACKED_NAME
    tensors: dict[str, TensorPlace] = {}
    metadata: dict[str, str] = {}
    stamps = []
    if packed.is_file() and packed.name not in names:
        names = [*names, packed.name]
    for number, name in enumerate(names):
        stamps.append(_stamp(directory / name))
        places, notes = _read_header(directory / name, number)
        for key, place in places.items():
            if key in tensors:
                raise CheckpointError(
                    f"{directory / name}: tensor {key!r} is also in {names[tensors[key].file]}; "
                    "remove the file that does not belong to this checkpoint."
                )
            tensors[key] = place
        if name == packed.name:
            metadata = notes
    for key, name in promised.items():
        if key not in tensors or names[tensors[key].file] != name:
            raise CheckpointError(
                f"{directory / INDEX_NAME} says that {name} holds {key!r}, but it does not; download both "
                "again."
            )
    return Checkpoint(directory, tuple(directory / name for name in names), tensors, metadata, tuple(stamps))


def _shards(directory: Path) -> tuple[list[str], dict[str, str]]:
    """File names to read, and what the index promises: tensor name → file name."""
    if (directory / SINGLE_NAME).exists():
        return [SINGLE_NAME], {}
    index = directory / INDEX_NAME
    if index.exists():
        promised = _read_index(index)
        names = sorted(set(promised.values()))
        for name in names:
            if not (directory / name).is_file():
                raise CheckpointError(
                    f"{directory / name} is missing, though {INDEX_NAME} lists it: download that shard again."
                )
        return names, promised
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        pickles = sorted(path.name for path in directory.glob("*.bin")) + sorted(
            path.name for path in directory.glob("*.pt*")
        )
        if pickles:
            raise CheckpointError(
                f"{directory} holds pickled weights only ({pickles[0]}): get the safetensors files of "
                "this model, or "
                "convert them with save_pretrained(safe_serialization=True)."
            )
        raise CheckpointError(
            f"{directory} holds no *.safetensors file: give the folder of a downloaded checkpoint."
        )
    _check_numbering(directory, names)
    return names, {}


def _check_numbering(directory: Path, names: Iterable[str]) -> None:
    """Shards without an index still say "00002-of-00005" in their names."""
    have: dict[tuple[str, int], set[int]] = {}
    for name in names:
        match = re.fullmatch(r"(.*?)-?(\d+)-of-(\d+)\.safetensors", name)
        if match:
            have.setdefault((match[1], int(match[3])), set()).add(int(match[2]))
    for (stem, count), numbers in have.items():
        if len(numbers) < count:
            raise CheckpointError(
                f"{directory} holds {len(numbers)} of the {count} shards "
                f"{stem}-*-of-{count:05d}.safetensors: "
                "download the missing ones again."
            )


def _read_index(path: Path) -> dict[str, str]:
    try:
        promised = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a readable shard index ({type(error).__name__}: {error}); download it again."
        ) from error
    if not isinstance(promised, dict) or not promised:
        raise CheckpointError(f"{path}: 'weight_map' names no tensor; download it again.")
    for key, name in promised.items():
        if not isinstance(name, str) or not name.endswith(".safetensors") or Path(name).name != name:
            raise CheckpointError(
                f"{path}: tensor {key!r} is said to lie in {name!r}, which is no shard of this folder."
            )
    return promised


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        names = [key for key, _ in pairs]
        raise ValueError(f"{next(n for n in names if names.count(n) > 1)!r} appears twice")
    return entries


def _read_header(path: Path, number: int) -> tuple[dict[str, TensorPlace], dict[str, str]]:
    try:
        with path.open("rb") as file:
            # The library checks lengths, offsets, overlaps, holes, shapes and element types.
            with safe_open(path, framework="numpy"):
                pass
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
    except OSError as error:
        raise CheckpointError(
            f"{path} could not be read ({error.strerror or error}): check its permissions, or get it again."
        ) from error
    except (SafetensorError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} is not a sound safetensors file ({error}); it is damaged or was not downloaded to "
            "its end: "
            "get it again."
        ) from error
    notes = header.pop("__metadata__", None) or {}
    places = {
        name: TensorPlace(
            number,
            8 + length + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
            entry["dtype"],
            tuple(entry["shape"]),
        )
        for name, entry in header.items()
    }
    return places, notes


def empty_at(phase: int, count: int) -> torch.Tensor:
    """`count` bytes whose address is `phase` modulo 64.

    Matrix products may round differently when a matrix begins elsewhere in a cache line: equal bits
    need equal beginnings.
    """
    buffer = torch.empty(count + CACHE_LINE, dtype=torch.uint8)
    begin = (phase - buffer.data_ptr()) % CACHE_LINE
    return buffer[begin : begin + count]


class TensorReader:
    """Reads whole tensors past readahead and gives their pages back; a context manager."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._files: dict[int, int] = {}
        self.bytes_read = 0

    def read(self, name: str, *, as_mapped: bool = False, rows: range | None = None) -> torch.Tensor:
        """The tensor as the file holds it. Raises CheckpointError when bytes cannot be had.

        as_mapped: it begins as far past a cache line as in the file, as if the file were mapped. rows:
        consecutive ones of its first dimension, and no byte of others; None: all.
        """
        place = self._checkpoint.tensors[name]
        dtype = TORCH_DTYPES.get(place.dtype)
        if dtype is None:
            raise UnsupportedModelError(
                f"{self._checkpoint.file_of(name)}: tensor {name!r} has element type {place.dtype}, which "
                "this release "
                "does not read; use an unquantised checkpoint of the model."
            )
        if rows is not None:
            row = place.bytes // place.shape[0]
            shape = (len(rows), *place.shape[1:])
            place = TensorPlace(
                place.file, place.offset + rows.start * row, len(rows) * row, place.dtype, shape
            )
        buffer = empty_at(
            place.offset if as_mapped and place.offset % dtype.itemsize == 0 else 0, place.bytes
        )
        self.read_into(place, memoryview(buffer.numpy()))
        return buffer.view(dtype).view(place.shape)

    def read_into(self, place: TensorPlace, target: memoryview) -> None:
        """Fills `target` (place.bytes bytes) from the file."""
        path = self._checkpoint.files[place.file]
        try:
            descriptor = self._open(place.file, path)
            done = 0
            while done < place.bytes:  # one call returns at most 2 GiB
                got = os.preadv(descriptor, [target[done : done + (1 << 30)]], place.offset + done)
                if got == 0:
                    raise CheckpointError(
                        f"{path} ends before byte {place.offset + place.bytes}: it changed while it was "
                        "read; get it again."
                    )
                done += got
            os.posix_fadvise(descriptor, place.offset, place.bytes, os.POSIX_FADV_DONTNEED)
        except OSError as error:
            raise CheckpointError(
                f"{path} could not be read ({error.strerror}); check the disk and try again."
            ) from error
        self.bytes_read += place.bytes

    def _open(self, number: int, path: Path) -> int:
        if number not in self._files:
            self._files[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            # Readahead would pull expert pages in beside the wanted ones.
            os.posix_fadvise(self._files[number], 0, 0, os.POSIX_FADV_RANDOM)
        return self._files[number]

    def __enter__(self) -> "TensorReader":
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()
