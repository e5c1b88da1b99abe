"""A prompt becomes tokens, with a mark for each: the clock and the engine's counters.

The loop is the model's own `generate`; this module only listens in. It takes any transformers
model, Prophet's or stock, so that both are timed by the same clock.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from prophet_moe.runreport import Mark

Counters = Callable[[], Mapping[str, int]]


@dataclass
class Recording:
    """What one generation did; `marks` has one entry for each token of `token_ids`."""

    prompt_tokens: int
    begun: Mark
    marks: list[Mark] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    interrupted: bool = False  # by Ctrl-C; what was done until then is here
    past: Any = None  # the KV cache after the last step; None when interrupted

    def whole(self) -> Recording:
        """Itself; raises the KeyboardInterrupt that cut it short, for callers who have no use for a part."""
        if self.interrupted:
            raise KeyboardInterrupt
        return self


class _Marker:
    """A logits processor that marks each step and, given `forced` tokens, lets only those through."""

    def __init__(self, marks: list[Mark], counters: Counters, forced: Sequence[int] | None) -> None:
        self._marks, self._counters, self._forced = marks, counters, forced

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self._marks.append(Mark(time.perf_counter_ns(), self._counters()))
        if self._forced is None:
            return scores
        only = torch.full_like(scores, float("-inf"))
        only[:, self._forced[len(self._marks) - 1]] = 0
        return only


class _Listener:
    """A streamer: `put` gets the prompt first, then one token at a time."""

    def __init__(self, token_ids: list[int], on_token: Callable[[int], None] | None) -> None:
        self._token_ids, self._on_token, self._prompt_seen = token_ids, on_token, False

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        token = int(value.reshape(-1)[0])
        self._token_ids.append(token)
        if self._on_token is not None:
            self._on_token(token)

    def end(self) -> None:
        pass


class _Stop:
    """A stopping criterion: asks `stop` about all tokens so far, the prompt's included."""

    def __init__(self, stop: Callable[[list[int]], bool]) -> None:
        self._stop = stop

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return torch.tensor([self._stop(row) for row in input_ids.tolist()], device=input_ids.device)


def no_counters() -> Mapping[str, int]:
    """For models without an engine."""
    return {}


def fixed_tokens(count: int, vocab_size: int, avoid: Sequence[int] = (), seed: int = 1) -> list[int]:
    """`count` pseudo-random token ids, the same at every call; none of `avoid` (ends of sequence).

    Raises ValueError when nothing of the vocabulary is left.
    """
    banned = set(avoid)
    if vocab_size - len(banned & set(range(vocab_size))) < 1:
        raise ValueError(f"a vocabulary of {vocab_size} tokens has none left to feed.")
    dice = random.Random(seed)
    out: list[int] = []
    while len(out) < count:
        token = int(dice.random() * vocab_size)
        if token not in banned:
            out.append(token)
    return out


def end_tokens(model: Any) -> list[int]:
    """The token ids that end a sequence of a model, or of anything that has its config."""
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    if ends is None:
        ends = getattr(model.config, "eos_token_id", None)
    if ends is None:
        return []
    return [int(ends)] if isinstance(ends, int) else [int(end) for end in ends]


def decode(
    model: Any,
    prompt_ids: Sequence[int],
    *,
    max_new_tokens: int,
    counters: Counters = no_counters,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    forced: Sequence[int] | None = None,
    past: Any = None,
    stop: Callable[[list[int]], bool] | None = None,
    on_token: Callable[[int], None] | None = None,
) -> Recording:
    """Generates up to `max_new_tokens` tokens after one prompt of token ids.

    temperature 0 is greedy; `seed` seeds torch's generator. forced: feeds these tokens, at least
    max_new_tokens of them, whatever the logits say. past: the KV cache of a prefix of the prompt.
    stop is asked after each token, with all tokens so far, whether to end. on_token is
    called with each token as it is chosen. Ctrl-C ends the loop and is told in the
    recording. Raises ValueError for an empty prompt, ids outside the vocabulary, or a sampling setting
    out of range; ReadError and other errors of the engine pass through.
    """
    vocab_size = int(model.get_input_embeddings().weight.shape[0])
    _check(prompt_ids, vocab_size, max_new_tokens, temperature, top_p)
    ids = torch.tensor([list(prompt_ids)], dtype=torch.int64, device=getattr(model, "device", None))
    settings: dict[str, Any] = {"do_sample": False}
    if temperature > 0 and forced is None:
        settings = {"do_sample": True, "temperature": temperature, "top_p": top_p, "top_k": 0}
        if seed is not None:
            torch.manual_seed(seed)
    ends = end_tokens(model)
    recording = Recording(len(prompt_ids), Mark(time.perf_counter_ns(), counters()))
    try:
        out = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=max_new_tokens,
            num_beams=1,
            use_cache=True,
            past_key_values=past,
            pad_token_id=ends[0] if ends else 0,
            return_dict_in_generate=True,
            logits_processor=[_Marker(recording.marks, counters, forced)],
            stopping_criteria=[] if stop is None else [_Stop(stop)],
            streamer=_Listener(recording.token_ids, on_token),
            **settings,
        )
        recording.past = out.past_key_values
    except KeyboardInterrupt:
        recording.interrupted = True
    del recording.marks[len(recording.token_ids) :]
    return recording


def _check(
    prompt_ids: Sequence[int], vocab_size: int, max_new_tokens: int, temperature: float, top_p: float
) -> None:
    if not prompt_ids:
        raise ValueError("the prompt has no tokens: give at least one.")
    for token in prompt_ids:
        if not 0 <= token < vocab_size:
            raise ValueError(
                f"token id {token} of the prompt is outside the vocabulary of 0 to {vocab_size - 1}."
            )
    if max_new_tokens < 1:
        raise ValueError(f"{max_new_tokens} new tokens are none: ask for at least 1.")
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"a temperature of {temperature} is out of range: use 0 (greedy) or more.")
    if not 0 < top_p <= 1:
        raise ValueError(f"a top-p of {top_p} is out of range: it lies above 0 and up to 1.")


class TextStream:
    """Token ids in, text out, as soon as it is certain.

    A token may hold part of a character and may change the space before it, so the text of
    a token is what decoding gains by it, and is held back while it ends in a broken character.
    """

    def __init__(self, decode_ids: Callable[[list[int]], str]) -> None:
        self._decode = decode_ids
        self._context: list[int] = []  # tokens already told, kept for the spelling of the next
        self._waiting: list[int] = []

    def feed(self, token: int) -> str:
        """The text that has become certain by this token, often empty."""
        self._waiting.append(token)
        return self._told(final=False)

    def end(self) -> str:
        """What is still held back."""
        return self._told(final=True) if self._waiting else ""

    def _told(self, final: bool) -> str:
        before = self._decode(self._context) if self._context else ""
        after = self._decode(self._context + self._waiting)
        if not final and (after.endswith("�") or len(after) <= len(before)):
            return ""
        self._context, self._waiting = self._waiting, []
        return after[len(before) :]
