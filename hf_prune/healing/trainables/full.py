"""Everything."""

from hf_prune.architecture import Decoder
from hf_prune.architecture.ends import ending_of
from hf_prune.config import HealingConfig
from hf_prune.healing.origin import Origin
from hf_prune.healing.registries import trainable
from hf_prune.healing.weights import Weights, speaking


@trainable("full", title="All weights", url="https://arxiv.org/abs/2407.14679")
def full(decoder: Decoder, config: HealingConfig, origin: Origin) -> Weights:
    """Every weight, embeddings and head too (Minitron); what was silenced stays silent.

    Takes 16 bytes for each parameter of the model: weight, gradient and AdamW's two moments in float32.

    Args:
        decoder: the pruned model.
        config: resolved.
        origin: where it comes from.

    Raises:
        ConfigError: nothing is left to train.
    """
    warning = None
    if ending_of(decoder).tied:
        warning = "Head and embeddings are one table, which was trained in both places at once."
    return Weights.of(decoder, speaking(decoder, origin.silent), warning)
