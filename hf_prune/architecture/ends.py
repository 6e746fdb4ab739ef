"""What comes behind the blocks: the last norm and the head, by where they are and not by what they are called."""

from dataclasses import dataclass

from torch import nn

from hf_prune.architecture.decoder import Decoder

# Modules of a base model that are no tables of embeddings and still come before its blocks: BLOOM's norm of the
# embeddings, the map by which an OPT of narrow embeddings widens them.
_BEFORE = ("word_embeddings_layernorm", "project_in")


@dataclass(frozen=True)
class Ending:
    """The parameters behind the blocks, by their full names.

    Attributes:
        norm: of the last norm, and of maps between it and the head; none where it has no weights (OLMo).
        head: of the head that are its own.
        tied: whether the head's weight is the table of embeddings.
    """

    norm: tuple[str, ...]
    head: tuple[str, ...]
    tied: bool


def ending_of(decoder: Decoder) -> Ending:
    """Find what comes behind the blocks.

    Args:
        decoder: the model, with weights or without.
    """
    model, head = decoder.model, decoder.model.get_output_embeddings()
    table = {id(p) for p in model.get_input_embeddings().parameters()}
    in_head = {id(p) for p in head.parameters()}
    in_blocks = {id(p) for p in decoder.blocks.parameters()}
    in_tables = {id(p) for m in decoder.base.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
    before = {
        id(p) for m in decoder.base.modules() for n, c in m.named_children() if n in _BEFORE for p in c.parameters()
    }
    elsewhere = table | in_head | in_blocks | in_tables | before
    base = {id(p) for p in decoder.base.parameters()}
    named = [(name, id(parameter)) for name, parameter in model.named_parameters()]
    return Ending(
        norm=tuple(name for name, key in named if key in base - elsewhere),
        head=tuple(name for name, key in named if key in in_head - table),
        tied=bool(in_head & table),
    )
