"""Checkpoints whose files contradict each other, their index or config.json."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

import prophet_moe
from prophet_moe import CheckpointError, UnsupportedModelError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"

Copy = Callable[[Path], Path]
Refused = Callable[..., str]
Alter = Callable[[Path, Callable[[dict[str, Any]], Any]], None]


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    index = json.loads((folder / INDEX).read_text())
    change(index)
    (folder / INDEX).write_text(json.dumps(index))


def rewrite(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Loads all tensors of a file, changes them, and saves a sound file again."""
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, {"format": "pt"})


def test_shards_of_one_model_are_read(sharded: Path) -> None:
    """The files that the cases below damage are sound."""
    assert len(shards(sharded)) > 2
    assert prophet_moe.inspect(sharded).experts_total == 16


@pytest.mark.parametrize("number", [0, -1])
def test_a_missing_shard(sharded: Path, copy: Copy, refused: Refused, number: int) -> None:
    folder = copy(sharded)
    lost = shards(folder)[number]
    lost.unlink()
    refused(CheckpointError, folder, str(lost), "is missing", "download that shard again")


def test_a_missing_shard_without_an_index(sharded: Path, copy: Copy, refused: Refused) -> None:
    folder = copy(sharded)
    (folder / INDEX).unlink()
    count = len(shards(folder))
    shards(folder)[1].unlink()
    refused(
        CheckpointError, folder, str(folder), f"{count - 1} of the {count} shards", "download the missing"
    )


def test_a_shard_of_another_model(sharded: Path, copy: Copy, refused: Refused) -> None:
    folder = copy(sharded)
    first, second = shards(folder)[:2]
    shutil.copy(first, second)
    refused(CheckpointError, folder, second.name, "is also in", first.name, "remove the file")


def test_an_index_that_names_an_absent_tensor(sharded: Path, copy: Copy, refused: Refused) -> None:
    folder = copy(sharded)
    name = shards(folder)[0].name
    edit_index(folder, lambda index: index["weight_map"].update({"model.absent": name}))
    refused(CheckpointError, folder, str(folder / INDEX), name, "'model.absent'", "download both again")


def test_an_index_that_names_the_wrong_shard(sharded: Path, copy: Copy, refused: Refused) -> None:
    folder = copy(sharded)
    wrong = next(p for p in shards(folder) if EXPERT not in load_file(p))
    edit_index(folder, lambda index: index["weight_map"].update({EXPERT: wrong.name}))
    refused(CheckpointError, folder, INDEX, wrong.name, EXPERT, "download both again")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "is not a readable shard index"),
        ("{", "is not a readable shard index"),
        ("[]", "is not a readable shard index"),
        ("null", "is not a readable shard index"),
        ("{}", "is not a readable shard index"),
        ('{"weight_map": {}}', "names no tensor"),
        ('{"weight_map": []}', "names no tensor"),
        ('{"weight_map": "a"}', "names no tensor"),
        ('{"weight_map": {"a": 1}}', "'a'"),
        ('{"weight_map": {"a": null}}', "'a'"),
        ('{"weight_map": {"a": "../../etc/passwd.safetensors"}}', "'../../etc/passwd.safetensors'"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "'/etc/passwd'"),
        ('{"weight_map": {"a": ".safetensors/../b.safetensors"}}', "no shard of this folder"),
        ("[" * 100_000, "is not a readable shard index"),
        ('{"a":' * 100_000, "is not a readable shard index"),
    ],
    ids=lambda text: text[:30],
)
def test_a_broken_index(sharded: Path, copy: Copy, refused: Refused, text: str, part: str) -> None:
    folder = copy(sharded)
    (folder / INDEX).write_text(text)
    refused(CheckpointError, folder, str(folder / INDEX), part)


@pytest.mark.parametrize(
    ("lost", "parts"),
    [
        (EXPERT, ("experts 0 to 7", "expert 3 is missing", "download the missing shard again")),
        ("model.layers.1.mlp.gate.weight", ("model.layers.1.mlp.gate.weight", "files are missing")),
        ("model.norm.weight", ("model.norm.weight", "files are missing")),
    ],
)
def test_a_missing_tensor(model_dir: Path, lost: str, parts: tuple[str, ...]) -> None:
    rewrite(model_dir / SINGLE, lambda tensors: tensors.pop(lost))
    with pytest.raises(CheckpointError) as raised:
        prophet_moe.load(model_dir, slots=4)
    assert all(part in str(raised.value) for part in (str(model_dir), *parts)), raised.value


def drop(*fragments: str) -> Callable[[dict[str, Any]], None]:
    def change(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if any(f in name for f in fragments)]:
            del tensors[name]

    return change


