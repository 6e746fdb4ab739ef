"""Logits from what enters the last norm, by the model's own code."""

from typing import Any

import torch

from hf_prune.architecture import Decoder
from hf_prune.block_calls import Call, replaced_forwards


class Head:
    """What comes behind the blocks: last norm, head, and whatever the family does to logits.

    The model's own forward runs with every block replaced by a stub, the last of which answers with the given hidden
    states: that costs the embedding and the head.

    Args:
        decoder: the model.
        tuples: whether its blocks return tuples.
    """

    def __init__(self, decoder: Decoder, tuples: bool) -> None:
        self._decoder, self._tuples = decoder, tuples

    def __call__(self, hidden: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits of one sequence.

        Args:
            hidden: (length, width) entering the last norm.
            ids: (length,) int64.

        Returns:
            (length, vocabulary), in the model's dtype.
        """

        def stub(_call: Call, _hidden: Any) -> Any:
            given = hidden[None]
            return (given,) if self._tuples else given

        with replaced_forwards(self._decoder.blocks, stub):
            found = self._decoder.model(input_ids=ids[None].to(hidden.device), use_cache=False)
        logits: torch.Tensor = found.logits[0]
        return logits
