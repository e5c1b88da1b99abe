"""Small routing streams with something to learn: routes follow a hidden topic and the layer before."""

import numpy as np

from prophet_moe.formats.trace import TraceReader, TraceWriter
from prophet_moe.predict.features import Stream

LAYERS, EXPERTS, TOP_K = 4, 8, 2


def stream(tokens=400, seed=0, hidden=0):
    rng = np.random.default_rng(seed)
    taste = np.random.default_rng(99).normal(0, 2.0, (3, LAYERS, EXPERTS))
    follow = np.random.default_rng(98).normal(0, 1.5, (LAYERS, EXPERTS, EXPERTS))
    experts = np.empty((tokens, LAYERS, TOP_K), np.int64)
    gate = np.empty((tokens, LAYERS, TOP_K), np.float32)
    topic = 0
    for t in range(tokens):
        if rng.random() < 0.03:
            topic = int(rng.integers(3))
        for layer in range(LAYERS):
            logits = taste[topic, layer] + rng.gumbel(size=EXPERTS)
            if layer:
                logits = logits + follow[layer, experts[t, layer - 1]].sum(0)
            experts[t, layer] = np.argsort(-logits)[:TOP_K]
            gate[t, layer] = np.sort(rng.dirichlet(np.ones(TOP_K)))[::-1]
    starts = np.array([0, tokens // 3, tokens])
    read = rng.normal(size=(tokens, LAYERS, hidden)).astype(np.float16) if hidden else None
    return Stream(experts, gate, starts, EXPERTS, ["prose", "code"], read)


def scrambled(original, token, layer, seed=1):
    """The same up to and including `layer` of `token`, other routes afterwards."""
    other = stream(len(original), seed + 100, 0 if original.hidden is None else original.hidden.shape[2])
    parts = []
    for mine, theirs in (
        (original.experts, other.experts),
        (original.gate, other.gate),
        (original.hidden, other.hidden),
    ):
        if mine is None:
            parts.append(None)
            continue
        mixed = mine.copy()
        mixed[token + 1 :], mixed[token, layer + 1 :] = theirs[token + 1 :], theirs[token, layer + 1 :]
        parts.append(mixed)
    return Stream(parts[0], parts[1], original.starts, EXPERTS, original.labels, parts[2])


def record(path, hidden=0, labels=("code", "prose"), sequences=8):
    """Streams of seeds 0, 1, ... as the sequences of a trace on disk; their labels take turns."""
    with TraceWriter(
        path,
        model="toy",
        layers=LAYERS,
        experts_per_layer=EXPERTS,
        top_k=TOP_K,
        hidden=hidden,
        token_id=False,
    ) as trace:
        for seed in range(sequences):
            s = stream(150 + seed, seed, hidden)
            rows = {"experts": s.experts, "gate_probs": s.gate, "phase": np.ones(len(s), np.uint8)}
            if hidden:
                rows["gate_input"] = s.hidden
            trace.append(**rows)
            trace.end_sequence(labels[seed % len(labels)], source=f"book {seed % 3}")
    return TraceReader(path)
