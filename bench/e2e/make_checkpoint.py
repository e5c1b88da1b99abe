"""A random Qwen3-MoE checkpoint of a chosen size, for measuring where a model does not fit.

    python bench/e2e/make_checkpoint.py CHECKPOINT                  # 8 layers, 64 experts, top-8: 2.46 GB
    python bench/e2e/make_checkpoint.py CHECKPOINT --size 12GB      # as many layers as that takes

bf16 safetensors, one shard a layer, tensor names and config keys as in released Qwen3-MoE checkpoints,
and a byte-level tokenizer (token id = byte). --embedding-std decides how much the router sees of the token:
at 1, routing changes with every token and is near uniform, the worst case of a cache; at 0.02, as in a
freshly initialised model, attention's average of the context drowns the token and most experts recur.
Weights are written in pieces of a few megabytes, so memory stays bounded whatever the size. The folder
appears under its name only when it is complete. Needs numpy.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from units import parse_size

BF16_ONE = 0x3F80
PIECE = 1 << 21  # values drawn at a time: 8 MiB of float32
BOS, EOS = 256, 257

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """Sizes of a Qwen3-MoE model; every weight is bf16."""

    layers: int = 8
    hidden: int = 1024
    experts: int = 64
    top_k: int = 8
    expert_width: int = 768
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 64
    vocab: int = 512
    std: float = 0.02
    embedding_std: float = 1.0

    @property
    def expert_bytes(self) -> int:
        """Bytes of one expert of one layer."""
        return 3 * 2 * self.hidden * self.expert_width

    @property
    def bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(map(_bytes, map(self.shard, range(self.layers))))

    @property
    def ideal_bytes_per_token(self) -> int:
        """What one decoded token needs when nothing is kept between tokens.

        Every dense weight but the embedding, of which one row is read, and top-k experts of each layer.
        """
        dense = self.bytes - self.layers * self.experts * self.expert_bytes
        embedding = 2 * self.vocab * self.hidden
        return dense - embedding + 2 * self.hidden + self.layers * self.top_k * self.expert_bytes

    def shard(self, layer: int) -> Shapes:
        """Tensors of one shard, in file order: a layer, with the embedding before the first and the head
        after the last."""
        stem = f"model.layers.{layer}."
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: Shapes = {}
        if layer == 0:
            shapes["model.embed_tokens.weight"] = (self.vocab, self.hidden)
        shapes |= {
            stem + "input_layernorm.weight": (self.hidden,),
            stem + "self_attn.q_proj.weight": (queries, self.hidden),
            stem + "self_attn.k_proj.weight": (keys, self.hidden),
            stem + "self_attn.v_proj.weight": (keys, self.hidden),
            stem + "self_attn.o_proj.weight": (self.hidden, queries),
            stem + "self_attn.q_norm.weight": (self.head_dim,),
            stem + "self_attn.k_norm.weight": (self.head_dim,),
            stem + "post_attention_layernorm.weight": (self.hidden,),
            stem + "mlp.gate.weight": (self.experts, self.hidden),
        }
        for expert in range(self.experts):
            name = f"{stem}mlp.experts.{expert}."
            shapes[name + "gate_proj.weight"] = (self.expert_width, self.hidden)
            shapes[name + "up_proj.weight"] = (self.expert_width, self.hidden)
            shapes[name + "down_proj.weight"] = (self.hidden, self.expert_width)
        if layer == self.layers - 1:
            shapes["model.norm.weight"] = (self.hidden,)
            shapes["lm_head.weight"] = (self.vocab, self.hidden)
        return shapes

    def sized(self, size: int) -> "Shape":
        """The same model with as many layers as come closest to `size` bytes, at least one."""
        two, three = replace(self, layers=2).bytes, replace(self, layers=3).bytes
        layer = three - two
        return replace(self, layers=max(1, round((size - two) / layer) + 2))

    def config(self) -> dict[str, object]:
        """config.json as transformers reads it."""
        return {
            "architectures": ["Qwen3MoeForCausalLM"],
            "model_type": "qwen3_moe",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "bos_token_id": BOS,
            "eos_token_id": EOS,
            "decoder_sparse_step": 1,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "hidden_size": self.hidden,
            "initializer_range": self.std,
            "intermediate_size": self.expert_width,
            "max_position_embeddings": 2048,
            "mlp_only_layers": [],
            "moe_intermediate_size": self.expert_width,
            "norm_topk_prob": True,
            "num_attention_heads": self.heads,
            # transformers 5 saves num_local_experts, which 4.57 ignores; both read num_experts.
            "num_experts": self.experts,
            "num_experts_per_tok": self.top_k,
            "num_hidden_layers": self.layers,
            "num_key_value_heads": self.kv_heads,
            "rms_norm_eps": 1e-6,
            "rope_theta": 10000.0,
            "router_aux_loss_coef": 0.001,
            "tie_word_embeddings": False,
            "torch_dtype": "bfloat16",
            "use_cache": True,
            "vocab_size": self.vocab,
        }


def _bytes(shapes: Shapes) -> int:
    return sum(2 * math.prod(shape) for shape in shapes.values())


def bf16(values: NDArray[np.float32]) -> NDArray[np.uint16]:
    """The bits of float32 `values` rounded to bfloat16, to nearest even. Finite values only."""
    bits = values.view(np.uint32)
    odd = (bits >> 16) & 1
    return ((bits + 0x7FFF + odd) >> 16).astype("<u2")


def weights(
    name: str, shape: tuple[int, ...], std: float, rng: np.random.Generator
) -> Iterator[NDArray[np.uint16]]:
    """The bits of one tensor, piece after piece: ones for norms, else normal with deviation `std`."""
    left = math.prod(shape)
    while left:
        take = min(left, PIECE)
        if "norm" in name:
            yield np.full(take, BF16_ONE, "<u2")
        else:
            yield bf16(rng.standard_normal(take, np.float32) * np.float32(std))
        left -= take


def write_shard(path: Path, shape: Shape, layer: int, rng: np.random.Generator) -> None:
    """The safetensors file of one layer."""
    shapes = shape.shard(layer)
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, sizes in shapes.items():
        begin, end = end, end + 2 * math.prod(sizes)
        header[name] = {"dtype": "BF16", "shape": list(sizes), "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, sizes in shapes.items():
            std = shape.embedding_std if "embed" in name else shape.std
            for piece in weights(name, sizes, std, rng):
                file.write(piece.tobytes())


def vocabulary(size: int) -> list[str]:
    """Names of all tokens: 256 bytes as byte-level BPE spells them, two marks, fillers up to `size`."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelling = {byte: chr(byte) for byte in printable}
    unprintable = (byte for byte in range(256) if byte not in spelling)
    spelling |= {byte: chr(256 + place) for place, byte in enumerate(unprintable)}
    names = [spelling[byte] for byte in range(256)] + ["<|bos|>", "<|eos|>"]
    return names + [f"<|filler_{number}|>" for number in range(len(names), size)]


