"""The end of the model: its last blocks, the last norm and the head."""

from hf_prune.architecture import Decoder
from hf_prune.architecture.ends import ending_of
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.origin import Origin
from hf_prune.healing.recipes import LAST_BLOCKS
from hf_prune.healing.registries import trainable
from hf_prune.healing.weights import Weights, in_blocks


@trainable("last", title="The last blocks, last norm and head", url="https://arxiv.org/abs/2411.15558")
def last(decoder: Decoder, config: HealingConfig, origin: Origin) -> Weights:
    """The last `config.last_blocks` blocks, the last norm and the head (Reassessing Layer Pruning).

    A head that is tied to the embeddings stays as it is: they lie below every block that is frozen.

    Args:
        decoder: the pruned model.
        config: resolved.
        origin: where it comes from.

    Raises:
        ConfigError: the model has fewer blocks.
    """
    depth = decoder.num_layers
    count = last_blocks(config, depth, decoder.name)
    ending = ending_of(decoder)
    names = {*in_blocks(decoder, range(depth - count, depth), origin.silent), *ending.norm}
    warning = None
    if ending.tied:
        warning = (
            "The model's head is its table of embeddings, which lies below every frozen block: it was left as it is, "
            "and the last blocks and the last norm were trained."
        )
    else:
        names |= set(ending.head)
    return Weights.of(decoder, [name for name, _ in decoder.model.named_parameters() if name in names], warning)


def last_blocks(config: HealingConfig, depth: int, name: str) -> int:
    """How many blocks target "last" trains.

    Args:
        config: what the user set.
        depth: blocks of the pruned model.
        name: what the model is called in errors.

    Raises:
        ConfigError: the model has fewer blocks.
    """
    count = min(LAST_BLOCKS, depth) if config.last_blocks is None else config.last_blocks
    if count > depth:
        raise ConfigError(
            f"healing.last_blocks={count}, and '{name}' has {depth} blocks left; expected at most {depth}"
        )
    return count
