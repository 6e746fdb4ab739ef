"""The original's predictions: all that it says of the next token, in place of the one that the text has."""

import torch

from hf_prune.healing.divergence import divergence
from hf_prune.healing.registries import loss
from hf_prune.healing.view import View


@loss("kl", title="Divergence from the original's predictions", url="https://arxiv.org/abs/1503.02531",
      needs="predictions")  # fmt: skip
def kl(view: View, *, temperature: float = 1.0, top_k: int | None = None) -> torch.Tensor:
    """T^2 KL(original || healed) of the predictions at temperature T, nats, summed.

    The factor T^2 keeps gradients of one size at all temperatures (Hinton et al., section 2).

    Args:
        view: of one micro-batch.
        temperature: T.
        top_k: tokens of the original's that are told apart, all others share a bucket; None tells all apart.
    """
    assert view.teacher is not None
    found = divergence(view.logits, view.teacher, view.counted, temperature=temperature, top_k=top_k)
    return temperature**2 * found
