"""From flags to a model that answers: inspect, load, tokens in, report out."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prophet_moe import machine
from prophet_moe.cli.console import bytes_bar, print_warning, spinner
from prophet_moe.generate import Recording, decode
from prophet_moe.models.inspect import ModelInfo, inspect
from prophet_moe.models.load import load
from prophet_moe.models.offload import offload_of
from prophet_moe.models.stock import load_tokenizer, quiet_library
from prophet_moe.runreport import RunReport, build_report
from prophet_moe.systems import runnable


@dataclass(frozen=True)
class Wish:
    """What the flags ask for."""

    model: str
    budget: str = "auto"
    slots: str | None = None
    system: str = "auto"
    exact: bool = False
    pool: str = "global"
    threads: int | None = None
    context: int | None = None
    timeline: bool = False
    quiet: bool = False
    predictor: str | None = None
    expert_parallel: int = 1
    sequences: int = 1
    dtype: str | None = None
    backend: str = "cpu"
    device_budget: str = "auto"


def set_threads(threads: int | None) -> int:
    """Gives torch as many threads as were asked for, or as this process may use; how many."""
    if threads is None:
        named = os.environ.get("OMP_NUM_THREADS", "")
        threads = int(named) if named.isdigit() and int(named) else machine.cpu_count()
    torch.set_num_threads(threads)
    return threads


def look_at(model: str, quiet: bool) -> ModelInfo:
    """Reads config and headers, telling so on stderr."""
    with spinner(f"reading {model}", quiet):
        quiet_library()
        return inspect(model)


def read_prompt(
    info: ModelInfo, text: str | None, ids: str | None, file: Path | None
) -> tuple[list[int], Any]:
    """(token ids, tokenizer or None) of exactly one of a text, ids (`1,2,3`), and a file (- is stdin)."""
    given = [
        name
        for name, value in (("-p", text), ("--prompt-ids", ids), ("--prompt-file", file))
        if value is not None
    ]
    if len(given) != 1:
        said = f"{' and '.join(given)} were given" if given else "none was given"
        raise ValueError(f"give one prompt, by -p TEXT, --prompt-ids 1,2,3 or --prompt-file FILE: {said}.")
    tokenizer = load_tokenizer(info.directory) if info.has_tokenizer else None
    if ids is not None:
        try:
            return [int(word) for word in ids.split(",")], tokenizer
        except ValueError:
            raise ValueError(
                f"--prompt-ids {ids!r} is not a list of token ids: write whole numbers as in 1,2,3."
            ) from None
    if tokenizer is None:
        raise ValueError(f"{info.name} has no tokenizer: give token ids by --prompt-ids 1,2,3.")
    if file is not None:
        text = sys.stdin.read() if str(file) == "-" else file.read_text("utf-8")
    tokens = [int(token) for token in tokenizer(text)["input_ids"]]
    if not tokens:
        raise ValueError("the prompt is empty: give at least one character.")
    return tokens, tokenizer


class Session:
    """A loaded model with its tokenizer; a context manager that closes it."""

    def __init__(self, wish: Wish, info: ModelInfo, tokenizer: Any = None) -> None:
        self.wish, self.info, self.tokenizer = wish, info, tokenizer
        self.threads = set_threads(wish.threads)
        with bytes_bar(f"loading {wish.model}", wish.quiet) as progress:
            self.model = load(
                wish.model,
                budget=wish.budget,
                slots=wish.slots,
                exact=wish.exact,
                backend=wish.backend,
                device_budget=wish.device_budget,
                system=wish.system,
                pool=wish.pool,
                threads=self.threads,
                context=wish.context,
                sequences=wish.sequences,
                dtype=wish.dtype,
                timeline=wish.timeline,
                predictor=wish.predictor,
                progress=progress,
                expert_parallel=wish.expert_parallel,
            )
        self.offload = offload_of(self.model)
        self.info = self.offload.info  # of this rank's part

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.offload.close()

    def decode(self, prompt: Sequence[int], max_new_tokens: int, **settings: Any) -> Recording:
        """generate.decode with this engine's counters."""
        return decode(
            self.model,
            prompt,
            max_new_tokens=max_new_tokens,
            counters=self.offload.engine.counters,
            **settings,
        )

    def text(self, token_ids: Sequence[int]) -> str | None:
        """What the tokens say; None without a tokenizer."""
        if self.tokenizer is None:
            return None
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def report(self, recording: Recording) -> RunReport:
        """The run report of one recording of this session."""
        offload = self.offload
        if offload.engine.foresight_failure:
            print_warning(
                f"the predictor was switched off ({offload.engine.foresight_failure}); "
                "the run went on without it."
            )
        return build_report(
            recording.begun,
            recording.marks,
            model=self.wish.model,
            backend=offload.backend,
            system=offload.system,
            exact=offload.exact,
            budget_bytes=offload.plan.budget_bytes,
            expert_slots=offload.engine.slots,
            experts_total=self.info.experts_total,
            expert_bytes=self.info.expert_bytes,
            prompt_tokens=recording.prompt_tokens,
            token_ids=recording.token_ids,
            text=self.text(recording.token_ids),
            peak_rss_bytes=machine.peak_rss(),
            predictor=offload.engine.predictor,
            foresight_failure=offload.engine.foresight_failure,
        )

    @property
    def dtype(self) -> str:
        """Such as `bfloat16`."""
        return str(self.info.dtype).removeprefix("torch.")


def default_context(info: ModelInfo) -> int:
    """Tokens of KV cache where no flag names them: what load() takes, 2048 or the model's maximum."""
    return min(info.max_context or 2048, 2048)


def known_systems() -> list[str]:
    """The names that --system takes."""
    return ["auto", *runnable()]
