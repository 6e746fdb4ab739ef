"""Where in a block lie the maps of the stream that surgery has put there."""

from torch import nn

_MAPS = ("StreamPatch", "LinearAttention")
"""Their classes; told by name, because code that was shipped with a model defines its own."""


def stream_maps(block: nn.Module) -> tuple[str, ...]:
    """Names in a block of the modules that stand in for blocks behind it, or for its attention.

    Args:
        block: of a model; those of stock models have none.
    """
    return tuple(name for name, module in block.named_modules() if type(module).__name__ in _MAPS)
