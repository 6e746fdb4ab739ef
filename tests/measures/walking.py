"""What tests of measures have in common: text, a walk, and states that plain hooks captured."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import batches
from hf_prune.units import Unit

from ..making import logits
from ..tiny import tokens

SEQUENCES = [tokens(1, length, seed)[0] for seed, length in enumerate((5, 12, 4, 9, 12, 7))]


def measured(
    model: PreTrainedModel,
    name: str,
    sequences: Sequence[torch.Tensor] = SEQUENCES,
    batch_size: int = 1,
    seen: Collection[int | Unit] = (),
    **options: Any,
) -> dict[str, Any]:
    """What a measure of one pass finds."""
    observer = measure.get(name).function(**options)
    Walker(decoder_of(model)).walk(batches(sequences, batch_size), [observer], seen=seen)
    result: dict[str, Any] = observer.result()
    return result


def captured(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """(L+1, length, width) float64: h_0 … h_L of one unpadded sequence, by forward hooks."""
    states: list[torch.Tensor] = []
    blocks = decoder_of(model).blocks

    def before(_module: object, args: tuple, kwargs: dict) -> None:
        states.append((args[0] if args else kwargs["hidden_states"])[0].double())

    def after(_module: object, _args: tuple, output: object) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0].double())

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    logits(model, ids[None])
    for handle in handles:
        handle.remove()
    return torch.stack(states)


def write_nothing(block: torch.nn.Module, *parts: str) -> None:
    """Let parts of a Llama block write nothing: its "attention", its "mlp"."""
    writers: Any = {"attention": lambda b: b.self_attn.o_proj, "mlp": lambda b: b.mlp.down_proj}
    for part in parts:
        torch.nn.init.zeros_(writers[part](block).weight)
