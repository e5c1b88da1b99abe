"""Everything that the plug-in assumes about vLLM, one test for each: a failure names what moved.

vLLM's MoE layers are private code. When the range of the extra [vllm] changes, these tests say what
prophet_moe/integrations/vllm has to follow.
"""

import dataclasses
import importlib.metadata
import inspect
import re
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from prophet_moe.errors import UnsupportedModelError
from prophet_moe.integrations.vllm import register, support

FUSED_MOE = "vllm.model_executor.layers.fused_moe"


def parameters(function: Any) -> list[str]:
    """Names in order, without self."""
    return [name for name in inspect.signature(function).parameters if name != "self"]


def test_the_range_of_versions_is_the_one_stated() -> None:
    import vllm

    support.require_version()
    (stated,) = [line for line in importlib.metadata.requires("prophet-moe") or [] if line.startswith("vllm")]
    assert f">={support.SUPPORTED}" in stated, "support.SUPPORTED and the extra [vllm] differ"
    vllm_version = vllm.__version__
    try:
        vllm.__version__ = "0.33.1+cpu"
        with pytest.raises(UnsupportedModelError, match=r"written for vLLM 0\.32, this is 0\.33\.1"):
            support.require_version()
    finally:
        vllm.__version__ = vllm_version


def test_the_entry_point_is_found() -> None:
    from vllm.plugins import DEFAULT_PLUGINS_GROUP

    assert DEFAULT_PLUGINS_GROUP == "vllm.general_plugins", "moved: the group of entry points"
    found = {point.name: point for point in importlib.metadata.entry_points(group=DEFAULT_PLUGINS_GROUP)}
    assert found["prophet"].load() is register


def test_layers_can_be_replaced_by_class_name() -> None:
    from vllm.model_executor.custom_op import CustomOp, PluggableLayer, op_registry_oot
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

    assert issubclass(UnquantizedFusedMoEMethod, CustomOp), "moved: the method is no CustomOp"
    assert issubclass(MoERunner, PluggableLayer), "moved: the runner is no PluggableLayer"
    assert isinstance(op_registry_oot, dict), "moved: the registry of out-of-tree layers"
    for base in (CustomOp, PluggableLayer):
        assert "name" in parameters(base.register_oot), f"moved: {base.__name__}.register_oot"


def test_the_runner_knows_its_experts() -> None:
    from vllm.model_executor.layers.fused_moe.runner.moe_runner import MoERunner

    source = inspect.getsource(MoERunner.__init__)
    assert "self.routed_experts = routed_experts" in source, "moved: MoERunner.routed_experts"
    assert "self.layer_name = layer_name" in source, "moved: MoERunner.layer_name"


def test_the_method_can_be_inherited() -> None:
    from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import (
        UnquantizedFusedMoEMethod as Method,
    )

    assert parameters(Method.__init__) == ["moe"], "moved: how the method is made"
    made = ["layer", "num_experts", "hidden_size", "intermediate_size_per_partition", "params_dtype"]
    assert parameters(Method.create_weights)[:5] == made, "moved: create_weights"
    called = ["layer", "x", "topk_weights", "topk_ids", "shared_experts", "shared_experts_input"]
    assert parameters(Method.apply) == called, "moved: apply"
    assert parameters(Method._init_moe_kernel) == ["layer"], "moved: how the kernel is made"
    for name in ("experts_cls", "supports_pre_processed_weights"):
        assert f"self.{name}" in inspect.getsource(Method.__init__), f"moved: {name}"


def test_experts_are_loaded_one_matrix_at_a_time() -> None:
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    wanted = ["param", "loaded_weight", "weight_name", "shard_id", "expert_id", "return_success"]
    assert parameters(RoutedExperts.weight_loader) == wanted, "moved: weight_loader"
    assert RoutedExperts.weight_loader.supports_moe_loading, "moved: the mark of loaders of experts"
    mapped = RoutedExperts._map_global_expert_id_to_local_expert_id
    assert parameters(mapped) == ["expert_id"], "moved: global to local expert ids"
    source = inspect.getsource(RoutedExperts.weight_loader)
    assert "param.data[expert_id]" in source, "moved: vLLM's loader no longer writes one row of the parameter"


