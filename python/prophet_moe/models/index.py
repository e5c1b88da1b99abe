"""Which bytes are expert e of MoE layer l?

transformers knows how on-disk names become parameters (renamings and converters). Asked for every
key of a checkpoint, it tells of what tensors each parameter of an experts module is made, and by
which operations; three shapes of answer need no table of models:

    one    expert e is tensor e of a list                         MergeModulelist
    cat    expert e is gate tensor e, then up tensor e, by rows    MergeModulelist, Concatenate(1)
    slice  expert e is row e of one fused tensor                  no operation

The functions asked are private to transformers; this module alone calls them, and
tests/python/models/test_index.py holds them to what is used here.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prophet_moe.errors import CheckpointError, UnsupportedModelError
from prophet_moe.models.checkpoint import CACHE_LINE, PACKED_NAME, PACKED_VERSION, Checkpoint, TensorPlace

EXPERT_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
ALIGNMENT = 4096

# Parameters of an experts module in slot order, and the names of the pieces they are stored as.
_PARAMETERS = ("gate_up_proj", "up_proj", "gate_up_proj_bias", "up_proj_bias", "down_proj", "down_proj_bias")


@dataclass(frozen=True)
class ExpertIndex:
    """Where every piece of every expert lies, and which checkpoint keys stay resident."""

    modules: tuple[str, ...]  # experts modules in forward order: MoE layer l is modules[l]
    pieces: tuple[str, ...]  # of one expert, in slot order: "gate", "up" | "gate_up", ..., "down", ...
    shapes: tuple[tuple[tuple[int, ...], ...], ...]  # [layer][piece]
    dtype: torch.dtype  # of all pieces, as stored
    # [layer][piece]: where a fused tensor began in its file, modulo a cache line; None where the
    # library's loader stacks experts in memory of its own.
    begins: tuple[tuple[int, ...], ...] | None
    table: NDArray[np.uint64]  # [layers, experts, pieces, 3]: file number, offset, bytes
    resident: tuple[str, ...] = field(repr=False)  # checkpoint keys that become ordinary parameters

    @property
    def layers(self) -> int:
        return int(self.table.shape[0])

    @property
    def experts_per_layer(self) -> int:
        return int(self.table.shape[1])

    @property
    def expert_bytes(self) -> int:
        """Bytes of the largest expert's own tensors."""
        return int(self.table[..., 2].sum(axis=2).max())

    @property
    def slot_bytes(self) -> int:
        """Bytes a slot needs for any expert: pieces that are neighbours in a file are one run, and
        every run is widened to its 4 KiB-aligned superset."""
        return max(slot_bytes(expert) for layer in self.table.tolist() for expert in layer)


