"""Experts divided over processes: which part is this rank's, and what must hold before it loads.

transformers' plan does the rest: it brings tokens to the ranks and sums what they return. Ranks own
contiguous parts of each layer's experts, in the order of their ranks; each has a store, slots and a budget
of its own. What a rank's engine calls expert e is expert `first + e` of the layer.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
import transformers

from prophet_moe import machine
from prophet_moe.errors import InvalidArgument, StateError, UnsupportedModelError
from prophet_moe.machine import Memory
from prophet_moe.models.families import build_on_meta
from prophet_moe.models.inspect import Blueprint, ModelInfo

DISPATCH = "ep_dispatch_experts"  # transformers' name of the rule that brings tokens to experts
_DISPATCHER = "transformers.distributed.expert_parallel"  # absent before experts were dispatched by a rule
_DIVIDING = ("colwise", "rowwise", "packed_", "embedding_")  # rules that leave a part to each rank
_GONE = ("gloo", "Connection closed by peer", "Connection reset by peer")
_PATIENCE = timedelta(hours=2)  # of one rank for another; a dead one is noticed at once


@dataclass(frozen=True)
class Ranks:
    """This process among those that share the experts of one model."""

    rank: int  # of all processes
    size: int  # all processes
    part: int  # of the experts: this rank's
    parts: int
    beside: int  # processes on this machine
    config: Any = dataclasses.field(repr=False)  # transformers' DistributedConfig

    def experts(self, per_layer: int) -> range:
        """This rank's of a layer of `per_layer` experts. Raises InvalidArgument: no even parts."""
        own = per_layer // self.parts
        if own * self.parts != per_layer:
            raise InvalidArgument(
                f"{per_layer} experts cannot be divided evenly over {self.parts} ranks: use a number of "
                f"processes that divides {per_layer}."
            )
        return range(self.part * own, (self.part + 1) * own)

    def own(self, info: ModelInfo) -> ModelInfo:
        """The model as this rank's engine sees it: its experts alone."""
        count = len(self.experts(info.experts_per_layer))
        return dataclasses.replace(info, experts_per_layer=count, top_k=min(info.top_k, count))

    def memory(self) -> Memory:
        """The memory of this machine, as far as it is this process' share."""
        return share_of(machine.memory(), self.beside)

    @property
    def threads(self) -> int:
        """Compute threads of one process, where nobody has named them."""
        return max(1, machine.cpu_count() // self.beside)


def share_of(memory: Memory, processes: int) -> Memory:
    """What one of several processes that grow beside each other may take of what is free."""
    used = memory.used or 0
    limit = None if memory.limit is None else used + max(0, memory.limit - used) // processes
    return dataclasses.replace(memory, available=memory.available // processes, limit=limit)


def join(wanted: Any) -> Ranks | None:
    """This process among its peers; None for one process alone.

    wanted: None, the number of processes, "auto" (all that were started together, which may be one), or
    transformers' DistributedConfig with its ep_size. Joins the process group that torchrun has prepared,
    unless the caller did. Raises InvalidArgument: no peers, another number of them, another layout;
    UnsupportedModelError: transformers is too old.
    """
    if wanted is None or (wanted == 1 and wanted is not True):
        return None
    counted = isinstance(wanted, int) and not isinstance(wanted, bool) and wanted > 1
    if not counted and wanted != "auto" and not hasattr(wanted, "to_dict"):
        raise InvalidArgument(
            f"expert_parallel is a number of processes, auto, or a DistributedConfig, not {wanted!r}."
        )
    world = dist.get_world_size() if dist.is_initialized() else int(os.environ.get("WORLD_SIZE", "1"))
    if wanted == "auto" and world == 1:
        return None
    config = _config(world if wanted == "auto" else wanted)
    needed = config.tp_size * config.dp_size * config.pp_size
    if config.ep_size < 2 or config.pp_size > 1:
        raise InvalidArgument(
            f"expert parallelism divides experts over two or more ranks and no layers: ep_size is "
            f"{config.ep_size} and pp_size is {config.pp_size}."
        )
    if world != needed:
        found = "this process is alone" if world == 1 else f"there are {world} processes"
        raise InvalidArgument(
            f"expert parallelism over {needed} ranks needs {needed} processes that know each other, and "
            f"{found}: start the command by torchrun --nproc-per-node {needed}."
        )
    if torch._C._get_accelerator().type != "cpu":
        raise InvalidArgument(
            "expert parallelism runs on CPUs, and transformers would take the accelerator that it sees: "
            "hide it, as by CUDA_VISIBLE_DEVICES=''."
        )
    if importlib.util.find_spec("accelerate") is None:
        raise InvalidArgument("expert parallelism needs accelerate: pip install 'prophet-moe[parallel]'.")
    if not dist.is_initialized():
        try:
            dist.init_process_group("gloo", timeout=_PATIENCE)
        except (ValueError, RuntimeError) as error:  # dist's own errors are RuntimeErrors
            raise InvalidArgument(
                f"the processes of torchrun cannot find each other ({' '.join(str(error).split())})."
            ) from error
    rank = dist.get_rank()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", world))
    return Ranks(rank, world, rank % config.ep_size, config.ep_size, beside, config)


def _config(wanted: Any) -> Any:
    try:
        from transformers.distributed import DistributedConfig

        named = {field.name for field in dataclasses.fields(DistributedConfig)}
    except (ImportError, TypeError):
        named = set()
    if "ep_size" not in named or importlib.util.find_spec(_DISPATCHER) is None:
        raise UnsupportedModelError(
            f"transformers {transformers.__version__} does not bring tokens to ranks as Prophet needs it: "
            "update it to 5.23 or newer."
        )
    if isinstance(wanted, int):
        return DistributedConfig(tp_size=wanted, ep_size=wanted, tp_plan="auto")
    if not isinstance(wanted, DistributedConfig):
        raise InvalidArgument(f"expert_parallel is a DistributedConfig of transformers, not {wanted!r}.")
    return wanted


def planned(blueprint: Blueprint, ranks: Ranks) -> ModelInfo:
    """The model as this rank has it: its experts, and its part of the dense weights.

    Raises UnsupportedModelError where transformers has no plan that reaches every experts module;
    InvalidArgument: no even parts.
    """
    info = blueprint.info
    skeleton = build_on_meta(info.config, info.dtype)
    plans = {
        "expert-parallel": dict(skeleton.ep_plan or {}) | _named(ranks.config.ep_plan),
        "tensor-parallel": dict(skeleton.tp_plan or {}) | _named(ranks.config.tp_plan),
    }
    reached = {pattern for pattern, rule in plans["expert-parallel"].items() if rule == DISPATCH}
    left_out = [name for name in blueprint.index.modules if not _matches(name, reached)]
    for kind, absent in (
        ("expert-parallel", bool(left_out)),
        ("tensor-parallel", ranks.config.tp_size > 1 and not plans["tensor-parallel"]),
    ):
        if absent:
            raise UnsupportedModelError(
                f"transformers {transformers.__version__} has no {kind} plan for {info.family}: run it in "
                "one process."
            )
    dense = info.dense_bytes - _held_by_others(skeleton, plans["tensor-parallel"], blueprint, ranks)
    return dataclasses.replace(ranks.own(info), dense_bytes=dense)


def _named(plan: Any) -> dict[str, str]:
    """The rules that the user has named; "auto" and None name none."""
    return dict(plan) if isinstance(plan, dict) else {}


def _held_by_others(skeleton: Any, plan: dict[str, str], blueprint: Blueprint, ranks: Ranks) -> int:
    """Bytes of dense weights that tensor parallelism leaves to other ranks; at least so many.

    FSDP's parts are put together again for each layer and count as whole.
    """
    over, bytes_of = ranks.config.tp_size, blueprint.info.dtype.itemsize
    saved = 0
    for name, parameter in skeleton.named_parameters() if over > 1 else ():
        module = name.rpartition(".")[0]
        rule = plan.get(_general(name)) or plan.get(_general(module)) or ""
        if module in blueprint.index.modules or parameter.dim() < 2 or not rule.startswith(_DIVIDING):
            continue
        largest = max(-(-size // over) / size for size in parameter.shape)  # of uneven parts
        saved += int(parameter.numel() * bytes_of * (1 - largest))
    return saved


def _matches(name: str, patterns: set[str]) -> bool:
    return _general(name) in patterns or name in patterns


def _general(name: str) -> str:
    """As plans write it: model.layers.*.mlp."""
    return re.sub(r"\.\d+(?=\.|$)", ".*", name)


def require_divided(modules: list[Any], ranks: Ranks, own: int) -> None:
    """After loading: raises UnsupportedModelError where the library did not do what the plan says.

    A module that kept all experts, or whose forward was not replaced, would give right tokens while one
    rank reads everything, or wrong ones.
    """
    for module in modules:
        if module.num_experts != own or "forward" not in vars(module) or not module._is_expert_parallel:
            raise UnsupportedModelError(
                f"transformers {transformers.__version__} did not divide {type(module).__name__} over "
                f"{ranks.parts} ranks as Prophet knows it; please report this."
            )


@contextlib.contextmanager
def agreed(ranks: Ranks | None) -> Iterator[None]:
    """What fails here on one rank fails on all, so that none waits for another that has given up.

    Raises the rank's own error, and StateError with the other's sentence on its peers.
    """
    if ranks is None:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    told: list[str | None] = gathered(None if failure is None else str(failure))
    if failure is not None:
        raise failure
    for rank, sentence in enumerate(told):
        if sentence is not None:
            raise StateError(f"rank {rank} could not load its part of the model: {sentence}")


@contextlib.contextmanager
def without_advice(ranks: Ranks | None) -> Iterator[None]:
    """Silences the library's remark that rules of its plan match nothing: experts have no parameters."""
    level = transformers.logging.get_verbosity()
    if ranks is not None:
        transformers.logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(level)


def gathered(value: Any) -> list[Any]:
    """The values of all ranks, by rank; of this process alone where there is no group."""
    if not dist.is_initialized():
        return [value]
    told: list[Any] = [None] * dist.get_world_size()
    with among_peers():
        dist.all_gather_object(told, value)
    return told


@contextlib.contextmanager
def among_peers() -> Iterator[None]:
    """Around what needs all ranks: raises StateError where the transport says that one has gone."""
    try:
        yield
    except RuntimeError as error:
        if not any(word in str(error) for word in _GONE):
            raise
        raise StateError(
            "another process of this model has gone, and none can go on without it: its own last words say "
            f"why; then start all of them again ({str(error).partition('. ')[0]})."
        ) from error


def tell_of_lost_peers(model: Any) -> None:
    """From now on the model's forward raises as `among_peers` does, not the transport's own errors."""
    forward = model.forward

    @functools.wraps(forward)
    def told(*args: Any, **kwargs: Any) -> Any:
        with among_peers():
            return forward(*args, **kwargs)

    model.forward = told


def leave() -> None:
    """Leaves the process group, at the end of a program. Idempotent."""
    if dist.is_initialized():
        dist.destroy_process_group()
