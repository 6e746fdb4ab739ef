"""Where blocks and per-layer settings live: the only package that names layer paths and config keys."""

from hf_prune.architecture.decoder import Decoder, decoder_of
from hf_prune.architecture.families import FAMILIES, Family, check_prunable, layer_count
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
    "check_prunable",
    "decoder_of",
    "layer_count",
    "per_layer_settings",
    "rewrite_config",
    "rewrite_quantization",
    "update_live_config",
]
