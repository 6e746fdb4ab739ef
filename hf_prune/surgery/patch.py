"""Add maps of the residual stream behind blocks: the model needs modeling code of its own."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from hf_prune.architecture import Decoder
from hf_prune.architecture.families import is_patched
from hf_prune.checkpoint import read_header
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.patching.families import check_patchable, check_stock
from hf_prune.registry import surgery
from hf_prune.surgery.remove import patch as become
from hf_prune.surgery.remove import removed_parts


@surgery(
    "patch",
    title="Add maps of the stream behind blocks",
    url="https://arxiv.org/abs/2505.24680",
    cuts="nothing",
)
def patch(decoder: Decoder, layers: tuple[int, ...], *, rank: int | None = None, file: str = "") -> Decoder:
    """Let h become h + B A h + b behind some blocks, in place.

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks.
        rank: of B A; 0 for b alone, None for one (width, width) map.
        file: a safetensors file. Its tensors are named by number of the block among `layers`: "0.up.weight" (width,
            rank), "0.down.weight" (rank, width), "0.up.bias" (width,); without "down" where `rank` is None; "0.bias"
            alone where it is 0.

    Raises:
        ArchitectureError: there is no modeling code for such models of this family, or there is a map already.
        ConfigError: the file holds something else.
        CheckpointError: the file is broken.
    """
    config: Any = decoder.config
    check_patchable(config, decoder.name)
    if getattr(config, "stream_patches", None):
        raise ArchitectureError(f"'{decoder.name}' has maps of the stream already; expected one operation 'patch'")
    wanted = {f"{n}.{name}": shape for n in range(len(layers)) for name, shape in _shapes(config, rank).items()}
    if not Path(file).is_file():
        raise ConfigError(f"there is no file of fitted tensors '{file}'; fit them again")
    found = {name: entry.shape for name, entry in read_header(Path(file)).items()}
    if found != wanted:
        odd = sorted(name for name in found.keys() | wanted.keys() if found.get(name) != wanted.get(name))
        raise ConfigError(f"'{file}' does not hold maps of rank {rank} for {len(layers)} blocks: {', '.join(odd[:3])}")
    if not is_patched(config.model_type):
        check_stock(decoder.model, decoder.name)
    become(decoder, removed_parts=removed_parts(config), stream_patches=list(layers), stream_rank=rank)
    blocks: Any = decoder.blocks
    with torch.no_grad(), safe_open(file, "pt") as fitted:
        for name in wanted:
            number, _, leaf = name.partition(".")
            blocks[layers[int(number)]].stream_patch.get_parameter(leaf).copy_(fitted.get_tensor(name))
    return decoder


def _shapes(config: Any, rank: int | None) -> dict[str, tuple[int, ...]]:
    width = config.hidden_size
    if rank == 0:
        return {"bias": (width,)}
    down = {} if rank is None else {"down.weight": (rank, width)}
    return {**down, "up.weight": (width, width if rank is None else rank), "up.bias": (width,)}
