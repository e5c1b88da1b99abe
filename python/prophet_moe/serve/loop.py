"""Between asyncio, where requests come from, and the one thread in which the model runs.

A job is admitted (serve/admission.py), handed to the batching manager, and its tokens come back as pieces of
text. Whatever ends it (the model, a stop sequence, the client, an error), its row and its blocks are free
before the next job is let in.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

from prophet_moe.models.batching import Batching, News
from prophet_moe.models.sampling import Chosen, Sampling
from prophet_moe.serve.admission import Gate
from prophet_moe.serve.metrics import Metrics
from prophet_moe.serve.text import AnswerText

LONGEST_RETRY = 60  # seconds


class Failed(Exception):
    """The model's thread gave up on a request; the sentence says why."""


@dataclass(frozen=True)
class Job:
    """One prompt and how to answer it."""

    prompt: tuple[int, ...]
    max_tokens: int
    stops: tuple[str, ...] = ()
    sampling: Sampling = field(default_factory=Sampling)
    ignore_ends: bool = False  # go on past the model's own end


@dataclass(frozen=True)
class Piece:
    """Text that has become certain, and the tokens since the last piece."""

    text: str
    tokens: tuple[int, ...]
    chosen: tuple[Chosen, ...]
    finish: str | None  # stop, length; None: more will come


@dataclass
class Tracked:
    """What the live page shows of a request; never its text."""

    number: int
    prompt_tokens: int
    max_tokens: int
    came: float  # time.perf_counter()
    new_tokens: int = 0
    state: str = "waiting"


class Loop:
    """The model's answers, for one event loop. `start` and `close` frame its use."""

    def __init__(
        self,
        model: Any,
        decode: Callable[[list[int]], str],
        metrics: Metrics,
        *,
        rows: int,
        context: int,
        kv_tokens: int | None,
        queue: int,
        ends: tuple[int, ...],
    ) -> None:
        """`decode` turns token ids into text. Raises as Batching does."""
        self.context, self.ends = context, ends
        self._decode, self._metrics = decode, metrics
        self._inboxes: dict[str, asyncio.Queue[News]] = {}
        self._numbers = itertools.count(1)
        self._typical = 1.0  # seconds of a request, running mean
        self._events: asyncio.AbstractEventLoop | None = None
        self.tracked: dict[int, Tracked] = {}
        self.new_tokens = 0  # of all requests
        self.closing = False
        self.batching = Batching(model, self._heard, rows=rows, context=context, kv_tokens=kv_tokens)
        self.gate = Gate(rows, self.batching.blocks, queue)

    def start(self) -> None:
        """Names the running event loop as the one that news goes to."""
        self._events = asyncio.get_running_loop()

    async def close(self) -> None:
        """Stops the model's thread; requests still running raise Failed. Idempotent."""
        self.closing = True
        await asyncio.to_thread(self.batching.close)

    @property
    def healthy(self) -> bool:
        """Whether a request that came now would be served."""
        return self.batching.running and not self.closing

    @contextlib.asynccontextmanager
    async def answer(self, job: Job) -> AsyncIterator[AsyncIterator[Piece]]:
        """Admits a job; inside the context its pieces come, leaving it ends the request whatever its state.

        Raises Overloaded while nothing has begun, StateError when the model's thread is gone; the
        pieces raise Failed.
        """
        number = next(self._numbers)
        tracked = Tracked(number, len(job.prompt), job.max_tokens, time.perf_counter())
        blocks = self.batching.blocks_of(len(job.prompt) + job.max_tokens)
        name, outcome = f"request-{number}", "refused"
        self.tracked[number] = tracked
        try:
            await self.gate.enter(blocks, self._retry_after())
            try:
                outcome, tracked.state = "failed", "running"
                inbox: asyncio.Queue[News] = asyncio.Queue()
                self._inboxes[name] = inbox
                self.batching.submit(
                    name,
                    job.prompt,
                    max_new_tokens=job.max_tokens,
                    ends=() if job.ignore_ends else self.ends,
                    sampling=job.sampling,
                )
                ending = _Ending()
                try:
                    yield self._pieces(job, inbox, tracked, ending)
                finally:
                    outcome = ending.outcome
            finally:
                self.batching.cancel(name)
                self._inboxes.pop(name, None)
                self.gate.leave(blocks)
                self._typical += 0.1 * (time.perf_counter() - tracked.came - self._typical)
        finally:
            del self.tracked[number]
            self._metrics.ended(outcome)

    async def _pieces(
        self, job: Job, inbox: asyncio.Queue[News], tracked: Tracked, ending: _Ending
    ) -> AsyncIterator[Piece]:
        text = AnswerText(self._decode, job.stops)
        last = tracked.came
        self._metrics.prompt(len(job.prompt))
        while True:
            news = await inbox.get()
            if news.error is not None:
                ending.outcome = "failed"
                raise Failed(news.error)
            said, used = "", 0
            for token in news.tokens:
                now = news.at_ns / 1e9
                self._metrics.token(now - last, first=tracked.new_tokens == 0)
                last, used = now, used + 1
                tracked.new_tokens += 1
                self.new_tokens += 1
                said += text.feed(token)
                if text.stopped:
                    break
            at_end = bool(news.tokens) and not job.ignore_ends and news.tokens[-1] in self.ends
            finish = "stop" if text.stopped or at_end else "length" if news.finished else None
            if finish is not None and not text.stopped:
                said += text.end()
                finish = "stop" if text.stopped else finish
            if finish is not None:
                ending.outcome = finish
            yield Piece(said, news.tokens[:used], news.chosen[:used], finish)
            if finish is not None:
                return

    def _heard(self, news: list[News]) -> None:
        """In the model's thread."""
        events = self._events
        if events is not None and not events.is_closed():
            events.call_soon_threadsafe(self._hand_out, news)

    def _hand_out(self, news: list[News]) -> None:
        for one in news:
            inbox = self._inboxes.get(one.request_id)
            if inbox is not None:
                inbox.put_nowait(one)

    def _retry_after(self) -> int:
        """Seconds until a place in the queue can be expected to be free."""
        ahead = (self.gate.waiting + 1) / self.gate.rows
        return max(1, min(LONGEST_RETRY, math.ceil(self._typical * ahead)))


class _Ending:
    """How a request ended: stop, length, failed; cancelled until one of them is known."""

    outcome = "cancelled"
