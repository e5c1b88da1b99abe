"""Tiny random models of every family the experts registry serves, made from their configuration alone.

`build(family)` gives a transformers model of some hundred thousand parameters; routers are drawn
wide, because freshly initialised ones send nearly every token to the same experts.
"""

import dataclasses
from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

# One size for everything; each family takes the names its configuration class has.
SIZES: dict[str, Any] = {
    "vocab_size": 256,
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "intermediate_size": 256,
    "moe_intermediate_size": 96,
    "shared_expert_intermediate_size": 96,
    "num_experts": 8,
    "num_local_experts": 8,
    "n_routed_experts": 8,
    "moe_num_experts": 8,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_num_shared_experts": 1,
    "head_dim": 32,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "sliding_window": 64,
}
NARROW = {"intermediate_size": 96}  # families with one width for experts and nothing else
LATENT = {
    "kv_lora_rank": 32,
    "q_lora_rank": 48,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 32,
    "num_key_value_heads": 4,
}
LINEAR = {
    "layer_types": ["linear_attention", "full_attention"],
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 32,
    "linear_value_head_dim": 32,
}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 32, "mamba_d_state": 16, "mamba_n_groups": 1}

# What a family needs beside SIZES.
FAMILIES: dict[str, dict[str, Any]] = {
    "qwen2_moe": {},
    "qwen3_moe": {"norm_topk_prob": True},
    "qwen3_next": LINEAR,
    "qwen3_5_moe_text": LINEAR,
    "mixtral": NARROW,
    "phimoe": NARROW,
    "minimax": {**NARROW, "layer_types": ["linear_attention", "full_attention"]},
    "minimax_m2": NARROW,
    "gpt_oss": {**NARROW, "layer_types": ["sliding_attention", "full_attention"]},
    "granitemoe": NARROW,
    "granitemoeshared": {**NARROW, "shared_intermediate_size": 96},
    "granitemoehybrid": {
        **NARROW,
        **MAMBA,
        "shared_intermediate_size": 96,
        "layer_types": ["mamba", "attention"],
    },
    "olmoe": NARROW,
    "flex_olmo": NARROW,
    "deepseek_v2": {
        **LATENT,
        "topk_method": "group_limited_greedy",
        "n_group": 4,
        "topk_group": 2,
        "head_dim": 16,
    },
    "deepseek_v3": {**LATENT, "n_group": 4, "topk_group": 2, "head_dim": 16},
    "glm4_moe": {},
    "glm4_moe_lite": {**LATENT, "head_dim": 16},
    "dots1": {},
    "jamba": {
        **NARROW,
        "attn_layer_period": 2,
        "attn_layer_offset": 1,
        "expert_layer_period": 2,
        "expert_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 8,
        "mamba_dt_rank": 8,
    },
    "lfm2_moe": {"num_dense_layers": 1, "layer_types": ["conv", "full_attention"]},
    "nemotron_h": {
        "moe_shared_expert_intermediate_size": 96,
        "layers_block_type": ["attention", "moe"],
        "mamba_num_heads": 8,
        "mamba_head_dim": 32,
        "ssm_state_size": 16,
        "n_groups": 2,
    },
    "ernie4_5_moe": {"moe_layer_start_index": 1},
    "hunyuan_v1_moe": NARROW,
    "hy_v3": {},
    "afmoe": {"num_dense_layers": 1},
    "exaone_moe": {},
    "cohere2_moe": {},
    "solar_open": {},
    "mellum": {},
    "flint": {"mlp_only_layers": []},
    "kolibri1": {},
    "laguna": {},
    "beam": {"mlp_layer_types": ["dense", "sparse"]},
    "mimo_v2_flash": {},
    "minimax_m3_vl_text": {},
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 32},
    "bailing_hybrid": {**LATENT, "layer_types": ["linear_attention", "full_attention"]},
    "kimi_linear": {
        **LATENT,
        "layer_types": ["linear_attention", "full_attention"],
        "linear_head_dim": 32,
        "linear_num_heads": 4,
    },
    "aria_text": {},
    "gemma4_text": {
        "enable_moe_block": True,
        "hidden_size_per_layer_input": 16,
        "vocab_size_per_layer_input": 256,
    },
    "hy_v4": {},
    "axk1": LATENT,
    "axk2": LATENT,
    "deepseek_v32": LATENT,
    "deepseek_v4": {"mlp_layer_types": ["hash_moe", "moe"]},
    "glm_moe_dsa": LATENT,
    "granitemoe_swa": {},
    "dots3_note_text": LATENT,
}

# Parameters and buffers that decide the routing, by fragments of their names.
ROUTING = (
    "gate.weight",
    "router.weight",
    "router.bias",
    "e_score_correction_bias",
    "proj_bias",
    "router.classifier.weight",
    "router.layer.weight",
    "router.proj.weight",
)


def config_for(family: str, **overrides: Any) -> Any:
    cls = CONFIG_MAPPING[family]
    known = {field.name for field in dataclasses.fields(cls)} | set(getattr(cls, "attribute_map", {}))
    return cls(**({k: v for k, v in SIZES.items() if k in known} | FAMILIES.get(family, {}) | overrides))


def build(family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **overrides: Any) -> Any:
    """A model in eval mode with random weights; the same for the same arguments."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config_for(family, **overrides), dtype=dtype).eval()
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if any(fragment in name for fragment in ROUTING):
                scale = 0.05 if "bias" in name else 0.5
                tensor.copy_(scale * torch.randn(tensor.shape, generator=generator))
            if name.endswith("tid2eid"):  # experts by token, no router
                tensor.copy_(
                    torch.rand(tensor.shape[0], 8, generator=generator).topk(tensor.shape[1]).indices
                )
    return model
