"""Put fitted tensors in the place of a model's own."""

from pathlib import Path

import torch
from safetensors import safe_open

from hf_prune.architecture import Decoder
from hf_prune.checkpoint import read_header
from hf_prune.errors import ConfigError
from hf_prune.registry import surgery
from hf_prune.surgery.edits import Change, Edit, Edits
from hf_prune.surgery.scale import parameter_of
from hf_prune.tensors import TensorEntry


def replace_streamed(decoder: Decoder, layers: tuple[int, ...], edits: Edits, *, file: str = "") -> Decoder:
    """The same on a model without weights; see `replace`.

    Args:
        decoder: the model, on the meta device.
        layers: see `replace`.
        edits: what happens to the numbers is entered here.
        file: see `replace`.
    """
    for parameter, entry in _places(decoder, layers, file):
        edits.add(parameter, Edit(_reader(Path(file), entry), fresh=True))
    return decoder


@surgery(
    "replace",
    title="Put fitted tensors in the place of the model's",
    url="https://arxiv.org/abs/2505.02819",
    cuts="nothing",
    streamed=replace_streamed,
)
def replace(decoder: Decoder, layers: tuple[int, ...], *, file: str = "") -> Decoder:
    """Put the tensors of a file in the place of some blocks' weights, in place.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        file: a safetensors file. Its tensor "1.mlp.down_proj.weight" takes the place of that weight in the second of
            `layers`, rounded to the model's dtype.

    Raises:
        ConfigError: a block has no such weight, or it has another shape.
        CheckpointError: the file is broken.
    """
    places = _places(decoder, layers, file)
    with torch.no_grad(), safe_open(file, "pt") as fitted:
        for parameter, entry in places:
            parameter.copy_(fitted.get_tensor(entry.name).to(parameter.dtype))
    return decoder


def _places(decoder: Decoder, layers: tuple[int, ...], file: str) -> list[tuple[torch.nn.Parameter, TensorEntry]]:
    found = fitted_places(decoder, layers, file)
    for parameter, entry in found:
        if tuple(parameter.shape) != entry.shape:
            raise ConfigError(
                f"tensor '{entry.name}' in '{file}' has shape {list(entry.shape)}; '{decoder.name}' has "
                f"{list(parameter.shape)} there"
            )
    return found


def fitted_places(
    decoder: Decoder, layers: tuple[int, ...], file: str
) -> list[tuple[torch.nn.Parameter, TensorEntry]]:
    """The tensors of a file of fitted ones, each with the weight that it is for.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        file: a safetensors file; its tensor "1.mlp.down_proj.weight" is for that weight in the second of `layers`.

    Raises:
        ConfigError: there is no such file, block or weight.
        CheckpointError: the file is broken.
    """
    if not Path(file).is_file():
        raise ConfigError(f"there is no file of fitted tensors '{file}'; fit them again")
    found = []
    for name, entry in read_header(Path(file)).items():
        number, _, weight = name.partition(".")
        if not number.isdecimal() or int(number) >= len(layers):
            raise ConfigError(
                f"'{file}' holds a tensor '{name}'; expected the number of one of the {len(layers)} blocks, counted "
                "from 0, and the name of its weight"
            )
        found.append((parameter_of(decoder, layers[int(number)], weight), entry))
    return found


def _reader(file: Path, entry: TensorEntry) -> Change:
    dtype = entry.torch_dtype

    def read(values: torch.Tensor, start: int) -> torch.Tensor:
        with file.open("rb") as fitted:
            fitted.seek(entry.start + start * dtype.itemsize)
            raw = bytearray(fitted.read(values.numel() * dtype.itemsize))
        return torch.frombuffer(raw, dtype=dtype).to(values.dtype)

    return read
