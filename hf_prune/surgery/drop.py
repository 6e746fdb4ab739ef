"""Drop whole decoder blocks: the model stays a stock model of its architecture."""

import re
from collections.abc import Iterable
from typing import Any, Literal, TypeVar

from torch import nn
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder, check_prunable, decoder_of, rewrite_quantization, update_live_config
from hf_prune.architecture.decoder import renumber
from hf_prune.config import check_indices
from hf_prune.errors import ConfigError
from hf_prune.registry import surgery
from hf_prune.surgery.edits import Edits

ModelT = TypeVar("ModelT", bound=PreTrainedModel)

Export = Literal["soft", "hard"]


def drop_streamed(decoder: Decoder, layers: tuple[int, ...], edits: Edits, *, export: Export = "soft") -> Decoder:
    """The same on a model without weights: what is kept stays as it is.

    Args:
        decoder: the model, on the meta device.
        layers: see `drop`.
        edits: nothing is entered.
        export: see `drop`.
    """
    del edits
    return drop(decoder, layers, export=export)


@surgery("drop", title="Drop whole blocks", url="https://arxiv.org/abs/2403.17887", streamed=drop_streamed)
def drop(decoder: Decoder, layers: tuple[int, ...], *, export: Export = "soft") -> Decoder:
    """Remove blocks from a model in memory, in place (UIDL section 3.2, step 3).

    Args:
        decoder: the model.
        layers: 0-based indices of the blocks that go; checked by `check_layers`.
        export: what becomes of single attentions and MLPs that go: "soft" zeroes what they write by, and leaves a
            stock model that is no smaller; "hard" takes them out, and ships the modeling code that such a model needs
            (Llama, Mistral, Qwen2, Qwen3). Whole blocks are taken out either way.

    Returns:
        The view of the cut model.
    """
    del export  # the plan says it of each part
    gone = set(layers)
    keep = [i for i in range(decoder.num_layers) if i not in gone]
    blocks = nn.ModuleList([decoder.blocks[i] for i in keep])
    # Everything below cannot fail: a refusal above leaves the model untouched.
    for position, block in enumerate(blocks):
        renumber(block, position)
    cut = decoder.set_blocks(blocks)
    update_live_config(decoder.config, keep)
    _update_quantization(decoder.model, keep)
    _update_device_map(decoder, keep)
    return cut


def prune_layers(model: ModelT, layers: Iterable[int]) -> ModelT:
    """Drop decoder blocks from any supported causal LM in memory.

    Works in place and returns the same object; a refusal leaves the model untouched. The result saves with
    `save_pretrained`, loads with `AutoModelForCausalLM`, and generates with a cache.

    Args:
        model: a causal language model of transformers.
        layers: 0-based indices of the blocks that go.

    Raises:
        ArchitectureError: the model cannot lose blocks.
        ConfigError: an index is no whole number, out of range or named twice, or nothing would be left.

    Example:
        ```python
        model = prune_layers(AutoModelForCausalLM.from_pretrained("org/model"), [21, 22, 23])
        ```
    """
    decoder = decoder_of(model)
    check_prunable(model.config, decoder.name)
    drop(decoder, check_layers(layers, decoder.num_layers, decoder.name))
    return model


def check_layers(layers: Iterable[int], depth: int, name: str) -> tuple[int, ...]:
    """Validate indices against a depth and return them ascending.

    Raises:
        ConfigError: an index is no whole number, out of range or named twice, or no block would be left.
    """
    checked = check_indices(layers)
    outside = [i for i in checked if not 0 <= i < depth]
    if outside:
        raise ConfigError(
            f"layers={list(checked)}: {outside} out of range; '{name}' has {depth} blocks, counted 0 to {depth - 1}"
        )
    if len(checked) >= depth:
        raise ConfigError(f"layers={list(checked)} leaves none of the {depth} blocks of '{name}'; keep at least one")
    return checked


def _update_quantization(model: PreTrainedModel, keep: list[int]) -> None:
    settings = getattr(model.config, "quantization_config", None)
    if isinstance(settings, dict):
        model.config.quantization_config = rewrite_quantization(settings, keep)
    elif settings is not None:
        for key, value in rewrite_quantization(vars(settings), keep).items():
            setattr(settings, key, value)


def _update_device_map(decoder: Decoder, keep: list[int]) -> None:
    placed: dict[str, Any] | None = getattr(decoder.model, "hf_device_map", None)
    if not placed:
        return
    position = {old: new for new, old in enumerate(keep)}
    pattern = re.compile(rf"^{re.escape(decoder.blocks_path)}\.(\d+)(.*)$")
    renamed: dict[str, Any] = {}
    for path, device in placed.items():
        found = pattern.match(path)
        if found is None:
            renamed[path] = device
        elif int(found[1]) in position:
            renamed[f"{decoder.blocks_path}.{position[int(found[1])]}{found[2]}"] = device
    model: Any = decoder.model
    model.hf_device_map = renamed
