"""What puts a model's weights, config and tokenizer in a folder, and proves that they load back."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.reload import Level, check_reload
from hf_prune.saving import save_model


@dataclass(frozen=True)
class Written:
    """How a folder came to be.

    Attributes:
        level: how it was loaded back.
        fetched: how the base's weights came here: "whole", "verified" or "ranges".
    """

    level: Level
    fetched: str = "whole"


Writer = Callable[[Path], Written]
"""Fills an empty folder."""


def from_memory(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    origin: Path | None,
    keep: Sequence[int],
    unchanged: bool,
    max_shard_size: str = "5GB",
    trust_remote_code: bool = False,
    fetched: str = "whole",
) -> Writer:
    """Writes a model that is in memory.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        origin: the folder that it was cut from, whose config, tokenizer and licence go along.
        keep: blocks of `origin` that are kept.
        unchanged: whether its tensors are those of `origin` to the bit.
        max_shard_size: as in `save_pretrained`.
        trust_remote_code: whether code in the folder may run.
        fetched: how the base's weights came here: "whole", "verified" or "ranges".
    """

    def write(folder: Path) -> Written:
        save_model(model, tokenizer, folder, source=origin, keep=keep, max_shard_size=max_shard_size)
        source = origin if unchanged else None
        level = check_reload(model, folder, source=source, keep=keep, trust_remote_code=trust_remote_code)
        return Written(level, fetched)

    return write
