"""Arrays of other programs become a routing trace; nothing is read whole into memory."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from prophet_moe.formats.trace import TraceError, TraceReader, TraceWriter

AT_ONCE = 8192  # tokens


def import_arrays(
    ids: str | Path,
    out: str | Path,
    *,
    experts_per_layer: int,
    gates: str | Path | None = None,
    tokens: str | Path | None = None,
    starts: str | Path | None = None,
    labels: str | Path | None = None,
    gate_inputs: str | Path | None = None,
    entering: str | Path | None = None,
    model: str = "",
) -> TraceReader:
    """Writes the trace `out` from .npy files and opens it; either the whole trace appears, or nothing.

    ids: integers [N, L, K]. gates: floats [N, L, K], kept as float16. tokens: integers [N]. starts: integers
    [S + 1] from 0 to N; None: one sequence. labels: a JSON list of S domains (texts), or of objects with
    "label". gate_inputs, entering: floats [N, L, H], kept as float16. Raises TraceError: files that are no
    such arrays, shapes that disagree, ids out of range or named twice by one token; OSError.
    """
    experts = _load(ids, "ids", "iu", 3)
    count, layers, top_k = experts.shape
    probs = None if gates is None else _load(gates, "gates", "f", 3, (count, layers, top_k))
    token_id = None if tokens is None else _load(tokens, "tokens", "iu", 1, (count,))
    read, entered = (
        None if file is None else _load(file, what, "f", 3)
        for file, what in ((gate_inputs, "gate inputs"), (entering, "entering states"))
    )
    for file, states in ((gate_inputs, read), (entering, entered)):
        if states is not None and states.shape[:2] != (count, layers):
            raise TraceError(
                f"{file} is {list(states.shape)}; these ids ask for [{count}, {layers}, hidden]."
            )
    bounds = np.array([0, count]) if starts is None else _load(starts, "starts", "iu", 1)
    if (
        len(bounds) < 2
        or bounds[0] != 0
        or bounds[-1] != count
        or (np.diff(bounds.astype(np.int64)) < 1).any()
    ):
        raise TraceError(
            f"{starts or ids}: sequences must begin at rising places from 0, and the last place must be "
            f"{count}, the number of tokens."
        )
    notes = _notes(labels, len(bounds) - 1)
    with whole_or_nothing(
        TraceWriter(
            out,
            model=model,
            layers=layers,
            experts_per_layer=experts_per_layer,
            top_k=top_k,
            gate_probs=probs is not None,
            token_id=token_id is not None,
            phase=False,
            hidden=0 if read is None else read.shape[2],
            entering=0 if entered is None else entered.shape[2],
            about={"feed": "imported"},
        )
    ) as writer:
        for note, begin, end in zip(notes, bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
            for first in range(begin, end, AT_ONCE):
                part = slice(first, min(first + AT_ONCE, end))
                _require_distinct(experts[part], first, ids)
                writer.append(
                    experts[part],
                    gate_probs=None if probs is None else probs[part],
                    token_id=None if token_id is None else token_id[part],
                    gate_input=None if read is None else read[part],
                    entering=None if entered is None else entered[part],
                )
            writer.end_sequence(**note)
    return TraceReader(out)


@contextmanager
def whole_or_nothing(writer: TraceWriter) -> Iterator[TraceWriter]:
    """Closes `writer` on success; whatever goes wrong removes its parts."""
    try:
        yield writer
        writer.close()
    except BaseException:
        writer.discard()
        raise


def _load(
    path: str | Path, what: str, kinds: str, dimensions: int, shape: tuple[int, ...] | None = None
) -> NDArray[Any]:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError) as error:
        raise TraceError(f"{path} is not a .npy file of numbers ({error}).") from error
    if not isinstance(array, np.ndarray):
        raise TraceError(f"{path} holds several arrays: save {what} alone, by numpy.save.")
    wanted = "whole numbers" if kinds == "iu" else "floating-point numbers"
    if array.dtype.kind not in kinds:
        raise TraceError(f"{path}: {what} must be {wanted}, not {array.dtype}.")
    if array.ndim != dimensions or (shape is not None and array.shape != shape) or 0 in array.shape:
        last = "top_k" if what == "ids" else "hidden"
        asked = list(shape) if shape else f"[tokens, layers, {last}]" if dimensions == 3 else "a list"
        raise TraceError(f"{path}: {what} is {list(array.shape)}; it must be {asked}, and not empty.")
    return array


def _notes(path: str | Path | None, count: int) -> list[dict[str, Any]]:
    if path is None:
        return [{} for _ in range(count)]
    try:
        rows = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise TraceError(f"{path} is not JSON ({error}).") from error
    if not isinstance(rows, list) or len(rows) != count:
        found = f"{len(rows)} entries" if isinstance(rows, list) else "no list"
        raise TraceError(f"{path}: labels are a JSON list of {count}, one per sequence; this is {found}.")
    notes = [{"label": row} if isinstance(row, str) else row for row in rows]
    if not all(isinstance(note, dict) and isinstance(note.get("label", ""), str) for note in notes):
        raise TraceError(f"{path}: a label is a text, or an object with the text 'label'.")
    return notes


def _require_distinct(ids: NDArray[Any], first: int, path: str | Path) -> None:
    twice = (np.diff(np.sort(ids, axis=2), axis=2) == 0).any(axis=2)
    if twice.any():
        token, layer = (int(i) for i in np.argwhere(twice)[0])
        raise TraceError(
            f"{path}: token {first + token} names one expert twice in layer {layer}: "
            f"{ids[token, layer].tolist()}."
        )
