"""All experts of one process in the layout of vLLM's kernel: one safetensors file, written once.

Each layer has two tensors, `LAYER.w13` and `LAYER.w2`, [experts, rows, columns]: what the kernel reads of
one expert is one run of bytes. The header is padded with spaces so that data begins on a page. A file
in a folder that the user named is used again as long as its header is the one that would be written; a
temporary one has no name, and is gone with its process.
"""

from __future__ import annotations

import errno
import json
import math
import os
import secrets
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prophet_moe.errors import WriteError

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

PAGE = 4096
FORMAT = {"format": "prophet-vllm", "version": "1"}


@dataclass(frozen=True)
class LayerShape:
    """The experts of one MoE layer, in the kernel's layout."""

    name: str
    experts: int
    w13: tuple[int, int]
    w2: tuple[int, int]
    dtype: str  # as safetensors spells it
    itemsize: int

    @property
    def piece_bytes(self) -> tuple[int, int]:
        """Bytes of the two matrices of one expert."""
        return math.prod(self.w13) * self.itemsize, math.prod(self.w2) * self.itemsize


class Records:
    """One file of experts: to be written where `fresh`, else as an earlier process left it.

    folder: None for a temporary file in the user's cache. notes: everything the bytes depend on, and
    nothing else; None where that cannot be told, so that the file is written anew.
    Raises WriteError: no space, no permission.
    """

    def __init__(
        self, folder: Path | None, name: str, layers: Sequence[LayerShape], notes: Mapping[str, str] | None
    ) -> None:
        self._layers = layers
        self._header, self._begins, self._size = _layout(layers, {**FORMAT, **(notes or {})})
        self._descriptor: int | None = None
        self._unfinished: Path | None = None  # the name until the file is whole; a temporary one has none
        self.path = (folder or cache_folder()) / name
        self.fresh = folder is None or notes is None or not self._is_there()
        if self.fresh:
            self._create(temporary=folder is None)

    def _is_there(self) -> bool:
        try:
            with self.path.open("rb") as file:
                same = file.read(len(self._header)) == self._header
                return same and os.fstat(file.fileno()).st_size == self._size
        except OSError:
            return False

    def _create(self, *, temporary: bool) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if temporary:
                with tempfile.TemporaryFile(dir=self.path.parent) as file:
                    self._descriptor = os.dup(file.fileno())
                self.path = Path(f"/proc/self/fd/{self._descriptor}")
            else:
                self._unfinished = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}")
                self._descriptor = os.open(self._unfinished, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            os.posix_fallocate(self._descriptor, 0, self._size)
        except OSError as error:
            self.close()
            raise self._failed(error) from error
        self._write_at(0, memoryview(self._header))

    def write(self, layer: int, expert: int, w13: torch.Tensor, w2: torch.Tensor) -> None:
        """One expert in the kernel's layout; contiguous, in the shapes and type of the layer."""
        sizes = self._layers[layer].piece_bytes
        for begin, size, matrix in zip(self._begins[layer], sizes, (w13, w2), strict=True):
            data = _bytes_of(matrix).data
            assert len(data) == size, (len(data), size)
            self._write_at(begin + expert * size, data)

    def _write_at(self, offset: int, data: memoryview) -> None:
        assert self._descriptor is not None
        try:
            while data:
                count = os.pwrite(self._descriptor, data, offset)
                offset, data = offset + count, data[count:]
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def seal(self) -> None:
        """All experts are written: the file takes its name."""
        if self._descriptor is None:
            return
        try:
            os.fsync(self._descriptor)
            os.posix_fadvise(self._descriptor, 0, 0, os.POSIX_FADV_DONTNEED)  # slots hold what is needed
            if self._unfinished is not None:
                os.rename(self._unfinished, self.path)
                self._unfinished = None
        except OSError as error:
            self.close()
            raise self._failed(error) from error

    def close(self) -> None:
        """Removes what is unfinished; a temporary file stays as long as somebody has it open. Idempotent."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        if self._unfinished is not None:
            self._unfinished.unlink(missing_ok=True)
            self._unfinished = None

    def table(self) -> NDArray[np.uint64]:
        """Where every piece lies, for Engine: [layers, experts, 2, 3] of file 0, offset, bytes."""
        experts = self._layers[0].experts
        table = np.zeros((len(self._layers), experts, 2, 3), np.uint64)
        for layer, (shape, begins) in enumerate(zip(self._layers, self._begins, strict=True)):
            for piece, (begin, size) in enumerate(zip(begins, shape.piece_bytes, strict=True)):
                table[layer, :, piece, 1] = begin + np.arange(experts, dtype=np.uint64) * np.uint64(size)
                table[layer, :, piece, 2] = size
        return table

    def _failed(self, error: OSError) -> WriteError:
        way_out = "check its permissions and the disk"
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            way_out = f"free {self._size / 2**30:.1f} GiB, or name a folder on another disk"
        return WriteError(
            f"the experts could not be written to {self.path} ({error.strerror}): {way_out} in "
            "PROPHET_VLLM_RECORDS."
        )


def cache_folder() -> Path:
    """Where temporary files go."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prophet"


def _bytes_of(matrix: torch.Tensor) -> NDArray[np.uint8]:
    import torch

    bare: NDArray[np.uint8] = matrix.contiguous().view(torch.uint8).numpy().reshape(-1)
    return bare


def _layout(
    layers: Sequence[LayerShape], notes: Mapping[str, str]
) -> tuple[bytes, list[tuple[int, int]], int]:
    """The header, where the two tensors of each layer begin in the file, and the file's size."""
    table: dict[str, Any] = {"__metadata__": dict(notes)}
    begins, end = [], 0
    for layer in layers:
        starts = []
        for piece, shape, size in zip(("w13", "w2"), (layer.w13, layer.w2), layer.piece_bytes, strict=True):
            starts.append(end)
            end += layer.experts * size
            table[f"{layer.name}.{piece}"] = {
                "dtype": layer.dtype,
                "shape": [layer.experts, *shape],
                "data_offsets": [starts[-1], end],
            }
        begins.append((starts[0], starts[1]))
    text = json.dumps(table, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % PAGE)
    header = len(text).to_bytes(8, "little") + text
    return header, [(len(header) + a, len(header) + b) for a, b in begins], len(header) + end
