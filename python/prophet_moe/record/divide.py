"""Some sequences of a trace as a trace of their own, and the files that a split is kept in."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prophet_moe.formats.trace import (
    Split,
    TraceError,
    TraceReader,
    TraceWriter,
    split_domains,
    split_sequences,
)
from prophet_moe.record.arrays import AT_ONCE, whole_or_nothing

FIXED = {"format", "version", "model", "layers", "experts", "top_k", "sequences"}


def writer_like(trace: TraceReader, out: str | Path, about: Mapping[str, str]) -> TraceWriter:
    """A writer of the arrays that `trace` has; gate_probs become float16, bfloat16 states float32."""
    arrays = trace.arrays
    none = ("F16", (0, 0, 0))
    (read_as, read), (entered_as, entered) = (arrays.get(name, none) for name in ("gate_input", "entering"))
    return TraceWriter(
        out,
        model=trace.model,
        layers=trace.layers,
        experts_per_layer=trace.experts_per_layer,
        top_k=trace.top_k,
        gate_probs="gate_probs" in arrays,
        token_id="token_id" in arrays,
        phase="phase" in arrays,
        hidden=read[2],
        entering=entered[2],
        hidden_dtype="F16" if (read_as, entered_as) == ("F16", "F16") else "F32",
        about=about,
    )


def copy_sequence(trace: TraceReader, number: int, writer: TraceWriter, **note: Any) -> None:
    """Appends one sequence to `writer`, with what was noted about it and with `note` before that."""
    for _, rows in trace.chunks(AT_ONCE, [number]):
        writer.append(
            rows.experts,
            gate_probs=rows.gate_probs,
            token_id=rows.token_id,
            phase=rows.phase,
            gate_input=rows.gate_input,
            entering=rows.entering,
        )
    note |= {key: value for key, value in trace.notes[number].items() if key != "label"}
    writer.end_sequence(trace.labels[number], **note)


def about_of(trace: TraceReader) -> dict[str, str]:
    """Its metadata but for what every trace says by itself."""
    return {key: text for key, text in trace.metadata.items() if key not in FIXED}


def copy_sequences(trace: TraceReader, sequences: Sequence[int], out: str | Path, part: str) -> TraceReader:
    """Writes the trace `out` of the sequences with these numbers, in this order, and opens it.

    Notes are kept, with "sequence", the number in `trace`; `part` is noted in the metadata. Raises
    TraceError, OSError.
    """
    with whole_or_nothing(writer_like(trace, out, about_of(trace) | {"part": part})) as writer:
        for number in sequences:
            copy_sequence(trace, number, writer, sequence=number)
    return TraceReader(out)


def share(text: str, of: int, flag: str) -> int:
    """`20%` or `12` of `of` sequences, rounded down. Raises TraceError."""
    number = text.removesuffix("%")
    if not number.isdecimal() or (text.endswith("%") and int(number) > 100):
        raise TraceError(f"{flag} is a number of sequences or a share, as in 12 or 20%, not {text!r}.")
    return of * int(number) // 100 if text.endswith("%") else int(number)


def by_sequence(trace: TraceReader, test: int, val: int, seed: int) -> dict[str, tuple[int, ...]]:
    """Numbers of sequences by the name of their part; parts of no sequences are left out."""
    return _parts(split_sequences(trace, test, val, seed))


def by_held_out_domain(
    trace: TraceReader, domains: Iterable[str], val: int, seed: int
) -> dict[str, tuple[int, ...]]:
    """The same, where `test` is all of `domains`."""
    return _parts(split_domains(trace, domains, val, seed))


def each_domain(trace: TraceReader) -> dict[str, tuple[int, ...]]:
    """The same with a part per domain. Raises TraceError where sequences have no labels."""
    if not all(trace.labels):
        raise TraceError(
            f"{trace.path}: {trace.labels.count('')} of {trace.sequences} sequences have no label; "
            "split it by sequence."
        )
    names = sorted(set(trace.labels))
    unfit = [name for name in names if "/" in name or name.startswith(".") or "\0" in name]
    if unfit:
        raise TraceError(f"{trace.path}: the domain {unfit[0]!r} cannot be the name of a file.")
    return {name: tuple(s for s, label in enumerate(trace.labels) if label == name) for name in names}


def write_parts(
    trace: TraceReader, parts: dict[str, tuple[int, ...]], folder: str | Path
) -> dict[str, TraceReader]:
    """FOLDER/NAME.safetensors for each part. Raises TraceError before it writes where one exists."""
    folder = Path(folder)
    paths = {name: folder / f"{name}.safetensors" for name in parts}
    for path in paths.values():
        TraceWriter.require_free(path, resume=False)
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: copy_sequences(trace, parts[name], path, f"{name} of {trace.path.name}")
        for name, path in paths.items()
    }


def _parts(split: Split) -> dict[str, tuple[int, ...]]:
    named = {"train": split.train, "val": split.val, "test": split.test}
    return {name: numbers for name, numbers in named.items() if numbers}
