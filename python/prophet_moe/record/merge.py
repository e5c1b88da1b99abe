"""Traces of the same model, recorded apart, become one."""

from collections.abc import Sequence
from pathlib import Path

from prophet_moe.formats.trace import TraceError, TraceReader
from prophet_moe.record.arrays import whole_or_nothing
from prophet_moe.record.divide import about_of, copy_sequence, writer_like


def merge_traces(
    traces: Sequence[TraceReader], out: str | Path, *, prompts: str | None = None
) -> TraceReader:
    """Writes the trace `out` of all sequences of `traces`, in their order, and opens it.

    prompts: the fingerprint of all prompts, where they are parts of one recording, which the trace is then
    equal to; else "merged" says of how many traces it was made, and of what is noted about them only what
    they agree on is kept. Raises TraceError: nothing to merge, other models, geometries or arrays, traces
    recorded in different ways; OSError.
    """
    if not traces:
        raise TraceError("there are no traces to merge: name at least one.")
    first = traces[0]
    for other in traces[1:]:
        _require_alike(first, other)
    about = about_of(first)
    if prompts is not None:
        about["prompts"] = prompts
    else:
        others = [about_of(trace) for trace in traces[1:]]
        about = {key: text for key, text in about.items() if all(o.get(key) == text for o in others)}
        about["merged"] = f"{len(traces)} traces"
    with whole_or_nothing(writer_like(first, out, about)) as writer:
        for trace in traces:
            for number in range(trace.sequences):
                copy_sequence(trace, number, writer)
    return TraceReader(out)


def _require_alike(first: TraceReader, other: TraceReader) -> None:
    def kept(trace: TraceReader) -> dict[str, object]:
        arrays = {name: (dtype, shape[1:]) for name, (dtype, shape) in trace.arrays.items()}
        del arrays["sequence_start"]
        return {
            "model": trace.model,
            "layers": trace.layers,
            "experts per layer": trace.experts_per_layer,
            "top-k": trace.top_k,
            "arrays": arrays,
            "arithmetic": trace.metadata.get("arithmetic"),
            "dtype": trace.metadata.get("dtype"),
        }

    mine, theirs = kept(first), kept(other)
    differing = [what for what in mine if mine[what] != theirs[what]]
    if differing:
        raise TraceError(
            f"{other.path} and {first.path} differ in {', '.join(differing)}: traces are merged that were "
            "recorded of one model in one way."
        )
