"""Traces of processes whose information is known in closed form."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prophet_moe.formats.trace import TraceReader, TraceWriter


def write(
    folder: Path,
    experts: Any,
    lengths: Sequence[int],
    *,
    of: int,
    labels: Sequence[str] = (),
    gates: Any = None,
    phase: Any = None,
) -> TraceReader:
    """experts [N, L, K] of `of` per layer, cut into sequences of these lengths."""
    experts = np.asarray(experts)
    path = folder / "trace.safetensors"
    path.unlink(missing_ok=True)
    with TraceWriter(
        path,
        model="made up",
        layers=experts.shape[1],
        experts_per_layer=of,
        top_k=experts.shape[2],
        gate_probs=gates is not None,
        token_id=False,
        phase=phase is not None,
    ) as writer:
        at = 0
        for number, length in enumerate(lengths):
            part = slice(at, at + length)
            arrays = {"gate_probs": gates, "phase": phase}
            writer.append(experts[part], **{k: v[part] for k, v in arrays.items() if v is not None})
            writer.end_sequence(label=labels[number % len(labels)] if labels else "")
            at += length
    assert at == len(experts)
    return TraceReader(path)


def noisy_copy(n: int, experts: int, noise: float, random: np.random.Generator) -> tuple[Any, float]:
    """[n, 2, 1]: layer 1 repeats layer 0, or with probability `noise` is drawn anew; the bits it tells."""
    first = random.integers(experts, size=n)
    second = np.where(random.random(n) < noise, random.integers(experts, size=n), first)
    return np.stack([first, second], 1)[:, :, None], symmetric_bits(experts, 1 - noise + noise / experts)


def chain(lengths: Sequence[int], layers: int, experts: int, stay: float, random: np.random.Generator) -> Any:
    """[N, layers, 1]: independent chains; each stays with this probability, else moves to any other."""
    out = np.empty((sum(lengths), layers, 1), np.int64)
    for layer in range(layers):
        at = 0
        for length in lengths:
            moves = np.where(random.random(length) < stay, 0, random.integers(1, experts, size=length))
            moves[0] = random.integers(experts)
            out[at : at + length, layer, 0] = np.cumsum(moves) % experts
            at += length
    return out


def chain_bits(experts: int, stay: float, steps: int) -> float:
    """I(X_t; X_{t + steps}) of `chain`, whose matrix has the eigenvalue stay - (1 - stay) / (E - 1)."""
    value = (stay - (1 - stay) / (experts - 1)) ** steps
    return symmetric_bits(experts, 1 / experts + (1 - 1 / experts) * value)


def symmetric_bits(experts: int, same: float) -> float:
    """Uniform source; the target is the same with this probability, and any other evenly."""
    other = (1 - same) / (experts - 1)
    bits = np.log2(experts)
    bits += same * np.log2(same) if same > 0 else 0
    return float(bits + ((experts - 1) * other * np.log2(other) if other > 0 else 0))


def pairs(n: int, experts: int, random: np.random.Generator) -> Any:
    """[n, 2] uniform sets of two."""
    first = random.integers(experts, size=n)
    return np.stack([first, (first + random.integers(1, experts, size=n)) % experts], 1)
