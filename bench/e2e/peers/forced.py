"""generate() of a transformers model over the fixed tokens of a workload."""

from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList
from workload import Workload


class _Forced(LogitsProcessor):
    """Tells the workload that logits are ready and lets only the token that it names through."""

    def __init__(self, workload: Workload) -> None:
        self.workload = workload

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids [1,S] int64, scores [1,V]. Returns [1,V]: 0 for the fixed token, -inf elsewhere."""
        only = torch.full_like(scores, float("-inf"))
        only[:, self.workload.token(int(scores[0].argmax()))] = 0
        return only


def decode(model: Any, workload: Workload) -> None:
    """Prefill and every decode step, batch 1, with the model's own KV cache."""
    ids = torch.tensor([workload.prompt])
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=workload.positions,
        min_new_tokens=workload.positions,
        do_sample=False,
        logits_processor=LogitsProcessorList([_Forced(workload)]),
    )