def test_the_kernel_is_called_through_the_modular_interface() -> None:
    from vllm.model_executor.layers.fused_moe.modular_kernel import FusedMoEKernel
    from vllm.model_executor.layers.fused_moe.prepare_finalize.no_dp_ep import (
        MoEPrepareAndFinalizeNoDPEPModular,
    )

    used = {"hidden_states", "w1", "w2", "topk_weights", "topk_ids", "activation", "global_num_experts"}
    used |= {"expert_map", "apply_router_weight_on_input"}
    assert used <= set(parameters(FusedMoEKernel.apply)), "moved: FusedMoEKernel.apply"
    assert isinstance(inspect.getattr_static(FusedMoEKernel, "fused_experts"), property)
    assert not MoEPrepareAndFinalizeNoDPEPModular().supports_async(), (
        "moved: the kernel would compute shared experts, which the plug-in leaves to the runner"
    )


def test_the_kernel_converts_a_layer_in_place() -> None:
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts

    source = inspect.getsource(CPUUnquantizedExperts.process_weights_after_loading)
    for name in ("w13_weight", "w2_weight", "_use_zentorch"):
        assert name in source, f"moved: {name} in the conversion to the kernel's layout"
    assert CPUUnquantizedExperts.isa == "vec", "moved: the portable kernel's name"


def test_weights_are_converted_after_all_were_loaded() -> None:
    from vllm.model_executor.model_loader.base_loader import BaseModelLoader

    source = inspect.getsource(BaseModelLoader.load_model)
    loads, converts = source.find("self.load_weights("), source.find("process_weights_after_loading(")
    assert 0 < loads < converts, "moved: order of loading and conversion"


def test_the_configuration_has_what_is_asked_of_it() -> None:
    from vllm.config import ModelConfig, ParallelConfig, VllmConfig

    for kind, names in (
        (VllmConfig, ("model_config", "parallel_config", "lora_config", "speculative_config")),
        (ModelConfig, ("model", "enforce_eager")),
        (
            ParallelConfig,
            ("enable_eplb", "data_parallel_size", "enable_expert_parallel"),
        ),
    ):
        missing = set(names) - {field.name for field in dataclasses.fields(kind)}
        assert not missing, f"moved: {missing} of {kind.__name__}"


