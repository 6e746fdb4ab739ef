"""Zero single weights: those that a file of masks names."""

from pathlib import Path

import torch
from safetensors import safe_open

from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError
from hf_prune.registry import surgery
from hf_prune.sparsity.masks import packed_length, unpacked
from hf_prune.surgery.edits import Change, Edit, Edits
from hf_prune.surgery.replace import fitted_places
from hf_prune.tensors import TensorEntry


def mask_streamed(decoder: Decoder, layers: tuple[int, ...], edits: Edits, *, file: str = "") -> Decoder:
    """The same on a model without weights; see `mask`.

    Args:
        decoder: the model, on the meta device.
        layers: see `mask`.
        edits: what happens to the numbers is entered here.
        file: see `mask`.
    """
    for parameter, entry in _places(decoder, layers, file):
        edits.add(parameter, Edit(_masker(Path(file), entry)))
    return decoder


@surgery(
    "mask",
    title="Zero the weights that masks name",
    url="https://arxiv.org/abs/2306.11695",
    cuts="nothing",
    streamed=mask_streamed,
)
def mask(decoder: Decoder, layers: tuple[int, ...], *, file: str = "") -> Decoder:
    """Zero single weights of some blocks, in place; all others stay as they are, to the bit.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        file: a safetensors file. Its tensor "1.mlp.down_proj.weight" (uint8) says of each number of that weight in the
            second of `layers`, counted flat, whether it stays: bit i % 8 of byte i // 8 is that of number i.

    Raises:
        ConfigError: a block has no such weight, or the mask is not one of as many numbers.
        CheckpointError: the file is broken.
    """
    places = _places(decoder, layers, file)
    with torch.no_grad(), safe_open(file, "pt") as masks:
        for parameter, entry in places:
            keep = unpacked(masks.get_tensor(entry.name), 0, parameter.numel()).reshape(parameter.shape)
            parameter.masked_fill_(~keep.to(parameter.device), 0)
    return decoder


def _places(decoder: Decoder, layers: tuple[int, ...], file: str) -> list[tuple[torch.nn.Parameter, TensorEntry]]:
    found = fitted_places(decoder, layers, file)
    for parameter, entry in found:
        if (entry.torch_dtype, entry.shape) != (torch.uint8, (packed_length(parameter.numel()),)):
            raise ConfigError(
                f"tensor '{entry.name}' in '{file}' is {entry.torch_dtype} {list(entry.shape)}; a mask of the "
                f"{parameter.numel()} numbers that '{decoder.name}' has there is torch.uint8 "
                f"[{packed_length(parameter.numel())}]"
            )
    return found


def _masker(file: Path, entry: TensorEntry) -> Change:
    def masked(values: torch.Tensor, start: int) -> torch.Tensor:
        first, last = start // 8, packed_length(start + values.numel())
        with file.open("rb") as masks:
            masks.seek(entry.start + first)
            bits = torch.frombuffer(bytearray(masks.read(last - first)), dtype=torch.uint8)
        return values.masked_fill(~unpacked(bits, start - 8 * first, values.numel()), 0)

    return masked
