"""Folders that hold something else than a model this release runs: named, with the reason."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

import prophet_moe
from prophet_moe import CheckpointError, ProphetError, UnsupportedModelError

Refused = Callable[..., str]


def configure(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_a_dense_model(tmp_path: Path, refused: Refused) -> None:
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path / "dense")
    refused(UnsupportedModelError, tmp_path / "dense", "llama is a dense model", "use transformers directly")


def test_an_unknown_family(model_dir: Path, refused: Refused) -> None:
    configure(model_dir, model_type="oracle9000")
    refused(
        UnsupportedModelError, model_dir, "'oracle9000'", "unknown to transformers", "Update transformers"
    )


def test_a_family_with_code_of_its_own(model_dir: Path, refused: Refused) -> None:
    """Code beside the weights is neither run nor imported."""
    configure(
        model_dir, model_type="mine", auto_map={"AutoConfig": "mine.Config", "AutoModelForCausalLM": "mine.M"}
    )
    (model_dir / "mine.py").write_text(f"open({str(model_dir / 'ran')!r}, 'w')\n")
    refused(UnsupportedModelError, model_dir, "'mine'", "own code are not run")
    assert not (model_dir / "ran").exists()


@pytest.mark.parametrize(
    "family", ["dbrx", "doge", "jetmoe", "llama4", "longcat_flash", "nllb_moe", "switch_transformers"]
)
def test_families_outside_the_registry(model_dir: Path, refused: Refused, family: str) -> None:
    configure(model_dir, model_type=family)
    refused(UnsupportedModelError, model_dir, f"{family} is not supported yet", "Use transformers directly")


@pytest.mark.parametrize("family", ["bert", "t5", "clip", "whisper", "vit"])
def test_models_that_generate_no_text_with_experts(model_dir: Path, family: str) -> None:
    configure(model_dir, model_type=family)
    with pytest.raises(ProphetError) as raised:
        prophet_moe.load(model_dir, slots=4)
    assert isinstance(raised.value, UnsupportedModelError | CheckpointError)
    assert family in str(raised.value)


@pytest.mark.parametrize("method", ["mxfp4", "fp8", "gptq", "awq", "bitsandbytes", "compressed-tensors"])
def test_quantised_checkpoints_by_name(model_dir: Path, refused: Refused, method: str) -> None:
    configure(model_dir, quantization_config={"quant_method": method, "bits": 4})
    refused(UnsupportedModelError, model_dir, str(model_dir), method.upper(), "bf16, fp16 or fp32 checkpoint")


@pytest.mark.parametrize("value", ["fp8", {}, ["gptq"], 4])
def test_quantised_in_a_way_nobody_named(model_dir: Path, refused: Refused, value: Any) -> None:
    configure(model_dir, quantization_config=value)
    refused(UnsupportedModelError, model_dir, str(model_dir), "is quantised (UNKNOWN)", "Use the bf16")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        "null",
        "3",
        '"qwen3_moe"',
        "{}",
        '{"model_type": null}',
        '{"model_type": []}',
        "[" * 100_000,
    ],
    ids=lambda text: text[:24],
)
def test_a_broken_configuration(model_dir: Path, text: str) -> None:
    (model_dir / "config.json").write_text(text)
    with pytest.raises(ProphetError) as raised:
        prophet_moe.load(model_dir, slots=4)
    assert isinstance(raised.value, UnsupportedModelError | CheckpointError)
    assert str(model_dir / "config.json") in str(raised.value)
    assert "get the file again" in str(raised.value) or "use another checkpoint" in str(raised.value)


def test_a_configuration_that_is_not_text(model_dir: Path, refused: Refused) -> None:
    (model_dir / "config.json").write_bytes(b"\xff\xfe\x00{")
    refused(CheckpointError, model_dir, str(model_dir / "config.json"), "get the file again")


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": "large"},
        {"hidden_size": -64},
        {"hidden_size": 0},
        {"num_local_experts": 0},
        {"num_local_experts": -8},
        {"num_local_experts": 1.5},
        {"num_experts_per_tok": 0},
        {"num_experts_per_tok": 9},
        {"num_experts_per_tok": "two"},
        {"num_hidden_layers": 0},
        {"num_attention_heads": 0},
        {"hidden_act": "no_such_activation"},
        {"moe_intermediate_size": None},
        {"vocab_size": 1 << 62},
    ],
    ids=str,
)
def test_a_configuration_of_nonsense(model_dir: Path, changes: dict[str, Any]) -> None:
    configure(model_dir, **changes)
    with pytest.raises(ProphetError) as raised:
        prophet_moe.load(model_dir, slots=9)
    assert isinstance(raised.value, UnsupportedModelError | CheckpointError), raised.value
    assert str(model_dir) in str(raised.value) or "qwen3_moe" in str(raised.value), raised.value


def test_no_configuration(model_dir: Path, refused: Refused) -> None:
    (model_dir / "config.json").unlink()
    refused(CheckpointError, model_dir, str(model_dir / "config.json"), "is missing", "complete checkpoint")


@pytest.mark.parametrize("text", ["{", "[]", "null"])
def test_a_broken_generation_configuration(model_dir: Path, text: str) -> None:
    (model_dir / "generation_config.json").write_text(text)
    with pytest.raises(CheckpointError) as raised:
        prophet_moe.load(model_dir, slots=4)
    assert str(model_dir / "generation_config.json") in str(raised.value)
    assert "get the file again, or remove it" in str(raised.value)


def test_places_that_are_no_folder(model_dir: Path, refused: Refused) -> None:
    file = model_dir / "model.safetensors"
    refused(CheckpointError, file, str(file), "is a file", "give the folder")
    absent = model_dir / "absent"
    refused(CheckpointError, absent, str(absent), "there is no folder", "give an existing folder")
    empty = model_dir / "empty"
    empty.mkdir()
    refused(CheckpointError, empty, str(empty / "config.json"), "is missing")


@pytest.mark.parametrize("name", ["", " ", "..//", "a/b/c", "/", "no such/thing!", "a\0b"])
def test_names_that_are_no_model(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match=r"Hub id|config\.json"):
        prophet_moe.inspect(name)


# Files that cannot be read.


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to("nowhere")


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def _pipe(path: Path) -> None:
    """Opening one waits for a writer that never comes."""
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize("make", [_folder, _dangling, _loop, _pipe])
@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_something_else_in_the_place_of_a_file(
    model_dir: Path, refused: Refused, name: str, make: Callable[[Path], None]
) -> None:
    make(model_dir / name)
    refused(CheckpointError, model_dir, str(model_dir))


@pytest.mark.parametrize("make", [_folder, _dangling, _loop, _pipe])
def test_something_else_in_the_place_of_a_shard(
    sharded: Path, copy: Callable[[Path], Path], refused: Refused, make: Callable[[Path], None]
) -> None:
    folder = copy(sharded)
    shard = sorted(folder.glob("*.safetensors"))[1]
    make(shard)
    refused(CheckpointError, folder, str(shard), "again")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_no_permission(readable_by_owner_only: Callable[[str], Path], name: str) -> None:
    folder = readable_by_owner_only(name)
    with pytest.raises(CheckpointError) as raised:
        prophet_moe.inspect(folder)
    assert str(folder / name) in str(raised.value)
    assert "ermission" in str(raised.value)
