"""What a config must say after blocks are gone: lists are indexed, index values renumbered, counts recounted.

Nothing is regenerated: after an odd cut, Gemma 2 or GPT-OSS would regenerate another attention pattern than the blocks
that stayed were trained with, and load silently wrong.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from transformers import PretrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_prune.architecture.families import base_type, layer_count

# Lists that may happen to be as long as the model is deep, and have nothing to do with its blocks.
_NOT_PER_LAYER = frozenset(
    {
        "architectures", "axial_pos_embds_dim", "axial_pos_shape", "bad_words_ids", "begin_suppress_tokens",
        "bos_token_id", "eos_token_id", "keys_to_ignore_at_inference", "languages", "mlp_multipliers", "pad_token_id",
        "ssm_multipliers", "suppress_tokens", "time_step_limit", "tags",
    }
)  # fmt: skip

# Lists whose values are layer indices.
_INDEX_LISTS = frozenset(
    {
        "mlp_only_layers",
        "moe_layers",
        "full_attn_idxs",
        "attn_layer_indices",
        "ple_layer_ids",
        "global_attn_layers",
        "linear_attention",
        "stream_patches",
    }
)

# Lists of layer indices, by name of what these layers have in common.
_INDEX_TABLES = frozenset({"removed_parts"})

# Numbers that count layers from the start: what stays of them is what is counted.
_COUNTS = frozenset({"first_k_dense_replace", "max_window_layers", "moe_layer_start_index", "num_dense_layers"})

# Other numbers that say which layers are of which kind.
_STEPS = frozenset({"decoder_sparse_step", "moe_layer_end_index"})

# Extra prediction layers after the last block: no causal LM class loads them, and the checkpoint doesn't hold them.
_MTP_COUNTS = frozenset({"num_nextn_predict_layers", "num_mtp_layers"})

_COUNT_KEYS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers")


def changed_keys(config: PretrainedConfig, keep: Sequence[int]) -> dict[str, Any]:
    """The settings that differ once only the blocks `keep` are left.

    Args:
        config: text config of the uncut model.
        keep: indices of the blocks that stay, ascending.

    Returns:
        Key to new value, the layer count under the name that the config class gives it.
    """
    depth = layer_count(config)
    position = {old: new for new, old in enumerate(keep)}
    current = config.to_dict()
    changed: dict[str, Any] = {config.attribute_map.get("num_hidden_layers", "num_hidden_layers"): len(keep)}
    for key, value in current.items():
        if key in _INDEX_LISTS and isinstance(value, list | tuple):
            changed[key] = [position[i] for i in value if i in position]
        elif key in _INDEX_TABLES and isinstance(value, dict):
            changed[key] = {name: [position[i] for i in row if i in position] for name, row in value.items()}
        elif key in _NOT_PER_LAYER or key == "attention_types":
            continue
        elif isinstance(value, list | tuple) and len(value) == depth:
            changed[key] = [value[i] for i in keep]
        elif key in _COUNTS and isinstance(value, int):
            changed[key] = sum(1 for i in keep if i < value)
        elif key == "moe_layer_end_index" and isinstance(value, int):
            last = value if value >= 0 else depth - 1
            changed[key] = sum(1 for i in keep if i <= last) - 1
        elif key in _MTP_COUNTS and value:
            changed[key] = 0
    changed.update(_explicit_sparse_layers(current, keep))
    if current.get("attention_types") is not None and "attention_layers" in changed:
        changed["attention_types"] = [[[kind], 1] for kind in changed["attention_layers"]]  # GPT-Neo's spelling
    return {key: value for key, value in changed.items() if current.get(key, ...) != value}


def _explicit_sparse_layers(current: dict[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    # Qwen-MoE: every decoder_sparse_step-th layer is sparse, by index. Say the same by name.
    step = current.get("decoder_sparse_step") or 1
    if step == 1:
        return {}
    dense = set(current.get("mlp_only_layers") or ())
    return {
        "decoder_sparse_step": 1,
        "mlp_only_layers": [new for new, old in enumerate(keep) if old in dense or (old + 1) % step != 0],
    }


def per_layer_settings(config: PretrainedConfig) -> dict[str, Any]:
    """All settings that speak of single layers, and the number of layers.

    Two configs with equal ones describe the same row of blocks.
    """
    depth = layer_count(config)
    found: dict[str, Any] = {"num_hidden_layers": depth}
    for key, value in config.to_dict().items():
        per_layer = isinstance(value, list | tuple) and (len(value) == depth or key in _INDEX_LISTS)
        if (per_layer and key not in _NOT_PER_LAYER) or key in _COUNTS or key in _STEPS:
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def update_live_config(config: PretrainedConfig, keep: Sequence[int]) -> None:
    """Edit the config of a model in memory, in place: runtime attributes such as the attention kernel stay."""
    for key, value in changed_keys(config, keep).items():
        setattr(config, key, value)


def rewrite_config(raw: dict[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """Edit the content of a `config.json`: only the keys that the cut changes.

    Re-serialising through a config class would drop what readers on other versions of transformers need
    (`rope_theta`, `torch_dtype`), so the file's own keys are kept, in their order.

    Args:
        raw: parsed `config.json` of the uncut model.
        keep: indices of the blocks that stay, ascending.

    Returns:
        A new dict.
    """
    config = config_of(raw)
    changed = changed_keys(config, keep)
    depth = layer_count(config)
    result = dict(raw)
    for key in _COUNT_KEYS:
        if result.get(key) == depth:
            result[key] = len(keep)
    count_key = config.attribute_map.get("num_hidden_layers", "num_hidden_layers")
    if not any(key in result for key in _COUNT_KEYS):
        result[count_key] = len(keep)
    changed.pop(count_key, None)
    absent = {key: value for key, value in changed.items() if key not in raw}
    result.update({key: value for key, value in changed.items() if key in raw})
    # A list that the file leaves to its config class is written out only where regenerating gives another one.
    regenerated = config_of(result).to_dict()
    result.update({key: value for key, value in absent.items() if regenerated.get(key, ...) != value})
    if isinstance(raw.get("quantization_config"), dict):
        result["quantization_config"] = rewrite_quantization(raw["quantization_config"], keep)
    return result


def config_of(raw: dict[str, Any]) -> PretrainedConfig:
    """The config object that transformers builds from a parsed `config.json`."""
    fields = {key: value for key, value in raw.items() if key not in ("model_type", "quantization_config")}
    return CONFIG_MAPPING[raw["model_type"]].from_dict({**fields, "model_type": raw["model_type"]})


_BLOCK_NUMBER = re.compile(r"((?:^|[^A-Za-z0-9_])(?:layers|h|blocks)\\?\.)(\d+)(?=\\?\.|[$)]|$)")


def rewrite_quantization(settings: dict[str, Any], keep: Sequence[int]) -> dict[str, Any]:
    """Renumber module names such as "model.layers.12.mlp" wherever they stand in a quantization config.

    Lists lose the names of dropped blocks, dicts lose their keys.
    """
    position = {str(old): str(new) for new, old in enumerate(keep)}
    return _map_names(settings, _renumber(position))


def _renumber(position: dict[str, str]) -> Callable[[str], str | None]:
    def rename(name: str) -> str | None:
        found = _BLOCK_NUMBER.search(name)
        if found is None:
            return name
        if found[2] not in position:
            return None
        return name[: found.start(2)] + position[found[2]] + name[found.end(2) :]

    return rename


def _map_names(value: Any, rename: Callable[[str], str | None]) -> Any:
    if isinstance(value, str):
        return rename(value)
    if isinstance(value, list | tuple):
        renamed = (_map_names(item, rename) for item in value)
        return [new for old, new in zip(value, renamed, strict=True) if new is not None or old is None]
    if isinstance(value, dict):
        renamed_keys = ((rename(key) if isinstance(key, str) else key, item) for key, item in value.items())
        return {key: _map_names(item, rename) for key, item in renamed_keys if key is not None}
    return value


def compatible(raw: dict[str, Any]) -> dict[str, Any]:
    """Add the keys that readers on transformers 4 look for, beside the new ones.

    Only for models without a `config.json` of their own: a file keeps its own keys. Without `rope_theta` at the top,
    transformers 4 takes its default and computes nonsense without a warning.
    """
    result = dict(raw)
    rope = raw.get("rope_parameters")
    if isinstance(rope, dict) and "rope_theta" not in rope:  # one entry for each kind of layer, as Gemma 3 has them
        local = rope.get("sliding_attention") or {}
        if "rope_theta" in local:
            result.setdefault("rope_local_base_freq", local["rope_theta"])
        rope = rope.get("full_attention")
    if isinstance(rope, dict):
        for key, value in _flat_rope(rope, base_type(raw["model_type"])).items():
            result.setdefault(key, value)
    if raw.get("dtype") is not None:
        result.setdefault("torch_dtype", raw["dtype"])
    return result


def _flat_rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
    """Rotary settings under the names that transformers 4 had for them."""
    names: dict[str, tuple[str, ...]] = {
        "rope_theta": ("rope_theta",),
        "partial_rotary_factor": ("partial_rotary_factor",),
    }
    if model_type == "gpt_neox":
        names = {"rope_theta": ("rope_theta", "rotary_emb_base"), "partial_rotary_factor": ("rotary_pct",)}
    flat = {name: rope[key] for key, own in names.items() if key in rope for name in own}
    if rope.get("rope_type", "default") != "default":
        flat["rope_scaling"] = {key: item for key, item in rope.items() if key not in names}
    return flat
