"""The exact tests can fail: each mistake that slicing is known for shows in the check that is meant to find it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hf_prune.slicing import fold, rotate
from hf_prune.slicing.modeling import model_class, sliced
from hf_prune.slicing.slicer import _Loop

from .support import (
    WIDTH,
    base,
    difference,
    filled,
    full,
    fused,
    fused_case,
    points_of,
    random_basis,
    ranked,
    sliced_by,
    widths_of,
)  # fmt: skip


def folding(case: str) -> float:
    """Norms folded: as the base, but for float32 in transformers' RMSNorm."""
    decoder = base(case)
    return difference(fused(decoder), decoder.model)


def turning(case: str) -> float:
    """Every point in a basis of its own: as folded."""
    decoder = base(case)
    turned = filled(decoder, [random_basis(WIDTH, WIDTH, seed) for seed in range(points_of(decoder))])
    return difference(turned, fused_case(case))


def slicing_nothing(case: str) -> float:
    """Full widths, bases from text: as folded."""
    decoder = base(case)
    return difference(sliced_by(decoder, full(decoder), orientation="random"), fused_case(case))


def cutting_to_the_rank(case: str) -> float:
    """Widths equal to the ranks of the stream: as folded."""
    decoder = ranked(case)
    widths = [20 + 4 * point for point in range(points_of(decoder))]
    return difference(sliced_by(decoder, widths_of(decoder, widths)), fused(decoder))


def small_activations(case: str) -> float:
    """Folded, in a model whose stream is so small that epsilon counts."""
    decoder = base(case)
    table: Any = decoder.model.get_input_embeddings()
    kept = table.weight.detach().clone()
    with torch.no_grad():
        table.weight.mul_(0.01)
    try:
        return difference(fused(decoder), decoder.model)
    finally:
        with torch.no_grad():
            table.weight.copy_(kept)


Patch = pytest.MonkeyPatch


def narrow_divisor(patch: Patch) -> None:
    """The norm divides by the width that is left."""

    def forward(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        return hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + self.eps)

    patch.setattr(sliced.SlicedRMSNorm, "forward", forward)


def other_epsilon(patch: Patch) -> None:
    """Epsilon is 1e-5 whatever the config says, as the authors' code has it."""
    own = sliced.epsilon
    patch.setattr(sliced, "epsilon", lambda norm: 10 * own(norm))


def mean_subtracted(patch: Patch) -> None:
    """Writers lose their mean in a model with RMSNorm too, as embeddings do in the authors' code."""
    own = rotate.writing
    patch.setattr(rotate, "writing", lambda basis, _centred: own(basis, True))


def mean_kept(patch: Patch) -> None:
    """Writers keep their mean in a model with LayerNorm."""
    own = rotate.writing
    patch.setattr(rotate, "writing", lambda basis, _centred: own(basis, False))


def no_scale(patch: Patch) -> None:
    """The norm's weights are forgotten."""
    patch.setattr(rotate, "reading", lambda basis, _norm: basis)


def no_shift(patch: Patch) -> None:
    """The norm's bias is forgotten."""
    own = rotate.norm_scale

    def without(*args: Any) -> fold.NormScale:
        found = own(*args)
        return fold.NormScale(found.scale, None if found.shift is None else 0 * found.shift, found.centred)

    patch.setattr(rotate, "norm_scale", without)


def no_offset(patch: Patch) -> None:
    """Gemma's weights are taken for the scale itself, without the 1."""
    patch.setattr(model_class("gemma"), "norm_offset", 0.0)


def _shortcut(patch: Patch, change: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]) -> None:
    def shortcut(self: Any, layer: int, step: Any, before: torch.Tensor, behind: torch.Tensor) -> None:
        product = change(before, behind).to(self.decoder.model.dtype)
        self._put(self.blocks[layer], {f"{step.shortcut}.weight": product})

    patch.setattr(rotate.Rotator, "shortcut", shortcut)


def coarse_shortcut(patch: Patch) -> None:
    """Bases are rounded to bfloat16 before they are multiplied: the shortcut is no rotation any more."""
    _shortcut(patch, lambda before, behind: behind.bfloat16().T.double() @ before.bfloat16().double())


def shortcut_in_float32(patch: Patch) -> None:
    """A shortcut is multiplied in float32."""
    _shortcut(patch, lambda before, behind: behind.float().T @ before.float())


def shortcut_backwards(patch: Patch) -> None:
    """A shortcut turns the other way."""
    _shortcut(patch, lambda before, behind: before.T @ behind)


def products_in_float32(patch: Patch) -> None:
    """Weights and bases are multiplied in float32."""
    patch.setattr(fold, "times", lambda weight, right: (weight.float() @ right.float()).to(weight.dtype).contiguous())


def smallest_directions(patch: Patch) -> None:
    """The directions that carry least are kept."""
    own = torch.linalg.eigh

    def eigh(moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        values, vectors = own(moment)
        return values.flip(-1), vectors.flip(-1)

    patch.setattr(torch.linalg, "eigh", eigh)


def moment_without_the_residual(patch: Patch) -> None:
    """The basis behind a step is that of what is added, not of the stream."""
    own = _Loop._advance

    def advance(self: Any, layer: int, step: Any, basis: torch.Tensor) -> Any:
        entered = [self.store[index].clone() for index in range(len(self.batches))]
        own(self, layer, step, basis)
        moment = self._moment()
        for index, batch in enumerate(self.batches):
            moment.add(self.store[index] - entered[index], batch.attention_mask)
        return moment

    patch.setattr(_Loop, "_advance", advance)


@pytest.mark.parametrize(
    ("check", "case", "mistake", "healthy", "wrong"),
    [
        (cutting_to_the_rank, "llama", narrow_divisor, 1e-8, 0.01),
        (cutting_to_the_rank, "opt", narrow_divisor, 1e-8, 0.01),
        (small_activations, "llama", other_epsilon, 1e-4, 0.01),
        (folding, "llama", mean_subtracted, 1e-4, 0.1),
        (folding, "gemma", mean_subtracted, 1e-4, 0.1),
        (folding, "opt", mean_kept, 1e-10, 0.1),
        (folding, "falcon", mean_kept, 1e-10, 0.1),
        (folding, "llama", no_scale, 1e-4, 0.1),
        (folding, "phi", no_scale, 1e-10, 0.1),
        (folding, "gpt2", no_shift, 1e-10, 0.1),
        (folding, "gemma", no_offset, 1e-4, 0.1),
        (turning, "llama", coarse_shortcut, 1e-10, 1e-3),
        (slicing_nothing, "llama", coarse_shortcut, 1e-10, 1e-3),
        (turning, "llama", shortcut_in_float32, 1e-10, 1e-8),
        (turning, "phi", shortcut_backwards, 1e-10, 0.1),
        (turning, "llama", products_in_float32, 1e-10, 1e-8),
        (cutting_to_the_rank, "llama", smallest_directions, 1e-8, 0.1),
        (cutting_to_the_rank, "phi", moment_without_the_residual, 1e-8, 0.1),
    ],
)
def test_a_mistake_shows(
    check: Callable[[str], float],
    case: str,
    mistake: Callable[[Patch], None],
    healthy: float,
    wrong: float,
    monkeypatch: Patch,
) -> None:
    wanted = fused_case(case)  # made without the mistake
    assert wanted is fused_case(case)
    assert check(case) < healthy
    mistake(monkeypatch)
    assert check(case) > wrong
