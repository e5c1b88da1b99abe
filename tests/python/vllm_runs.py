"""vLLM in this process: what tests/vllm runs, with and without Prophet."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROMPTS = [
    "the quick brown fox",
    "lazy dog jumps",
    "over the the",
    "fox",
    "a b c d e f g h i j",
    "quick quick quick lazy",
    "dog",
    "brown jumps over dog fox lazy",
]


@dataclass(frozen=True)
class Said:
    """What came of one prompt: greedy tokens, and the log-probability of each."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True)
class Run:
    """Greedy continuations of PROMPTS, and Prophet's report; None without it."""

    said: list[Said]
    report: dict[str, Any] | None


@contextmanager
def engine(model: str | Path, **options: Any) -> Iterator[Any]:
    """A vLLM of this process, gone with all its groups afterwards."""
    from vllm import LLM
    from vllm.distributed import cleanup_dist_env_and_memory

    settings = {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "max_model_len": 256,
        "max_num_seqs": 8,
        "seed": 0,
    }
    try:
        yield LLM(model=str(model), **(settings | options))
    finally:
        gc.collect()
        cleanup_dist_env_and_memory()


def sampling(tokens: int) -> Any:
    """Greedy, all tokens, with log-probabilities."""
    from vllm import SamplingParams

    return SamplingParams(temperature=0, max_tokens=tokens, logprobs=1, ignore_eos=True)


def said(output: Any) -> Said:
    """Of a finished vLLM request."""
    (answer,) = output.outputs
    tokens = tuple(answer.token_ids)
    return Said(
        tokens, tuple(step[token].logprob for token, step in zip(tokens, answer.logprobs, strict=True))
    )


def report_of(llm: Any) -> dict[str, Any] | None:
    """Prophet's report of this vLLM; None where Prophet holds no experts of it."""
    found = llm.llm_engine.vllm_config.__dict__.get("_prophet_slots")
    return None if found is None else found.report()


def run(model: str | Path, tokens: int = 24, **options: Any) -> Run:
    """All prompts in one batch."""
    with engine(model, **options) as llm:
        outputs = llm.generate(PROMPTS, sampling(tokens), use_tqdm=False)
        return Run([said(output) for output in outputs], report_of(llm))
