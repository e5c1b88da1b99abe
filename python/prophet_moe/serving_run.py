"""Requests side by side through a loaded model: what each waited, and what the engine moved for all.

    report = measure(model, prompts, concurrency=4, max_new_tokens=32)

At most `concurrency` requests live at once in transformers' continuous batching (models/batching.py); when
one ends, the next is handed in. Tokens are chosen greedily, so every system computes the same ones.
"""

from __future__ import annotations

import itertools
import json
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from prophet_moe import machine
from prophet_moe.errors import InvalidArgument, ProphetError
from prophet_moe.runreport import Hits, Mark, Spread, percentile

if TYPE_CHECKING:
    from prophet_moe.models.batching import News

SILENCE = 600.0  # seconds without news after which a run has failed


@dataclass(frozen=True)
class Waits:
    """Milliseconds from the moment a request is handed in to its first token."""

    mean: float
    p50: float | None
    p99: float | None


@dataclass(frozen=True)
class ServingReport:
    """One run of all requests by one system at one concurrency (docs/serving-measured.md)."""

    model: str
    backend: str
    system: str
    concurrency: int
    requests: int
    expert_slots: int
    experts_total: int
    expert_bytes: int
    prompt_tokens: int
    new_tokens: int
    seconds: float
    tokens_per_second: float
    ttft_ms: Waits
    tpot_ms: Spread  # between two tokens of a request
    stalled: float  # share of the time that layers waited for bytes
    bytes_per_token: float  # moved, prompts' included, per new token
    hits: Hits
    hit_rate: float | None
    union: float  # experts asked for in a layer step
    streamed: float  # share of layer steps that streamed
    peak_rss_bytes: int

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=False, allow_nan=False)


@dataclass
class _Request:
    number: int
    submitted_ns: int
    at_ns: list[int]  # of each token


def measure(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    concurrency: int,
    max_new_tokens: int,
    name: str = "",
    on_pass: Callable[[Sequence[News]], None] | None = None,
) -> ServingReport:
    """Serves every prompt to `max_new_tokens` tokens. The model stays loaded, and its cache as it is.

    on_pass is called in the model's thread after each pass that gave a token, with its news.
    Raises InvalidArgument: nothing to serve; ProphetError: a request that failed; what Batching raises.
    """
    from prophet_moe.models.batching import Batching
    from prophet_moe.models.offload import offload_of

    if not prompts or concurrency < 1 or max_new_tokens < 2:
        raise InvalidArgument(
            f"{len(prompts)} prompts, {concurrency} at a time, {max_new_tokens} tokens each cannot be "
            "measured: give at least one prompt, one at a time and two tokens."
        )
    offload = offload_of(model)
    heard: queue.SimpleQueue[list[News]] = queue.SimpleQueue()
    context = max(len(prompt) for prompt in prompts) + max_new_tokens

    def listen(news: list[News]) -> None:
        if on_pass is not None:
            on_pass(news)
        heard.put(news)

    batching = Batching(model, listen, rows=concurrency, context=context)
    try:
        begun = Mark(time.perf_counter_ns(), offload.engine.counters())
        done = _serve(batching, heard.get, prompts, concurrency, max_new_tokens)
        ended = Mark(time.perf_counter_ns(), offload.engine.counters())
    finally:
        batching.close()
    return _report(offload, name, prompts, concurrency, done, begun, ended)


def _serve(
    batching: Any,
    next_news: Callable[..., list[News]],
    prompts: Sequence[Sequence[int]],
    concurrency: int,
    max_new_tokens: int,
) -> list[_Request]:
    live: dict[str, _Request] = {}
    done: list[_Request] = []
    coming = iter(enumerate(prompts))

    def hand_in() -> None:
        for number, prompt in itertools.islice(coming, concurrency - len(live)):
            name = f"request-{number}"
            live[name] = _Request(number, time.perf_counter_ns(), [])
            batching.submit(name, prompt, max_new_tokens=max_new_tokens)

    hand_in()
    while live:
        try:
            news = next_news(timeout=SILENCE)
        except queue.Empty:
            raise ProphetError(f"no token came for {SILENCE:.0f} s: the model's thread is stuck.") from None
        for one in news:
            if one.error is not None:
                raise ProphetError(f"{one.request_id} failed: {one.error}")
            live[one.request_id].at_ns.extend([one.at_ns] * len(one.tokens))
            if one.finished:
                done.append(live.pop(one.request_id))
        hand_in()
    return done


def _report(
    offload: Any,
    name: str,
    prompts: Sequence[Sequence[int]],
    concurrency: int,
    done: Sequence[_Request],
    begun: Mark,
    ended: Mark,
) -> ServingReport:
    delta = {key: ended.counters[key] - begun.counters[key] for key in ended.counters}
    hits = Hits(delta["hits_resident"], delta["hits_in_flight"], delta["misses"])
    asked = hits.resident + hits.in_flight + hits.miss
    seconds = (ended.at_ns - begun.at_ns) / 1e9
    tokens = sum(len(request.at_ns) for request in done)
    waits = [(request.at_ns[0] - request.submitted_ns) / 1e6 for request in done]
    gaps = [
        (later - earlier) / 1e6 for request in done for earlier, later in itertools.pairwise(request.at_ns)
    ]
    return ServingReport(
        model=name or offload.info.name,
        backend=offload.backend,
        system=offload.system,
        concurrency=concurrency,
        requests=len(done),
        expert_slots=offload.engine.slots,
        experts_total=offload.info.experts_total,
        expert_bytes=offload.info.expert_bytes,
        prompt_tokens=sum(len(prompt) for prompt in prompts),
        new_tokens=tokens,
        seconds=seconds,
        tokens_per_second=tokens / seconds,
        ttft_ms=Waits(sum(waits) / len(waits), percentile(waits, 0.5), percentile(waits, 0.99)),
        tpot_ms=Spread(
            sum(gaps) / len(gaps), *(percentile(gaps, share) for share in (0.5, 0.9, 0.99, 0.999))
        ),
        stalled=delta["stall_ns"] / 1e9 / seconds,
        bytes_per_token=delta["bytes_moved"] / tokens,
        hits=hits,
        hit_rate=hits.resident / asked if asked else None,
        union=asked / delta["layer_steps"],
        streamed=delta["streamed_steps"] / delta["layer_steps"],
        peak_rss_bytes=machine.peak_rss(),
    )
