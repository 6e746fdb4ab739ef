"""Everything."""

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.healing.origin import Origin
from hf_prune.healing.registries import trainable
from hf_prune.healing.targets import quiet_modules
from hf_prune.healing.weights import Weights


@trainable("full", title="All weights", url="https://arxiv.org/abs/2407.14679")
def full(decoder: Decoder, config: HealingConfig, origin: Origin) -> Weights:
    """Every weight, embeddings and head too (Minitron); what was silenced stays silent.

    Args:
        decoder: the pruned model, plain or 4-bit.
        config: resolved.
        origin: where it comes from.

    Raises:
        ConfigError: nothing is left to train.
    """
    quiet = tuple(f"{name}." for name in quiet_modules(decoder, origin.silent))
    return Weights.of(
        decoder, [name for name, _ in decoder.model.named_parameters() if not quiet or not name.startswith(quiet)]
    )
