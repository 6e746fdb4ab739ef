"""The next token of the text, as in pre-training."""

import torch

from hf_prune.healing.registries import loss
from hf_prune.healing.view import IGNORED, View


@loss("next_token", title="Next token of the text", url="https://arxiv.org/abs/2403.17887", needs="nothing")
def next_token(view: View) -> torch.Tensor:
    """Cross entropy of the next token, nats, summed.

    Args:
        view: of one micro-batch.
    """
    logits = view.logits.flatten(0, -2).float()
    return torch.nn.functional.cross_entropy(logits, view.labels.flatten(), ignore_index=IGNORED, reduction="sum")
