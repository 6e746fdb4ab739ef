"""The blocks around each gap."""

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.origin import Origin
from hf_prune.healing.registries import trainable
from hf_prune.healing.weights import Weights, in_blocks


@trainable("seam", title="The two blocks at each gap", url="https://arxiv.org/abs/2510.23652")
def seam(decoder: Decoder, config: HealingConfig, origin: Origin) -> Weights:
    """The last block before and the first behind each gap (CLP's cut endpoints); at an end, the one that there is.

    Args:
        decoder: the pruned model.
        config: resolved.
        origin: where it comes from.

    Raises:
        ConfigError: no block is missing.
    """
    positions = {at for gap in origin.seams for at in (gap - 1, gap) if 0 <= at < decoder.num_layers}
    if not positions:
        raise ConfigError(
            f"healing.target='seam' trains the blocks beside those that went, and '{decoder.name}' has all of its "
            f"{origin.depth} blocks, narrower or without some of their parts; expected a model that lost whole "
            "blocks. Take target 'mlp', 'last' or 'full'"
        )
    return Weights.of(decoder, in_blocks(decoder, positions, origin.silent))
