"""How large the weights are: nothing is run, no text is read."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.architecture.sublayers import part_modules
from hf_prune.errors import ConfigError
from hf_prune.registry import measure
from hf_prune.samples import Batch
from hf_prune.units import PARTS, Part


@measure(
    "magnitude",
    title="Sum of the weights' magnitudes",
    url="https://arxiv.org/abs/2402.02834",
    needs="weights",
    scores=PARTS,
)
def magnitude(*, p: int = 1) -> Callable[[Decoder, Sequence[Batch]], dict[str, Any]]:
    """Sum of |W|^p over all weights of a block, of its attention, or of its MLP (Shortened LLaMA, Mag).

    Norms and biases are weights of the block; a norm in front of attention or MLP counts to the block alone. Nothing
    is scaled by how many weights there are: of blocks of different sizes, the small ones matter less.

    Args:
        p: 1, or 2.

    Raises:
        ConfigError: p is neither.
    """
    if p not in (1, 2):
        raise ConfigError(f"measure 'magnitude' has p={p!r}; expected 1 or 2")

    def find(decoder: Decoder, _batches: Sequence[Batch]) -> dict[str, Any]:
        refuse_quantized(decoder, "magnitude")
        sums = {w: double_sum(wide(w.detach()).abs() ** p) for block in decoder.blocks for w in block.parameters()}
        return {"importances": by_part(decoder, sums), "forwards": 0.0}

    return find


def refuse_quantized(decoder: Decoder, name: str) -> None:
    """Refuse weights that are stored as codes, or not at all.

    Args:
        decoder: the model.
        name: of the measure.

    Raises:
        ConfigError: there are such weights.
    """
    quantizer = getattr(decoder.model, "hf_quantizer", None)
    codes = any(not w.is_floating_point() or w.element_size() < 2 for w in decoder.blocks.parameters())
    if quantizer is not None or codes:
        raise quantized_error(name, decoder.name)
    if any(w.is_meta for w in decoder.blocks.parameters()):
        raise ConfigError(
            f"measure '{name}' needs all of '{decoder.name}' in memory, and some of its weights are offloaded; take a "
            "larger machine, or a measure of hidden states"
        )


def quantized_error(name: str, model: str) -> ConfigError:
    """Says that a measure cannot look at quantized weights.

    Args:
        name: of the measure.
        model: what the model is called.
    """
    return ConfigError(
        f"measure '{name}' adds up weights, and '{model}' holds quantized ones: codes, whose size says nothing, and "
        "which have no gradients. Load it unquantized, or take a measure of hidden states or outputs"
    )


def by_part(decoder: Decoder, sums: Mapping[nn.Parameter, torch.Tensor]) -> dict[Part, tuple[float | None, ...]]:
    """Sums of single tensors as sums of blocks, attentions and MLPs.

    Args:
        decoder: the model.
        sums: of tensors of its blocks; those that are missing count nothing.

    Returns:
        By part, one a layer; None where a layer has no such part.
    """

    def total(weights: Iterable[nn.Parameter]) -> float:
        return sum(float(sums[w]) for w in weights if w in sums)

    def of_part(block: nn.Module, part: Part) -> float | None:
        modules = [block] if part == "block" else list(part_modules(block, part).values())
        return sum(total(module.parameters()) for module in modules) if modules else None

    found = {part: tuple(of_part(block, part) for block in decoder.blocks) for part in PARTS}
    return {part: values for part, values in found.items() if any(value is not None for value in values)}


def wide(values: torch.Tensor) -> torch.Tensor:
    """The same numbers in float32; float64 stays."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def double_sum(values: torch.Tensor) -> torch.Tensor:
    """Their sum in float64; on Metal, which has none, in float32."""
    return values.sum(dtype=torch.float32 if values.device.type == "mps" else torch.float64)
