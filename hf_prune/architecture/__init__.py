"""Where blocks and per-layer settings live: the only package that names layer paths and config keys."""

from hf_prune.architecture.decoder import Decoder, decoder_of
from hf_prune.architecture.families import (
    FAMILIES,
    Family,
    base_type,
    check_causal,
    check_decoder,
    check_prunable,
    is_patched,
    is_sliced,
    layer_count,
    ships_code,
)
from hf_prune.architecture.layer_config import (
    per_layer_settings,
    rewrite_config,
    rewrite_quantization,
    update_live_config,
)

__all__ = [
    "FAMILIES",
    "Decoder",
    "Family",
    "base_type",
    "check_causal",
    "check_decoder",
    "check_prunable",
    "decoder_of",
    "is_patched",
    "is_sliced",
    "layer_count",
    "per_layer_settings",
    "rewrite_config",
    "rewrite_quantization",
    "ships_code",
    "update_live_config",
]
