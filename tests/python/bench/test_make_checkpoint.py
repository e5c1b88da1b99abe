"""Checkpoints of make_checkpoint.py, read back by the libraries that everybody uses."""

import argparse
import json
from pathlib import Path

import make_checkpoint as maker
import numpy as np
import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from make_checkpoint import Shape, bf16, make_checkpoint
from safetensors import safe_open
from units import parse_size

SMALL = Shape(layers=2, hidden=32, experts=4, top_k=2, expert_width=16, heads=2, kv_heads=1, head_dim=16)


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1))
def test_rounding_is_that_of_torch(values: list[float]) -> None:
    array = np.array(values, np.float32)
    expected = torch.from_numpy(array.copy()).to(torch.bfloat16).view(torch.int16).numpy()
    assert (bf16(array).view(np.int16) == expected).all()


def test_stock_transformers_loads_and_runs_it(tiny: Path) -> None:
    model, notes = transformers.AutoModelForCausalLM.from_pretrained(
        tiny, dtype=torch.bfloat16, output_loading_info=True
    )
    assert not notes["missing_keys"]
    assert not notes["unexpected_keys"]
    assert model.config.num_experts == 8
    logits = model(torch.arange(5)[None]).logits
    assert logits.shape == (1, 5, 300)
    assert torch.isfinite(logits).all()


def test_tokens_are_bytes(tiny: Path) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny)
    text = "Zwölf Boxkämpfer\n\t\x00 jagen 🦊"
    ids = tokenizer(text, add_special_tokens=False).input_ids
    assert bytes(ids) == text.encode()
    assert tokenizer.decode(ids) == text


def test_the_index_names_every_tensor_where_it_is(tiny: Path) -> None:
    index = json.loads((tiny / "model.safetensors.index.json").read_text())
    total = 0
    for shard in sorted(tiny.glob("*.safetensors")):
        with safe_open(shard, "pt") as file:
            names = set(file.keys())
            total += sum(file.get_tensor(name).nbytes for name in names)
        assert names == {name for name, home in index["weight_map"].items() if home == shard.name}
    assert total == index["metadata"]["total_size"]


def test_weights_have_the_deviations_asked_for(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "c", SMALL)
    with safe_open(tmp_path / "c" / "model-00001-of-00002.safetensors", "pt") as file:
        assert file.get_tensor("model.embed_tokens.weight").float().std().item() == pytest.approx(1, rel=0.05)
        gate = file.get_tensor("model.layers.0.mlp.experts.0.gate_proj.weight").float()
        assert gate.std().item() == pytest.approx(0.02, rel=0.1)
        assert (file.get_tensor("model.layers.0.input_layernorm.weight") == 1).all()


def test_bytes_follow_from_shape_and_seed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_checkpoint(tmp_path / "a", SMALL)
    monkeypatch.setattr(maker, "PIECE", 100)  # how much is drawn at a time leaves no trace
    make_checkpoint(tmp_path / "b", SMALL)
    make_checkpoint(tmp_path / "c", SMALL, seed=1)
    name = "model-00002-of-00002.safetensors"
    a, b, c = ((tmp_path / folder / name).read_bytes() for folder in "abc")
    assert a == b
    assert a != c


def test_ideal_bytes_count_what_a_token_touches() -> None:
    touched = 0
    for layer in range(SMALL.layers):
        for name, shape in SMALL.shard(layer).items():
            values = int(np.prod(shape))
            if "experts" in name:
                values = values * SMALL.top_k / SMALL.experts
            elif "embed" in name:
                values = SMALL.hidden
            touched += 2 * values
    assert SMALL.ideal_bytes_per_token == touched


@pytest.mark.parametrize("size", [1, 10**9, 2_400_000_000, 10**10])
def test_a_size_sets_the_layers_that_come_closest(size: int) -> None:
    shape = Shape().sized(size)
    layer = Shape(layers=3).bytes - Shape(layers=2).bytes
    assert shape.layers >= 1
    assert abs(shape.bytes - size) <= layer / 2 or shape.layers == 1


def test_an_existing_folder_is_left_alone(tiny: Path) -> None:
    before = {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}
    with pytest.raises(FileExistsError, match="remove it first"):
        make_checkpoint(tiny, SMALL)
    assert before == {path.name: path.stat().st_mtime_ns for path in tiny.iterdir()}


def test_an_interrupted_one_does_not_appear(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(maker, "write_tokenizer", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
        with pytest.raises(OSError, match="disk full"):
            make_checkpoint(tmp_path / "c", SMALL)
        assert not (tmp_path / "c").exists()
    make_checkpoint(tmp_path / "c", SMALL)  # what was left does not stand in the way
    assert (tmp_path / "c" / "config.json").exists()


@pytest.mark.parametrize(
    ("text", "size"),
    [("1GiB", 1 << 30), ("2.4GB", 2_400_000_000), ("512m", 512_000_000), ("7", 7), (" 64 kib ", 65536)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GiB", "-1", "0", "1TiBB", "1e9", "nan", "1I", "0.1"])
def test_what_is_no_size_gets_a_sentence(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="is not a size: write"):
        parse_size(text)