def slot_bytes(pieces: Sequence[Sequence[int]]) -> int:
    """Bytes that the pieces (file, offset, bytes) of one expert occupy once read in aligned runs."""
    total, run_file, run_begin, run_end = 0, -1, 0, 0
    for file, offset, count in sorted(tuple(piece) for piece in pieces):
        if file == run_file and offset == run_end:
            run_end += count
            continue
        total += -(-run_end // ALIGNMENT) * ALIGNMENT - run_begin
        run_file, run_begin, run_end = file, offset // ALIGNMENT * ALIGNMENT, offset + count
    return total + -(-run_end // ALIGNMENT) * ALIGNMENT - run_begin


def build_index(meta_model: Any, experts: dict[str, Any], checkpoint: Checkpoint) -> ExpertIndex:
    """Maps the checkpoint to the model built on the meta device.

    Raises CheckpointError for tensors that are missing or of another shape than the
    configuration says, UnsupportedModelError for layouts that need repacking or quantised elements.
    """
    counts = {name: int(module.num_experts) for name, module in experts.items()}
    if len(set(counts.values())) > 1:
        raise UnsupportedModelError(
            f"{checkpoint.directory}: MoE layers differ in their number of experts "
            f"({sorted(set(counts.values()))}); "
            "this release needs the same number in every layer."
        )
    sources = _Sources(meta_model, checkpoint)
    per_layer = [
        _packed_layer(checkpoint, name, module) if checkpoint.packed else _layer(sources, name, module)
        for name, module in experts.items()
    ]
    names, kinds = (
        {tuple(layer) for layer in per_layer},
        {place.dtype for la in per_layer for p in la.values() for place in p},
    )
    if len(names) > 1:
        raise UnsupportedModelError(
            f"{checkpoint.directory}: MoE layers are stored in different ways ({sorted(names)}); "
            "this release needs one way for all."
        )
    if len(kinds) > 1 or not kinds <= set(EXPERT_DTYPES):
        raise UnsupportedModelError(
            f"{checkpoint.directory}: experts have element types {sorted(kinds)}, this release runs "
            "checkpoints whose "
            "experts are all BF16, all F16 or all F32; quantised experts come in a later release."
        )
    pieces = names.pop()
    table = np.array(
        [
            [[(p.file, p.offset, p.bytes) for p in expert] for expert in zip(*layer.values(), strict=True)]
            for layer in per_layer
        ],
        dtype=np.uint64,
    )
    owned = {
        f"{name}.{p}" for name, module in experts.items() for p, _ in module.named_parameters(recurse=False)
    }
    resident = tuple(key for param, keys in sources.of.items() if param not in owned for key in _flat(keys))
    return ExpertIndex(
        modules=tuple(experts),
        pieces=pieces,
        shapes=tuple(tuple(places[0].shape for places in layer.values()) for layer in per_layer),
        dtype=EXPERT_DTYPES[kinds.pop()],
        begins=_begins(checkpoint, sources, table, owned),
        table=table,
        resident=resident,
    )


def _begins(
    checkpoint: Checkpoint, sources: "_Sources", table: NDArray[np.uint64], owned: set[str]
) -> tuple[tuple[int, ...], ...] | None:
    if checkpoint.packed:
        return _packed_begins(checkpoint, table.shape)
    if any(set(sources.of[name]) != {None} for name in owned):
        return None
    return tuple(tuple(int(at) % CACHE_LINE for at in layer[0, :, 1]) for layer in table)


def _flat(patterns: dict[str | None, list[str]]) -> list[str]:
    return [key for keys in patterns.values() for key in keys]


class _Sources:
    """For every parameter of the model: the checkpoint keys it is made of, by converter pattern."""

    def __init__(self, meta_model: Any, checkpoint: Checkpoint) -> None:
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import (
            WeightConverter,
            WeightRenaming,
            dot_natural_key,
            rename_source_key,
        )

        mapping = get_model_conversion_mapping(meta_model)
        renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
        converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
        self.checkpoint = checkpoint
        self.converter_of = {pattern: c for c in converters for pattern in c.source_patterns}
        self.of: dict[str, dict[str | None, list[str]]] = {}
        parameters = meta_model.state_dict()
        prefix = meta_model.base_model_prefix
        for key in sorted(checkpoint.tensors, key=dot_natural_key):  # experts.9 before experts.10
            name, pattern = rename_source_key(key, renamings, converters, prefix, parameters)
            if name not in parameters and key in parameters:
                name, pattern = key, None
            if name not in parameters:
                continue  # such as multi-token-prediction layers that the class does not build
            self.of.setdefault(name, {}).setdefault(pattern, []).append(key)
            place = checkpoint.tensors[key]
            if pattern is None and place.shape != tuple(parameters[name].shape):
                raise CheckpointError(
                    f"{checkpoint.file_of(key)}: tensor {key!r} is {list(place.shape)}, but config.json "
                    "asks for "
                    f"{list(parameters[name].shape)}; config and weights belong to different models."
                )


def _layer(sources: _Sources, module_name: str, module: Any) -> dict[str, list[TensorPlace]]:
    """The pieces of one experts module: piece name → place of expert 0, 1, ..."""
    shapes = {name: tuple(p.shape) for name, p in module.named_parameters(recurse=False)}
    unknown = sorted(set(shapes) - set(_PARAMETERS))
    if unknown:
        raise UnsupportedModelError(
            f"{type(module).__name__} keeps expert parameters {unknown} that this release does not know; "
            "support comes in a later release."
        )
    pieces: dict[str, list[TensorPlace]] = {}
    for name in _PARAMETERS:
        if name not in shapes:
            continue
        found = _parameter(sources, f"{module_name}.{name}", shapes[name])
        short = name.replace("_proj", "")
        names = (
            [short] if len(found) == 1 else [part + short.removeprefix("gate_up") for part in ("gate", "up")]
        )
        pieces.update(zip(names, found, strict=True))
    return pieces


def _parameter(sources: _Sources, parameter: str, shape: tuple[int, ...]) -> list[list[TensorPlace]]:
    """One list of places (by expert) for each tensor that an expert's share of `parameter` is made of."""
    checkpoint, patterns = sources.checkpoint, sources.of.get(parameter)
    experts, rest = shape[0], shape[1:]
    if not patterns:
        raise CheckpointError(
            f"{checkpoint.directory} holds no tensor for {parameter}: files are missing, or config.json "
            "belongs to "
            "another model."
        )
    if set(patterns) == {None}:
        (key,) = patterns[None]  # its shape was checked when it was found
        place = checkpoint.tensors[key]
        size = place.bytes // experts
        return [
            [
                TensorPlace(place.file, place.offset + e * size, size, place.dtype, rest)
                for e in range(experts)
            ]
        ]
    operations, lists = _recipe(sources, parameter, patterns)
    if operations == ["MergeModulelist"] and len(lists) == 1:
        wanted = [rest]
    elif operations == ["MergeModulelist", "Concatenate"] and len(lists) == 2 and rest[0] % 2 == 0:
        wanted = [(rest[0] // 2, *rest[1:])] * 2
    else:
        raise UnsupportedModelError(
            f"{parameter} is stored in a layout that must be rearranged to be used "
            f"({' + '.join(operations)}); "
            "such checkpoints come in a later release."
        )
    for keys, expected in zip(lists, wanted, strict=True):
        _check_list(checkpoint, parameter, keys, experts, expected)
    return [[checkpoint.tensors[key] for key in keys] for keys in lists]


def _recipe(
    sources: _Sources, parameter: str, patterns: dict[str | None, list[str]]
) -> tuple[list[str], list[list[str]]]:
    converters = {id(c): c for c in (sources.converter_of[p] for p in patterns if p is not None)}
    if None in patterns or len(converters) != 1:
        raise CheckpointError(
            f"{sources.checkpoint.directory} holds {parameter} in two forms ({_flat(patterns)[0]!r} and "
            "others); "
            "remove the files that do not belong to this checkpoint."
        )
    (converter,) = converters.values()
    names = []
    for operation in converter.operations:
        name = type(operation).__name__
        expected = {"MergeModulelist": 0, "Concatenate": 1}.get(name)
        names.append(name if getattr(operation, "dim", None) == expected else f"{name} of another dimension")
    lists = [patterns[p] for p in converter.source_patterns if p in patterns]
    absent = [p for p in converter.source_patterns if p not in patterns]
    if absent and names == ["MergeModulelist", "Concatenate"]:
        raise CheckpointError(
            f"{sources.checkpoint.directory} holds only a part of {parameter}: nothing matches "
            f"{absent[0]!r}; "
            "files are missing, download them again."
        )
    return names, lists


def _check_list(
    checkpoint: Checkpoint, parameter: str, keys: list[str], experts: int, shape: tuple[int, ...]
) -> None:
    numbers = [int(match[-1]) for key in keys if (match := re.findall(r"\.(\d+)\.", key))]
    if len(keys) != experts or (len(numbers) == len(keys) and numbers != list(range(experts))):
        absent = sorted(set(range(experts)) - set(numbers))
        raise CheckpointError(
            f"{checkpoint.directory}: {parameter} needs experts 0 to {experts - 1}, the files hold "
            f"{len(keys)}"
            f"{f' (expert {absent[0]} is missing)' if absent else ''}; download the missing shard again."
        )
    for key in keys:
        if checkpoint.tensors[key].shape != shape:
            raise CheckpointError(
                f"{checkpoint.file_of(key)}: tensor {key!r} is {list(checkpoint.tensors[key].shape)}, but "
                "config.json "
                f"asks for {list(shape)}; config and weights belong to different models."
            )


def _packed_layer(checkpoint: Checkpoint, module_name: str, module: Any) -> dict[str, list[TensorPlace]]:
    """The pieces of one experts module of a packed file: tensors named `module.expert.piece`."""
    if (version := checkpoint.metadata.get("version")) != PACKED_VERSION:
        raise UnsupportedModelError(
            f"{checkpoint.directory / PACKED_NAME} has packed format {version}, this release reads "
            f"{PACKED_VERSION}: pack the model again, or update prophet-moe."
        )
    try:
        names = [str(name) for name in json.loads(checkpoint.metadata["pieces"])]
        wanted = _packed_shapes(names, module)
        places = {
            piece: [checkpoint.tensors[f"{module_name}.{e}.{piece}"] for e in range(int(module.num_experts))]
            for piece in names
        }
    except (KeyError, ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"{checkpoint.directory / PACKED_NAME} does not hold all of {module_name} ({error}); "
            "pack the model again."
        ) from error
    for piece, experts in places.items():
        for e, place in enumerate(experts):
            if place.shape != wanted[piece]:
                raise CheckpointError(
                    f"{checkpoint.directory / PACKED_NAME}: {piece} of expert {e} of {module_name} is "
                    f"{list(place.shape)}, but config.json asks for {list(wanted[piece])}; pack the model "
                    "again."
                )
    return places


def _packed_begins(checkpoint: Checkpoint, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """What `begins` was before the checkpoint was packed."""
    try:
        noted = json.loads(checkpoint.metadata.get("begins", "null"))
        begins = None if noted is None else tuple(tuple(int(at) % CACHE_LINE for at in row) for row in noted)
    except (ValueError, TypeError, OverflowError, RecursionError):
        begins = ()
    if begins is not None and [len(row) for row in begins] != [shape[2]] * shape[0]:
        raise CheckpointError(
            f"{checkpoint.directory / PACKED_NAME} does not say where every tensor began; "
            "pack the model again."
        )
    return begins


def _packed_shapes(names: list[str], module: Any) -> dict[str, tuple[int, ...]]:
    """The shape of each piece of one expert, in slot order. Raises ValueError for other names."""
    wanted: dict[str, tuple[int, ...]] = {}
    parameters = dict(module.named_parameters(recurse=False))
    for name in _PARAMETERS:
        if name not in parameters:
            continue
        short, rest = name.replace("_proj", ""), tuple(parameters[name].shape[1:])
        halves = [part + short.removeprefix("gate_up") for part in ("gate", "up")]
        if short.startswith("gate_up") and short not in names:
            wanted |= dict.fromkeys(halves, (rest[0] // 2, *rest[1:]))
        else:
            wanted[short] = rest
    if names != list(wanted):
        raise ValueError(f"its pieces are {names}, not {list(wanted)}")
    return wanted
