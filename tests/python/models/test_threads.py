"""Decode steps on one thread of torch: which models, which steps, and that the caller's number comes back."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import prophet_moe
from prophet_moe.models.threads import ROWS, WORTH_WAKING, decode_on_one_thread, one_thread_is_faster


class Dense(nn.Module):
    """A model of one table, some square matrices of `width` and a head; records the threads it runs on."""

    def __init__(self, width: int, vocab: int, tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, width, device="meta", dtype=torch.bfloat16)
        self.layers = nn.ModuleList(
            nn.Linear(width, width, bias=False, device="meta", dtype=torch.bfloat16) for _ in range(8)
        )
        self.head = nn.Linear(width, vocab, bias=False, device="meta", dtype=torch.bfloat16)
        if tied:
            self.head.weight = self.table.weight
        self.seen: list[int] = []

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def get_output_embeddings(self) -> nn.Module:
        return self.head

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, fail: bool = False) -> int:
        self.seen.append(torch.get_num_threads())
        if fail:
            raise OSError("the disk is gone")
        return 7


@pytest.fixture
def two_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def test_small_matrices_are_not_worth_a_second_thread() -> None:
    assert one_thread_is_faster(Dense(1024, 512), 0)
    assert not one_thread_is_faster(Dense(4096, 512), 0)


def test_the_table_counts_where_it_is_the_head() -> None:
    assert not one_thread_is_faster(Dense(256, 150_000), 0)
    assert not one_thread_is_faster(Dense(256, 150_000, tied=True), 0)
    lookup = Dense(256, 150_000)
    lookup.head = nn.Linear(256, 16, device="meta", dtype=torch.bfloat16)
    assert one_thread_is_faster(lookup, 0)


def test_a_long_context_is_worth_it() -> None:
    assert not one_thread_is_faster(Dense(1024, 512), WORTH_WAKING)


def test_decode_steps_run_on_one_thread_and_prefills_do_not(two_threads: None) -> None:
    model = Dense(64, 8)
    decode_on_one_thread(model)
    assert model(torch.zeros(1, 1, dtype=torch.int64)) == 7
    assert torch.get_num_threads() == 2
    model(input_ids=torch.zeros(1, ROWS + 1, dtype=torch.int64))
    model(input_ids=None, inputs_embeds=torch.zeros(2, ROWS // 2, 64))
    model(inputs_embeds=torch.zeros(2, ROWS, 64))
    model()
    assert model.seen == [1, 2, 1, 2, 2]
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_comes_back_when_a_step_fails(two_threads: None) -> None:
    model = Dense(64, 8)
    decode_on_one_thread(model)
    with pytest.raises(OSError, match="the disk is gone"):
        model(torch.zeros(1, 1, dtype=torch.int64), fail=True)
    assert torch.get_num_threads() == 2
    assert model.seen == [1]


@pytest.mark.parametrize("exact", [False, True])
def test_a_loaded_model_keeps_the_callers_threads(two_threads: None, exact: bool) -> None:
    model = prophet_moe.load("reference-moe", slots="25%", exact=exact)
    seen: list[int] = []
    model.model.norm.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    model.generate(torch.arange(20)[None], max_new_tokens=3, do_sample=False)
    prophet_moe.close(model)
    assert seen == ([2, 2, 2] if exact else [2, 1, 1])
    assert torch.get_num_threads() == 2
