"""Writes a routing trace while it is recorded, in memory that does not grow with it.

Rows go to one file per array in the folder TRACE.partial, and a journal there is replaced after each complete
sequence. `close` puts the arrays together under the final name in one atomic step: either the
whole trace is there, or nothing. What was interrupted goes on from its last complete sequence with
`resume=True`.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import ArrayLike, NDArray

from prophet_moe.formats.trace_file import DTYPES, TraceError, header_bytes

FORMAT, VERSION = "prophet-trace", "1"
_COPIED_AT_ONCE = 1 << 20


class TraceWriter:
    """One trace in the making; a context manager that closes on success and keeps the parts on failure.

    hidden, entering: widths H of gate_input and entering; 0 records none. gate_probs are kept as float16,
    these as `hidden_dtype` (F16 or F32). about: further metadata, text by name; part of the settings that a
    resumed recording must repeat. Raises TraceError: a geometry that cannot be, the trace or its parts exist
    already, a resumed recording with other settings, rows that do not fit. A full disk raises OSError
    and leaves the parts.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        model: str,
        layers: int,
        experts_per_layer: int,
        top_k: int,
        gate_probs: bool = True,
        token_id: bool = True,
        phase: bool = True,
        hidden: int = 0,
        entering: int = 0,
        hidden_dtype: str = "F16",
        about: Mapping[str, str] | None = None,
        resume: bool = False,
    ) -> None:
        self.path = Path(path)
        if layers < 1 or not 1 <= top_k <= experts_per_layer <= 1 << 15 or min(hidden, entering) < 0:
            raise TraceError(
                f"no model has {layers} layers of {experts_per_layer} experts with top-{top_k} "
                f"and hidden width {min(hidden, entering)}."
            )
        if hidden_dtype not in ("F16", "F32"):
            raise TraceError(f"hidden states are kept as F16 or F32, not {hidden_dtype}.")
        self._experts_per_layer = experts_per_layer
        row = (layers, top_k)
        self._arrays: dict[str, tuple[str, tuple[int, ...]]] = {
            "token_id": ("I32", ()),
            "gate_input": (hidden_dtype, (layers, hidden)),
            "entering": (hidden_dtype, (layers, entering)),
            "gate_probs": ("F16", row),
            "experts": ("U8" if experts_per_layer <= 256 else "I16", row),
            "phase": ("U8", ()),
        }
        recorded = {"token_id": token_id, "gate_probs": gate_probs, "phase": phase,
                    "gate_input": hidden, "entering": entering}  # fmt: skip
        for name, wanted in recorded.items():
            if not wanted:
                del self._arrays[name]
        self._metadata = {
            **(about or {}),
            "format": FORMAT,
            "version": VERSION,
            "model": model,
            "layers": str(layers),
            "experts": str(experts_per_layer),
            "top_k": str(top_k),
        }
        self._starts, self._notes = [0], list[dict[str, Any]]()
        self._row = 0  # rows written, the unfinished sequence included
        self._open_sequence = False
        self._files: dict[str, BinaryIO] = {}
        self._begin(resume)

    # the folder of parts

    @staticmethod
    def parts_of(path: Path) -> Path:
        """The folder that holds the parts of `path` until it is whole."""
        return path.with_name(path.name + ".partial")

    @staticmethod
    def require_free(path: Path, *, resume: bool) -> None:
        """Raises TraceError when a trace of that name, or, without `resume`, its parts are there, or when
        nothing can be written at that place."""
        place = next(folder for folder in path.absolute().parents if folder.exists())
        if not place.is_dir() or not os.access(place, os.W_OK):
            raise TraceError(f"{place} is no folder to write {path.name} in: choose another place.")
        if path.exists():
            raise TraceError(f"{path} exists already: choose another name or remove it.")
        parts = TraceWriter.parts_of(path)
        if parts.exists() and not resume:
            raise TraceError(
                f"{parts} holds an interrupted recording: resume it, or remove it to begin anew."
            )

    @property
    def _partial(self) -> Path:
        return self.parts_of(self.path)

    def _begin(self, resume: bool) -> None:
        self.require_free(self.path, resume=resume)
        journal = self._partial / "journal.json"
        if journal.is_file():
            self._read_journal(journal)
        self._partial.mkdir(parents=True, exist_ok=True)
        for name in self._arrays:
            part = self._partial / name
            file = part.open("r+b" if part.exists() else "w+b")
            kept = self._starts[-1] * self._row_bytes(name)
            if file.seek(0, os.SEEK_END) < kept:
                raise TraceError(
                    f"{part} is shorter than the journal says: remove {self._partial} and begin anew."
                )
            file.truncate(kept)
            file.seek(kept)
            self._files[name] = file
        self._write_journal()

    def _settings(self) -> dict[str, Any]:
        return {"metadata": self._metadata, "arrays": {n: [d, list(s)] for n, (d, s) in self._arrays.items()}}

    def _read_journal(self, journal: Path) -> None:
        try:
            kept = json.loads(journal.read_text(encoding="utf-8"))
            settings, starts, notes = kept["settings"], kept["starts"], kept["notes"]
        except (ValueError, KeyError, TypeError) as error:
            raise TraceError(f"{journal} is damaged: remove {self._partial} and begin anew.") from error
        if settings != self._settings():
            raise TraceError(
                f"{self._partial} was begun with other settings ({self._differing(settings)}): use the same "
                "ones, or remove it."
            )
        self._starts, self._notes, self._row = starts, notes, starts[-1]

    def _differing(self, settings: Any) -> str:
        mine = self._settings()
        if not isinstance(settings, dict) or settings.get("arrays") != mine["arrays"]:
            return "other arrays"
        theirs, ours = settings.get("metadata") or {}, mine["metadata"]
        return ", ".join(sorted(n for n in {*theirs, *ours} if theirs.get(n) != ours.get(n)))

    def _write_journal(self) -> None:
        for file in self._files.values():
            file.flush()
        new = self._partial / "journal.json.new"
        new.write_text(
            json.dumps({"settings": self._settings(), "starts": self._starts, "notes": self._notes}),
            encoding="utf-8",
        )
        os.replace(new, self._partial / "journal.json")

    def _row_bytes(self, name: str) -> int:
        dtype, shape = self._arrays[name]
        return DTYPES[dtype].itemsize * int(np.prod(shape, dtype=np.int64))

    # recording

    @property
    def sequences(self) -> int:
        """Complete sequences, those of a resumed recording included."""
        return len(self._notes)

    def append(
        self,
        experts: ArrayLike,
        *,
        gate_probs: ArrayLike | None = None,
        token_id: ArrayLike | None = None,
        phase: ArrayLike | None = None,
        gate_input: ArrayLike | None = None,
        entering: ArrayLike | None = None,
    ) -> None:
        """Adds n tokens to the sequence under way: experts [n, L, K], gate_probs the same, token_id and
        phase [n], gate_input and entering [n, L, H]; exactly the arrays that this trace records."""
        given = {
            "experts": experts,
            "gate_probs": gate_probs,
            "token_id": token_id,
            "phase": phase,
            "gate_input": gate_input,
            "entering": entering,
        }
        present = {name for name, array in given.items() if array is not None}
        if present != set(self._arrays):
            raise TraceError(f"this trace records {sorted(self._arrays)}, but was given {sorted(present)}.")
        rows = {name: np.asarray(given[name]) for name in self._arrays}
        count = len(rows["experts"])
        for name, array in rows.items():
            wanted = (count, *self._arrays[name][1])
            if array.shape != wanted:
                raise TraceError(f"{name} is {list(array.shape)}; these tokens ask for {list(wanted)}.")
        self._check(rows)
        for name, array in rows.items():
            self._files[name].write(array.astype(DTYPES[self._arrays[name][0]]).tobytes())
        self._row += count
        self._open_sequence = True

    def _check(self, rows: dict[str, NDArray[Any]]) -> None:
        ids = rows["experts"]
        if ids.dtype.kind not in "iu":
            raise TraceError(f"expert ids are whole numbers, not {ids.dtype}.")
        if ids.size and (ids.min() < 0 or ids.max() >= self._experts_per_layer):
            raise TraceError(
                f"expert ids go from 0 to {self._experts_per_layer - 1}; "
                f"these go from {ids.min()} to {ids.max()}."
            )
        for name in ("gate_probs", "gate_input", "entering"):
            if name in rows and not np.isfinite(rows[name]).all():
                raise TraceError(f"{name} holds numbers that are not finite: the model's output is broken.")
        if "phase" in rows and not np.isin(rows["phase"], (0, 1)).all():
            raise TraceError("phase is 0 for prefill and 1 for decode.")

    def end_sequence(self, label: str = "", **note: Any) -> None:
        """Completes the sequence under way; `note` must be JSON."""
        if not self._open_sequence or self._row == self._starts[-1]:
            raise TraceError("a sequence needs at least one token before it ends.")
        self._starts.append(self._row)
        self._notes.append({"label": label, **note})
        self._open_sequence = False
        self._write_journal()

    def close(self) -> None:
        """Puts the trace under its final name. Raises TraceError: a sequence under way, or none at all."""
        if not self._files:
            return
        if self._open_sequence:
            raise TraceError("end the sequence under way before the trace is closed.")
        if not self._notes:
            raise TraceError("a trace needs at least one sequence.")
        rows = self._starts[-1]
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {"sequence_start": ("I64", (len(self._starts),))}
        tensors |= {name: (dtype, (rows, *shape)) for name, (dtype, shape) in self._arrays.items()}
        sequences = {"sequences": json.dumps(self._notes, ensure_ascii=False)}
        whole = self._partial / "trace.safetensors"
        with whole.open("wb") as out:
            out.write(header_bytes(tensors, self._metadata | sequences))
            out.write(np.asarray(self._starts, "<i8").tobytes())
            for name in self._arrays:
                self._files[name].seek(0)
                shutil.copyfileobj(self._files[name], out, _COPIED_AT_ONCE)
            out.flush()
            os.fsync(out.fileno())
        os.replace(whole, self.path)
        self.keep_parts()
        shutil.rmtree(self._partial)

    def keep_parts(self) -> None:
        """Stops recording and leaves the folder of parts, from which `resume=True` goes on."""
        for file in self._files.values():
            file.close()
        self._files = {}

    def discard(self) -> None:
        """Stops recording and removes the parts."""
        self.keep_parts()
        shutil.rmtree(self._partial, ignore_errors=True)

    def __enter__(self) -> "TraceWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.keep_parts()
