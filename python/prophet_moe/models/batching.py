"""Many requests through one model: transformers' continuous batching manager, and nothing of it elsewhere.

The manager schedules, pages the KV cache and runs the model in a thread of its own. This module sizes it,
hands requests in, lets each choose its tokens (models/sampling.py), tells the engine's predictor which rows
of a pass are whose, and passes news on as it comes. What it touches of the library's unpublished parts is
touched here alone, and tests hold the installed release to it.

A pass that fails (a disk that does not answer) fails every request in it; the next request starts the
thread anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import transformers
from transformers import GenerationConfig, LogitsProcessorList
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.generation.continuous_batching.cb_logits_processors import (
    ContinuousBatchingLogitsProcessorList,
)
from transformers.generation.continuous_batching.continuous_api import OutputRouter

from prophet_moe.errors import InvalidArgument, StateError, UnsupportedModelError
from prophet_moe.models.offload import offload_of
from prophet_moe.models.one_row import read_in_place
from prophet_moe.models.sampling import Chooser, Chosen, Sampler, Sampling

PAGE = 256  # tokens of one page of the KV cache at most; a multiple of ALIGNED
ALIGNED = 32
PASS_TOKENS = 512  # rows of one pass at most: a longer prompt is prefilled in parts
JOIN_SECONDS = 30.0


@dataclass(frozen=True)
class News:
    """What has become of one request since the last time."""

    request_id: str
    tokens: tuple[int, ...]
    chosen: tuple[Chosen, ...]  # one a token where log probabilities were asked for, else empty
    finished: bool
    error: str | None
    at_ns: int  # time.perf_counter_ns() when the pass was over


@dataclass
class _Live:
    chooser: Chooser
    number: int  # of its rows, to the engine's predictor
    told: int = 0  # tokens that were passed on


class _Router(OutputRouter):
    """Hands every output to one listener, in the manager's thread, in place of the manager's queues."""

    def __init__(self, listener: Callable[[Sequence[Any]], None]) -> None:
        super().__init__()
        self._listener = listener

    def deliver(self, output: Any) -> None:
        self._listener([output])

    def deliver_batch(self, outputs: Sequence[Any]) -> None:
        self._listener(outputs)


class Batching:
    """The model as a server of many requests; one at a time may exist for a model.

    `rows` requests are computed at the same time, of up to `context` tokens each (prompt and answer), and
    up to `kv_tokens` tokens together. `listener` is called with news in the model's thread; it must
    return soon and never raise. The caller sees to it that what it submits fits (`blocks_of`, `blocks`): the
    manager would otherwise throw away keys and values that it needs again.

    Raises UnsupportedModelError for attention that cannot be paged, InvalidArgument.
    """

    def __init__(
        self,
        model: Any,
        listener: Callable[[list[News]], None],
        *,
        rows: int,
        context: int,
        kv_tokens: int | None = None,
    ) -> None:
        kv_tokens = rows * context if kv_tokens is None else kv_tokens
        if rows < 1 or context < 1 or kv_tokens < context:
            raise InvalidArgument(
                f"{rows} requests at a time, contexts of {context} tokens and {kv_tokens} tokens in all "
                "cannot be: each is at least 1, and all together hold at least one context."
            )
        self.rows, self.context = rows, context
        self._listener = listener
        self._live: dict[str, _Live] = {}
        self._numbers = itertools.count(1)
        self._starting = threading.Lock()
        self._stopped = False
        pages = -(-context // PAGE)
        settings = _settings(
            page_size=-(-context // (pages * ALIGNED)) * ALIGNED,
            num_blocks=-(-kv_tokens // context) * pages,
            max_batch_tokens=max(rows, min(context, PASS_TOKENS)),
            max_requests_per_batch=rows,
            max_blocks_per_request=0,
            allow_block_sharing=False,  # shared keys were rounded in another batch
            safety_margin=0.0,  # nothing is submitted that does not fit
            use_async_batching=False,
            use_cuda_graph=False,
            auto_switch_to_flash=False,
        )
        try:
            self._manager = model.init_continuous_batching(
                generation_config=GenerationConfig(do_sample=False, eos_token_id=-1, max_new_tokens=1),
                continuous_batching_config=settings,
            )
            self._manager.logit_processor = _processors(Sampler(self._chooser_of))
            self._manager.output_router = _Router(self._heard)
            self._manager.batch_processor = self._manager._create_batch_processor()
            read_in_place(self._manager.batch_processor)
        except (AttributeError, TypeError, ValueError, NotImplementedError, KeyError) as error:
            raise UnsupportedModelError(
                f"{type(model).__name__} cannot be batched by transformers {transformers.__version__} "
                f"({' '.join(str(error).split())}): use prophet run, which serves one request at a time."
            ) from error
        cache = self._manager.batch_processor.cache
        self._pages = [a.tokens_per_page * a.blocks_per_sector for a in cache.cache_allocators.values()]
        self.blocks = int(cache.num_sectors)
        self._engine = offload_of(model).engine
        self._hook = None
        if self._engine.predictor:
            # Before any hook that tells of rows.
            self._hook = model.register_forward_pre_hook(self._name_rows, prepend=True)
        self._manager.start()

    def blocks_of(self, tokens: int) -> int:
        """Blocks of the KV cache that a sequence of `tokens` can come to occupy, of `blocks`."""
        return sum(-(-tokens // page) for page in self._pages)

    def submit(
        self,
        request_id: str,
        prompt: Sequence[int],
        *,
        max_new_tokens: int,
        ends: Sequence[int] = (),
        sampling: Sampling | None = None,
    ) -> None:
        """Queues a request under a name of its own. Raises StateError when the manager has stopped."""
        self._live[request_id] = _Live(Chooser(sampling or Sampling()), next(self._numbers))
        for again in (False, True):
            if again:
                self._restart()
            taken = self._manager.add_request(
                list(prompt),
                request_id=request_id,
                max_new_tokens=max_new_tokens,
                streaming=True,
                eos_token_id=list(ends) or -1,
            )
            if taken is not None:
                return
        self._live.pop(request_id, None)
        raise StateError("the model's thread does not run: its last error is in the log; restart the server.")

    def cancel(self, request_id: str) -> None:
        """Ends a request: its rows and blocks are free before the next pass, and no news of it comes."""
        if self._live.pop(request_id, None) is not None:
            self._manager.cancel_request(request_id)

    @property
    def running(self) -> bool:
        """Whether the thread is there and well."""
        return bool(self._manager.is_running()) and self._manager.background_thread_status.fatal_error is None

    @property
    def free_blocks(self) -> int:
        """Blocks that no request holds now; equal to `blocks` when idle."""
        cache = self._manager.batch_processor.cache
        allocators = cache.cache_allocators.values()
        held = sum(cache.pool.count_free_blocks(a.index) // a.blocks_per_sector for a in allocators)
        return int(cache.pool.num_free_sectors) + held

    def close(self) -> None:
        """Stops the thread; what is running gets news of an error. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        self._manager.stop(block=True, timeout=JOIN_SECONDS, hard_stop=True)
        self._manager.destroy()
        if self._hook is not None:
            self._hook.remove()
            with contextlib.suppress(StateError):  # the model may have been closed before
                self._engine.streams([])

    def _restart(self) -> None:
        with self._starting:
            if not self._stopped and not self.running:
                thread = self._manager._generation_thread
                if thread is not None:
                    thread.join(JOIN_SECONDS)
                self._manager.start()

    def _name_rows(self, *_: Any) -> None:
        """Before each pass: which request each of its rows belongs to."""
        rows: list[int] = []
        if threading.current_thread() is self._manager._generation_thread:
            for one in self._manager.batch_processor.inputs_and_outputs.requests_in_batch:
                live = self._live.get(one.state.request_id)  # a cancelled request has none
                rows += [live.number if live is not None else 0] * one.query_length
        self._engine.streams(rows)

    def _chooser_of(self, request_id: str) -> Chooser | None:
        live = self._live.get(request_id)
        return None if live is None else live.chooser

    def _heard(self, outputs: Sequence[Any]) -> None:
        news, now = [], time.perf_counter_ns()
        for output in outputs:
            live = self._live.get(output.request_id)
            if live is None:  # cancelled
                continue
            tokens = tuple(output.generated_tokens[live.told :])
            chosen = tuple(live.chooser.told[live.told : live.told + len(tokens)])
            live.told += len(tokens)
            finished = bool(output.is_finished())
            if finished:
                self._live.pop(output.request_id, None)
            news.append(News(output.request_id, tokens, chosen, finished, output.error, now))
        if news:
            self._listener(news)


def _settings(**wanted: Any) -> Any:
    known = {field.name for field in dataclasses.fields(ContinuousBatchingConfig)}
    missing = sorted(set(wanted) - known)
    if missing:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} has no {missing[0]} in its continuous batching: "
            "install 5.20 or later for prophet serve."
        )
    return ContinuousBatchingConfig(**wanted)


def _processors(sampler: Sampler) -> Any:
    processors = ContinuousBatchingLogitsProcessorList(LogitsProcessorList([sampler]))
    processors.tensors_required = 1  # it counts only those that it converted by itself
    return processors
