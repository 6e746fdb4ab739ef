"""Plans that zero weights of tiny models."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from hf_prune.amounts import NOT_WEIGHED
from hf_prune.architecture import Decoder
from hf_prune.config import PrunerConfig
from hf_prune.fit import fit
from hf_prune.plan import make_plan
from hf_prune.records import Plan
from hf_prune.sparsity.maps import linear_maps
from hf_prune.sparsity.masks import unpacked

from ..making import reference
from ..tiny import tokens

METHODS = ("wanda", "owl", "magnitude-sparsity", "lamp")
SEQUENCES = [tokens(1, length, seed=length)[0] for length in (5, 12, 9, 3, 12)]


def chosen(method: str, decoder: Decoder, sparsity: float = 0.5, **options: Any) -> Plan:
    config = PrunerConfig(method=method, sparsity=sparsity, surgery_kwargs=options)
    ref = reference(decoder.num_layers, model_type=decoder.config.model_type)
    return make_plan(config, ref, NOT_WEIGHED, None)


def sparse(
    method: str,
    decoder: Decoder,
    folder: Path,
    sparsity: float = 0.5,
    sequences: Sequence[torch.Tensor] = tuple(SEQUENCES),
    batch_size: int = 2,
    **options: Any,
) -> Plan:
    config = PrunerConfig(method=method, sparsity=sparsity, surgery_kwargs=options)
    plan = chosen(method, decoder, sparsity, **options)
    given = config.options("surgery")
    return fit(plan, decoder, "sparsify", given, folder, sequences=sequences, batch_size=batch_size)


def kept_of(decoder: Decoder, folder: Path) -> dict[tuple[int, str], torch.Tensor]:
    """The mask of each map, as (outputs, inputs) bool."""
    masks = load_file(folder / Plan.FITTED)
    found = {}
    for each in linear_maps(decoder):
        bits = masks.pop(f"{each.layer}.{each.name}")
        found[each.layer, each.name] = each.as_matrix(
            unpacked(bits, 0, each.weight.numel()).reshape(each.weight.shape)
        )
    assert not masks, "masks of something that is no linear map"
    return found
