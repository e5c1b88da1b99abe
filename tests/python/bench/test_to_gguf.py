"""GGUF files of to_gguf.py, read back by a reader written from the format's description alone."""

import json
import struct
from pathlib import Path
from typing import Any, BinaryIO

import pytest
import torch
from safetensors import safe_open
from to_gguf import to_gguf

SCALARS = {
    0: "<B",
    1: "<b",
    2: "<H",
    3: "<h",
    4: "<I",
    5: "<i",
    6: "<f",
    7: "<?",
    10: "<Q",
    11: "<q",
    12: "<d",
}
TYPES = {0: torch.float32, 30: torch.bfloat16}


def take(file: BinaryIO, form: str) -> Any:
    return struct.unpack(form, file.read(struct.calcsize(form)))[0]


def string(file: BinaryIO) -> str:
    return file.read(take(file, "<Q")).decode()


def value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return string(file)
    if kind == 9:
        element = take(file, "<I")
        return [value(file, element) for _ in range(take(file, "<Q"))]
    return take(file, SCALARS[kind])


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    data = path.read_bytes()
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
        assert take(file, "<I") == 3
        tensors, keys = take(file, "<Q"), take(file, "<Q")
        head = {string(file): value(file, take(file, "<I")) for _ in range(keys)}
        entries = []
        for _ in range(tensors):
            name = string(file)
            sizes = [take(file, "<Q") for _ in range(take(file, "<I"))]
            entries.append((name, sizes[::-1], TYPES[take(file, "<I")], take(file, "<Q")))
        alignment = head["general.alignment"]
        begin = -(-file.tell() // alignment) * alignment
    found = {}
    for name, shape, dtype, offset in entries:
        assert offset % alignment == 0
        count = int(torch.Size(shape).numel())
        found[name] = torch.frombuffer(
            bytearray(data[begin + offset : begin + offset + count * dtype.itemsize]), dtype=dtype
        ).view(shape)
    return head, found


@pytest.fixture(scope="module")
def converted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Any]:
    out = tmp_path_factory.mktemp("gguf") / "model.gguf"
    to_gguf(tiny, out)
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]
    return read_gguf(out)


@pytest.fixture(scope="module")
def weights(tiny: Path) -> dict[str, torch.Tensor]:
    found = {}
    for shard in tiny.glob("*.safetensors"):
        with safe_open(shard, "pt") as file:
            found |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return found


def test_every_weight_is_there_bit_for_bit(converted: Any, weights: dict[str, torch.Tensor]) -> None:
    _, tensors = converted
    assert torch.equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"])
    assert torch.equal(tensors["output.weight"], weights["lm_head.weight"])
    for layer in range(2):
        for part in ("gate", "up", "down"):
            stem = f"model.layers.{layer}.mlp.experts"
            stacked = torch.stack([weights[f"{stem}.{e}.{part}_proj.weight"] for e in range(8)])
            assert torch.equal(tensors[f"blk.{layer}.ffn_{part}_exps.weight"], stacked)
        router = tensors[f"blk.{layer}.ffn_gate_inp.weight"]
        assert router.dtype == torch.float32
        assert torch.equal(router, weights[f"model.layers.{layer}.mlp.gate.weight"].float())
    assert sum(t.numel() for t in tensors.values()) == sum(t.numel() for t in weights.values())


def test_the_head_says_what_the_config_says(converted: Any, tiny: Path) -> None:
    head, _ = converted
    config = json.loads((tiny / "config.json").read_text())
    assert head["general.architecture"] == "qwen3moe"
    assert head["qwen3moe.block_count"] == config["num_hidden_layers"]
    assert head["qwen3moe.expert_used_count"] == config["num_experts_per_tok"]
    assert head["qwen3moe.attention.head_count_kv"] == config["num_key_value_heads"]
    assert head["qwen3moe.attention.layer_norm_rms_epsilon"] == pytest.approx(config["rms_norm_eps"])
    assert len(head["tokenizer.ggml.tokens"]) == config["vocab_size"]
    assert len(head["tokenizer.ggml.token_type"]) == config["vocab_size"]


def test_another_family_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "mixtral"}')
    with pytest.raises(SystemExit, match="only qwen3_moe"):
        to_gguf(tmp_path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_another_type_is_refused(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    header = json.dumps({"w": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"\0\0")
    with pytest.raises(SystemExit, match="w is F16; only bf16"):
        to_gguf(tmp_path, tmp_path / "out.gguf")
