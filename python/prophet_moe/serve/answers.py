"""Pieces of answers in OpenAI's shapes: whole completions, and the chunks of a stream."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prophet_moe.models.sampling import Chosen
from prophet_moe.serve.loop import Piece
from prophet_moe.serve.schemas import Usage

TokenText = Callable[[int], str]
DONE = "data: [DONE]\n\n"


@dataclass
class Gathered:
    """All pieces of one answer so far."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)
    finish: str | None = None

    def add(self, piece: Piece) -> None:
        """Appends."""
        self.text += piece.text
        self.tokens += piece.tokens
        self.chosen += piece.chosen
        self.finish = piece.finish


def event(body: dict[str, Any]) -> str:
    """One server-sent event."""
    return f"data: {json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(',', ':'))}\n\n"


def finite(logprob: float) -> float:
    """JSON has no infinity: what cannot be chosen is told as OpenAI tells it."""
    return max(logprob, -9999.0)


class Shape:
    """Common to both kinds: the head of every object of one request."""

    kind = chunk_kind = ""

    def __init__(self, request: str, created: int, model: str, token_text: TokenText) -> None:
        self._head: dict[str, Any] = {"id": request, "created": created, "model": model}
        self._token_text = token_text

    def will_count(self) -> None:
        """Of a stream that ends with its usage: until then its events say that there is none."""
        self._head["usage"] = None

    def whole(self, answers: Sequence[Gathered], prompt_tokens: int) -> dict[str, Any]:
        """The answer to a request that does not stream."""
        usage = Usage.of(prompt_tokens, sum(len(answer.tokens) for answer in answers))
        choices = [self._choice(number, answer) for number, answer in enumerate(answers)]
        return {**self._head, "object": self.kind, "choices": choices, "usage": usage.model_dump()}

    def chunk(self, number: int, piece: Piece) -> dict[str, Any]:
        """One event of a stream."""
        return {**self._head, "object": self.chunk_kind, "choices": [self._delta(number, piece)]}

    def usage(self, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
        """The last event of a stream that was asked to count."""
        counts = Usage.of(prompt_tokens, new_tokens).model_dump()
        return {**self._head, "object": self.chunk_kind, "choices": [], "usage": counts}

    def opening(self, number: int) -> dict[str, Any] | None:
        """What a stream says of a choice before its first token, if anything."""
        return None

    def _choice(self, number: int, answer: Gathered) -> dict[str, Any]:
        raise NotImplementedError

    def _delta(self, number: int, piece: Piece) -> dict[str, Any]:
        raise NotImplementedError


class ChatShape(Shape):
    """chat.completion"""

    kind, chunk_kind = "chat.completion", "chat.completion.chunk"

    def opening(self, number: int) -> dict[str, Any]:
        delta = {"role": "assistant", "content": ""}
        choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
        return {**self._head, "object": self.chunk_kind, "choices": [choice]}

    def _choice(self, number: int, answer: Gathered) -> dict[str, Any]:
        return {
            "index": number,
            "message": {"role": "assistant", "content": answer.text, "refusal": None},
            "logprobs": self._logprobs(answer.tokens, answer.chosen),
            "finish_reason": answer.finish,
        }

    def _delta(self, number: int, piece: Piece) -> dict[str, Any]:
        return {
            "index": number,
            "delta": {"content": piece.text} if piece.text else {},
            "logprobs": self._logprobs(piece.tokens, piece.chosen),
            "finish_reason": piece.finish,
        }

    def _logprobs(self, tokens: Sequence[int], chosen: Sequence[Chosen]) -> dict[str, Any] | None:
        if not chosen:
            return None
        content = [
            {
                **self._entry(token, one.logprob),
                "top_logprobs": [self._entry(other, logprob) for other, logprob in one.likeliest],
            }
            for token, one in zip(tokens, chosen, strict=True)
        ]
        return {"content": content, "refusal": None}

    def _entry(self, token: int, logprob: float) -> dict[str, Any]:
        text = self._token_text(token)
        return {"token": text, "logprob": finite(logprob), "bytes": list(text.encode())}


class CompletionShape(Shape):
    """text_completion"""

    kind = chunk_kind = "text_completion"

    def __init__(self, *head: Any, echoes: Sequence[str] = ()) -> None:
        """echoes: the prompt of each choice, which its text begins with; empty: texts are answers alone."""
        super().__init__(*head)
        self._echoes = echoes

    def opening(self, number: int) -> dict[str, Any] | None:
        if not self._echoes:
            return None
        return self.chunk(number, Piece(self._echoes[number], (), (), None))

    def _choice(self, number: int, answer: Gathered) -> dict[str, Any]:
        echo = self._echoes[number] if self._echoes else ""
        return self._said(number, echo + answer.text, answer)

    def _delta(self, number: int, piece: Piece) -> dict[str, Any]:
        return self._said(number, piece.text, piece)

    def _said(self, number: int, text: str, answer: Gathered | Piece) -> dict[str, Any]:
        return {
            "index": number,
            "text": text,
            "logprobs": self._logprobs(answer.tokens, answer.chosen),
            "finish_reason": answer.finish,
        }

    def _logprobs(self, tokens: Sequence[int], chosen: Sequence[Chosen]) -> dict[str, Any] | None:
        if not chosen:
            return None
        texts = [self._token_text(token) for token in tokens]
        offsets = [sum(len(text) for text in texts[:place]) for place in range(len(texts))]
        return {
            "tokens": texts,
            "token_logprobs": [finite(one.logprob) for one in chosen],
            "top_logprobs": [
                {self._token_text(other): finite(logprob) for other, logprob in one.likeliest}
                for one in chosen
            ],
            "text_offset": offsets,
        }
