"""Which architectures can lose blocks and stay stock models, and which cannot and why.

The rule is generic: every causal LM whose blocks lie in one ModuleList and whose per-layer settings are lists can be
cut. `FAMILIES` names those that the tests hold to it; `check_prunable` refuses those that it would break.
"""

from dataclasses import dataclass
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from hf_prune.errors import ArchitectureError

SLICED = "sliced_"
"""What the model_type of a sliced model begins with; its family's follows."""

PATCHED = "patched_"
"""What the model_type of a model begins with whose blocks lack parts; its family's follows."""


@dataclass(frozen=True)
class Family:
    """One row of the table of families.

    Attributes:
        title: for people.
        model_types: `config.model_type` values.
        note: what is special about cutting it.
    """

    title: str
    model_types: tuple[str, ...]
    note: str = ""


_TYPES = "`layer_types` is cut with the blocks, never regenerated"

FAMILIES: tuple[Family, ...] = (
    Family("Llama 1–3, and what shares the architecture", ("llama",)),
    Family("Mistral", ("mistral",)),
    Family("Ministral", ("ministral",), _TYPES),
    Family("Mixtral", ("mixtral",)),
    Family("Qwen2, Qwen2.5", ("qwen2",), _TYPES),
    Family("Qwen3", ("qwen3",), _TYPES),
    Family("Qwen2-MoE, Qwen3-MoE", ("qwen2_moe", "qwen3_moe"), "dense layers stay dense through `mlp_only_layers`"),
    Family("Qwen3-Next", ("qwen3_next",), _TYPES),
    Family("Gemma", ("gemma",)),
    Family("Gemma 2, Gemma 3 (text)", ("gemma2", "gemma3_text"), _TYPES),
    Family("Phi-1, Phi-2", ("phi",)),
    Family("Phi-3, Phi-4", ("phi3",)),
    Family("GPT-2", ("gpt2",), "refused with `scale_attn_by_inverse_layer_idx`"),
    Family("GPT-Neo", ("gpt_neo",), "`attention_layers` and `attention_types` are cut"),
    Family("GPT-J", ("gptj",)),
    Family("GPT-NeoX, Pythia", ("gpt_neox",)),
    Family("GPT-OSS", ("gpt_oss",), _TYPES),
    Family("OPT", ("opt",), "OPT-350m (post-norm) is refused"),
    Family("BLOOM", ("bloom",)),
    Family("Falcon", ("falcon",)),
    Family("MPT", ("mpt",)),
    Family("StableLM", ("stablelm",)),
    Family("StarCoder2", ("starcoder2",)),
    Family("OLMo, OLMo 2, OLMo 3", ("olmo", "olmo2", "olmo3"), "OLMo 3: " + _TYPES),
    Family("SmolLM3", ("smollm3",), "`no_rope_layers` and `layer_types` are cut"),
    Family("Granite, Granite-MoE", ("granite", "granitemoe")),
    Family("Cohere, Cohere2", ("cohere", "cohere2"), "Cohere2: " + _TYPES),
    Family("EXAONE 4", ("exaone4",), _TYPES),
    Family("GLM-4", ("glm", "glm4")),
    Family("DeepSeek-V3", ("deepseek_v3",), "`first_k_dense_replace` counts the dense layers that stay"),
    Family("AFMoE", ("afmoe",), "`num_dense_layers` counts the dense layers that stay"),
    Family("ERNIE 4.5", ("ernie4_5",)),
    Family("Nemotron", ("nemotron",)),
    Family("LFM2", ("lfm2",), _TYPES),
    Family("Mamba", ("mamba",)),
)

# model_type -> (config key, why blocks cannot go)
_SHARED_KV = "later layers reuse the keys and values, or the embeddings, of layers named by position"
_REFUSED: dict[str, tuple[str, str]] = {
    "gemma3n_text": ("num_kv_shared_layers", _SHARED_KV),
    "gemma4_text": ("per_layer_config", _SHARED_KV),
    "gemma4_unified_text": ("per_layer_config", _SHARED_KV),
    "gemma4_assistant": ("model_type", "it drafts for another model"),
    "dots3_note_text": ("per_layer_config", "settings are keyed by layer number"),
    "jamba": ("attn_layer_period", "the kind of each layer follows from its index"),
    "recurrent_gemma": ("block_types", "the kind of each layer follows from its index"),
    "zamba": ("attn_layer_period", "layers share weights by position"),
    "zamba2": ("hybrid_layer_ids", "layers share weights by position"),
    "diffllama": ("model_type", "the layer index enters the attention (lambda_init)"),
    "minimax": ("layer_types", "its cache counts the tokens in block 0, which must stay a full-attention one"),
    "rwkv": ("rescale_every", "weights are rescaled by the layer index"),
    "reformer": ("attn_layers", "its residual streams are reversible pairs"),
    "blt": ("model_type", "it stacks several decoders"),
    "moshi": ("model_type", "it is a speech model of two decoders"),
    "git": ("vision_config", "it is multimodal"),
}

# key -> why, when the value is set to something that counts
_REFUSED_KEYS: dict[str, str] = {
    "scale_attn_by_inverse_layer_idx": "attention is scaled by the layer index",
    "per_layer_config": "settings are keyed by layer number",
    "num_kv_shared_layers": _SHARED_KV,
    "hidden_size_per_layer_input": "each layer owns a slice of one embedding table",
    "attn_layer_period": "the kind of each layer follows from its index",
    "expert_layer_period": "the kind of each layer follows from its index",
}

_NOT_A_DECODER = "hf_prune prunes decoder-only causal language models that AutoModelForCausalLM loads as text models"


