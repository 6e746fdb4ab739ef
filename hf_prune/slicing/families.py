"""Which architectures can be sliced, which cannot, and why."""

from typing import Any

from transformers import PretrainedConfig

from hf_prune.architecture import check_prunable
from hf_prune.errors import ArchitectureError, CheckpointError
from hf_prune.slicing.modeling import SLICEABLE

_POST_NORM = (
    "its norms act on what attention and MLP write, with a weight for each channel, which no rotation of the residual "
    "stream passes through"
)
_REFUSED: dict[str, str] = {
    **dict.fromkeys(("gemma2", "gemma3_text", "gemma3", "olmo2", "olmo3", "glm4", "exaone4"), _POST_NORM),
    "mamba": "its blocks have no attention and MLP, and its state is not sliced",
}


def check_sliceable(config: PretrainedConfig, name: str) -> None:
    """Refuse, before any work, what cannot be sliced.

    Args:
        config: the model's text config.
        name: what the model is called in errors.

    Raises:
        ArchitectureError: names the architecture, or the config key, and the reason.
        CheckpointError: the weights are quantized.
    """
    check_prunable(config, name)
    model_type = config.model_type
    if getattr(config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"'{name}' holds quantized weights (config key 'quantization_config'), which cannot be rotated; slice the "
            "unquantized model it was made from, then quantize the result"
        )
    if model_type in _REFUSED:
        raise ArchitectureError(
            f"'{name}' (model_type '{model_type}') cannot be sliced: {_REFUSED[model_type]}. Drop layers instead "
            "(method 'uidl')"
        )
    if model_type not in SLICEABLE:
        raise ArchitectureError(
            f"'{name}' has model_type '{model_type}', for which slicing is not done yet; expected one of: "
            f"{', '.join(SLICEABLE)}. Drop layers instead (method 'uidl')"
        )
    for key, good, why in _SETTINGS.get(model_type, ()):
        value = getattr(config, key, good)
        if value != good:
            raise ArchitectureError(
                f"'{name}' (model_type '{model_type}') cannot be sliced: {why} (config key '{key}', value {value!r}; "
                f"only {good!r} is supported)"
            )
    if model_type == "opt" and config.word_embed_proj_dim != config.hidden_size:
        raise ArchitectureError(
            f"'{name}' has word_embed_proj_dim={config.word_embed_proj_dim} and hidden_size={config.hidden_size}: "
            "maps between both stand around the residual stream; only equal ones are supported"
        )


_SETTINGS: dict[str, tuple[tuple[str, Any, str], ...]] = {
    "opt": (
        ("do_layer_norm_before", True, _POST_NORM),
        ("_remove_final_layer_norm", False, "no norm stands before the head"),
    ),
    "gpt2": (("add_cross_attention", False, "cross-attention reads another stream"),),
}
