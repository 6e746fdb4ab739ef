"""The stream at the cut: the blocks below it learn to hand on what the removed ones would have."""

import torch

from hf_prune.healing.matching import relative_error
from hf_prune.healing.registries import loss
from hf_prune.healing.view import View


@loss("seam", title="Hidden states where blocks were cut", url="https://arxiv.org/abs/2403.17887", needs="seams")
def seam(view: View) -> torch.Tensor:
    """|x^(l) - x^(l+n)(original)|^2 at each cut of n blocks before block l (footnote 9), relative to the original's.

    Summed over tokens, averaged over cuts; see `matching.relative_error`.

    Args:
        view: of one micro-batch.
    """
    return relative_error(view, view.seams)
