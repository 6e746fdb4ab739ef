"""The stream everywhere behind the cut, as the original has it before the same blocks."""

import torch

from hf_prune.healing.matching import relative_error
from hf_prune.healing.registries import loss
from hf_prune.healing.view import View


@loss("hidden", title="Hidden states behind the first cut", url="https://arxiv.org/abs/2511.05085", needs="behind")
def hidden(view: View) -> torch.Tensor:
    """|x - x(original)|^2 before each block behind the first cut and before the last norm, relative to the original's.

    Summed over tokens, averaged over blocks; see `matching.relative_error`.

    Args:
        view: of one micro-batch.
    """
    return relative_error(view, sorted(view.states))
