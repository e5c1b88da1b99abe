"""`load`: a working transformers model whose experts stay on disk until the router asks for them."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from prophet_ext import Engine
from prophet_moe import machine
from prophet_moe.budget import MemoryPlan, plan_memory
from prophet_moe.device_budget import host_pool, plan_device
from prophet_moe.errors import BudgetError, InvalidArgument
from prophet_moe.machine import bound_library_memory
from prophet_moe.models.activations import recognise
from prophet_moe.models.approach import tell
from prophet_moe.models.experts import LAYER, NATIVE_DTYPES, MoeLayer, native_rows
from prophet_moe.models.inspect import Blueprint, ModelInfo, make_blueprint
from prophet_moe.models.offload import Offload, attach
from prophet_moe.models.parallel import (
    Ranks,
    agreed,
    join,
    planned,
    require_divided,
    tell_of_lost_peers,
)
from prophet_moe.models.placement import Placement, place
from prophet_moe.models.resident import Progress, load_resident
from prophet_moe.models.threads import decode_on_one_thread, one_thread_is_faster
from prophet_moe.systems import PROPHET, System, make_predictor, require_runnable

AUTO_SYSTEM = "expected-next-use"
DEFAULT_CONTEXT = 2048

_DTYPE_NAMES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "f32": torch.float32,
    "float16": torch.float16,
    "fp16": torch.float16,
    "f16": torch.float16,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
}


def load(
    model: str | os.PathLike[str],
    *,
    budget: int | str | None = "auto",
    slots: int | str | None = None,
    exact: bool = False,
    system: str = "auto",
    backend: str = "auto",
    dtype: str | torch.dtype | None = None,
    threads: int | None = None,
    pool: str = "global",
    context: int | None = None,
    sequences: int = 1,
    io: str = "auto",
    timeline: bool = False,
    predictor: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
    expert_parallel: Any = None,
    device_budget: int | str | None = "auto",
) -> Any:
    """Loads a Mixture-of-Experts language model without materialising its experts.

    model: a folder of safetensors shards, a Hub id, or "reference-moe".
    budget: bytes (int) or a size such as "8GiB" that bounds the peak resident memory of this process; "auto"
        takes what the machine or its cgroup can spare.
    slots: names the arena exactly, in experts, instead of a budget.
    exact: results equal transformers' eager experts bit for bit (slower decode).
    system: one of prophet_moe.systems.runnable(), or auto (prophet when a predictor is named, else
        expected-next-use).
    backend: where experts stand and are computed: "cpu", "cuda", or "auto" (cuda where a GPU can be used).
    dtype: element type of the resident weights and of the arithmetic; None takes the checkpoint's.
    threads: compute threads, of torch in this process too; None leaves torch alone and uses every core.
        Decode steps of a model with small dense matrices run on one thread of torch, which is faster.
    pool: "global" lets any slot hold any expert, "per-layer" divides the slots evenly.
    context: tokens the KV cache must hold within the budget; None: at most 2048.
    sequences: how many of such contexts it must hold, of requests computed together.
    predictor: a predictor that was trained for the system: a file, or for system prophet the name of one in
        the package; None with system prophet takes the one in the package that was trained for this
        geometry.
    progress: called with (bytes read, bytes to read) of the resident weights.
    expert_parallel: divides the experts over the processes that torchrun started (docs/parallel.md): how
        many there are, "auto", or transformers' DistributedConfig. Budget, slots and threads are then those
        of each process, which reads its own experts alone.
    device_budget: bytes of GPU memory for all that is put there; "auto" takes what is free. `budget` then
        bounds the host's part: what it leaves becomes a pool between disk and GPU.

    Returns the model in eval mode: generate() and the rest of transformers work unchanged. Raises
    CheckpointError, UnsupportedModelError, BudgetError, InvalidArgument, ReadError, DeviceError.
    """
    recipe = require_runnable(
        system if system != "auto" else PROPHET if predictor is not None else AUTO_SYSTEM
    )
    if predictor is not None and not recipe.trained:
        raise InvalidArgument(f"system {system} makes no use of a predictor: leave one of the two out.")
    if threads is not None and threads < 1:
        raise InvalidArgument(f"threads is at least 1, not {threads}.")
    if context is not None and context < 1:
        raise InvalidArgument(f"context is at least 1 token, not {context}.")
    ranks = join(expert_parallel)
    if ranks is not None:
        _require_divisible(recipe, exact)
    placement = place(backend) if ranks is None else _place_of_rank(backend)
    with agreed(ranks):
        blueprint = make_blueprint(model, dtype=_dtype(dtype))
        info, table = blueprint.info, blueprint.index.table
        if ranks is not None:
            mine = ranks.experts(info.experts_per_layer)
            info, table = planned(blueprint, ranks), table[:, mine.start : mine.stop]
        tokens = context or min(DEFAULT_CONTEXT, info.max_context or DEFAULT_CONTEXT)
        bound_library_memory()
        memory = machine.memory if ranks is None else ranks.memory
        try:
            plan, host_bytes = _plan(
                info, placement, budget, device_budget, slots, tokens, sequences, pool, memory
            )
        except BudgetError:
            raise
        except ValueError as error:
            raise InvalidArgument(str(error)) from error
        if threads is not None:
            torch.set_num_threads(threads)
        foresight = _predictor(recipe, predictor, blueprint, info, plan.slots, ranks)
        arena = placement.arena(plan.slots, info.slot_bytes)
        engine = Engine(
            files=[str(path) for path in info.files],
            pieces=table,
            top_k=info.top_k,
            slots=plan.slots,
            policy=str(recipe.policy),
            pool=pool,
            keep=recipe.keep,
            prefetch=_prefetch(recipe, placement),
            io=io,
            threads=threads or (0 if ranks is None else ranks.threads),
            timeline=timeline,
            predictor=foresight,
            backend=placement.backend,
            memory=0 if arena is None else arena.data_ptr(),
            memory_bytes=0 if arena is None else arena.nbytes,
            pool_bytes=host_bytes,
        )
    try:
        with agreed(ranks):
            loaded, read = load_resident(blueprint, progress, ranks, as_mapped=exact)
            loaded.to(placement.torch)
            # Even without gradients torch multiplies in another way when a weight could have one.
            loaded.requires_grad_(exact)
            # The engine watches its files from here on; before, they must be those that were described.
            blueprint.checkpoint.require_unchanged()
            offload = Offload(engine, info, plan, recipe.name, placement.label, exact, False, None, read)
            offload.ranks, offload.arena = ranks, arena
            _bind(loaded, blueprint, offload, placement, arena)
            if foresight is not None:
                tell(loaded, engine, foresight, blueprint.index.modules)
            attach(loaded, offload)
            if ranks is not None:
                tell_of_lost_peers(loaded)
            # Sums of several threads round in another way than those of one.
            small = not exact and not placement.whole_model
            if small and one_thread_is_faster(loaded, info.kv_bytes_per_token * tokens // info.layers):
                decode_on_one_thread(loaded)
    except BaseException:
        engine.close()
        raise
    return loaded


def _plan(
    info: ModelInfo,
    placement: Placement,
    budget: int | str | None,
    device_budget: int | str | None,
    slots: int | str | None,
    context: int,
    batch: int,
    pool: str,
    memory: Callable[[], machine.Memory],
) -> tuple[MemoryPlan, int]:
    """How memory is divided, and the bytes of the pool below a GPU (0 on a CPU)."""
    if not placement.on_device:
        if device_budget not in (None, "auto"):
            raise InvalidArgument(
                "device_budget bounds GPU memory, and the experts stand on the CPU: leave it out."
            )
        plan = plan_memory(
            info, budget=budget, slots=slots, context=context, batch=batch, pool=pool, memory=memory
        )
        return plan, 0
    plan = plan_device(
        info,
        free=placement.free,
        device_budget=device_budget,
        slots=slots,
        context=context,
        batch=batch,
        pool=pool,
        whole_model=placement.whole_model,
    )
    return plan, host_pool(info, budget=budget, context=context, batch=batch, memory=memory())


def _prefetch(system: System, placement: Placement) -> dict[str, Any] | None:
    """What the system brings early: over the link to a GPU by its own rule, from a disk with more care."""
    if not placement.on_device:
        return system.prefetch_from_disk()
    return None if system.prefetch is None else dict(system.prefetch)


def _place_of_rank(backend: str) -> Placement:
    """Ranks share the experts of one machine's memory; raises InvalidArgument for a GPU."""
    if backend == "cuda":
        raise InvalidArgument(
            "expert_parallel divides the experts over processes on CPUs: leave it out with backend cuda."
        )
    return place("cpu")


