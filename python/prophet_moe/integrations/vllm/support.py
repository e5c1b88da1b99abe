"""Which vLLM, and what the plug-in refuses, each with a sentence that says what to do instead."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prophet_moe.errors import InvalidArgument, UnsupportedModelError

SUPPORTED = "0.32"  # pyproject.toml has the same range in the extra [vllm]


def require_version() -> None:
    """Raises UnsupportedModelError for a vLLM whose private classes nobody has looked at."""
    import vllm

    version = str(vllm.__version__)
    if version.split("+")[0].split(".")[:2] != SUPPORTED.split("."):
        raise UnsupportedModelError(
            f"Prophet's plug-in was written for vLLM {SUPPORTED}, this is {version}: install "
            "prophet-moe[vllm], or unset PROPHET_VLLM_SLOTS."
        )


def require_setup(config: Any) -> None:
    """Whether this vllm_config can be served. Raises UnsupportedModelError."""
    from vllm.platforms import current_platform

    if not current_platform.is_cpu():
        raise _refusal(
            f"this vLLM runs on {current_platform.device_name}, and the plug-in on vLLM's CPU backend only"
        )
    if not config.model_config.enforce_eager:
        raise _refusal(
            "an expert that is not in memory is read in the middle of a layer, which a compiled graph cannot "
            "do: start vLLM with --enforce-eager (enforce_eager=True)"
        )
    parallel = config.parallel_config
    for wrong, what in (
        (config.lora_config is not None, "LoRA"),
        (parallel.enable_eplb, "expert load balancing (EPLB)"),
        (parallel.data_parallel_size > 1, "data parallelism"),
        (config.speculative_config is not None, "speculative decoding"),
    ):
        if wrong:
            raise _refusal(f"{what} was asked for, and experts in slots do not go with it: leave it out")


def require_apart(records: Path | None, model: str) -> None:
    """Raises InvalidArgument: records among the weights would be taken for a part of the model."""
    if records is not None and records.resolve() == Path(model).resolve():
        raise InvalidArgument(
            f"PROPHET_VLLM_RECORDS is the folder of the model, {records}: name another one."
        )


def require_layer(layer: Any, experts_cls: Any) -> None:
    """Whether the experts of this RoutedExperts can live in slots. Raises UnsupportedModelError."""
    from vllm.model_executor.layers.fused_moe.experts.cpu_moe import CPUUnquantizedExperts
    from vllm.model_executor.layers.fused_moe.routed_experts import RoutedExperts

    name = layer.layer_name
    if layer.quant_config is not None:
        raise quantised(name, layer.quant_config.get_name())
    if type(layer) is not RoutedExperts:
        raise _refusal(f"{name} is a {type(layer).__name__}, which loads its experts in a way of its own")
    if layer.moe_config.has_bias:
        raise _refusal(f"the experts of {name} have biases, which slots do not hold")
    if experts_cls is None or not issubclass(experts_cls, CPUUnquantizedExperts):
        chosen = getattr(experts_cls, "__name__", "none")
        raise _refusal(
            f"vLLM chose the kernel {chosen} for {name}, not one of its grouped CPU kernels; they need "
            "hidden and intermediate sizes that 32 divides, and --moe-backend auto"
        )


def quantised(name: str, how: str) -> UnsupportedModelError:
    """The refusal of a quantised layer."""
    return _refusal(f"{name} is quantised ({how}): use a checkpoint in bfloat16, float16 or float32")


def _refusal(why: str) -> UnsupportedModelError:
    return UnsupportedModelError(
        f"Prophet cannot serve this model in vLLM: {why}. Without PROPHET_VLLM_SLOTS "
        "vLLM keeps all experts itself."
    )
