"""What healing is told of a cut, held against the cut model itself: which blocks are the original's own."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.fitting.nbl import nbl
from hf_prune.fitting.sparsify import sparsify
from hf_prune.fitting.task import Task
from hf_prune.healing.step import compared_positions, parse_losses
from hf_prune.healing.teaching import check_losses
from hf_prune.origins import origin_of
from hf_prune.records import Operation, Plan, Slicing
from hf_prune.units import Unit

from ..fitting.support import cut, fitted, texts
from ..making import reference
from ..tiny import DEPTH, tiny_model, tokens
from .support import settings

Make = Callable[[PreTrainedModel, Path], Plan]
DROP = Operation("drop", (3, 4))


def plan_of(model_type: str, *operations: Operation, **fields: Any) -> Plan:
    return Plan(reference(DEPTH, model_type=model_type), "m", "p", operations, "why", **fields)


def fit_of(surgery: str, **options: Any) -> Make:
    return lambda model, folder: fitted(model, (3, 4), surgery, folder, texts(80, 16), **options)


def done_by(*operations: Operation) -> Make:
    return lambda model, folder: plan_of(model.config.model_type, *operations)


def standing_in(found: Any, model: PreTrainedModel, folder: Path, **fields: Any) -> Plan:
    """A plan of what a fitted surgery answered, with its file."""
    save_file({name: t.contiguous() for name, t in found.tensors.items()}, folder / Plan.FITTED)
    operations = tuple(
        Operation(op.kind, op.layers, {"file": Plan.FITTED} if op.reads_fitted else op.options)
        for op in found.operations
    )
    return plan_of(model.config.model_type, *operations, **fields).at(folder)


def linearized(model: PreTrainedModel, folder: Path) -> Plan:
    return standing_in(nbl(Task(decoder_of(model), (2, 5), list(tokens(80, 16)))), model, folder)


def sparse(model: PreTrainedModel, folder: Path) -> Plan:
    task = Task(decoder_of(model), (), sparsity=0.5)
    return standing_in(sparsify(task, scores="magnitude"), model, folder, sparsity=0.5)


CUTS: dict[str, tuple[str, Make, tuple[int, ...], tuple[int, ...], tuple[int, ...]]] = {
    # model type, plan, changed, replaced and patched blocks, by their positions among the six or eight that stay
    "drop": ("llama", done_by(DROP), (), (), ()),
    "scale": ("llama", fit_of("compensate"), (3, 4, 5), (), ()),
    "scale gains": ("gemma2", fit_of("compensate"), (3, 4, 5), (), ()),
    "fold": ("llama", fit_of("replaceme", strengths=[100.0], min_tokens_per_width=1), (2,), (2,), ()),
    "train": ("llama", fit_of("streamline", epochs=1, learning_rate=1e-4), (2,), (2,), ()),
    "merge": ("llama", fit_of("merge", mode="mean"), (2,), (2,), ()),
    "patch": ("llama", fit_of("emulate", rank=0), (), (), (2,)),
    "linearize": ("llama", linearized, (2, 5), (2, 5), ()),
    "mask": ("llama", sparse, tuple(range(DEPTH)), (), ()),
    "silence": ("gpt2", done_by(Operation("silence", (1, 6), {"part": "mlp"}), DROP), (1, 4), (), ()),
    "remove": ("llama", done_by(Operation("remove", (1,), {"part": "attention"})), (1,), (), ()),
}


@pytest.mark.parametrize("name", CUTS)
def test_blocks_that_are_not_the_originals_own(name: str, tmp_path: Path) -> None:
    model_type, make, changed, replaced, patched = CUTS[name]
    model = tiny_model(model_type)
    plan = make(model, tmp_path)
    origin = origin_of(plan)
    assert (origin.changed, origin.replaced, origin.patched) == (changed, replaced, patched)
    whole, pruned = decoder_of(model), decoder_of(cut(model, plan))
    other = set()
    for at, layer in enumerate(origin.kept):
        mine, theirs = pruned.blocks[at].state_dict(), whole.blocks[layer].state_dict()
        if mine.keys() != theirs.keys() or not all(torch.equal(t, theirs[n]) for n, t in mine.items()):
            other.add(at)
    assert other == {*changed, *patched}
    assert origin.same_below == min([*other, *origin.seams, pruned.num_layers])


@pytest.mark.parametrize(("name", "rescaled"), [("scale", True), ("scale gains", True), ("fold", False)])
def test_a_stream_of_another_size_is_not_compared(name: str, rescaled: bool, tmp_path: Path) -> None:
    model_type, make, *_ = CUTS[name]
    model = tiny_model(model_type)
    origin = origin_of(make(model, tmp_path), lambda: model)
    assert origin.rescaled == rescaled
    for loss in ("kl=1,seam=0.1", "hidden"):
        terms = parse_losses(settings(loss=loss))
        positions = compared_positions(terms, origin)
        if rescaled:
            with pytest.raises(ConfigError, match=r"surgery 'compensate'.*Take loss 'kl'"):
                check_losses(terms, positions, 0, origin)
        else:
            check_losses(terms, positions, 0, origin)
    check_losses(parse_losses(settings(loss="kl")), (), 0, origin)


def test_only_what_writes_nothing_is_silent(tmp_path: Path) -> None:
    assert origin_of(linearized(tiny_model("llama"), tmp_path)).silent == ()  # a linear map writes
    silence = Operation("silence", (1, 6), {"part": "mlp"})
    assert origin_of(plan_of("llama", silence, DROP)).silent == (Unit(1, "mlp"), Unit(4, "mlp"))


def test_slicing_changes_every_block() -> None:
    slicing = Slicing(32, 24, (24,) * DEPTH, (24,) * DEPTH, "per_block", False, False, 0.25, "width", 2, 1, 0)
    origin = origin_of(plan_of("llama", Operation("slice", ()), slicing=slicing))
    assert origin.changed == tuple(range(DEPTH))
    assert (origin.same_below, origin.seams) == (0, ())
