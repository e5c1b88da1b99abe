"""Keys and values of a pass with one row: written and read where they lie, not gathered token by token.

transformers' paged cache finds every token of every request by an index and copies what it finds, for each
layer of each pass. One request that decodes alone, as most of a small server's do, has whole pages:
where one page holds it all, attention reads the page itself. What differs is the road of the numbers, not the
numbers. All other passes, and layers with sliding windows, go the library's own road.
"""

from __future__ import annotations

from typing import Any

import torch

MOST_RUNS = 16  # pages of one request that are joined here; longer ones are gathered by the library


def read_in_place(processor: Any) -> None:
    """Lets one batch processor of the manager take this road; on a CPU, where launching a copy costs most."""
    if torch.device(processor.cache.device).type == "cpu":
        processor.cache.update = OneRow(processor)


class OneRow:
    """What takes the place of `PagedAttentionCache.update`."""

    def __init__(self, processor: Any) -> None:
        cache = processor.cache
        self._library = cache.update
        self._io = processor.inputs_and_outputs
        self._layers: dict[int, tuple[Any, torch.Tensor, torch.Tensor]] = {}
        for layer, allocator in cache.layer_to_allocator.items():
            views = getattr(allocator, "_kv_token_views", None)
            if allocator.layer_type == "full_attention" and views is not None:
                # [tokens, heads, width] as attention has it: [1, heads, tokens, width]
                self._layers[layer] = (allocator, *(one.transpose(0, 1)[None] for one in views[layer]))
        self._pass: Any = None  # the requests that the runs are of
        self._runs: list[tuple[int, int]] = []  # (first token, tokens) of each page of the row's request

    def __call__(
        self, key_states: torch.Tensor, value_states: torch.Tensor, layer_idx: int, kwargs: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key_states, value_states: [1, heads, rows, width] of the pass; what attention reads of both."""
        held = self._layers.get(layer_idx)
        if held is None or key_states.shape[2] != 1 or kwargs.get("block_table") is not None:
            return self._library(key_states, value_states, layer_idx, kwargs)
        allocator, keys, values = held
        if self._pass is not self._io.requests_in_batch:
            self._find(allocator)
        if len(self._runs) > MOST_RUNS:
            return self._library(key_states, value_states, layer_idx, kwargs)
        return self._through(keys, key_states), self._through(values, value_states)

    def _find(self, allocator: Any) -> None:
        self._pass = self._io.requests_in_batch
        state, page = self._pass[0].state, allocator.tokens_per_page
        tokens = state.position_offset  # the row of this pass included
        blocks = allocator.block_table[state.request_id][: -(-tokens // page)]
        first = [block * allocator.block_physical_stride for block in blocks]
        counts = [page] * (len(blocks) - 1) + [tokens - page * (len(blocks) - 1)]
        self._runs = list(zip(first, counts, strict=True))

    def _through(self, whole: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        """Writes the row behind the others, and gives them all."""
        first, count = self._runs[-1]
        whole.narrow(2, first + count - 1, 1).copy_(row)
        if len(self._runs) == 1:
            return whole.narrow(2, first, count)
        return torch.cat([whole.narrow(2, *run) for run in self._runs], dim=2)
