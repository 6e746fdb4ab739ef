"""How far hidden states of the pruned model are from the original's."""

from collections.abc import Sequence

import torch

from hf_prune.healing.view import View


def relative_error(view: View, positions: Sequence[int]) -> torch.Tensor:
    """The sum over the tokens that count of the mean over positions of |x - y|^2 / |y|^2, x pruned, y original.

    Each token's error is taken against its own size. Streams grow over tens of times from the first block to the last,
    and the first token of a text is often hundreds of times as large as the others: an error in the stream's own
    units, or against a mean over tokens, would be theirs alone. No token and no channel is left out.

    Args:
        view: of one micro-batch, with both models' states.
        positions: of blocks in the pruned model, which states enter.

    Returns:
        A scalar in float32.
    """
    assert view.teacher is not None
    counted = view.counted
    errors = []
    for position in positions:
        healed, original = view.states[position][counted].float(), view.teacher.states[position][counted].float()
        size = original.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
        errors.append(((healed - original).square().sum(-1) / size).sum())
    return torch.stack(errors).mean()
