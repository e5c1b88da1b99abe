"""Which bytes are which expert: against the parameters that transformers itself loads, and the private
functions of transformers that the index asks."""

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from prophet_moe.errors import CheckpointError, UnsupportedModelError
from prophet_moe.models.index import ALIGNMENT, slot_bytes
from prophet_moe.models.inspect import make_blueprint

RECIPES = {
    "qwen3_moe": ("gate", "up", "down"),
    "mixtral": ("gate", "up", "down"),
    "granitemoe": ("gate_up", "down"),
    "gpt_oss": ("gate_up", "gate_up_bias", "down", "down_bias"),
    "nemotron_h": ("up", "down"),
    "jamba": ("gate", "up", "down"),
    "aria_text": ("gate_up", "down"),
}


@pytest.mark.parametrize("family", RECIPES)
@pytest.mark.parametrize("shards", ["10GB", "200KB"])
def test_every_byte_of_every_expert(family: str, shards: str, tmp_path: Path) -> None:
    """The pieces read from the files, put together, are row e of the library's own parameters."""
    tiny_models.build(family).save_pretrained(tmp_path, max_shard_size=shards)
    stock = AutoModelForCausalLM.from_pretrained(tmp_path, experts_implementation="eager")
    blueprint = make_blueprint(tmp_path)
    index = blueprint.index
    assert index.pieces == RECIPES[family]
    fused = tuple(tuple(int(at) % 64 for at in layer[0, :, 1]) for layer in index.table)
    assert index.begins == (fused if "gate_up" in index.pieces else None)
    assert index.table.shape == (len(index.modules), 8, len(index.pieces), 3)
    files = [path.read_bytes() for path in blueprint.checkpoint.files]
    for layer, name in enumerate(index.modules):
        parameters = dict(stock.get_submodule(name).named_parameters(recurse=False))
        for expert in range(8):
            found: dict[str, list[torch.Tensor]] = {}
            for piece, shape, (file, at, size) in zip(
                index.pieces, index.shapes[layer], index.table[layer, expert].tolist(), strict=True
            ):
                raw = torch.frombuffer(bytearray(files[file][at : at + size]), dtype=torch.float32)
                whole = "gate_up_proj" if piece in ("gate", "up") and "gate" in index.pieces else None
                kind, _, bias = piece.partition("_bias")
                parameter = whole or f"{kind}_proj{'_bias' if piece.endswith('_bias') else bias}"
                found.setdefault(parameter, []).append(raw.view(shape))
            assert set(found) == set(parameters)
            for parameter, parts in found.items():
                assert torch.equal(torch.cat(parts), parameters[parameter][expert])


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "gemma4_text"])
def test_resident_keys_are_all_others(family: str, tmp_path: Path) -> None:
    tiny_models.build(family).save_pretrained(tmp_path)
    blueprint = make_blueprint(tmp_path)
    index, tensors = blueprint.index, blueprint.checkpoint.tensors
    inside = {
        name
        for name, place in tensors.items()
        for file, at, size in index.table.reshape(-1, 3).tolist()
        if place.file == file and place.offset <= at and at + size <= place.offset + place.bytes
    }
    assert set(index.resident) == set(tensors) - inside
    assert len(index.resident) == len(set(index.resident))


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


EXPERT = "model.layers.1.mlp.experts.3.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "kind", "sentence"),
    [
        (lambda w: w.pop(EXPERT), CheckpointError, r"needs experts 0 to 7.*hold 7 \(expert 3 is missing\)"),
        (
            lambda w: w.update({EXPERT: w[EXPERT].T.contiguous()}),
            CheckpointError,
            r"experts\.3\.down_proj.*is \[96, 128\].*asks for \[128, 96\]",
        ),
        (lambda w: w.update({EXPERT: w[EXPERT].bfloat16()}), UnsupportedModelError, r"\['BF16', 'F32'\]"),
        (
            lambda w: w.update({k: v.to(torch.float8_e4m3fn) for k, v in w.items() if ".experts." in k}),
            UnsupportedModelError,
            "quantised experts come in a later release",
        ),
        (
            lambda w: w.update({EXPERT.replace(".3.", ".8."): w[EXPERT].clone()}),
            CheckpointError,
            "needs experts 0 to 7, the files hold 9",
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if "experts" in k and "gate_proj" in k],
            CheckpointError,
            "only a part of .*gate_up_proj",
        ),
        (
            lambda w: [w.pop(k) for k in list(w) if "layers.1.mlp.experts" in k],
            CheckpointError,
            r"no tensor for model\.layers\.1\.mlp\.experts\.gate_up_proj",
        ),
        (
            lambda w: w.update({"model.norm.weight": torch.zeros(64)}),
            CheckpointError,
            r"'model\.norm\.weight' is \[64\].*asks for \[128\]",
        ),
    ],
    ids=["missing", "transposed", "mixed", "fp8", "too-many", "no-gate", "no-layer", "other-norm"],
)
def test_checkpoints_that_do_not_fit(
    change: Any, kind: type[Exception], sentence: str, tmp_path: Path
) -> None:
    tiny_models.build("qwen3_moe").save_pretrained(tmp_path)
    rewrite(tmp_path, change)
    with pytest.raises(kind, match=sentence):
        make_blueprint(tmp_path)


