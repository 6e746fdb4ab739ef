"""The maps of the stream that stand in for what went."""

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.origin import Origin
from hf_prune.healing.registries import trainable
from hf_prune.healing.weights import Weights
from hf_prune.patching.maps import stream_maps


@trainable("patch", title="The maps in place of blocks or attentions", url="https://arxiv.org/abs/2505.24680")
def patch(decoder: Decoder, config: HealingConfig, origin: Origin) -> Weights:
    """The maps of the stream that surgery has put behind blocks, or in the place of attention (LinearPatch).

    Args:
        decoder: the pruned model.
        config: resolved.
        origin: where it comes from.

    Raises:
        ConfigError: there is none.
    """
    maps = tuple(
        f"{decoder.block_prefix(at)}{name}." for at, block in enumerate(decoder.blocks) for name in stream_maps(block)
    )
    if not maps:
        raise ConfigError(
            f"healing.target='patch' trains maps of the stream, and surgery has put none into '{decoder.name}', or "
            "held-out text decided against it; expected a model of surgery 'linear_patch', 'emulate' or 'nbl'. Take "
            "target 'seam', which trains the blocks beside a gap, or 'mlp'"
        )
    return Weights.of(decoder, [name for name, _ in decoder.model.named_parameters() if name.startswith(maps)])
