"""What a trace holds, in one look: for people and as JSON."""

from collections import Counter
from typing import Any

import numpy as np

from prophet_moe.formats.trace import DECODE, TraceReader

SHOWN_BY_THEMSELVES = {"format", "version", "model", "layers", "experts", "top_k", "sequences"}


def describe(trace: TraceReader) -> dict[str, Any]:
    """The keys of `prophet trace info --json` (docs/formats.md). Reads all ids; raises TraceError."""
    trace.check_ids()
    lengths = np.diff(trace.sequence_start)
    tokens: Counter[str] = Counter()
    for label, length in zip(trace.labels, lengths.tolist(), strict=True):
        tokens[label] += length
    sequences = Counter(trace.labels)
    decoded = int((trace.map("phase") == DECODE).sum()) if trace.has("phase") else trace.tokens
    used = np.zeros((trace.layers, trace.experts_per_layer), np.int64)
    for _, part in trace.chunks(65_536):
        for layer in range(trace.layers):
            used[layer] += np.bincount(part.experts[:, layer].reshape(-1), minlength=used.shape[1])
    return {
        "path": str(trace.path),
        "bytes": trace.path.stat().st_size,
        "model": trace.model,
        "layers": trace.layers,
        "experts_per_layer": trace.experts_per_layer,
        "top_k": trace.top_k,
        "tokens": trace.tokens,
        "prefill_tokens": trace.tokens - decoded,
        "decode_tokens": decoded,
        "sequences": trace.sequences,
        "shortest_sequence": int(lengths.min()),
        "longest_sequence": int(lengths.max()),
        "experts_never_used": int((used == 0).sum()),
        "domains": {
            label: {"sequences": sequences[label], "tokens": tokens[label]} for label in sorted(sequences)
        },
        "arrays": {
            name: {"type": dtype, "shape": list(shape)} for name, (dtype, shape) in trace.arrays.items()
        },
        "about": {k: v for k, v in sorted(trace.metadata.items()) if k not in SHOWN_BY_THEMSELVES},
    }