def _require_divisible(system: System, exact: bool) -> None:
    """Raises InvalidArgument for what cannot be had of a part of the experts."""
    if exact:
        raise InvalidArgument(
            "exact results are those of one process: the sums of several ranks round in another order. "
            "Leave exact or expert_parallel out."
        )
    if system.trained:
        raise InvalidArgument(
            f"{system.name} was trained on the routing to all experts, and a rank sees its own: choose a "
            f"system without training, such as {AUTO_SYSTEM}, with expert_parallel."
        )


def _predictor(
    system: System,
    named: str | os.PathLike[str] | None,
    blueprint: Blueprint,
    info: ModelInfo,
    slots: int,
    ranks: Ranks | None,
) -> Any:
    """The runtime's predictor for this model, or for this rank's part of it (`info`), and this cache.

    Raises InvalidArgument, PredictorError.
    """
    file = None
    if system.trained and named is not None:
        from prophet_moe.predict import shipped

        file = shipped.find(os.fspath(named))
    elif system.name == PROPHET:
        file = _shipped(info)
        if file is None:
            raise InvalidArgument(
                f"no predictor in this package was trained for {info.layers} layers of "
                f"{info.experts_per_layer} experts: name the file of one as predictor, "
                "or choose another system."
            )
    routers = None
    if system.router or system.gates:
        routers = _routers(system, blueprint, info, ranks)
    return make_predictor(
        system,
        layers=info.layers,
        experts_per_layer=info.experts_per_layer,
        top_k=info.top_k,
        share=slots / info.experts_total,
        file=file,
        routers=routers,
    )


