"""The file under a routing trace: a safetensors header, checked, and its tensors as memory maps."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prophet_moe.errors import ProphetError

# safetensors' names; bfloat16 is read as its raw bits.
DTYPES: dict[str, np.dtype[Any]] = {
    "U8": np.dtype("<u1"),
    "I16": np.dtype("<i2"),
    "U16": np.dtype("<u2"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
    "F32": np.dtype("<f4"),
}
HEADER_LIMIT = 100_000_000


class TraceError(ProphetError, ValueError):
    """A routing trace is damaged, contradicts itself, or lacks what was asked of it."""


@dataclass(frozen=True)
class Tensor:
    """Where one array of a trace lies."""

    dtype: str  # as safetensors names it
    shape: tuple[int, ...]
    offset: int  # in the file

    @property
    def bytes(self) -> int:
        return prod(self.shape) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class TraceFile:
    """A file whose header has been checked against its size."""

    path: Path
    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str]

    def map(self, name: str) -> NDArray[Any]:
        """The array, read-only; its pages are read when touched."""
        tensor = self.tensors[name]
        if tensor.bytes == 0:
            return np.empty(tensor.shape, DTYPES[tensor.dtype])
        return np.memmap(self.path, DTYPES[tensor.dtype], "r", tensor.offset, tensor.shape)


def open_file(path: Path) -> TraceFile:
    """Raises TraceError: not a safetensors file, truncated, or with tensors that lie outside of it."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            count = int.from_bytes(file.read(8), "little")
            head = file.read(count) if 0 < count <= min(size - 8, HEADER_LIMIT) else b""
    except OSError as error:
        raise TraceError(
            f"{path} cannot be read: {error.strerror}. Give the path of a routing trace."
        ) from error
    try:
        header = json.loads(head)
        metadata = header.pop("__metadata__", {})
        rows = {name: (t["dtype"], tuple(t["shape"]), t["data_offsets"]) for name, t in header.items()}
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise TraceError(
            f"{path} does not begin with a safetensors header: it is not a routing trace, or was cut short."
        ) from error
    tensors = {}
    for name, (dtype, shape, (begin, end)) in rows.items():
        if dtype not in DTYPES:
            raise TraceError(f"{path}: {name} is {dtype}; a trace has {', '.join(DTYPES)}.")
        tensor = Tensor(dtype, shape, 8 + count + begin)
        if end - begin != tensor.bytes or begin < 0 or any(n < 0 for n in shape):
            raise TraceError(
                f"{path}: {name} is {dtype} {list(shape)}, which is {tensor.bytes} bytes, "
                f"but the header gives it {end - begin}: the file is damaged."
            )
        if tensor.offset + tensor.bytes > size:
            raise TraceError(
                f"{path} is cut short: {name} ends at byte {tensor.offset + tensor.bytes}, "
                f"the file has {size}. Record or copy it again."
            )
        tensors[name] = tensor
    return TraceFile(path, tensors, metadata)


def header_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file whose tensors (dtype, shape) follow in this order."""
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in tensors.items():
        count = Tensor(dtype, shape, 0).bytes
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + count]}
        at += count
    text = json.dumps(header, ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
