"""Slots of the vLLM plug-in without vLLM: whatever is served, each slot holds the expert it stands for."""

import itertools
import json
import os
import random
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from prophet_moe.errors import CheckpointError, InvalidArgument, StateError, UnsupportedModelError, WriteError
from prophet_moe.integrations.vllm.records import LayerShape, Records
from prophet_moe.integrations.vllm.settings import Settings
from prophet_moe.integrations.vllm.slots import ExpertSlots, by_token, describe

LAYERS, EXPERTS, TOP_K = 3, 8, 2
NOTES = {"checkpoint": "a"}


def weights(seed: int = 0, rows: int = 64) -> list[list[tuple[torch.Tensor, torch.Tensor]]]:
    """By layer and expert: w13 [2 * rows, 32] and w2 [32, rows], bfloat16."""
    make = torch.Generator().manual_seed(seed)
    shapes = ((2 * rows, 32), (32, rows))
    return [
        [tuple(torch.randn(shape, generator=make).bfloat16() for shape in shapes) for _ in range(EXPERTS)]  # type: ignore[misc]
        for _ in range(LAYERS)
    ]


def opened(
    settings: Settings,
    truth: list[list[tuple[torch.Tensor, torch.Tensor]]],
    notes: Mapping[str, str] | None = NOTES,
) -> tuple[ExpertSlots, bool]:
    """The slots after all experts were written in any order, and whether they had to be."""
    slots = ExpertSlots(settings, "model", 0, lambda: notes)
    for layer, experts in enumerate(truth):
        w13, w2 = experts[0]
        slots.add(describe(f"layers.{layer}", w13[None], w2[None], EXPERTS), w13.dtype, TOP_K)
    fresh = slots.wants_weights()
    order = [(layer, expert) for layer in range(LAYERS) for expert in range(EXPERTS)]
    random.Random(1).shuffle(order)
    for layer, expert in order if fresh else []:
        slots.write(layer, expert, *truth[layer][expert])
    slots.finish()
    return slots, fresh


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "prophet"


def check_call(
    slots: ExpertSlots, truth: list[list[tuple[torch.Tensor, torch.Tensor]]], layer: int, ids: torch.Tensor
) -> int:
    """Serves one call, looks at every slot while it is held; how many parts the call had."""
    x, seen, parts = torch.randn(len(ids), 32).bfloat16(), [], 0
    w13, w2 = slots.arrays(layer)
    assert w13.is_contiguous()
    assert w2.is_contiguous()
    for rows, held in slots.serve(layer, ids, torch.rand(ids.shape), x):
        parts += 1
        seen += list(range(len(ids)))[rows]
        assert held.dtype == torch.int32
        for expert, slot in zip(ids[rows].flatten().tolist(), held.flatten().tolist(), strict=True):
            assert torch.equal(w13[slot], truth[layer][expert][0])
            assert torch.equal(w2[slot], truth[layer][expert][1])
    assert seen == list(range(len(ids)))  # every token once, in one part
    return parts


@pytest.mark.parametrize("rows", [64, 24])  # whole pages, read directly; and not
@pytest.mark.parametrize("slots", ["100%", "50%", "6", "7"])
def test_each_slot_holds_its_expert_while_it_is_served(slots: str, rows: int) -> None:
    truth = weights(rows=rows)
    served, _ = opened(Settings(slots), truth)
    choose, split = random.Random(2), 0
    for step in range(60):
        tokens = choose.choice([1, 1, 2, 5, 40])
        ids = torch.tensor([choose.sample(range(EXPERTS), TOP_K) for _ in range(tokens)])
        split += check_call(served, truth, step % LAYERS, ids) - 1
    report = served.report()
    assert (split > 0) == (slots != "100%")
    assert sum(report["hits"].values()) >= report["hits"]["miss"] > 0
    assert report["layer_steps"] == 60
    assert report["bytes"]["demand"] == report["hits"]["miss"] * report["expert_bytes"]
    assert report["arena_bytes"] == report["expert_slots"] * report["expert_bytes"]


@given(
    st.lists(st.lists(st.integers(0, 11), min_size=3, max_size=3, unique=True), min_size=1, max_size=30),
    st.integers(3, 12),
)
def test_split_by_token_is_greedy_and_whole(rows: list[list[int]], room: int) -> None:
    parts = list(by_token(torch.tensor(rows), room))
    assert [row for part, _ in parts for row in range(len(rows))[part]] == list(range(len(rows)))
    for part, experts in parts:
        assert experts == sorted({expert for row in rows[part] for expert in row})
        assert len(experts) <= room
    for (_, first), (later, _) in itertools.pairwise(parts):
        assert len({*first, *rows[later.start]}) > room  # no part ends early


def test_an_interrupted_call_leaves_no_lease() -> None:
    truth = weights()
    slots, _ = opened(Settings("6"), truth)
    ids = torch.tensor([[0, 1]])
    call = slots.serve(0, ids, torch.ones(1, 2), torch.zeros(1, 32))
    next(call)
    with pytest.raises(KeyError):
        call.throw(KeyError)
    assert check_call(slots, truth, 0, torch.tensor([[2, 3], [4, 5], [6, 7]])) == 3


