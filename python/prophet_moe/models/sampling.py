"""One token for each request of a batch, each by its own temperature, top-p, seed.

transformers' batching manager samples every row from one generator and has one switch between greedy
and sampled. This processor, given to it through its own interface, chooses by itself and leaves one
finite score in each row that it has chosen for; the manager then takes the likeliest. A request draws from a
generator of its own, by the library's warpers in `generate`'s order, so that its seed means the same
whoever else is being served.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.generation.continuous_batching.cb_logits_processors import ContinuousBatchingLogitsProcessor


@dataclass(frozen=True)
class Sampling:
    """How one request chooses its tokens; temperature 0 is greedy, top_k 0 is all."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int | None = None
    logprobs: int | None = None  # alternatives to tell beside the chosen token's; None: tell nothing


@dataclass(frozen=True)
class Chosen:
    """Natural logarithms of the model's own probabilities, before temperature, top-k and top-p."""

    logprob: float
    likeliest: tuple[tuple[int, float], ...]  # (token, logprob), the likeliest first


@dataclass
class Chooser:
    """The state of one request's choices."""

    sampling: Sampling
    told: list[Chosen] = field(default_factory=list)  # one a token, where logprobs are asked for
    _generator: Any = None
    _warpers: Any = None

    def __post_init__(self) -> None:
        wish = self.sampling
        if wish.temperature <= 0:
            return
        self._warpers = LogitsProcessorList()
        if wish.temperature != 1:
            self._warpers.append(TemperatureLogitsWarper(wish.temperature))
        if wish.top_k > 0:
            self._warpers.append(TopKLogitsWarper(wish.top_k))
        if wish.top_p < 1:
            self._warpers.append(TopPLogitsWarper(wish.top_p))
        self._generator = torch.Generator()
        if wish.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(wish.seed)

    @property
    def plain(self) -> bool:
        """Whether the manager's own choice, the likeliest token, is all that is asked for."""
        return self._warpers is None and self.sampling.logprobs is None

    def choose(self, scores: torch.Tensor) -> int:
        """The next token, by float32 `scores` [1, vocabulary] of the model."""
        if self._warpers is None:
            token = int(scores.argmax())
        else:
            warped = self._warpers(None, scores.clone()).softmax(dim=-1).cpu()
            token = int(torch.multinomial(warped, 1, generator=self._generator))
        if self.sampling.logprobs is not None:
            logs = scores[0].log_softmax(dim=-1)
            most = logs.topk(self.sampling.logprobs)
            likeliest = tuple(zip(most.indices.tolist(), most.values.tolist(), strict=True))
            self.told.append(Chosen(float(logs[token]), likeliest))
        return token


class Sampler(ContinuousBatchingLogitsProcessor):
    """Chooses for those requests of a batch that want more than the likeliest token."""

    supported_kwargs: ClassVar[dict[str, type]] = {}
    ignored_kwargs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, chooser_of: Callable[[str], Chooser | None]) -> None:
        self._chooser_of = chooser_of
        self._rows: list[Chooser | None] = []

    def fill_defaults(self, int32_tensor: torch.Tensor) -> None:
        int32_tensor.zero_()

    def prepare_tensor_args(self, requests_with_new_token: Sequence[Any]) -> torch.Tensor:
        """The manager says which requests the rows of the coming scores belong to."""
        self._rows = [self._chooser_of(request.state.request_id) for request in requests_with_new_token]
        return torch.zeros(len(self._rows), dtype=torch.int32)

    def __call__(self, scores: torch.Tensor, tensor_arg: torch.Tensor) -> torch.Tensor:
        for row, chooser in enumerate(self._rows):
            if chooser is not None and not chooser.plain:
                token = chooser.choose(scores[row : row + 1])
                scores[row] = float("-inf")
                scores[row, token] = 0
        return scores
