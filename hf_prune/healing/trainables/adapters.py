"""Adapters on the linear maps of all blocks."""

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.healing.adapter import Adapters
from hf_prune.healing.origin import Origin
from hf_prune.healing.registries import trainable


@trainable("mlp", title="LoRA on the MLPs", url="https://arxiv.org/abs/2403.17887")
def mlp(decoder: Decoder, config: HealingConfig, origin: Origin) -> Adapters:
    """Adapters on every linear map outside of attention, as the first paper has them.

    Args:
        decoder: the pruned model, plain or 4-bit.
        config: resolved.
        origin: where it comes from.

    Raises:
        ArchitectureError: the blocks hold no linear map that could carry an adapter.
    """
    return Adapters.of(decoder, "mlp", origin.silent)


@trainable("all", title="LoRA on all linear maps of the blocks", url="https://arxiv.org/abs/2305.14314")
def every(decoder: Decoder, config: HealingConfig, origin: Origin) -> Adapters:
    """Adapters on every linear map of the blocks (QLoRA, §4).

    Args:
        decoder: the pruned model, plain or 4-bit.
        config: resolved.
        origin: where it comes from.

    Raises:
        ArchitectureError: the blocks hold no linear map that could carry an adapter.
    """
    return Adapters.of(decoder, "all", origin.silent)
