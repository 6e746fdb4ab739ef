"""The blocks that stand in for what went."""

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.origin import Origin
from hf_prune.healing.registries import trainable
from hf_prune.healing.weights import Weights, in_blocks


@trainable("replaced", title="The blocks that stand in for others", url="https://arxiv.org/abs/2403.19135")
def replaced(decoder: Decoder, config: HealingConfig, origin: Origin) -> Weights:
    """The blocks into which surgery has put fitted tensors to stand in for what went (LLM-Streamline).

    Args:
        decoder: the pruned model.
        config: resolved.
        origin: where it comes from.

    Raises:
        ConfigError: there is none.
    """
    if not origin.replaced:
        raise ConfigError(
            f"healing.target='replaced' trains blocks that stand in for others, and surgery has put none into "
            f"'{decoder.name}', or held-out text decided against it; expected a model of surgery 'streamline', "
            "'merge', 'replaceme', 'replaceme_cosine' or 'nbl'. Take target 'seam', which trains the blocks beside a "
            "gap, or 'mlp'"
        )
    return Weights.of(decoder, in_blocks(decoder, origin.replaced, origin.silent))
