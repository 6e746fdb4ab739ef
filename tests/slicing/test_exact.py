"""What cuts nothing changes nothing: folded norms, turned streams, one table for both ends."""

import copy

import pytest
import torch

from hf_prune.slicing.modeling import SLICEABLE
from hf_prune.slicing.points import Widths
from hf_prune.slicing.read_costs import can_stay_tied

from ..making import logits
from ..tiny import tokens
from .support import (
    CASES,
    TIED,
    WIDTH,
    base,
    centred,
    difference,
    each_family,
    filled,
    full,
    fused_case,
    mixed,
    points_of,
    random_basis,
    sliced_by,
    text,
)  # fmt: skip

EXACT = 1e-10
IN_FLOAT32 = 1e-4
"""transformers computes RMSNorm and rotary positions in float32, in a float64 model too."""

every_case = pytest.mark.parametrize("case", CASES)


def bases(case: str) -> list[torch.Tensor]:
    return [random_basis(WIDTH, WIDTH, seed) for seed in range(points_of(base(case)))]


@every_case
def test_folding_the_norms_changes_nothing(case: str) -> None:
    decoder = base(case)
    assert logits(decoder.model, tokens()).std() > 0.5
    assert difference(fused_case(case), decoder.model) < (EXACT if centred(case) else IN_FLOAT32)


@every_case
def test_turning_every_point_another_way_changes_nothing(case: str) -> None:
    decoder = base(case)
    turned = filled(decoder, bases(case))
    assert difference(turned, fused_case(case)) < EXACT
    head, table = turned.get_output_embeddings(), turned.get_input_embeddings()
    assert head.weight is not table.weight and not turned.config.tie_word_embeddings


@every_case
def test_slicing_at_full_width_changes_nothing(case: str) -> None:
    decoder = base(case)
    sliced = sliced_by(decoder, full(decoder), orientation="random")
    assert difference(sliced, fused_case(case)) < EXACT


@each_family
def test_one_basis_at_full_width_changes_nothing(case: str) -> None:
    decoder = base(case)
    sliced = sliced_by(decoder, full(decoder), basis="global", orientation="random")
    assert difference(sliced, fused_case(case)) < EXACT
    assert not [name for name, _ in sliced.named_modules() if "shortcut" in name], "a global basis needs none"


@pytest.mark.parametrize("case", TIED)
def test_one_table_for_embeddings_and_head(case: str) -> None:
    decoder = base(case)
    assert can_stay_tied(decoder)
    models = [
        filled(decoder, bases(case), tied=True),
        sliced_by(decoder, full(decoder), orientation="random", tied=True),
        sliced_by(decoder, full(decoder), basis="global", tied=True),
    ]
    for model in models:
        assert difference(model, fused_case(case)) < EXACT
        assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
        assert model.config.tie_word_embeddings
        model.tie_weights()
        assert difference(model, fused_case(case)) < EXACT


def test_which_models_can_keep_one_table() -> None:
    assert {case for case in CASES if can_stay_tied(base(case))} == set(TIED)


@every_case
def test_the_kept_directions_may_be_mixed_among_themselves(case: str) -> None:
    decoder = base(case)
    tied = case in TIED
    sorted_, mixed_up = (
        sliced_by(decoder, mixed(decoder), orientation=way, tied=tied, seed=3) for way in ("pca", "random")
    )
    assert difference(mixed_up, sorted_) < 1e-9
    assert difference(sorted_, fused_case(case)) > 0.1, "cut, and nobody noticed"
    names = dict(sorted_.named_parameters())
    assert any(not torch.allclose(p, names[n]) for n, p in mixed_up.named_parameters()), "nothing was mixed"


@pytest.mark.parametrize("case", ["llama", "gpt2", "mixtral", "falcon-rw"])
def test_pads_have_no_say(case: str) -> None:
    decoder = base(case)
    alone, padded = (sliced_by(decoder, mixed(decoder), batch_size=size) for size in (1, 4))
    assert len({len(row) for row in text()}) > 1
    assert difference(padded, alone) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("case", ["llama", "opt", "phi"])
def test_half_precision_is_rounded_once(case: str, dtype: torch.dtype) -> None:
    decoder = base(case, dtype=dtype)
    sliced = sliced_by(decoder, full(decoder), orientation="random")
    assert {p.dtype for p in sliced.parameters()} == {dtype} == {p.dtype for p in decoder.model.parameters()}
    rounded = difference(copy.deepcopy(decoder.model).double(), base(case).model)
    assert 1e-4 < rounded and difference(sliced.double(), fused_case(case)) < 6 * rounded


@pytest.mark.parametrize("case", ["llama", "opt", "falcon"])
def test_error_falls_as_the_width_grows(case: str) -> None:
    decoder, ids = base(case), torch.stack([row[:18] for row in text(40, seed=9)])
    wanted = logits(fused_case(case), ids)
    errors = []
    for width in (8, 16, 24, 28, 32):
        points = [width] * (points_of(decoder) - 1)
        parallel = len(points) == decoder.num_layers
        widths = Widths(width, () if parallel else tuple(points[::2]), tuple(points if parallel else points[1::2]))
        errors.append(float((logits(sliced_by(decoder, widths), ids) - wanted).square().mean().sqrt()))
    assert errors == sorted(errors, reverse=True) and errors[0] > 1.5 * errors[-2] > 0, errors
    assert errors[-1] < 1e-9


@pytest.mark.parametrize(
    ("case", "basis"), [*((case, "per_block") for case in SLICEABLE), ("llama", "global"), ("gpt2", "global")]
)
def test_the_base_stays_as_it_is(case: str, basis: str) -> None:
    decoder = base(case)
    model = decoder.model
    model.train()
    model.get_input_embeddings().weight.requires_grad_(False)
    before = copy.deepcopy((model.state_dict(), dict(model.named_buffers())))
    flags = {name: (p.requires_grad, p.data_ptr()) for name, p in model.named_parameters()}
    try:
        sliced = sliced_by(decoder, full(decoder), basis=basis)
        assert all(module.training for module in model.modules())
        after = (model.state_dict(), dict(model.named_buffers()))
        for was, now in zip(before, after, strict=True):
            assert list(was) == list(now) and all(torch.equal(was[name], now[name]) for name in was)
        assert {name: (p.requires_grad, p.data_ptr()) for name, p in model.named_parameters()} == flags
        assert not any(p.is_inference() for p in (*model.parameters(), *model.buffers()))
        assert model.config.model_type == CASES[case][0] and not hasattr(model.config, "slice_dims")
        own = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
        assert not own & {p.data_ptr() for p in (*sliced.parameters(), *sliced.buffers())}, "tensors are shared"
    finally:
        model.get_input_embeddings().weight.requires_grad_(True)
        model.eval()


@each_family
def test_a_sliced_model_can_be_trained(case: str) -> None:
    decoder = base(case)
    sliced = sliced_by(decoder, mixed(decoder), tied=case in TIED)
    assert not sliced.training
    assert not any(tensor.is_inference() for tensor in (*sliced.parameters(), *sliced.buffers()))
    assert all(p.dtype == torch.float64 and p.requires_grad for p in sliced.parameters())
    ids = tokens(3, 14)
    before = sliced(input_ids=ids, labels=ids).loss.detach()
    sliced.train()(input_ids=ids, labels=ids).loss.backward()
    for name, parameter in sliced.named_parameters():
        assert parameter.grad is not None and torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.any(), f"{name} has no part in the logits"
    torch.optim.SGD(sliced.parameters(), lr=1e-4).step()
    with torch.no_grad():
        assert sliced.eval()(input_ids=ids, labels=ids).loss < before
