"""What can be trained and against which loss: names that users type, each registered by a file of its own.

A trainable is `(decoder, config, origin) -> Trainable` (see `trained.py`), and says by its return type whether it
trains adapters or weights. A loss is `(view, *, options) -> Tensor`, the sum over the positions that count, see
`view.py`; its `needs` say what it looks at besides the text: "nothing", the original's "predictions", or hidden states
of both models at the "seams" or everywhere "behind" the first of them.
"""

import typing
from typing import Literal

from hf_prune.registry import Registry

trainable = Registry("healing target", "hf_prune.healing.trainables")
loss = Registry("healing loss", "hf_prune.healing.losses")


def kind_of(target: str) -> Literal["adapters", "weights"]:
    """Whether a target trains adapters beside the weights, or weights themselves.

    Args:
        target: as in `HealingConfig`; names of modules carry adapters.
    """
    if target not in trainable:
        return "adapters"
    return typing.get_type_hints(trainable.get(target).function)["return"].kind
