"""The same weights as GGUF, for peers that read nothing else.

    python bench/e2e/peers/to_gguf.py CHECKPOINT MODEL.gguf

Takes checkpoints of make_checkpoint.py only: bf16 Qwen3-MoE, no merges. Matrices keep their bf16 bits; norms
and routers become float32, as llama.cpp's own converter writes them. One tensor of one expert is in memory
at a time. Needs numpy; the file appears under its name only when it is complete.
"""

import json
import math
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

sys.path.append(str(Path(__file__).resolve().parents[1]))
from make_checkpoint import BOS, EOS, vocabulary

F32, BF16 = 0, 30  # tensor types of ggml
MOSTLY_BF16 = 32
ALIGNMENT = 32
U32, I32, F32_VALUE, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9  # value types of GGUF
NORMAL, CONTROL = 1, 3  # token types

# Of one layer: GGUF's name, ours.
ATTENTION = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate_inp": "mlp.gate",
}


@dataclass(frozen=True)
class Place:
    """Where a tensor of bf16 values lies."""

    path: Path
    offset: int
    shape: tuple[int, ...]

    def read(self) -> bytes:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return file.read(2 * math.prod(self.shape))


@dataclass(frozen=True)
class Tensor:
    """One tensor of the GGUF file: `parts` stacked along a new first axis, or the one part as it is."""

    name: str
    parts: tuple[Place, ...]
    type: int

    @property
    def shape(self) -> tuple[int, ...]:
        one = self.parts[0].shape
        return (len(self.parts), *one) if len(self.parts) > 1 else one

    @property
    def bytes(self) -> int:
        return math.prod(self.shape) * (4 if self.type == F32 else 2)

    def data(self) -> Iterator[bytes]:
        for part in self.parts:
            bits = part.read()
            yield _widened(bits) if self.type == F32 else bits


def _widened(bits: bytes) -> bytes:
    """bf16 values as float32, exactly."""
    return (np.frombuffer(bits, "<u2").astype("<u4") << 16).tobytes()


def places(folder: Path) -> dict[str, Place]:
    """Every tensor of the shards."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{path}: {name} is {entry['dtype']}; only bf16 checkpoints are taken.")
            found[name] = Place(path, 8 + length + entry["data_offsets"][0], tuple(entry["shape"]))
    return found


def tensors(folder: Path, layers: int, experts: int) -> list[Tensor]:
    """Those of the GGUF file, in its order."""
    at = places(folder)
    found = [Tensor("token_embd.weight", (at["model.embed_tokens.weight"],), BF16)]
    for layer in range(layers):
        ours, theirs = f"model.layers.{layer}.", f"blk.{layer}."
        for short, long in ATTENTION.items():
            kind = F32 if short.endswith("norm") or short == "ffn_gate_inp" else BF16
            found.append(Tensor(f"{theirs}{short}.weight", (at[f"{ours}{long}.weight"],), kind))
        for part in ("gate", "up", "down"):
            names = (f"{ours}mlp.experts.{expert}.{part}_proj.weight" for expert in range(experts))
            found.append(Tensor(f"{theirs}ffn_{part}_exps.weight", tuple(at[name] for name in names), BF16))
    found.append(Tensor("output_norm.weight", (at["model.norm.weight"],), F32))
    found.append(Tensor("output.weight", (at["lm_head.weight"],), BF16))
    return found


def metadata(config: dict[str, int | float]) -> list[tuple[str, int, object]]:
    """Key, value type and value of the head; arrays as (type of the elements, elements)."""
    words = vocabulary(int(config["vocab_size"]))
    kinds = [CONTROL if token >= BOS else NORMAL for token in range(len(words))]
    sizes = {
        "context_length": "max_position_embeddings",
        "embedding_length": "hidden_size",
        "block_count": "num_hidden_layers",
        "feed_forward_length": "intermediate_size",
        "expert_feed_forward_length": "moe_intermediate_size",
        "attention.head_count": "num_attention_heads",
        "attention.head_count_kv": "num_key_value_heads",
        "attention.key_length": "head_dim",
        "attention.value_length": "head_dim",
        "expert_count": "num_experts",
        "expert_used_count": "num_experts_per_tok",
    }
    return [
        ("general.architecture", STRING, "qwen3moe"),
        ("general.name", STRING, "random"),
        ("general.alignment", U32, ALIGNMENT),
        ("general.file_type", U32, MOSTLY_BF16),
        *((f"qwen3moe.{theirs}", U32, config[ours]) for theirs, ours in sizes.items()),
        ("qwen3moe.attention.layer_norm_rms_epsilon", F32_VALUE, config["rms_norm_eps"]),
        ("qwen3moe.rope.freq_base", F32_VALUE, config["rope_theta"]),
        ("qwen3moe.vocab_size", U32, config["vocab_size"]),
        ("tokenizer.ggml.model", STRING, "gpt2"),
        ("tokenizer.ggml.pre", STRING, "qwen2"),
        ("tokenizer.ggml.tokens", ARRAY, (STRING, words)),
        ("tokenizer.ggml.token_type", ARRAY, (I32, kinds)),
        ("tokenizer.ggml.merges", ARRAY, (STRING, ["a b"])),  # readers want one; it names no token
        ("tokenizer.ggml.bos_token_id", U32, BOS),
        ("tokenizer.ggml.eos_token_id", U32, EOS),
        ("tokenizer.ggml.add_bos_token", BOOL, False),
    ]


def encoded(kind: int, value: object) -> bytes:
    """A value as GGUF version 3 stores it, little-endian."""
    if kind == STRING:
        text = str(value).encode()
        return struct.pack("<Q", len(text)) + text
    if kind == ARRAY:
        element, values = value  # type: ignore[misc]
        body = b"".join(encoded(element, one) for one in values)
        return struct.pack("<IQ", element, len(values)) + body
    return struct.pack({U32: "<I", I32: "<i", F32_VALUE: "<f", BOOL: "<?"}[kind], value)


def _pad(file: BinaryIO) -> None:
    file.write(bytes(-file.tell() % ALIGNMENT))


def to_gguf(folder: Path, out: Path) -> None:
    """Writes `out` from the checkpoint in `folder`."""
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "qwen3_moe":
        raise SystemExit(f"{folder} is {config.get('model_type')!r}; only qwen3_moe checkpoints are taken.")
    head = metadata(config)
    body = tensors(folder, config["num_hidden_layers"], config["num_experts"])
    unfinished = out.with_name(out.name + ".unfinished")
    with unfinished.open("wb") as file:
        file.write(b"GGUF" + struct.pack("<IQQ", 3, len(body), len(head)))
        for key, kind, value in head:
            file.write(encoded(STRING, key) + struct.pack("<I", kind) + encoded(kind, value))
        offset = 0
        for tensor in body:
            sizes = tensor.shape[::-1]  # the fastest axis comes first
            file.write(encoded(STRING, tensor.name))
            file.write(struct.pack(f"<I{len(sizes)}QIQ", len(sizes), *sizes, tensor.type, offset))
            offset += -(-tensor.bytes // ALIGNMENT) * ALIGNMENT
        for tensor in body:
            _pad(file)
            for piece in tensor.data():
                file.write(piece)
        _pad(file)
    unfinished.rename(out)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    to_gguf(Path(sys.argv[1]), Path(sys.argv[2]))
