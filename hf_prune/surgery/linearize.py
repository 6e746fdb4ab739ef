"""Put linear maps in the place of attentions: the model needs modeling code of its own."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hf_prune.architecture import Decoder
from hf_prune.architecture.families import is_patched
from hf_prune.checkpoint import read_header
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.patching.families import check_attention_left, check_patchable, check_stock
from hf_prune.registry import surgery
from hf_prune.surgery.remove import patch, removed_parts


@surgery(
    "linearize",
    title="Put linear maps in the place of attentions",
    url="https://arxiv.org/abs/2505.21077",
    cuts="nothing",
)
def linearize(decoder: Decoder, layers: tuple[int, ...], *, file: str = "") -> Decoder:
    """Let the attention of some blocks, with the norm in front of it, be W x + b, in place.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        file: a safetensors file. Its tensors "1.weight", (width, width) W, and "1.bias", (width,) b, are for the
            second of `layers`, rounded to the model's dtype.

    Raises:
        ArchitectureError: there is no modeling code for such models of this family, a block has no attention, or none
            would be left; nothing is changed then.
        ConfigError: the file holds something else.
        CheckpointError: the file is broken.
    """
    config: Any = decoder.config
    check_patchable(config, decoder.name)
    gone, linear = removed_parts(config), list(getattr(config, "linear_attention", None) or ())
    if lacking := sorted({*gone["attention"], *linear} & set(layers)):
        raise ArchitectureError(f"the blocks {lacking} of '{decoder.name}' have no attention any more")
    check_attention_left(decoder.num_layers, [*gone["attention"], *linear, *layers], decoder.name)
    _check_file(file, len(layers), config.hidden_size)
    if not is_patched(config.model_type):
        check_stock(decoder.model, decoder.name)
    patch(decoder, removed_parts=gone, linear_attention=sorted([*linear, *layers]))
    blocks: Any = decoder.blocks
    with torch.no_grad(), safe_open(file, "pt") as fitted:
        for number, layer in enumerate(layers):
            for leaf in ("weight", "bias"):
                blocks[layer].self_attn.map.get_parameter(leaf).copy_(fitted.get_tensor(f"{number}.{leaf}"))
    return decoder


def _check_file(file: str, count: int, width: int) -> None:
    wanted = {f"{n}.{leaf}": shape for n in range(count) for leaf, shape in _shapes(width).items()}
    try:
        found = {name: entry.shape for name, entry in read_header(Path(file)).items()}
    except FileNotFoundError as error:
        raise ConfigError(f"there is no file of fitted tensors '{file}'; fit them again") from error
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ConfigError(
            f"'{file}' does not hold the maps of {count} attentions of width {width}: expected "
            f"{[(name, wanted.get(name)) for name in odd[:3]]}, found {[(name, found.get(name)) for name in odd[:3]]}"
        )


def _shapes(width: int) -> dict[str, tuple[int, ...]]:
    return {"weight": (width, width), "bias": (width,)}
