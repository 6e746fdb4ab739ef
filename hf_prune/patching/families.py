"""Out of which models parts of blocks can be taken, and out of which not."""

from collections.abc import Collection
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture.families import base_type
from hf_prune.errors import ArchitectureError
from hf_prune.patching.modeling import PATCHABLE


def check_patchable(config: Any, name: str) -> None:
    """Refuse, before any work, a model out of whose blocks no part can be taken.

    No stock architecture of these families has a setting for a block without attention or MLP; the modeling code that
    has one is written family by family.

    Args:
        config: the model's text config.
        name: what the model is called in errors.

    Raises:
        ArchitectureError: names the architecture.
    """
    if base_type(config.model_type) not in PATCHABLE:
        raise ArchitectureError(
            f"parts cannot be taken out of '{name}' (model_type '{config.model_type}'): its configuration has no word "
            f"for a block without them, and modeling code that has is there for {', '.join(PATCHABLE)}. Take "
            "surgery 'drop' with export='soft' (silenced parts)"
        )


def check_stock(model: PreTrainedModel, name: str) -> None:
    """Refuse a model in memory that is not of its family's own class: its code would be lost.

    Args:
        model: the model.
        name: what it is called in errors.

    Raises:
        ArchitectureError: names its class.
    """
    stock: Any = AutoModelForCausalLM._model_mapping[type(model.config)]
    if type(model) is not stock:
        raise ArchitectureError(
            f"'{name}' is a {type(model).__name__}; parts can be taken out of a {stock.__name__}, whose modeling code "
            "is known. Leave export='hard' out (silenced parts compute the same)"
        )


def check_attention_left(depth: int, removed: Collection[int], name: str) -> None:
    """Refuse to take the attention out of every block: no token would know of another.

    Args:
        depth: number of blocks.
        removed: 0-based numbers of those without attention.
        name: what the model is called in errors.

    Raises:
        ArchitectureError: none is left.
    """
    if len(set(removed)) >= depth:
        raise ArchitectureError(
            f"the attention of all {depth} blocks of '{name}' would be taken out: no token would know of those before "
            "it; keep at least one"
        )
