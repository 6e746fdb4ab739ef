"""What can be trained and against which loss: names that users type, each registered by a file of its own.

A trainable is `(decoder, config, origin) -> Trainable` (see `trained.py`). A loss is `(view, *, options) -> Tensor`,
the sum over the positions that count, see `view.py`; its `needs` say what it looks at besides the text: "nothing", the
original's "predictions", or hidden states of both models at the "seams" or everywhere "behind" the first of them.
"""

from hf_prune.registry import Registry

trainable = Registry("healing target", "hf_prune.healing.trainables")
loss = Registry("healing loss", "hf_prune.healing.losses")