class Kernel:
    """vLLM's grouped CPU kernel on random experts: w13 [E, 2I, H] and w2 [E, H, I], as it wants them."""

    experts, inter, hidden, top_k = 6, 64, 96, 3

    def __init__(self) -> None:
        from vllm._custom_ops import cpu_prepack_moe_weight

        torch.manual_seed(3)
        self.plain = [
            torch.randn(self.experts, *shape).mul(0.1).bfloat16()
            for shape in ((2 * self.inter, self.hidden), (self.hidden, self.inter))
        ]
        self.w13, self.w2 = (cpu_prepack_moe_weight(weight, "vec") for weight in self.plain)
        self.x = torch.randn(20, self.hidden).bfloat16()
        self.weights = torch.rand(20, self.top_k)
        self.ids = torch.stack([torch.randperm(self.experts)[: self.top_k] for _ in range(20)]).int()

    def __call__(
        self, w13: torch.Tensor, w2: torch.Tensor, rows: slice = slice(None), ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        from vllm._custom_ops import cpu_fused_moe

        ids = self.ids if ids is None else ids
        x, weights = self.x[rows], self.weights[rows]
        out = torch.empty_like(x)
        cpu_fused_moe(out, x, w13, w2, None, None, weights, ids[rows], "silu", "vec", False)
        return out


@pytest.fixture(scope="module")
def kernel() -> Kernel:
    return Kernel()


def test_one_expert_is_converted_as_in_a_whole_layer(kernel: Kernel) -> None:
    from vllm._custom_ops import cpu_prepack_moe_weight

    for plain, packed in zip(kernel.plain, (kernel.w13, kernel.w2), strict=True):
        alone = torch.cat([cpu_prepack_moe_weight(plain[i : i + 1], "vec") for i in range(kernel.experts)])
        assert torch.equal(alone, packed), "moved: the layout of one expert depends on the others"


def test_where_an_expert_stands_does_not_change_a_bit(kernel: Kernel) -> None:
    slots, expected = torch.randperm(9)[: kernel.experts], kernel(kernel.w13, kernel.w2)
    arrays = []
    for packed in (kernel.w13, kernel.w2):
        arrays.append(torch.full((9, *packed.shape[1:]), float("nan"), dtype=packed.dtype))
        arrays[-1][slots] = packed
    assert torch.equal(kernel(*arrays, ids=slots.int()[kernel.ids.long()]), expected)


@pytest.mark.parametrize("part", [1, 3, 7])
def test_splitting_by_token_does_not_change_a_bit(kernel: Kernel, part: int) -> None:
    parts = [kernel(kernel.w13, kernel.w2, slice(i, i + part)) for i in range(0, 20, part)]
    whole = kernel(kernel.w13, kernel.w2)
    assert torch.equal(torch.cat(parts), whole), "moved: tokens of a call are not independent"


def test_the_kernel_wants_dense_arrays(kernel: Kernel) -> None:
    """Why the arena is in planes: strides are ignored. Where this fails, slots could stand one by one."""
    gaps = torch.zeros(kernel.experts, 2 * kernel.w13[0].numel(), dtype=kernel.w13.dtype)
    gaps[:, : kernel.w13[0].numel()] = kernel.w13.flatten(1)
    strided = gaps[:, : kernel.w13[0].numel()].unflatten(1, kernel.w13.shape[1:])
    assert torch.equal(strided, kernel.w13)
    assert not torch.equal(kernel(strided, kernel.w2), kernel(kernel.w13, kernel.w2))


# What is refused


def config(**changes: Any) -> SimpleNamespace:
    """A configuration that is served, but for `changes` (dots as two underscores)."""
    parts = SimpleNamespace(
        model_config=SimpleNamespace(enforce_eager=True),
        parallel_config=SimpleNamespace(enable_eplb=False, data_parallel_size=1),
        lora_config=None,
        speculative_config=None,
    )
    for name, value in changes.items():
        *path, last = name.split("__")
        setattr(getattr(parts, path[0]) if path else parts, last, value)
    return parts


def test_what_is_served() -> None:
    support.require_setup(config())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_config__enforce_eager": False}, "start vLLM with --enforce-eager"),
        ({"lora_config": object()}, "LoRA was asked for"),
        ({"speculative_config": object()}, "speculative decoding was asked for"),
        ({"parallel_config__enable_eplb": True}, "EPLB"),
        ({"parallel_config__data_parallel_size": 2}, "data parallelism"),
    ],
)
def test_setups_that_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=re.escape(words)):
        support.require_setup(config(**changes))


def test_other_platforms_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    with pytest.raises(UnsupportedModelError, match="CPU backend only"):
        support.require_setup(config())


def test_layers_that_are_refused() -> None:
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    class Own(RoutedExperts):
        pass

    def layer(kind: type = RoutedExperts, quant: Any = None, bias: bool = False) -> Any:
        made = torch.nn.Module.__new__(kind)
        torch.nn.Module.__init__(made)
        made.layer_name, made.quant_config = "model.layers.0.mlp.experts", quant
        made.moe_config = SimpleNamespace(has_bias=bias)
        return made

    support.require_layer(layer(), CPUUnquantizedExperts)
    for refused, kernel_class, words in (
        (layer(quant=SimpleNamespace(get_name=lambda: "fp8")), CPUUnquantizedExperts, r"quantised \(fp8\)"),
        (layer(Own), CPUUnquantizedExperts, "loads its experts in a way of its own"),
        (layer(bias=True), CPUUnquantizedExperts, "have biases"),
        (layer(), None, "vLLM chose the kernel none"),
        (layer(), dict, "vLLM chose the kernel dict"),
    ):
        with pytest.raises(UnsupportedModelError, match=words):
            support.require_layer(refused, kernel_class)


def test_a_layer_of_another_method_does_not_pass_unnoticed(monkeypatch: pytest.MonkeyPatch) -> None:
    from prophet_moe.integrations.vllm.method import MoERunner, ProphetMoERunner

    def made(self: Any, **parts: Any) -> None:
        torch.nn.Module.__init__(self)
        self.layer_name, self.routed_experts = "layer", SimpleNamespace(quant_method=parts["method"])

    monkeypatch.setattr(MoERunner, "__init__", made)
    with pytest.raises(UnsupportedModelError, match=r"layer is quantised \(dict\)"):
        ProphetMoERunner(method={})