def test_layouts_that_must_be_rearranged(tmp_path: Path) -> None:
    """inkling2 stores gate and up interleaved: read as it lies it would be another model."""
    tiny_models.build("inkling2_text").save_pretrained(tmp_path)
    with pytest.raises(
        UnsupportedModelError, match=r"must be rearranged to be used \(Interleave.*later release"
    ):
        make_blueprint(tmp_path)


def test_expert_number_ten_comes_after_nine(tmp_path: Path) -> None:
    tiny_models.build("qwen3_moe", num_experts=12).save_pretrained(tmp_path)
    blueprint = make_blueprint(tmp_path)
    for expert in range(12):
        name = f"model.layers.0.mlp.experts.{expert}.down_proj.weight"
        assert blueprint.index.table[0, expert, 2, 1] == blueprint.checkpoint.tensors[name].offset


piece = st.tuples(st.integers(0, 2), st.integers(0, 9), st.integers(1, 3 * ALIGNMENT))


@given(
    st.lists(piece, min_size=1, max_size=4), st.lists(st.integers(0, 5 * ALIGNMENT), min_size=4, max_size=4)
)
def test_slot_bytes_cover_every_piece_once(pieces: list[tuple[int, int, int]], gaps: list[int]) -> None:
    """Against brute force: pages of neighbours in one file are counted once, of others apart."""
    ends = {0: 0, 1: 0, 2: 0}
    placed, runs = [], []
    for (file, _, size), gap in zip(pieces, gaps, strict=False):
        begin = ends[file] + gap
        ends[file] = begin + size
        placed.append((file, begin, size))
        if runs and gap == 0 and any(run[0] == file and run[2] == begin for run in runs):
            run = next(run for run in runs if run[0] == file and run[2] == begin)
            run[2] = begin + size
        else:
            runs.append([file, begin, begin + size])
    pages = sum(len(np.unique(np.arange(begin, end) // ALIGNMENT)) for _, begin, end in runs)
    assert slot_bytes(placed) == pages * ALIGNMENT
    assert slot_bytes(placed[::-1]) == pages * ALIGNMENT


def test_the_private_functions_are_as_the_index_uses_them() -> None:
    """transformers promises nothing about these: a change shows here first."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import (
        WeightConverter,
        WeightRenaming,
        dot_natural_key,
        rename_source_key,
    )

    assert list(inspect.signature(rename_source_key).parameters)[:5] == [
        "source_key",
        "weight_renamings",
        "weight_converters",
        "base_model_prefix",
        "meta_state_dict",
    ]
    assert sorted(["e.10.w", "e.9.w"], key=dot_natural_key) == ["e.9.w", "e.10.w"]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_models.config_for("qwen3_moe"))
    mapping = get_model_conversion_mapping(model)
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    key = "model.layers.1.mlp.experts.3.up_proj.weight"
    name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, model.state_dict())
    assert name == "model.layers.1.mlp.experts.gate_up_proj"
    (converter,) = [c for c in converters if pattern in c.source_patterns]
    assert [type(operation).__name__ for operation in converter.operations] == [
        "MergeModulelist",
        "Concatenate",
    ]
    assert [operation.dim for operation in converter.operations] == [0, 1]
    assert [pattern.rsplit(".", 2)[-2] for pattern in converter.source_patterns] == ["gate_proj", "up_proj"]
    plain = rename_source_key("model.norm.weight", renamings, converters, "model", model.state_dict())
    assert plain == ("model.norm.weight", None)


def test_packed_and_plain_tell_of_the_same_experts(tmp_path: Path) -> None:
    import prophet_moe

    tiny_models.build("gpt_oss").save_pretrained(tmp_path / "plain")
    prophet_moe.pack(tmp_path / "plain", tmp_path / "packed")
    plain, packed = (make_blueprint(tmp_path / name) for name in ("plain", "packed"))
    assert (packed.index.pieces, packed.index.shapes) == (plain.index.pieces, plain.index.shapes)
    assert set(packed.index.resident) == set(plain.index.resident)
    assert packed.index.begins == plain.index.begins is not None
    assert json.loads(packed.checkpoint.metadata["pieces"]) == list(plain.index.pieces)
    for place in zip(
        plain.index.table.reshape(-1, 3).tolist(), packed.index.table.reshape(-1, 3).tolist(), strict=True
    ):
        a, b = (
            blueprint.checkpoint.files[file].read_bytes()[at : at + size]
            for blueprint, (file, at, size) in zip((plain, packed), place, strict=True)
        )
        assert a == b
