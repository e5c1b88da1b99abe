"""What a server serves: one loaded model, its tokenizer, its loop, and the words for all of them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from prophet_moe import machine
from prophet_moe.conversation import NEXT_SPEAKER, is_plain, render
from prophet_moe.generate import end_tokens
from prophet_moe.models.offload import offload_of
from prophet_moe.models.sampling import Sampling
from prophet_moe.serve.errors import Refused
from prophet_moe.serve.loop import Job, Loop
from prophet_moe.serve.metrics import Metrics
from prophet_moe.serve.schemas import ChatWanted, CompletionWanted, Wanted

DEFAULT_NEW_TOKENS = 16  # of a completion that names no limit, as OpenAI has it


@dataclass(frozen=True)
class Limits:
    """How much is served at a time."""

    rows: int = 8
    context: int = 2048
    kv_tokens: int | None = None  # None: rows * context
    queue: int = 64


class Service:
    """`start` inside the event loop, `close` at the end; the rest is questions and jobs."""

    def __init__(self, model: Any, tokenizer: Any, name: str, limits: Limits) -> None:
        """`model` as prophet_moe.load gave it; `tokenizer` may be None, then prompts are token ids.
        Raises as Batching does."""
        self.model, self.tokenizer, self.name, self.limits = model, tokenizer, name, limits
        self.offload = offload_of(model)
        self.began = time.time()
        self.metrics = Metrics(self.offload.engine.counters, self._gauges)
        self.loop = Loop(
            model,
            self.decode,
            self.metrics,
            rows=limits.rows,
            context=limits.context,
            kv_tokens=limits.kv_tokens,
            queue=limits.queue,
            ends=tuple(end_tokens(model)),
        )
        self._vocabulary = int(model.get_input_embeddings().weight.shape[0])

    def decode(self, tokens: Sequence[int]) -> str:
        """What tokens say; without a tokenizer, their numbers."""
        if self.tokenizer is None:
            return "".join(f"{token} " for token in tokens)
        return str(self.tokenizer.decode(list(tokens), skip_special_tokens=True))

    def token_text(self, token: int) -> str:
        """One token as log probabilities name it, special ones too."""
        return f"{token}" if self.tokenizer is None else str(self.tokenizer.decode([token]))

    async def chat_jobs(self, wanted: ChatWanted) -> list[Job]:
        """The jobs of a conversation, one for each choice. Raises Refused."""
        self._check_model(wanted)
        if self.tokenizer is None:
            raise Refused(
                f"{self.name} has no tokenizer: send token ids to /v1/completions.", param="messages"
            )
        turns = [message.turn() for message in wanted.messages]
        try:
            prompt = await asyncio.to_thread(render, self.tokenizer, turns)
        except Exception as error:  # what a model's template raises is its author's choice
            raise Refused(
                f"the model's chat template does not take these messages "
                f"({' '.join(str(error).split()) or type(error).__name__}).",
                param="messages",
            ) from error
        stops = (NEXT_SPEAKER,) if is_plain(self.tokenizer) else ()
        limit = wanted.max_completion_tokens or wanted.max_tokens
        return self._jobs(wanted, [prompt], limit, "messages", stops)

    async def completion_jobs(self, wanted: CompletionWanted) -> list[Job]:
        """The jobs of a completion, the choices of one prompt together. Raises Refused."""
        self._check_model(wanted)
        prompts = [await self._encode(prompt) for prompt in wanted.prompts()]
        return self._jobs(wanted, prompts, wanted.max_tokens or DEFAULT_NEW_TOKENS, "prompt", ())

    def echoes(self, wanted: CompletionWanted) -> list[str]:
        """The text of each choice's prompt, where answers shall begin with it; else nothing."""
        if not wanted.echo:
            return []
        texts = [one if isinstance(one, str) else self.decode(one) for one in wanted.prompts()]
        return [text for text in texts for _ in range(wanted.n)]

    def health(self) -> tuple[bool, dict[str, Any]]:
        """(well, what to say)."""
        loop = self.loop
        status = "ok" if loop.healthy else "closing" if loop.closing else "failed"
        return loop.healthy, {
            "status": status,
            "model": self.name,
            "running": loop.gate.inside,
            "waiting": loop.gate.waiting,
        }

    async def _encode(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            for token in prompt:
                if token >= self._vocabulary:
                    raise Refused(
                        f"token {token} is outside of the model's vocabulary of {self._vocabulary}.",
                        param="prompt",
                    )
            return prompt
        if self.tokenizer is None:
            raise Refused(f"{self.name} has no tokenizer: give the prompt as token ids.", param="prompt")
        encoded = await asyncio.to_thread(self.tokenizer, prompt)
        return [int(token) for token in encoded["input_ids"]]

    def _jobs(
        self,
        wanted: Wanted,
        prompts: list[list[int]],
        limit: int | None,
        param: str,
        stops: tuple[str, ...],
    ) -> list[Job]:
        if not all(prompts) or not prompts:
            raise Refused("the prompt has no tokens: give at least one.", param=param)
        if len(prompts) * wanted.n > self.limits.rows:
            raise Refused(
                f"{len(prompts) * wanted.n} answers in one request are more than the {self.limits.rows} "
                "that this server computes at a time: send several requests.",
                param="n",
            )
        return [
            self._job(wanted, prompt, limit, param, stops, choice)
            for prompt in map(tuple, prompts)  # shared by its choices, and counted once
            for choice in range(wanted.n)
        ]

    def _job(
        self,
        wanted: Wanted,
        prompt: tuple[int, ...],
        limit: int | None,
        param: str,
        stops: tuple[str, ...],
        choice: int,
    ) -> Job:
        context = self.limits.context
        if len(prompt) >= context or (limit is not None and len(prompt) + limit > context):
            asked = "" if limit is None else f" and {limit} new ones"
            raise Refused(
                f"this server's context is {context} tokens, and the prompt has {len(prompt)}{asked}: "
                "shorten one of them, or start the server with a larger --context.",
                param=param,
                code="context_length_exceeded",
            )
        sampling = Sampling(
            temperature=wanted.temperature,
            top_p=wanted.top_p,
            top_k=min(wanted.top_k, self._vocabulary),
            seed=None if wanted.seed is None else wanted.seed + choice,
            logprobs=wanted.alternatives,
        )
        return Job(
            prompt,
            limit or context - len(prompt),
            (*wanted.stop, *stops),
            sampling,
            wanted.ignore_eos,
        )

    def _check_model(self, wanted: Wanted) -> None:
        if wanted.model not in (None, self.name):
            raise Refused(
                f"this server has no model {wanted.model!r}, only {self.name!r}.",
                status=404,
                param="model",
                code="model_not_found",
            )

    def _gauges(self) -> dict[str, float]:
        offload, gate = self.offload, self.loop.gate
        return {
            "requests_running": gate.inside,
            "requests_waiting": gate.waiting,
            "kv_blocks_free": gate.free_blocks,
            "kv_blocks": gate.blocks,
            "budget_bytes": offload.plan.budget_bytes,
            "expert_slots": offload.engine.slots,
            "experts_total": offload.info.experts_total,
            "expert_bytes": offload.info.expert_bytes,
            "peak_rss_bytes": machine.peak_rss() or 0,
            "rss_bytes": machine.rss(),
        }
