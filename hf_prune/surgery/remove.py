"""Take the attention or the MLP out of blocks: the model gets smaller, and needs modeling code of its own."""

from typing import Any

from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.architecture.families import is_patched
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.patching.families import check_attention_left, check_patchable, check_stock
from hf_prune.patching.modeling import config_class, model_class
from hf_prune.registry import surgery
from hf_prune.units import Part


@surgery(
    "remove",
    title="Take attention or MLP out of blocks",
    url="https://arxiv.org/abs/2406.15786",
    cuts="nothing",
)
def remove(decoder: Decoder, layers: tuple[int, ...], *, part: Part = "attention") -> Decoder:
    """Take a part of some blocks out of a model, with the norm in front of it, in place.

    The function is that of "silence", to the rounding of an addition of zero; the weights are gone, and so are the
    arithmetic and, of attention, all but two numbers a token of its cache. This is LLM-Drop's Attention Drop and MLP
    Drop as its released code does them. The model becomes one of the family's patched class, whose code is shipped.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        part: "attention" or "mlp".

    Raises:
        ConfigError: `part` is something else.
        ArchitectureError: there is no modeling code for such models of this family, a block lacks the part already,
            or no attention would be left; nothing is changed then.
    """
    if part not in ("attention", "mlp"):
        raise ConfigError(f"surgery 'remove' has part={part!r}; expected 'attention' or 'mlp'")
    check_patchable(decoder.config, decoder.name)
    before = removed_parts(decoder.config)
    if twice := sorted(set(before[part]) & set(layers)):
        raise ArchitectureError(f"the blocks {twice} of '{decoder.name}' have no {part} any more")
    after = {**before, part: sorted({*before[part], *layers})}
    check_attention_left(decoder.num_layers, after["attention"], decoder.name)
    if not is_patched(decoder.config.model_type):
        check_stock(decoder.model, decoder.name)
    patch(decoder, removed_parts=after)
    return decoder


def removed_parts(config: Any) -> dict[str, list[int]]:
    """The blocks that lack a part, by "attention" and "mlp"; empty lists for a stock model."""
    return {"attention": [], "mlp": [], **(getattr(config, "removed_parts", None) or {})}


def patch(decoder: Decoder, **settings: Any) -> None:
    """Let a model in memory be what its family's patched class makes of these settings, in place.

    Args:
        decoder: a stock or patched model.
        settings: of the patched config.
    """
    model: Any = decoder.model
    blocks: Any = decoder.blocks
    if not is_patched(decoder.config.model_type):
        family = decoder.config.model_type
        # The object stays the caller's; so do its tensors, devices and kernels.
        decoder.config.__class__ = config_class(family)
        vars(decoder.config).pop("model_type", None)  # read from a file, it would hide that of the class
        model.__class__ = model_class(family)
        for block in blocks:
            block.__class__ = model.block_class
            _follow_hook(block)
    for key, value in settings.items():
        setattr(decoder.config, key, value)
    for position, block in enumerate(blocks):
        block.patch(decoder.config, position)


def _follow_hook(block: nn.Module) -> None:
    """Where accelerate has wrapped the forward of a block, let it call that of the block's new class."""
    if "_old_forward" in vars(block):
        vars(block)["_old_forward"] = type(block).forward.__get__(block)
