"""Continuous batching over a trace's sequences: which tokens share a forward pass.

At most `concurrency` sequences live at once. Every pass takes one decoded token of each of them that has its
prompt behind it, and up to `PASS` tokens of the prompts of the others, in the order in which they came; when
a sequence ends, the next one takes its place in the same step. The order of sequences is drawn by a seed and
goes round the domains, so that sequences which live together differ.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from prophet_moe.errors import InvalidArgument
from prophet_moe.formats.trace import DECODE, TraceReader

PASS = 512  # prompt tokens of one forward pass


@dataclass(frozen=True)
class Step:
    """One forward pass."""

    rows: NDArray[np.int64]  # tokens of the trace: decoded ones first, then prompts'
    requests: NDArray[np.int64]  # [rows]: of which request each is, numbered as they come
    decoded: int
    came: tuple[int, ...]  # sequences whose first token is in this pass
    answered: tuple[int, ...]  # sequences whose prompt ends in this pass


@dataclass
class _Live:
    request: int
    sequence: int
    rows: NDArray[np.int64]
    prompt: NDArray[np.bool_]  # [rows]
    at: int = field(default=0)

    @property
    def decodes(self) -> bool:
        return not self.prompt[self.at]

    @property
    def ended(self) -> bool:
        return self.at == len(self.rows)


def mixed_order(trace: TraceReader, sequences: Sequence[int] | None, seed: int) -> list[int]:
    """Sequences in the order in which they come: shuffled within each domain, domains in turn."""
    dice = np.random.default_rng(seed)
    shuffled = dice.permutation(np.arange(trace.sequences) if sequences is None else np.asarray(sequences))
    by_domain: dict[str, list[int]] = {}
    for sequence in shuffled.tolist():
        by_domain.setdefault(trace.labels[sequence], []).append(sequence)
    # The place of a sequence within its domain, stretched to [0, 1): small domains are spread, too.
    placed = [
        ((place + 0.5) / len(mine), sequence)
        for mine in by_domain.values()
        for place, sequence in enumerate(mine)
    ]
    return [sequence for _, sequence in sorted(placed, key=lambda one: one[0])]


def prompt_mask(trace: TraceReader, sequence: int, prompt_tokens: int) -> NDArray[np.bool_]:
    """Which of a sequence's tokens are its prompt's: by the trace's phases, or where it has none the first
    `prompt_tokens`, but never all of them."""
    rows = trace.rows(sequence)
    count = rows.stop - rows.start
    if trace.has("phase"):
        phase = np.asarray(trace.map("phase")[rows]) != DECODE
        if phase.any() or prompt_tokens == 0:
            return phase
    mask = np.zeros(count, bool)
    mask[: min(prompt_tokens, count - 1)] = True
    return mask


def schedule(
    trace: TraceReader, order: Sequence[int], concurrency: int, prompt_tokens: int = 0
) -> Iterator[Step]:
    """The passes that serve the sequences in this order. Raises InvalidArgument: fewer than one at a time."""
    if concurrency < 1 or prompt_tokens < 0:
        raise InvalidArgument(
            f"{concurrency} sequences at a time with prompts of {prompt_tokens} tokens cannot be served: "
            "give at least 1 and at least 0."
        )
    coming = [sequence for sequence in reversed(order) if len(trace.sequence(sequence))]
    live: list[_Live] = []
    requests = itertools.count()
    while live or coming:
        came = []
        while coming and len(live) < concurrency:
            sequence = coming.pop()
            rows = trace.rows(sequence)
            mask = prompt_mask(trace, sequence, prompt_tokens)
            live.append(_Live(next(requests), sequence, np.arange(rows.start, rows.stop), mask))
            came.append(sequence)
        decoded, prompts, answered, room = [], [], [], PASS
        for one in live:
            if one.decodes:
                decoded.append((one.request, one.rows[one.at : one.at + 1]))
                one.at += 1
                continue
            rest = one.prompt[one.at :]
            whole = len(rest) if rest.all() else int(np.argmin(rest))
            taken = min(whole, room)
            prompts.append((one.request, one.rows[one.at : one.at + taken]))
            one.at += taken
            room -= taken
            if taken == whole:
                answered.append(one.sequence)
        parts = decoded + prompts
        yield Step(
            rows=np.concatenate([mine for _, mine in parts]),
            requests=np.concatenate([np.full(len(mine), request) for request, mine in parts]),
            decoded=len(decoded),
            came=tuple(came),
            answered=tuple(answered),
        )
        live = [one for one in live if not one.ended]
