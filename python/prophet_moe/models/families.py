"""Which models can run: what transformers routes through its experts registry, and what it does not.

A decorated experts class carries flags (has_gate, is_transposed ...) that say how it computes; no
table of families is needed for it. What is listed here are the exceptions, by name.
"""

import importlib.metadata
import json
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from prophet_moe.errors import CheckpointError, UnsupportedModelError

# Experts that bypass the registry: transformers accepts an implementation's name and does nothing.
UNDECORATED_FAMILIES = {
    "dbrx": "its experts are one fused matrix outside transformers' experts registry",
    "doge": "its experts are rows of an embedding, mixed without a router over matrices",
    "jetmoe": "its experts are parallel linear layers outside transformers' experts registry",
    "llama4": "its experts class is outside transformers' experts registry",
    "llama4_text": "its experts class is outside transformers' experts registry",
    "longcat_flash": "its identity experts are outside transformers' experts registry",
    "nllb_moe": "it is an encoder-decoder with experts outside transformers' experts registry",
    "step3p5": "its experts class is outside transformers' experts registry",
    "step3p7": "its experts class is outside transformers' experts registry",
    "switch_transformers": "it is an encoder-decoder with experts outside transformers' experts registry",
}

# The eager loops of these classes sum in another type than the input's; no flag tells.
SUM_IN_WEIGHT_DTYPE = frozenset({"NemotronHExperts"})
SUM_IN_FLOAT32 = frozenset({"Inkling2Experts"})
# Computes in float32 whatever the weights are: outside what the one experts function does.
OTHER_ARITHMETIC = frozenset({"OpenAIPrivacyFilterExperts"})


class ExpertsModule(Protocol):
    """What the registry's decorator promises of a module; `[E,...]` parameters besides."""

    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    is_concatenated: bool

    def _apply_gate(self, gate_up: torch.Tensor) -> torch.Tensor: ...


def read_config(directory: Path, **overrides: Any) -> Any:
    """The model's configuration. Raises CheckpointError (absent, unreadable) or UnsupportedModelError."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

    path = directory / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: give the folder of a complete checkpoint.")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({error}); get the file again.") from error
    model_type = raw.get("model_type") if isinstance(raw, dict) else None
    if not isinstance(model_type, str):
        raise CheckpointError(f"{path} names no 'model_type'; get the file again.")
    if model_type in UNDECORATED_FAMILIES:
        raise UnsupportedModelError(
            f"{model_type} is not supported yet: {UNDECORATED_FAMILIES[model_type]}. Use transformers "
            "directly."
        )
    if model_type not in CONFIG_MAPPING_NAMES:
        version = importlib.metadata.version("transformers")
        raise UnsupportedModelError(
            f"{path}: model type {model_type!r} is unknown to transformers {version}; "
            "models that bring their own code are not run. Update transformers, or use another checkpoint."
        )
    refuse_quantised(raw, directory)
    try:
        return AutoConfig.from_pretrained(directory, **overrides)
    except Exception as error:  # each configuration class validates in its own way
        raise CheckpointError(
            f"{path} is not a valid {model_type} configuration ({error}); get the file again."
        ) from error


def refuse_quantised(raw: dict[str, Any], directory: Path) -> None:
    """Raises UnsupportedModelError naming the method when the weights are quantised."""
    for part in (raw, *(value for value in raw.values() if isinstance(value, dict))):
        quantisation = part.get("quantization_config")
        if quantisation is not None:
            method = (
                quantisation.get("quant_method", "unknown") if isinstance(quantisation, dict) else "unknown"
            )
            raise UnsupportedModelError(
                f"{directory} is quantised ({str(method).upper()}): quantised checkpoints come in a later "
                "release. "
                "Use the bf16, fp16 or fp32 checkpoint of the model."
            )


def build_on_meta(config: Any, dtype: torch.dtype | None = None) -> Any:
    """The model's skeleton: names and shapes, no storage, transformers' own experts classes."""
    import transformers
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

    options = {} if dtype is None else {"dtype": dtype}
    with torch.device("meta"):
        if type(config) in MODEL_FOR_CAUSAL_LM_MAPPING:
            return AutoModelForCausalLM.from_config(config, **options)
        for name in getattr(config, "architectures", None) or []:
            model_class = getattr(transformers, name, None)
            if model_class is not None and model_class.can_generate():
                return model_class._from_config(config, **options)
    raise UnsupportedModelError(
        f"model type {config.model_type!r} is not a language model that generates text; Prophet runs only "
        "those."
    )


def experts_modules(model: nn.Module) -> dict[str, Any]:
    """The decorated experts modules of a model by name, in forward order."""
    return {name: module for name, module in model.named_modules() if is_experts(module)}


def is_experts(module: nn.Module) -> bool:
    """Whether the registry's decorator made this module (it sets these flags when it builds one)."""
    return all(hasattr(module, flag) for flag in ("has_gate", "is_transposed", "_is_expert_parallel"))


def require_experts(model: Any) -> dict[str, Any]:
    """The decorated experts modules; raises UnsupportedModelError when the model has none, saying why."""
    found = experts_modules(model)
    family = model.config.model_type
    strangers = sorted(
        {
            type(m).__name__
            for m in model.modules()
            if type(m).__name__.endswith("Experts") and not is_experts(m)
        }
    )
    if strangers:
        raise UnsupportedModelError(
            f"{family} is not supported yet: its {strangers[0]} is outside transformers' experts registry. "
            "Use transformers directly."
        )
    if not found:
        raise UnsupportedModelError(
            f"{family} is a dense model: it has no routed experts; use transformers directly."
        )
    for module in found.values():
        if type(module).__name__ in OTHER_ARITHMETIC:
            raise UnsupportedModelError(
                f"{family} is not supported yet: {type(module).__name__} computes in its own precision. "
                "Use transformers directly."
            )
    return found


def decoder_layer(model: nn.Module, experts: str) -> nn.Module:
    """The layer of the model's stack that the experts module of this name stands in; what it is called with
    first is what enters its attention. Raises UnsupportedModelError where the model has no such stack."""
    name = experts
    while name:
        name, _, last = name.rpartition(".")
        if last.isdecimal() and isinstance(stack := model.get_submodule(name), nn.ModuleList):
            return stack[int(last)]
    raise UnsupportedModelError(
        f"{experts} stands in no list of layers: what enters its attention cannot be seen."
    )


def sum_dtype(module: nn.Module, hidden: torch.dtype, weights: torch.dtype) -> torch.dtype:
    """The element type in which the eager loop of `module` sums its experts' outputs."""
    name = type(module).__name__
    if name in SUM_IN_WEIGHT_DTYPE:
        return weights
    return torch.float32 if name in SUM_IN_FLOAT32 else hidden


_TOP_K_NAMES = (
    "num_experts_per_tok",
    "num_experts_per_token",
    "moe_top_k",
    "moe_topk",
    "moe_k",
    "top_k_experts",
)


def top_k(config: Any, experts: int) -> int:
    """Experts that one token uses in one layer (the largest over layers).

    Raises UnsupportedModelError when the configuration names it in no known way.
    """
    text = config.get_text_config(decoder=True)
    for name in _TOP_K_NAMES:
        value = getattr(text, name, None)
        if isinstance(value, (list, tuple)) and value:
            value = max(value)
        if isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= experts:
            return value
    raise UnsupportedModelError(
        f"{config.model_type}: its configuration does not say how many of {experts} experts a token uses "
        f"(looked for {', '.join(_TOP_K_NAMES)}); please report this model."
    )