def _routers(
    system: System, blueprint: Blueprint, info: ModelInfo, ranks: Ranks | None
) -> dict[str, NDArray[np.generic]] | None:
    """The routers' weights, of this rank's experts; None where they are not found and the system can do
    without. Raises InvalidArgument."""
    from prophet_moe.predict.next_gate import router_weights

    whole = blueprint.info.experts_per_layer
    try:
        weights = router_weights(info.directory, info.layers, whole, info.hidden)
    except InvalidArgument:
        if system.router:
            raise
        return None
    mine = range(whole) if ranks is None else ranks.experts(whole)
    return {"router": np.ascontiguousarray(weights[:, mine.start : mine.stop])}


def _shipped(info: ModelInfo) -> Path | None:
    """The predictor of the package that was trained for this geometry, if there is one."""
    from prophet_moe.predict import shipped

    return shipped.matching(info.layers, info.experts_per_layer, info.top_k)


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    if dtype is None or dtype == "auto":
        return None
    found = dtype if isinstance(dtype, torch.dtype) else _DTYPE_NAMES.get(dtype)
    if found not in NATIVE_DTYPES:
        raise InvalidArgument(f"dtype is float32, float16 or bfloat16, not {dtype!r}.")
    return found


def _bind(
    model: Any, blueprint: Blueprint, offload: Offload, placement: Placement, arena: torch.Tensor | None
) -> None:
    """Gives every experts module its layer of the engine. arena: what of torch's the engine works in."""
    info, index, engine = blueprint.info, blueprint.index, offload.engine
    modules = [model.get_submodule(name) for name in index.modules]
    offload.modules = modules
    own = offload.info.experts_per_layer
    if offload.ranks is not None:
        require_divided(modules, offload.ranks, own)
    if not offload.exact:
        offload.activation = _set_native(modules, blueprint, engine)
        offload.native = offload.activation is not None
    parameters = info.expert_bytes // index.dtype.itemsize
    rows = native_rows(info.experts_per_layer, info.top_k, parameters) if offload.native else 0
    if arena is None and engine.host_visible:
        arena = _arena(engine)
    sizes = index.table[:, 0, :, 2].tolist()
    for number, module in enumerate(modules):
        module.__dict__[LAYER] = MoeLayer(
            engine=engine,
            number=number,
            experts=own,
            top_k=info.top_k,
            native_rows=rows,
            arena=arena,
            pieces=index.pieces,
            shapes=index.shapes[number],
            bytes=tuple(sizes[number]),
            stored=index.dtype,
            compute=info.dtype,
            begins=_begins(blueprint, number) if offload.exact else None,
            observing=bool(engine.predictor),
            device=placement.torch,
        )


def _begins(blueprint: Blueprint, layer: int) -> dict[str, int]:
    """Where the library's stacked tensors begin in a cache line; at its start unless named.

    A fused tensor that needs no conversion stays mapped, at its place in the file.
    """
    index = blueprint.index
    if index.begins is None or index.dtype != blueprint.info.dtype:
        return {}
    return dict(zip(index.pieces, index.begins[layer], strict=True))


def _set_native(modules: list[Any], blueprint: Blueprint, engine: Engine) -> str | None:
    """Describes the experts to the native kernels; the activation's name, or None where they do not apply."""
    info, index = blueprint.info, blueprint.index
    first = modules[0]
    # Weights are used as stored. Computing in a narrower type would need them rounded first.
    if info.dtype not in (index.dtype, torch.float32):
        return None
    if first.is_transposed or first.has_bias or getattr(first, "has_post_expert_norm", False):
        return None
    if len(set(index.shapes)) > 1 or not set(index.pieces) <= {"gate", "up", "gate_up", "down"}:
        return None
    names = {recognise(module, info.inter) for module in modules}
    activation = names.pop()
    if names or activation is None:
        return None
    at = index.pieces.index
    half = info.inter * info.hidden * index.dtype.itemsize
    if not first.has_gate:
        gate, up = (0, 0), (at("up"), 0)
    elif "gate_up" in index.pieces:
        gate, up = (at("gate_up"), 0), (at("gate_up"), half)
    else:
        gate, up = (at("gate"), 0), (at("up"), 0)
    engine.set_ffn(
        hidden=info.hidden,
        inter=info.inter,
        dtype=NATIVE_DTYPES[index.dtype],
        activation=activation,
        has_gate=bool(first.has_gate),
        gate=gate,
        up=up,
        down=(at("down"), 0),
    )
    return activation


def _arena(engine: Engine) -> torch.Tensor:
    """Every slot as one uint8 tensor over the engine's memory; nothing here writes to it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given buffer is not writable")
        return torch.frombuffer(engine.arena(), dtype=torch.uint8)