def layer_count(config: PretrainedConfig) -> int:
    """Number of decoder blocks that a text config promises.

    Raises:
        ArchitectureError: the config has no `num_hidden_layers`.
    """
    count = getattr(config, "num_hidden_layers", None)
    if not isinstance(count, int):
        raise ArchitectureError(
            f"config of model_type '{config.model_type}' has num_hidden_layers={count!r}; expected a whole number. "
            f"{_NOT_A_DECODER}"
        )
    return count


def is_sliced(model_type: Any) -> bool:
    """Whether a model_type is that of a model which hf_prune has sliced."""
    return isinstance(model_type, str) and model_type.startswith(SLICED)


def is_patched(model_type: Any) -> bool:
    """Whether a model_type is that of a model out of whose blocks hf_prune has taken parts."""
    return isinstance(model_type, str) and model_type.startswith(PATCHED)


def ships_code(model_type: Any) -> bool:
    """Whether models of a model_type travel with modeling code of hf_prune: sliced and patched ones."""
    return is_sliced(model_type) or is_patched(model_type)


def base_type(model_type: str) -> str:
    """The model_type of the family that a sliced or patched model belongs to; any other one as it is."""
    return model_type.removeprefix(SLICED).removeprefix(PATCHED)


def check_prunable(config: PretrainedConfig, name: str) -> None:
    """Refuse, before any work, what cannot lose blocks and stay a stock model.

    Args:
        config: the model's config as loaded.
        name: what the model is called in errors.

    Raises:
        ArchitectureError: names the config key, its value and the reason.
    """
    if is_sliced(config.model_type):
        raise ArchitectureError(
            f"'{name}' is sliced already (model_type '{config.model_type}'): each layer expects the width of the "
            "one before it, so that none can be dropped or sliced again. Start from the model that it was made from"
        )
    if is_patched(config.model_type):
        raise ArchitectureError(
            f"'{name}' lacks parts of its blocks already (model_type '{config.model_type}'), and is not cut again. "
            "Start from the model that it was made from"
        )
    check_decoder(config, name)


def check_decoder(config: PretrainedConfig, name: str) -> None:
    """Refuse what is no decoder that this package knows how to walk through; sliced and patched models are.

    Args:
        config: the model's config as loaded.
        name: what the model is called in errors.

    Raises:
        ArchitectureError: names the config key, its value and the reason.
    """
    check_causal(config, name)
    model_type = config.model_type
    if model_type in _REFUSED:
        key, why = _REFUSED[model_type]
        value = getattr(config, key, None)
        raise ArchitectureError(
            f"'{name}' (model_type '{model_type}') cannot lose blocks: {why} (config key '{key}', value "
            f"{str(value)[:60]}). Supported families: hf-prune methods --families"
        )
    settings = config.to_dict()
    for key, why in _REFUSED_KEYS.items():
        value = settings.get(key)
        if value:
            raise ArchitectureError(
                f"'{name}' (model_type '{model_type}') cannot lose blocks: {why} (config key '{key}', value "
                f"{str(value)[:60]}; only an unset one is supported)"
            )
    if model_type == "opt" and not getattr(config, "do_layer_norm_before", True):
        raise ArchitectureError(
            f"'{name}' has do_layer_norm_before=False: its blocks normalise the residual stream itself, so that the "
            "distance between block inputs says nothing about what a block adds (OPT-350m); expected True"
        )
    if model_type == "ernie4_5_moe" and getattr(config, "moe_layer_interval", 1) > 1:
        raise ArchitectureError(
            f"'{name}' has moe_layer_interval={config.moe_layer_interval}: the kind of each layer follows from its "
            "index; expected 1"
        )
    layer_count(config)


def check_causal(config: PretrainedConfig, name: str) -> None:
    """Refuse what is no decoder-only causal language model; whether it could lose blocks is another matter.

    Args:
        config: the model's config as loaded.
        name: what the model is called in errors.

    Raises:
        ArchitectureError: names the config key, its value and the reason.
    """
    architectures = getattr(config, "architectures", None) or []
    if getattr(config, "is_encoder_decoder", False) or getattr(config, "encoder_layers", None):
        raise ArchitectureError(
            f"'{name}' is an encoder-decoder (config key 'is_encoder_decoder', architectures {architectures}); "
            f"{_NOT_A_DECODER}"
        )
    text = config.get_text_config(decoder=True)
    if text is not config:
        raise ArchitectureError(
            f"'{name}' (model_type '{config.model_type}') is multimodal: its language model lies under 'text_config'. "
            f"{_NOT_A_DECODER}; extract the text model and prune that"
        )
    remote = "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {})
    if not remote and base_type(config.model_type) not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        known = (
            "" if config.model_type in CONFIG_MAPPING_NAMES else ", which this version of transformers doesn't know"
        )
        raise ArchitectureError(
            f"'{name}' has model_type '{config.model_type}'{known} (architectures {architectures}) and no causal "
            f"language model class; {_NOT_A_DECODER}"
        )
    causal = any(a.endswith(("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")) for a in architectures)
    if architectures and not remote and not causal:
        raise ArchitectureError(
            f"'{name}' was saved as {architectures} (config key 'architectures'), not as a causal language model; "
            f"{_NOT_A_DECODER}"
        )
    # BERT and its kin sit in the causal LM table for is_decoder=True; GPT-NeoX has the field and ignores it.
    if getattr(config, "is_decoder", True) is False and not config.model_type.startswith("gpt_neox"):
        raise ArchitectureError(
            f"'{name}' (model_type '{config.model_type}') has is_decoder=False: it is an encoder; {_NOT_A_DECODER}"
        )
