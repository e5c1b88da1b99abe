"""What a model is and what it will cost, read from its config and headers: no weight byte is read."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prophet_moe.errors import CheckpointError, ProphetError
from prophet_moe.models.checkpoint import Checkpoint, open_checkpoint
from prophet_moe.models.experts import IMPLEMENTATION
from prophet_moe.models.families import build_on_meta, read_config, require_experts, top_k
from prophet_moe.models.index import ExpertIndex, build_index
from prophet_moe.models.locate import locate

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a checkpoint. Sizes are bytes; `expert` means one routed expert of one MoE layer."""

    name: str  # as the user gave it
    directory: Path
    files: tuple[Path, ...]  # safetensors files that hold tensors
    config: Any = field(repr=False)  # the transformers configuration
    family: str  # model_type, such as "qwen3_moe"
    class_name: str  # such as "Qwen3MoeForCausalLM"
    dtype: torch.dtype  # in which the resident weights are loaded and computed
    expert_dtype: torch.dtype  # in which the experts are stored and kept
    layers: int  # MoE layers
    experts_per_layer: int
    top_k: int
    hidden: int  # H, rows of an expert's input and output
    inter: int  # I, an expert's inner width
    expert_bytes: int  # one expert's tensors
    slot_bytes: int  # one expert in the arena, alignment included
    dense_bytes: int  # everything that stays resident: attention, embeddings, routers, shared experts
    kv_bytes_per_token: int  # cache growth for one token of one sequence, summed over layers
    state_bytes: int  # cache of one sequence that does not grow (linear attention, convolutions)
    vocab_size: int
    max_context: int | None  # tokens, as the configuration says
    has_tokenizer: bool
    packed: bool  # written by `prophet pack`

    @property
    def experts_total(self) -> int:
        return self.layers * self.experts_per_layer

    @property
    def all_experts_bytes(self) -> int:
        return self.experts_total * self.expert_bytes


@dataclass(frozen=True)
class Blueprint:
    """A checkpoint matched with the skeleton of its model: all that a load needs to know."""

    info: ModelInfo
    checkpoint: Checkpoint
    index: ExpertIndex
    model_class: type[Any]
    experts_classes: tuple[type[nn.Module], ...]


def inspect(model: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> ModelInfo:
    """Facts of a model: a folder, a Hub id, or "reference-moe".

    `dtype` is the one to load in; None takes the checkpoint's. Raises CheckpointError for
    damaged or contradictory files, UnsupportedModelError for models this release does not run.
    """
    return make_blueprint(model, dtype=dtype).info


def make_blueprint(model: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> Blueprint:
    """`inspect` plus where every tensor lies."""
    directory = locate(model)
    config = read_config(directory)
    checkpoint = open_checkpoint(directory)
    try:
        skeleton = build_on_meta(config, dtype or config.dtype)
    except ProphetError:
        raise
    except Exception as error:  # sizes of nonsense fail wherever the model's code uses them first
        raise CheckpointError(
            f"{directory / 'config.json'} describes a {config.model_type} that cannot be built "
            f"({type(error).__name__}: {' '.join(str(error).split())}); get the file again."
        ) from error
    experts = require_experts(skeleton)
    index = build_index(skeleton, experts, checkpoint)
    load_dtype = dtype or config.dtype or index.dtype
    text = config.get_text_config(decoder=True)
    per_token, fixed = cache_bytes(skeleton)
    first = next(iter(experts.values()))
    hidden, inter = widths(first)
    info = ModelInfo(
        name=os.fspath(model),
        directory=directory,
        files=checkpoint.files,
        config=config,
        family=config.model_type,
        class_name=type(skeleton).__name__,
        dtype=load_dtype,
        expert_dtype=index.dtype,
        layers=index.layers,
        experts_per_layer=index.experts_per_layer,
        top_k=top_k(config, index.experts_per_layer),
        hidden=hidden,
        inter=inter,
        expert_bytes=index.expert_bytes,
        slot_bytes=index.slot_bytes,
        dense_bytes=_resident_bytes(skeleton, set(index.modules), load_dtype),
        kv_bytes_per_token=per_token,
        state_bytes=fixed,
        vocab_size=int(text.vocab_size),
        max_context=getattr(text, "max_position_embeddings", None),
        has_tokenizer=any((directory / name).is_file() for name in TOKENIZER_FILES),
        packed=checkpoint.packed,
    )
    classes = tuple(dict.fromkeys(type(module) for module in experts.values()))
    return Blueprint(info, checkpoint, index, type(skeleton), classes)


def widths(module: Any) -> tuple[int, int]:
    """(H, I) of a decorated experts module, from the shapes of its parameters."""
    up = module.gate_up_proj if module.has_gate else module.up_proj
    _, rows, columns = up.shape
    if module.is_transposed:
        rows, columns = columns, rows
    return int(columns), int(rows) // (2 if module.has_gate else 1)


def _resident_bytes(skeleton: Any, experts: set[str], dtype: torch.dtype) -> int:
    total = 0
    for name, tensor in [*skeleton.named_parameters(), *skeleton.named_buffers()]:
        if name.rpartition(".")[0] not in experts:
            size = dtype.itemsize if tensor.is_floating_point() else tensor.element_size()
            total += tensor.numel() * size
    return total


def cache_bytes(skeleton: Any) -> tuple[int, int]:
    """(bytes per token, bytes that do not grow) of one sequence's cache, for a model on the meta device.

    Two forward passes without arithmetic show what the model's own cache would hold; sliding
    windows count as if they grew. A model that cannot run without data is estimated as
    plain attention in every layer.
    """
    short, long = 4, 12
    skeleton.set_experts_implementation(IMPLEMENTATION)
    try:
        with torch.no_grad():
            few, many = _cache_after(skeleton, short), _cache_after(skeleton, long)
    except Exception:  # whatever a model's code does with data that is not there
        few = many = 0
    if many <= 0:
        text = skeleton.config.get_text_config(decoder=True)
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        return 2 * int(text.num_hidden_layers * heads * width) * skeleton.dtype.itemsize, 0
    per_token = -(-(many - few) // (long - short))
    return per_token, max(0, few - short * per_token)


def _cache_after(skeleton: Any, tokens: int) -> int:
    ids = torch.zeros((1, tokens), dtype=torch.int64, device="meta")
    cache = skeleton(input_ids=ids, use_cache=True).past_key_values
    return sum(t.numel() * t.element_size() for layer in cache.layers for t in _tensors(vars(layer)))


def _tensors(value: Any) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)