@pytest.mark.parametrize(
    ("fragments", "parts"),
    [
        (
            (".1.mlp.experts.",),
            ("no tensor for model.layers.1.mlp.experts.gate_up_proj", "files are missing"),
        ),
        ((".experts.",), ("no tensor for model.layers.0.mlp.experts.gate_up_proj", "files are missing")),
        ((".0.mlp.experts.7.",), ("experts 0 to 7", "expert 7 is missing", "download")),
        ((".up_proj.",), ("only a part of model.layers.0.mlp.experts.gate_up_proj", "download them again")),
    ],
)
def test_missing_experts(
    model_dir: Path, refused: Refused, fragments: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    rewrite(model_dir / SINGLE, drop(*fragments))
    refused(CheckpointError, model_dir, str(model_dir), *parts)


def test_an_expert_of_another_shape(model_dir: Path, refused: Refused) -> None:
    rewrite(model_dir / SINGLE, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].T.contiguous()}))
    refused(CheckpointError, model_dir, EXPERT, "[64, 48]", "[48, 64]", "belong to different models")


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"num_local_experts": 7}, "belong to different models"),
        ({"num_local_experts": 9}, "belong to different models"),
        ({"moe_intermediate_size": 40}, "belong to different models"),
        ({"hidden_size": 32}, "belong to different models"),
        ({"num_hidden_layers": 3}, "layers.2"),
        ({"vocab_size": 64}, "belong to different models"),
    ],
)
def test_a_configuration_of_another_model(
    model_dir: Path, refused: Refused, changes: dict[str, Any], part: str
) -> None:
    config = json.loads((model_dir / "config.json").read_text())
    (model_dir / "config.json").write_text(json.dumps(config | changes))
    refused(CheckpointError, model_dir, str(model_dir), part)


def test_an_expert_in_another_element_type(model_dir: Path, refused: Refused) -> None:
    rewrite(model_dir / SINGLE, lambda tensors: tensors.update({EXPERT: tensors[EXPERT].bfloat16()}))
    refused(UnsupportedModelError, model_dir, str(model_dir), "'BF16', 'F32'", "all BF16")


def test_a_folder_without_weights(model_dir: Path, refused: Refused) -> None:
    (model_dir / SINGLE).unlink()
    refused(CheckpointError, model_dir, str(model_dir), "no *.safetensors", "downloaded checkpoint")
    (model_dir / "pytorch_model.bin").write_bytes(b"pickle")
    refused(CheckpointError, model_dir, str(model_dir), "pickled", "pytorch_model.bin", "safetensors")


# Packed checkpoints that lie, in ways that a sound safetensors header allows.

PIECE = "model.layers.1.mlp.experts.3.up"


def notes(**changes: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header["__metadata__"].update(changes)


def rename(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    return lambda header: header.update({new: header.pop(old)})


def swap_shape(header: dict[str, Any]) -> None:
    """Two pieces of one expert trade their shapes: the sum of elements stays."""
    up, down = header[PIECE], header[PIECE.replace(".up", ".down")]
    up["shape"], down["shape"] = down["shape"], up["shape"]


@pytest.mark.parametrize(
    ("change", "kind", "part"),
    [
        (notes(version="2"), UnsupportedModelError, "packed format 2"),
        (lambda header: header["__metadata__"].pop("version"), UnsupportedModelError, "packed format None"),
        (notes(pieces="[]"), CheckpointError, "its pieces are []"),
        (notes(pieces='["up", "gate", "down"]'), CheckpointError, "its pieces are ['up', 'gate', 'down']"),
        (notes(pieces='["gate", "up"]'), CheckpointError, "its pieces are ['gate', 'up']"),
        (notes(pieces="12"), CheckpointError, "does not hold all of"),
        (notes(pieces="gate"), CheckpointError, "does not hold all of"),
        (notes(pieces="[" * 100_000), CheckpointError, "does not hold all of"),
        (lambda header: header["__metadata__"].pop("pieces"), CheckpointError, "does not hold all of"),
        (notes(begins="[[0, 0, 0]]"), CheckpointError, "does not say where"),
        (notes(begins="[[0, 0], [0, 0]]"), CheckpointError, "does not say where"),
        (notes(begins="[[0, 0, 1e999], [0, 0, 0]]"), CheckpointError, "does not say where"),
        (notes(begins='["abc", "def"]'), CheckpointError, "does not say where"),
        (notes(begins="{}"), CheckpointError, "does not say where"),
        (notes(begins="7"), CheckpointError, "does not say where"),
        (notes(begins="["), CheckpointError, "does not say where"),
        (rename(PIECE, "elsewhere"), CheckpointError, PIECE),
        (swap_shape, CheckpointError, "expert 3 of model.layers.1"),
    ],
)
def test_a_lying_packed_file(
    packed: Path,
    copy: Copy,
    alter: Alter,
    refused: Refused,
    change: Callable[[dict[str, Any]], Any],
    kind: type[Exception],
    part: str,
) -> None:
    folder = copy(packed)
    alter(folder / "experts.safetensors", change)
    refused(kind, folder, str(folder / "experts.safetensors"), part, "pack the model again")


@pytest.mark.parametrize("lost", ["experts.safetensors", "dense.safetensors"])
def test_half_of_a_packed_folder(packed: Path, copy: Copy, lost: str) -> None:
    folder = copy(packed)
    (folder / lost).unlink()
    with pytest.raises(CheckpointError, match=r"files are missing"):
        prophet_moe.load(folder, slots=4)


def test_a_packed_file_without_its_mark_is_no_ordinary_checkpoint(
    packed: Path, copy: Copy, alter: Alter, refused: Refused
) -> None:
    folder = copy(packed)
    alter(folder / "experts.safetensors", lambda header: header.pop("__metadata__"))
    refused(CheckpointError, folder, str(folder), "no tensor for", "files are missing")


def test_a_packed_file_that_was_cut(packed: Path, copy: Copy, refused: Refused) -> None:
    folder = copy(packed)
    os.truncate(folder / "experts.safetensors", (folder / "experts.safetensors").stat().st_size - 4096)
    refused(CheckpointError, folder, str(folder / "experts.safetensors"), "get it again")
