"""A plan fitted and carried out on tiny models, and hooks that do the same to a whole one."""

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.fit import fit
from hf_prune.fitting.task import Task
from hf_prune.records import Operation, Plan
from hf_prune.surgery import apply_plan

from ..making import reference
from ..tiny import DEPTH, tokens


def texts(count: int = 10, length: int = 12, seed: int = 0) -> list[torch.Tensor]:
    """Token sequences of different lengths, so that batches have pads."""
    return [ids[: length - number % 3] for number, ids in enumerate(tokens(count, length, seed))]


def task_of(model: PreTrainedModel, layers: Sequence[int], sequences: Sequence[torch.Tensor] = ()) -> Task:
    """What goes of a model."""
    return Task(decoder_of(model), tuple(layers), sequences, batch_size=4)


def fitted(
    model: PreTrainedModel,
    layers: Sequence[int],
    surgery: str,
    folder: Path,
    sequences: Sequence[torch.Tensor] = (),
    **options: Any,
) -> Plan:
    """A plan that drops these layers, fitted to the model."""
    ref = reference(model.config.num_hidden_layers, model_type=model.config.model_type)
    plan = Plan(ref, "some", "named", (Operation("drop", tuple(layers)),), "")
    decoder = decoder_of(model)
    return fit(plan, decoder, surgery, options, folder, sequences=sequences, batch_size=4)


def cut(model: PreTrainedModel, plan: Plan) -> PreTrainedModel:
    """The plan, carried out on a copy of the model."""
    made = copy.deepcopy(model)
    apply_plan(decoder_of(made), plan)
    return made


Seam = Callable[[torch.Tensor], torch.Tensor]
"""The residual stream in front of blocks that go -> what the block behind them gets."""


@contextmanager
def passed_by(model: PreTrainedModel, layers: Sequence[int], seams: dict[int, Seam]) -> Iterator[None]:
    """Let blocks hand on what they get, but for what happens in front of some of them."""

    def hook(layer: int) -> Callable[..., Any]:
        def answer(_module: Any, given: Any, kwargs: Any, output: Any) -> Any:
            hidden = given[0] if given else kwargs["hidden_states"]
            hidden = seams[layer](hidden) if layer in seams else hidden
            return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

        return answer

    with ExitStack() as stack:
        for layer in layers:
            block = decoder_of(model).blocks[layer]
            stack.callback(block.register_forward_hook(hook(layer), with_kwargs=True).remove)
        yield


def states(model: PreTrainedModel, ids: torch.Tensor) -> list[torch.Tensor]:
    """h_0 to h_L of sequences of one length, in front of the last norm."""
    kept: list[torch.Tensor] = []

    def hook(_module: Any, given: Any, kwargs: Any, output: Any) -> None:
        if not kept:
            kept.append(given[0] if given else kwargs["hidden_states"])
        kept.append(output[0] if isinstance(output, tuple) else output)

    with ExitStack() as stack:
        for block in decoder_of(model).blocks:
            stack.callback(block.register_forward_hook(hook, with_kwargs=True).remove)
        with torch.inference_mode():
            model(input_ids=ids, use_cache=False)
    assert len(kept) == DEPTH + 1
    return kept


def silence(model: PreTrainedModel, layers: Sequence[int]) -> None:
    """Let blocks of a Llama write nothing."""
    for layer in layers:
        block: Any = decoder_of(model).blocks[layer]
        for parameter in (block.self_attn.o_proj.weight, block.mlp.down_proj.weight):
            parameter.data.zero_()


def apart(one: torch.Tensor, two: torch.Tensor) -> float:
    """Relative distance."""
    return float((one - two).norm() / two.norm())