def test_records_are_a_safetensors_file_that_is_used_again(tmp_path: Path, cache: Path) -> None:
    truth, folder = weights(), tmp_path / "kept"
    settings = Settings("50%", records=folder)
    _, wrote = opened(settings, truth)
    (file,) = folder.iterdir()
    with safe_open(file, "pt") as kept:
        assert kept.metadata()["checkpoint"] == "a"
        for layer, experts in enumerate(truth):
            for piece in (0, 1):
                stored = kept.get_tensor(f"layers.{layer}.{('w13', 'w2')[piece]}")
                assert torch.equal(stored, torch.stack([expert[piece] for expert in experts]))
    again, wrote_again = opened(settings, truth)
    check_call(again, truth, 1, torch.tensor([[7, 0]]))
    other, wrote_other = opened(settings, weights(1), {"checkpoint": "b"})
    check_call(other, weights(1), 1, torch.tensor([[7, 0]]))
    _, wrote_unknown = opened(settings, truth, None)
    assert (wrote, wrote_again, wrote_other, wrote_unknown) == (True, False, True, True)
    file.write_bytes(file.read_bytes()[:-1])
    assert opened(settings, truth)[1]
    assert list(folder.iterdir()) == [file]
    assert not cache.exists()


def test_temporary_records_leave_nothing(cache: Path) -> None:
    slots, _ = opened(Settings("50%"), weights())
    assert list(cache.iterdir()) == []
    check_call(slots, weights(), 0, torch.tensor([[3, 4]]))


def test_a_predictor_follows_the_routers(tmp_path: Path) -> None:
    settings = Settings("50%", system="prophet", predictor="reference-moe")
    with pytest.raises(InvalidArgument, match="trained for 12 layers of 32 experts, this model has 3"):
        opened(settings, weights())


def test_a_classical_predictor_sees_every_step() -> None:
    truth = weights()
    slots, _ = opened(Settings("50%", system="moe-infinity"), truth)
    for step in range(12):
        check_call(slots, truth, step % LAYERS, torch.tensor([[step % 8, (step + 3) % 8]]))
    assert slots.report()["layer_steps"] == 12


def test_the_file_of_counters(tmp_path: Path) -> None:
    file = tmp_path / "new" / "counters.json"
    truth = weights()
    slots, _ = opened(Settings("50%", statistics=file), truth)
    check_call(slots, truth, 0, torch.tensor([[3, 4]]))
    statistics = slots._statistics
    assert statistics is not None
    statistics.end()
    assert json.loads(file.read_text()) == slots.report()
    assert [path.name for path in file.parent.iterdir()] == [file.name]


def test_an_expert_that_never_came_is_named() -> None:
    slots = ExpertSlots(Settings("50%"), "model", 0, lambda: None)
    shape = describe("layers.0", torch.zeros(1, 64, 32), torch.zeros(1, 32, 32), 4)
    slots.add(shape, torch.float32, 2)
    assert slots.wants_weights()
    for expert in (0, 1, 3):
        slots.write(0, expert, torch.zeros(64, 32), torch.zeros(32, 32))
    with pytest.raises(StateError, match="before all weights"):
        next(slots.serve(0, torch.tensor([[0, 1]]), torch.ones(1, 2), torch.zeros(1, 32)))
    with pytest.raises(CheckpointError, match=r"expert 2 of layers\.0 was not loaded, nor were 0 more"):
        slots.finish()


def test_weights_are_not_replaced_under_a_running_engine() -> None:
    slots, _ = opened(Settings("50%"), weights())
    slots.finish()  # vLLM calls it once for each layer
    with pytest.raises(StateError, match="start vLLM anew"):
        slots.wants_weights()


def test_an_arena_in_planes_is_for_leases_only() -> None:
    slots, _ = opened(Settings("50%"), weights())
    assert slots._engine is not None
    with pytest.raises(InvalidArgument, match="served by leases"):
        slots._engine.set_ffn(
            hidden=32,
            inter=64,
            dtype="bf16",
            activation="silu",
            has_gate=True,
            gate=(0, 0),
            up=(0, 4096),
            down=(1, 0),
        )


def test_layers_of_different_shapes_are_refused() -> None:
    slots = ExpertSlots(Settings("50%"), "model", 0, lambda: None)
    slots.add(describe("layers.0", torch.zeros(1, 64, 32), torch.zeros(1, 32, 32), 4), torch.float32, 2)
    with pytest.raises(
        UnsupportedModelError, match=r"layers\.1 differ in number or shape from those of layers\.0"
    ):
        slots.add(describe("layers.1", torch.zeros(1, 64, 32), torch.zeros(1, 32, 32), 5), torch.float32, 2)


@pytest.mark.parametrize("slots", ["5", "1%"])
def test_too_few_slots_for_one_token(slots: str) -> None:
    with pytest.raises(InvalidArgument, match=r"name at least 6|PROPHET_VLLM_SLOTS: "):
        opened(Settings(slots), weights())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(WriteError, match="PROPHET_VLLM_RECORDS"):
        opened(Settings("50%", records=tmp_path / "file"), weights())


def test_a_disk_without_space_leaves_nothing(tmp_path: Path) -> None:
    huge = LayerShape("layers.0", 1 << 20, (1 << 20, 1 << 12), (1 << 12, 1 << 19), "BF16", 2)
    with pytest.raises(WriteError, match=r"free .* GiB"):
        Records(tmp_path / "kept", "experts", [huge], {})
    assert os.listdir(tmp_path / "kept") == []
