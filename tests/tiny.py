"""Tiny real models of every architecture, built from configs: eight blocks, a few thousand parameters."""

from collections.abc import Container
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture import FAMILIES

DEPTH = 8
VOCAB = 96

# Whatever a config class knows of these is set; the rest is passed by.
_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64, "num_experts": 4,
    "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16, "sliding_window": 8, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip

_SPECIAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_head": 4, "n_positions": 64, "n_inner": 48},
    "gpt_neo": {"attention_types": [[["global", "local"], DEPTH // 2]], "num_heads": 4, "window_size": 8},
    "gptj": {"n_embd": 32, "n_head": 4, "n_positions": 64, "rotary_dim": 4, "n_inner": 48},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {"n_head": 4},
    "falcon": {"num_kv_heads": 2, "new_decoder_architecture": True},
    "mpt": {"d_model": 32, "n_heads": 4, "max_seq_len": 64, "expansion_ratio": 2},
    "mamba": {"state_size": 4, "time_step_rank": 4},
    "deepseek_v3": {
        "first_k_dense_replace": 3, "n_routed_experts": 4, "n_group": 2, "topk_group": 1, "q_lora_rank": 16,
        "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8, "head_dim": 8,
        "num_key_value_heads": 4, "qk_head_dim": 16,
    },
    "glm": {"partial_rotary_factor": 0.5},
    "glm4": {"partial_rotary_factor": 0.5},
    "qwen2_moe": {"decoder_sparse_step": 2},
    "qwen3_moe": {"decoder_sparse_step": 2, "mlp_only_layers": [1]},
    "qwen3_next": {
        "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    },
    "lfm2": {"full_attn_idxs": [2, 5], "block_ff_dim": 48, "block_multiple_of": 8},
    "granite": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "granitemoe": {"embedding_multiplier": 2.0, "residual_multiplier": 0.5},
    "minimax": {"block_size": 8},
}  # fmt: skip

# Their blocks and heads are made of what those of other families are made of.
_ALIKE = (
    "mistral", "ministral", "gemma", "qwen2_moe", "stablelm", "starcoder2", "olmo", "olmo3", "smollm3", "granitemoe",
    "cohere2", "exaone4", "glm", "glm4", "ernie4_5", "nemotron",
)  # fmt: skip


def every_type(without: Container[str] = ()) -> list[Any]:
    """Every supported model type as a parameter of a test; those that are made like others are slow."""
    types = [name for family in FAMILIES for name in family.model_types if name not in without]
    return [pytest.param(name, marks=pytest.mark.slow) if name in _ALIKE else name for name in types]


def tiny_config(model_type: str, depth: int = DEPTH, **overrides: Any) -> Any:
    """A tiny config of the architecture, eager attention by default left to transformers."""
    default = AutoConfig.for_model(model_type)
    known = set(default.to_dict()) | set(default.attribute_map)
    fields = {key: value for key, value in _COMMON.items() if key in known}
    fields.update({"num_hidden_layers": depth, **_SPECIAL.get(model_type, {}), **overrides})
    for key in ("rope_parameters", "layer_types"):
        fields.setdefault(key, None)
    fields = {key: value for key, value in fields.items() if value is not None or key in overrides}
    return AutoConfig.for_model(model_type, **fields)


def tiny_model(model_type: str, depth: int = DEPTH, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """A tiny random model in float32, eval mode, with weights large enough that every block matters."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, depth, **overrides))
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def tokens(batch: int = 2, length: int = 12, seed: int = 0) -> torch.Tensor:
    """Random token ids without special ones."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(3, VOCAB, (batch, length), generator=generator)
