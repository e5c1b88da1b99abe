"""Tokens become text as it becomes certain, up to a stop sequence, wherever tokens divide it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from prophet_moe.generate import TextStream


class StopWatch:
    """Passes text on until one of `stops` appears in it; the stop itself is not passed on.

    What may be the beginning of a stop is held back until more text decides. Of several stops that
    end in the same piece, the one that begins first wins.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = [stop for stop in stops if stop]
        self._held = ""
        self.stopped = False

    def feed(self, text: str) -> str:
        """The part of what was held back and of `text` that is certain; nothing once stopped."""
        if self.stopped:
            return ""
        self._held += text
        begins = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if begins:
            self.stopped = True
            told, self._held = self._held[: min(begins)], ""
            return told
        keep = self._overlap()
        told, self._held = self._held[: len(self._held) - keep], self._held[len(self._held) - keep :]
        return told

    def end(self) -> str:
        """What was held back for a stop that never came."""
        told, self._held = self._held, ""
        return told

    def _overlap(self) -> int:
        """Characters at the end of what is held that a stop could begin with."""
        longest = max((len(stop) for stop in self._stops), default=1) - 1
        for size in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-size:]) for stop in self._stops):
                return size
        return 0


class AnswerText:
    """The text of one answer: tokens in, certain text out."""

    def __init__(self, decode: Callable[[list[int]], str], stops: Sequence[str] = ()) -> None:
        self._stream, self._watch = TextStream(decode), StopWatch(stops)

    @property
    def stopped(self) -> bool:
        """Whether a stop sequence has come."""
        return self._watch.stopped

    def feed(self, token: int) -> str:
        """The text that has become certain by this token, often empty."""
        return self._watch.feed(self._stream.feed(token))

    def end(self) -> str:
        """The rest, after the last token."""
        return self._watch.feed(self._stream.end()) + self._watch.end()
