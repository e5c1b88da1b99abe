"""What vLLM builds in place of its own: the MoE method of unquantised experts, and the runner around it.

Both are replaced through vLLM's own registries of out-of-tree layers, by class name. The method is
vLLM's except where experts are created, loaded and found: selection of the kernel, its layout and the call
itself are inherited. tests/vllm/test_contract.py names everything that is assumed about vLLM here.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import vllm
from vllm.config import get_current_vllm_config
from vllm.distributed import get_world_group
from vllm.model_executor.custom_op import CustomOp, PluggableLayer, op_registry_oot
from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from prophet_moe.integrations.vllm.settings import Settings
from prophet_moe.integrations.vllm.slots import ExpertSlots, describe
from prophet_moe.integrations.vllm.support import quantised, require_apart, require_layer, require_setup

SLOTS = "_prophet_slots"  # key in vllm_config.__dict__: one engine for all layers of a process
SHARDS = frozenset({"w1", "w2", "w3"})


def install() -> None:
    """Registers both classes. Idempotent."""
    if "UnquantizedFusedMoEMethod" not in op_registry_oot:
        CustomOp.register_oot(name="UnquantizedFusedMoEMethod")(ProphetMoEMethod)
        PluggableLayer.register_oot(name="MoERunner")(ProphetMoERunner)


class ProphetMoERunner(MoERunner):
    """The stock runner. Exists so that no layer keeps its experts in memory unnoticed."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        method = self.routed_experts.quant_method
        if not isinstance(method, ProphetMoEMethod):
            raise quantised(self.layer_name, type(method).__name__)