def write_tokenizer(folder: Path, size: int) -> None:
    """tokenizer.json and its config: one token a byte, no merges."""
    names = vocabulary(size)
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    marks = [{"id": i, "content": names[i], "special": True} | flags for i in (BOS, EOS)]
    bytes_to_text = {
        "type": "ByteLevel",
        "add_prefix_space": False,
        "trim_offsets": True,
        "use_regex": True,
    }
    tokenizer = {
        "version": "1.0",
        "added_tokens": marks,
        "pre_tokenizer": bytes_to_text,
        "decoder": bytes_to_text,
        "model": {"type": "BPE", "vocab": {name: i for i, name in enumerate(names)}, "merges": []},
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": names[BOS],
        "eos_token": names[EOS],
        "pad_token": names[EOS],
        "model_max_length": 2048,
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1))


def make_checkpoint(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Writes the checkpoint; equal shapes and seeds give equal bytes.

    Raises FileExistsError when `folder` exists; leaves nothing under that name when interrupted.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists: name another folder, or remove it first.")
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    home: dict[str, str] = {}
    for layer in range(shape.layers):
        name = f"model-{layer + 1:05d}-of-{shape.layers:05d}.safetensors"
        write_shard(unfinished / name, shape, layer, np.random.default_rng([seed, layer]))
        home |= dict.fromkeys(shape.shard(layer), name)
        print(f"shard {layer + 1} of {shape.layers}", file=sys.stderr, flush=True)
    index = {"metadata": {"total_size": shape.bytes}, "weight_map": home}
    (unfinished / "model.safetensors.index.json").write_text(json.dumps(index))
    (unfinished / "config.json").write_text(json.dumps(shape.config(), indent=1))
    write_tokenizer(unfinished, shape.vocab)
    unfinished.rename(folder)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=parse_size, help="about this many bytes: sets --layers")
    for name, value in vars(Shape()).items():
        parser.add_argument("--" + name.replace("_", "-"), type=type(value), default=value)
    parser.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    folder, size, seed = given.pop("folder"), given.pop("size"), given.pop("seed")
    shape = Shape(**given)
    if shape.vocab <= EOS:
        parser.error(f"--vocab is {shape.vocab}: 256 bytes and two marks need at least {EOS + 1}.")
    if not 1 <= shape.top_k <= shape.experts:
        parser.error(f"--top-k is {shape.top_k}: it lies between 1 and --experts {shape.experts}.")
    shape = shape.sized(size) if size else shape
    begin = time.perf_counter()
    try:
        make_checkpoint(folder, shape, seed)
    except FileExistsError as error:
        parser.error(str(error))
    facts = {
        "bytes": shape.bytes,
        "layers": shape.layers,
        "expert_bytes": shape.expert_bytes,
        "ideal_bytes_per_token": shape.ideal_bytes_per_token,
        "seconds": round(time.perf_counter() - begin, 1),
    }
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
