"""Multiply weights of blocks by a factor, as methods do that make up for the magnitude of what is gone."""

from collections.abc import Sequence

import torch

from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError
from hf_prune.registry import surgery
from hf_prune.surgery.edits import Edit, Edits


def scaled(values: torch.Tensor, factor: float) -> torch.Tensor:
    """Numbers times a factor: multiplied in float32 at least, and rounded once.

    Args:
        values: of any floating dtype.
        factor: what they are multiplied by.
    """
    wide = torch.promote_types(values.dtype, torch.float32)
    return (values.to(wide) * factor).to(values.dtype)


def scale_streamed(
    decoder: Decoder, layers: tuple[int, ...], edits: Edits, *, weights: Sequence[str] = (), factor: float = 1.0
) -> Decoder:
    """The same on a model without weights; see `scale`.

    Args:
        decoder: the model, on the meta device.
        layers: see `scale`.
        edits: what happens to the numbers is entered here.
        weights: see `scale`.
        factor: see `scale`.
    """
    for parameter in _parameters(decoder, layers, weights):
        edits.add(parameter, Edit(lambda values, _start: scaled(values, factor), alike=True))
    return decoder


@surgery(
    "scale",
    title="Multiply weights by a factor",
    url="https://arxiv.org/abs/2507.18212",
    cuts="nothing",
    streamed=scale_streamed,
)
def scale(decoder: Decoder, layers: tuple[int, ...], *, weights: Sequence[str] = (), factor: float = 1.0) -> Decoder:
    """Multiply weights of some blocks by a factor, in place.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        weights: names of the weights in a block, such as "mlp.down_proj.weight".
        factor: what they are multiplied by, in float32 at least, and rounded once.

    Raises:
        ConfigError: a block has no such weight.
    """
    with torch.no_grad():
        for parameter in _parameters(decoder, layers, weights):
            parameter.copy_(scaled(parameter, factor))
    return decoder


def _parameters(decoder: Decoder, layers: Sequence[int], weights: Sequence[str]) -> list[torch.nn.Parameter]:
    return [parameter_of(decoder, layer, name) for layer in layers for name in weights]


def parameter_of(decoder: Decoder, layer: int, name: str) -> torch.nn.Parameter:
    """A weight of a block.

    Args:
        decoder: the model.
        layer: 0-based index of the block.
        name: of the weight in the block.

    Raises:
        ConfigError: there is none of that name.
    """
    try:
        return decoder.blocks[layer].get_parameter(name)
    except AttributeError as error:
        known = [known for known, _ in decoder.blocks[layer].named_parameters()]
        raise ConfigError(
            f"block {layer} of '{decoder.name}' has no weight '{name}'; it has: {', '.join(known)}"
        ) from error