class ProphetMoEMethod(UnquantizedFusedMoEMethod):
    """Experts of one layer behind slots. Its parameters have names and shapes, and no storage."""

    def __init__(self, moe: Any) -> None:
        require_setup(get_current_vllm_config())
        super().__init__(moe)
        self.supports_pre_processed_weights = False

    @property
    def supports_eplb(self) -> bool:
        """Experts do not move between processes."""
        return False

    def create_weights(
        self,
        layer: Any,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        """Registers w13_weight and w2_weight on the meta device and adds the layer to the slots."""
        require_layer(layer, self.experts_cls)
        shapes = {
            "w13_weight": (2 * intermediate_size_per_partition, hidden_size),
            "w2_weight": (hidden_size, intermediate_size_per_partition),
        }
        load = self._loader(layer)
        for name, shape in shapes.items():
            empty = torch.empty(num_experts, *shape, dtype=params_dtype, device="meta")
            parameter = torch.nn.Parameter(empty, requires_grad=False)
            parameter.weight_loader = load
            layer.register_parameter(name, parameter)
        self._init_moe_kernel(layer)

        def new_expert() -> dict[str, torch.Tensor]:
            return {name: torch.zeros(shape, dtype=params_dtype) for name, shape in shapes.items()}

        self._new_expert: Callable[[], dict[str, torch.Tensor]] = new_expert
        self._arriving: dict[int, tuple[dict[str, torch.Tensor], set[str]]] = {}
        w13, w2 = self._in_kernel_layout(layer, self._new_expert())
        self._slots = slots_of(get_current_vllm_config(), self.moe_kernel.fused_experts)
        self._number = self._slots.add(
            describe(layer.layer_name, w13, w2, num_experts), w13.dtype, self.moe.experts_per_token
        )

    def _loader(self, layer: Any) -> Callable[..., bool | None]:
        """The weight_loader of both parameters: vLLM's own narrows and casts, into one expert at a time."""
        stock = layer.weight_loader

        def load(
            param: torch.Tensor,
            loaded_weight: torch.Tensor,
            weight_name: str,
            shard_id: str,
            expert_id: int,
            return_success: bool = False,
        ) -> bool | None:
            if loaded_weight.dim() != 2:
                raise ValueError(f"{weight_name}: expected one expert's matrix, not {loaded_weight.dim()}-D.")
            local = layer._map_global_expert_id_to_local_expert_id(expert_id)
            if local == -1:
                return False if return_success else None
            if not self._slots.wants_weights():
                return True if return_success else None
            matrices, seen = self._arriving.setdefault(local, (self._new_expert(), set()))
            name = "w2_weight" if shard_id == "w2" else "w13_weight"
            # Row `local` of this is the one matrix, as every other row is.
            target = matrices[name].expand(layer.local_num_experts, *matrices[name].shape)
            done = stock(target, loaded_weight, weight_name, shard_id, expert_id, return_success)
            seen.add(shard_id)
            if seen == SHARDS:
                del self._arriving[local]
                self._slots.write(self._number, local, *self._in_kernel_layout(layer, matrices))
            return done

        load.supports_moe_loading = True  # type: ignore[attr-defined]
        return load

    def _in_kernel_layout(
        self, layer: Any, matrices: Mapping[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both as the kernel reads them, [1, rows, columns]: vLLM's conversion of a layer of one expert."""
        alone = torch.nn.Module()
        alone.moe_config, alone.activation = layer.moe_config, layer.activation
        for name, matrix in matrices.items():
            alone.register_parameter(name, torch.nn.Parameter(matrix[None], requires_grad=False))
        assert self.moe_kernel is not None
        self.moe_kernel.fused_experts.process_weights_after_loading(alone)
        return alone.w13_weight.data, alone.w2_weight.data

    def process_weights_after_loading(self, layer: Any) -> None:
        """Weights went to the records as they came; the first layer to get here opens the engine."""
        self._slots.finish()

    def apply(
        self,
        layer: Any,
        x: torch.Tensor,
        topk_weights: torch.Tensor,
        topk_ids: torch.Tensor,
        shared_experts: Any,
        shared_experts_input: torch.Tensor | None,
    ) -> torch.Tensor:
        """The routed experts' sum [n, hidden] of x [n, hidden]: this process' share of it.

        Shared experts are the runner's: on the CPU it never overlaps them.
        """
        if not len(x):
            return torch.empty_like(x)
        ids = topk_ids.long()
        if layer.expert_map is None:
            return self._served(layer, x, topk_weights, ids, topk_ids.dtype)
        # Expert parallelism: the stock CPU kernel knows no other rank's experts. Rows without an expert of
        # this rank are left out; in the others, a foreign expert becomes one of the row's own with weight 0.
        local = layer.expert_map[ids].long()
        own, mine = local.amax(1, keepdim=True), local >= 0
        rows = mine.any(1)
        out = torch.zeros_like(x)
        if bool(rows.any()):
            share, local = (topk_weights * mine)[rows], torch.where(mine, local, own)[rows]
            out[rows] = self._served(layer, x[rows], share, local, topk_ids.dtype)
        return out

    def _served(
        self, layer: Any, x: torch.Tensor, weights: torch.Tensor, ids: torch.Tensor, id_type: torch.dtype
    ) -> torch.Tensor:
        assert self.moe_kernel is not None
        out = torch.empty_like(x)
        w13, w2 = self._slots.arrays(self._number)
        for rows, slots in self._slots.serve(self._number, ids, weights, x):
            out[rows] = self.moe_kernel.apply(
                hidden_states=x[rows],
                w1=w13,
                w2=w2,
                topk_weights=weights[rows],
                topk_ids=slots.to(id_type),
                activation=layer.activation,
                global_num_experts=len(w13),
                expert_map=None,
                apply_router_weight_on_input=layer.apply_router_weight_on_input,
            )
        return out


def slots_of(config: Any, kernel: Any) -> ExpertSlots:
    """The one ExpertSlots of this vllm_config in this process."""
    found: ExpertSlots | None = config.__dict__.get(SLOTS)
    if found is None:
        settings = Settings.from_environment(os.environ)
        assert settings is not None  # else nothing was installed
        require_apart(settings.records, str(config.model_config.model))
        world = get_world_group()
        found = ExpertSlots(
            settings, str(config.model_config.model), world.rank, lambda: _notes(config, kernel)
        )
        config.__dict__[SLOTS] = found
    return found


def _notes(config: Any, kernel: Any) -> dict[str, str] | None:
    """All that the records' bytes depend on besides their shapes; None for a model that is no folder."""
    folder = Path(config.model_config.model)
    if not folder.is_dir():
        return None
    files = {path.name: path.stat() for path in sorted(folder.iterdir()) if path.is_file()}
    parallel = config.parallel_config
    return {
        "vllm": str(vllm.__version__),
        "kernel": f"{type(kernel).__name__} {kernel.isa} {kernel._use_zentorch}",
        "processes": f"{get_world_group().rank} of {get_world_group().world_size}, "
        f"tensor {parallel.tensor_parallel_size}, pipeline {parallel.pipeline_parallel_size}, "
        f"expert {parallel.enable_expert_parallel}",
        "checkpoint": json.dumps({name: [stat.st_size, stat.st_mtime_ns] for name, stat in files.items()}),
    }
