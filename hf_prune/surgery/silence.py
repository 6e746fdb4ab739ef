"""Let the attention or the MLP of blocks write nothing: the model stays a stock one, and no smaller."""

from collections import Counter

import torch

from hf_prune.architecture import Decoder
from hf_prune.architecture.sublayers import write_parameters
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.registry import surgery
from hf_prune.surgery.edits import Edit, Edits
from hf_prune.surgery.scale import parameter_of
from hf_prune.units import Part


def silence_streamed(decoder: Decoder, layers: tuple[int, ...], edits: Edits, *, part: Part = "attention") -> Decoder:
    """The same on a model without weights; see `silence`.

    Args:
        decoder: the model, on the meta device.
        layers: see `silence`.
        edits: what happens to the numbers is entered here.
        part: see `silence`.
    """
    for parameter in _writes(decoder, layers, part):
        edits.add(parameter, Edit(lambda values, _start: torch.zeros_like(values), fresh=True, alike=True))
    return decoder


@surgery(
    "silence",
    title="Zero the weights by which attention or MLP write",
    url="https://arxiv.org/abs/2406.15786",
    cuts="nothing",
    streamed=silence_streamed,
)
def silence(decoder: Decoder, layers: tuple[int, ...], *, part: Part = "attention") -> Decoder:
    """Zero the weights and biases by which a part of some blocks writes into the residual stream, in place.

    That computes what the model without those parts does (LLM-Drop's Attention Drop and MLP Drop). LLM-Drop's released
    code takes the modules out, which needs modeling files of its own; here the checkpoint stays a stock one, as large
    and as slow as before.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        part: "attention" or "mlp".

    Raises:
        ConfigError: `part` is something else.
        ArchitectureError: a block has no such part, or its weights are quantized or shared; nothing is changed then.
    """
    with torch.no_grad():
        for parameter in _writes(decoder, layers, part):
            parameter.zero_()
    return decoder


def _writes(decoder: Decoder, layers: tuple[int, ...], part: Part) -> list[torch.nn.Parameter]:
    if part not in ("attention", "mlp"):
        raise ConfigError(f"surgery 'silence' has part={part!r}; expected 'attention' or 'mlp'")
    users = Counter(id(p) for _, p in decoder.model.named_parameters(remove_duplicate=False))
    found = []
    for layer in layers:
        where = f"block {layer} of '{decoder.name}' (model_type '{decoder.config.model_type}')"
        try:
            names = write_parameters(decoder.blocks[layer], part)
        except ArchitectureError as error:
            raise ArchitectureError(f"{where}: {error}") from error
        for name in names:
            parameter = parameter_of(decoder, layer, name)
            if users[id(parameter)] > 1:
                raise ArchitectureError(
                    f"{where} shares '{name}' with another place of the model, which would fall silent too; it cannot "
                    "lose a part alone"
                )
            found.append(parameter)
    return found
