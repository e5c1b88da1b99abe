"""Kernels called from Python, through the tables of device/cuda/cuda_api.h and kernels/cuda_kernels.h.

The same on the emulated library and on a device. Every call is checked; `Device` frees what it made.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
API_VERSION, KERNELS_VERSION = 1, 2
F32, F16, BF16, INT8, INT4 = range(5)
ACTIVATIONS = ("silu", "gelu_erf", "gelu_tanh", "relu", "relu2")
TO_DEVICE, TO_HOST = 1, 2

_API = """
    error_name error_text device_count versions device_info use_device device_synchronize allocate release
    memory_info pin unpin register_host unregister_host device_address memory_kind priorities stream_create
    stream_destroy stream_device stream_wait_event stream_query stream_synchronize event_create
    event_destroy event_record event_query event_synchronize event_elapsed copy_async fill_async
    begin_capture end_capture graph_launch graph_destroy synchronising_calls
"""
_KERNELS = "expert_ffn_scratch_bytes expert_ffn top_k dequantise predict route seal"


def _table(text: str) -> type[ctypes.Structure]:
    names, fields = text.split(), [("version", ctypes.c_uint32), ("size", ctypes.c_uint32)]
    return type("Table", (ctypes.Structure,), {"_fields_": fields + [(n, ctypes.c_void_p) for n in names]})


def _struct(name: str, text: str) -> Any:
    """A ctypes structure from "type field field, ..." with the C header's types."""
    kinds = {"i32": ctypes.c_int32, "u8": ctypes.c_uint8, "p": ctypes.c_void_p, "size": ctypes.c_size_t}
    fields = []
    for part in text.split(","):
        kind, *names = part.split()
        fields += [(field, kinds[kind]) for field in names]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Quantised = _struct("Quantised", "p values scales zeros")
FfnCall = _struct(
    "FfnCall",
    "i32 tokens top_k experts hidden inter group, u8 weights io routing_type activation has_gate, "
    "p table x ids routing out scratch, size scratch_bytes",
)
TopKCall = _struct(
    "TopKCall",
    "i32 tokens experts top_k, u8 logits_type sigmoid normalise, p logits ids weights table missing missed",
)


class DequantiseCall(ctypes.Structure):
    _fields_ = (
        ("rows", ctypes.c_int32),
        ("columns", ctypes.c_int32),
        ("group", ctypes.c_int32),
        ("weights", ctypes.c_uint8),
        ("out_type", ctypes.c_uint8),
        ("matrix", Quantised),
        ("out", ctypes.c_void_p),
    )


class Failed(Exception):
    """A call of a table returned the number of a cudaError_t."""

    def __init__(self, call: str, code: int) -> None:
        super().__init__(f"{call} returned {code}")
        self.code = code


class Device:
    """Memory, copies and kernels on device 0."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        self._api = self._load(loaded.prophet_cuda_api, _API, API_VERSION)
        self._kernels = self._load(loaded.prophet_cuda_kernels, _KERNELS, KERNELS_VERSION)
        self._memory: list[int] = []
        stream = ctypes.c_void_p()
        self.api("stream_create", ctypes.c_int(0), ctypes.byref(stream))
        self.stream = stream

    @staticmethod
    def _load(export: Any, names: str, version: int) -> Any:
        kind = _table(names)
        export.restype = ctypes.POINTER(kind)
        table = export().contents
        assert (table.version, table.size) == (version, ctypes.sizeof(kind)), "the header has moved on"
        return table

    def api(self, name: str, *arguments: Any) -> None:
        code = ctypes.CFUNCTYPE(ctypes.c_int)(getattr(self._api, name))(*arguments)
        if code != 0:
            raise Failed(name, code)

    def launch(self, name: str, call: Any, *before: Any) -> None:
        """Queues a kernel: table entry, its call struct, structs that come before it."""
        kernel = ctypes.CFUNCTYPE(ctypes.c_int)(getattr(self._kernels, name))
        code = kernel(*(ctypes.byref(c) for c in (*before, call)), self.stream)
        if code != 0:
            raise Failed(name, code)

    def scratch_bytes(self, call: Any) -> int:
        count = ctypes.CFUNCTYPE(ctypes.c_size_t)(self._kernels.expert_ffn_scratch_bytes)
        return int(count(ctypes.byref(call)))

    def allocate(self, count: int) -> int:
        memory = ctypes.c_void_p()
        self.api("allocate", ctypes.c_size_t(max(count, 1)), ctypes.byref(memory))
        assert memory.value is not None
        self._memory.append(memory.value)
        return memory.value

    def put(self, values: Array | bytes, offset: int = 0) -> int:
        """The address of a copy on the device, `offset` bytes behind an aligned one."""
        raw = values if isinstance(values, bytes) else np.ascontiguousarray(values).tobytes()
        at = self.allocate(len(raw) + offset) + offset
        self._copy(at, raw, len(raw), TO_DEVICE)
        return at

    def get(self, at: int, dtype: npt.DTypeLike, *shape: int) -> Array:
        out = np.empty(shape, dtype)
        self._copy(out.ctypes.data, at, out.nbytes, TO_HOST)
        return out

    def _copy(self, to: int, source: int | bytes, count: int, kind: int) -> None:
        where = ctypes.c_char_p(source) if isinstance(source, bytes) else ctypes.c_void_p(source)
        self.api("copy_async", ctypes.c_void_p(to), where, ctypes.c_size_t(count), kind, self.stream)
        self.api("stream_synchronize", self.stream)

    def close(self) -> None:
        for memory in self._memory:
            self.api("release", ctypes.c_void_p(memory))
        self.api("stream_destroy", self.stream)


@contextmanager
def device(library: Path | None) -> Iterator[Device]:
    """Of this library; None: the one that Prophet itself finds."""
    made = Device(library or _installed())
    try:
        yield made
    finally:
        made.close()


def _installed() -> Path:
    import prophet_ext

    chosen = os.environ.get("PROPHET_CUDA_LIB")
    return Path(chosen) if chosen else Path(prophet_ext.__file__).with_name("libprophet_cuda.so")


def stored(values: Array, kind: int) -> Array:
    """float32 `values` as elements of a DType, rounded to nearest even."""
    if kind == F32:
        return values.astype(np.float32)
    if kind == F16:
        return values.astype(np.float16)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def floats(elements: Array, kind: int) -> Array:
    """Elements of a DType in float64."""
    if kind == BF16:
        return (elements.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return elements.astype(np.float64)


ELEMENT = {F32: np.float32, F16: np.float16, BF16: np.uint16}
