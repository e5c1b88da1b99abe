"""Routing traces: what the routers of a model chose, token by token.

A trace is one safetensors file:

    experts         U8, I16, U16 or I32 [N, L, K]   ids of the experts chosen at each MoE layer, distinct
    sequence_start  I64 [S + 1]                     sequence s is rows sequence_start[s] to [s + 1]
    gate_probs      F16 or F32 [N, L, K]            optional: the router's weights of these experts
    token_id        I32 or I64 [N]                  optional: the token fed, -1 unknown (also: token_local_id)
    phase           U8 [N]                          optional: 0 prefill, 1 decode; without it all is decode
    gate_input      F16, BF16 or F32 [N, L, H]      optional: the tensor that each router read
    entering        F16, BF16 or F32 [N, L, H]      optional: what entered the layer, before its attention

with metadata `format` ("prophet-trace"), `version` ("1"), `model`, `layers`, `experts` (per layer),
`top_k` and `sequences`: a JSON list of {"label": domain, ...}, one object per sequence. A file
without `format` is taken for a trace when the arrays are there; labels then come from
`sequences.json` beside it (`label` or `category`), if there is one. Tokens of a sequence are in order,
prefill before decode; N may be any size, since arrays are mapped and read where they are used.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prophet_moe.formats.trace_file import TraceError, open_file
from prophet_moe.formats.trace_split import Split, split_domains, split_sequences
from prophet_moe.formats.trace_writer import FORMAT, VERSION, TraceWriter

__all__ = [
    "Split",
    "TraceError",
    "TraceReader",
    "TraceSlice",
    "TraceWriter",
    "split_domains",
    "split_sequences",
]

PREFILL, DECODE = 0, 1
MODELS_OWN = "model"
_ALLOWED = {
    "experts": ("U8", "I16", "U16", "I32"),
    "sequence_start": ("I64",),
    "gate_probs": ("F16", "F32"),
    "token_id": ("I32", "I64"),
    "phase": ("U8",),
    "gate_input": ("F16", "BF16", "F32"),
    "entering": ("F16", "BF16", "F32"),
}
STATES = ("gate_input", "entering")
_CHECKED_AT_ONCE = 65_536  # tokens


@dataclass(frozen=True)
class TraceSlice:
    """Consecutive tokens. Arrays as in the file, None where the trace has none."""

    first: int  # row of the trace
    experts: NDArray[Any]  # [n, L, K]
    gate_probs: NDArray[Any] | None  # [n, L, K]
    token_id: NDArray[Any] | None  # [n]
    phase: NDArray[np.uint8] | None  # [n]
    gate_input: NDArray[Any] | None  # [n, L, H]; bfloat16 is widened to float32
    entering: NDArray[Any] | None  # the same

    def __len__(self) -> int:
        return len(self.experts)


class TraceReader:
    """A trace on disk; nothing is held in memory but where sequences begin.

    Opening checks the header, shapes and sequence bounds; `check_ids` reads all ids once. Raises TraceError:
    truncated, wrong types, shapes that disagree, empty sequences.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = open_file(self.path)
        tensors = self._file.tensors
        self._token_name = "token_id" if "token_id" in tensors else "token_local_id"
        self._require()
        self.tokens, self.layers, self.top_k = tensors["experts"].shape
        self.sequence_start: NDArray[np.int64] = np.array(self._file.map("sequence_start"))
        self.model = self._file.metadata.get("model", "")
        self.experts_per_layer = self._stated("experts")
        self._require_agreement()

    # what the header says

    def _name_in_file(self, name: str) -> str:
        return self._token_name if name == "token_id" else name

    def has(self, name: str) -> bool:
        """Whether the optional array `name` (as the module's head spells it) was recorded."""
        return self._name_in_file(name) in self._file.tensors

    @cached_property
    def numbering(self) -> str:
        """What token ids mean: "model", the model's own vocabulary; else they are places in the list of
        texts beside the trace (token_strings.json), and this is its fingerprint; without one, the path's."""
        if self._token_name not in self._file.tensors or self._token_name == "token_id":
            return MODELS_OWN
        beside = self.path.with_name("token_strings.json")
        said = beside.read_bytes() if beside.is_file() else str(self.path.resolve()).encode()
        return hashlib.sha256(said).hexdigest()[:16]

    @property
    def metadata(self) -> Mapping[str, str]:
        """All that the header says in words."""
        return self._file.metadata

    @property
    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """(type, shape) of each array there is, by the name that the module's head gives it."""
        found = {name: self._file.tensors.get(self._name_in_file(name)) for name in _ALLOWED}
        return {name: (tensor.dtype, tensor.shape) for name, tensor in found.items() if tensor is not None}

    def _require(self) -> None:
        tensors, metadata = self._file.tensors, self._file.metadata
        for name in ("experts", "sequence_start"):
            if name not in tensors:
                raise TraceError(f"{self.path} has no tensor '{name}': it is not a routing trace.")
        if metadata.get("format", FORMAT) != FORMAT:
            raise TraceError(f"{self.path} is a {metadata['format']} file, not a routing trace.")
        if metadata.get("version", VERSION) != VERSION and "format" in metadata:
            raise TraceError(
                f"{self.path} is of trace version {metadata['version']}; this release reads {VERSION}. "
                "Record it again, or use the release that wrote it."
            )
        for name, allowed in _ALLOWED.items():
            tensor = tensors.get(self._name_in_file(name))
            if tensor is not None and tensor.dtype not in allowed:
                raise TraceError(f"{self.path}: {name} is {tensor.dtype}; it must be {' or '.join(allowed)}.")
        if len(tensors["experts"].shape) != 3:
            shape = list(tensors["experts"].shape)
            raise TraceError(f"{self.path}: experts is {shape}; it must be [tokens, layers, top_k].")

    def _stated(self, name: str) -> int:
        text = self._file.metadata.get(name, "")
        if not text.isdecimal() or int(text) < 1:
            raise TraceError(
                f"{self.path}: the metadata must say '{name}' as a number above 0, not '{text}'."
            )
        return int(text)

    def _require_agreement(self) -> None:
        n, layers, top_k = self.tokens, self.layers, self.top_k
        shapes = {"gate_probs": (n, layers, top_k), "token_id": (n,), "phase": (n,)}
        for name, shape in shapes.items():
            found = self._file.tensors.get(self._name_in_file(name))
            if found is not None and found.shape != shape:
                raise TraceError(
                    f"{self.path}: {name} is {list(found.shape)}, but experts {[n, layers, top_k]} "
                    f"ask for {list(shape)}."
                )
        for name in STATES:
            states = self._file.tensors.get(name)
            if states is not None and (len(states.shape) != 3 or states.shape[:2] != (n, layers)):
                raise TraceError(
                    f"{self.path}: {name} is {list(states.shape)}; it must be [{n}, {layers}, hidden]."
                )
        for name, value in (("layers", layers), ("top_k", top_k)):
            if name in self._file.metadata and self._stated(name) != value:
                raise TraceError(
                    f"{self.path}: the metadata says {self._stated(name)} {name}, "
                    f"but experts is {[n, layers, top_k]}."
                )
        if min(layers, top_k) < 1 or top_k > self.experts_per_layer:
            raise TraceError(
                f"{self.path}: experts is {[n, layers, top_k]} of {self.experts_per_layer} per layer; "
                "a token chooses at least one and at most all of them."
            )
        starts = self.sequence_start
        if starts.ndim != 1 or len(starts) < 2 or starts[0] != 0 or starts[-1] != n:
            raise TraceError(
                f"{self.path}: sequence_start must go from 0 to {n}, the number of tokens, "
                "in at least one sequence."
            )
        if (np.diff(starts) < 1).any():
            empty = int(np.flatnonzero(np.diff(starts) < 1)[0])
            raise TraceError(f"{self.path}: sequence {empty} has no tokens; every sequence has at least one.")

    # sequences

    @property
    def sequences(self) -> int:
        return len(self.sequence_start) - 1

    @cached_property
    def notes(self) -> tuple[dict[str, Any], ...]:
        """What was noted about each sequence; "label" names its domain."""
        text, source = self._file.metadata.get("sequences"), self.path
        beside = self.path.with_name("sequences.json")
        if text is None and beside.is_file():
            text, source = beside.read_text(encoding="utf-8"), beside
        if text is None:
            return tuple({} for _ in range(self.sequences))
        try:
            notes = tuple(dict(note) for note in json.loads(text))
        except (ValueError, TypeError) as error:
            raise TraceError(f"{source}: the list of sequences is no JSON list of objects.") from error
        if len(notes) != self.sequences:
            raise TraceError(f"{source} describes {len(notes)} sequences, {self.path} has {self.sequences}.")
        return notes

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The domain of each sequence, "" where none was noted."""
        return tuple(str(note.get("label", note.get("category", ""))) for note in self.notes)

    def rows(self, sequence: int) -> slice:
        return slice(int(self.sequence_start[sequence]), int(self.sequence_start[sequence + 1]))

    # tokens

    def map(self, name: str) -> NDArray[Any]:
        """The whole array, mapped. Raises TraceError, saying how to get it, where it was not recorded."""
        if not self.has(name):
            raise TraceError(f"{self.path} has no {name}: record a trace that includes it.")
        return self._file.map(self._name_in_file(name))

    @cached_property
    def _maps(self) -> dict[str, NDArray[Any]]:
        return {name: self.map(name) for name in _ALLOWED if self.has(name) and name != "sequence_start"}

    def slice(self, first: int, last: int) -> TraceSlice:
        """Tokens first .. last - 1, read from disk as they are touched."""
        part = {name: array[first:last] for name, array in self._maps.items()}
        for name in STATES:
            if name in part and self._file.tensors[name].dtype == "BF16":
                part[name] = (part[name].astype(np.uint32) << 16).view(np.float32)
        return TraceSlice(
            first,
            part["experts"],
            part.get("gate_probs"),
            part.get("token_id"),
            part.get("phase"),
            part.get("gate_input"),
            part.get("entering"),
        )

    def sequence(self, sequence: int) -> TraceSlice:
        rows = self.rows(sequence)
        return self.slice(rows.start, rows.stop)

    def chunks(self, tokens: int, sequences: Sequence[int] | None = None) -> Iterator[tuple[int, TraceSlice]]:
        """(sequence, part) for all or the named sequences in that order, in parts of at most `tokens`."""
        for sequence in range(self.sequences) if sequences is None else sequences:
            rows = self.rows(sequence)
            for first in range(rows.start, rows.stop, tokens):
                yield sequence, self.slice(first, min(first + tokens, rows.stop))

    def check_ids(self) -> None:
        """Reads all ids. Raises TraceError: out of range, or one named twice by a token."""
        for first in range(0, self.tokens, _CHECKED_AT_ONCE):
            ids = np.sort(self.map("experts")[first : first + _CHECKED_AT_ONCE].astype(np.int32), axis=2)
            wrong = (ids[:, :, 0] < 0) | (ids[:, :, -1] >= self.experts_per_layer)
            twice = (np.diff(ids, axis=2) == 0).any(axis=2)
            for bad, what in ((wrong, "an expert that does not exist"), (twice, "one expert twice")):
                if bad.any():
                    token, layer = (int(i) for i in np.argwhere(bad)[0])
                    raise TraceError(
                        f"{self.path}: token {first + token} names {what} in layer {layer}: "
                        f"{ids[token, layer].tolist()}, of experts 0 to {self.experts_per_layer - 1}."
                    )
