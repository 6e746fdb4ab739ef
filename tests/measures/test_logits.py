"""Distances between the logits of cut models and of the whole one."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.judging import CutJudge
from hf_prune.measures import logits as measures
from hf_prune.units import Cut, Unit

from ..making import logits
from ..tiny import tiny_model, tokens

NAMES = ("logit_angle", "logit_l2", "logit_js")
SEQUENCES = [tokens(1, 12)[0], tokens(1, 9, seed=1)[0], tokens(1, 5, seed=2)[0]]


def judge(name: str, batch_size: int = 2) -> CutJudge:
    return CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, name, batch_size=batch_size)


def cut_logits(blocks: tuple[int, ...], ids: torch.Tensor) -> torch.Tensor:
    """Of a model that lost those blocks for good."""
    model = tiny_model("llama")
    model.model.layers = torch.nn.ModuleList(b for i, b in enumerate(model.model.layers) if i not in blocks)
    return logits(model, ids[None])[0, :-1].double()


def reference(name: str, ours: torch.Tensor, theirs: torch.Tensor) -> torch.Tensor:
    """The plainest way to say it."""
    if name == "logit_angle":
        return torch.cosine_similarity(ours, theirs, dim=-1).arccos() / math.pi
    if name == "logit_l2":
        return (ours - theirs).square().sum(-1).sqrt()
    p, q = ours.softmax(-1), theirs.softmax(-1)
    mean = (p + q) / 2
    return ((p * (p / mean).log()).sum(-1) + (q * (q / mean).log()).sum(-1)) / 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_it_is_that_of_a_model_that_lost_the_blocks(name: str, batch_size: int) -> None:
    cuts = [(3,), (2, 5), (0, 6, 7)]
    found = judge(name, batch_size).scores([frozenset(map(Unit, cut)) for cut in cuts])
    for cut, value in zip(cuts, found, strict=True):
        each = [reference(name, cut_logits(cut, ids), cut_logits((), ids)) for ids in SEQUENCES]
        assert value == pytest.approx(float(torch.cat(each).mean()), rel=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_cut_is_no_distance(name: str) -> None:
    nothing: Cut = frozenset()
    assert judge(name).scores([nothing]) == [pytest.approx(0, abs=1e-15)]


@pytest.mark.parametrize("name", NAMES)
def test_many_positions_are_those_of_one_after_the_other(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = judge(name).scores([frozenset({Unit(3)})])
    monkeypatch.setattr(measures, "_POSITIONS", 2)
    assert judge(name).scores([frozenset({Unit(3)})]) == pytest.approx(expected, rel=1e-12)


def rows(seed: int, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(2, 7, 11, generator=generator, dtype=torch.float64)).unbind()


@given(st.integers(0, 1000), st.sampled_from([1e-3, 1.0, 1e3]))
def test_bounds_and_symmetry(seed: int, scale: float) -> None:
    one, other = rows(seed, scale)
    for distance in (measures.angles, measures.lengths, measures.jensen_shannon):
        assert torch.allclose(distance(one, other), distance(other, one), rtol=1e-12, atol=0)
    assert ((measures.angles(one, other) >= 0) & (measures.angles(one, other) <= 1)).all()
    divergences = measures.jensen_shannon(one, other)
    assert ((divergences >= 0) & (divergences <= math.log(2))).all()


@pytest.mark.parametrize(
    ("distance", "expected"),
    [(measures.angles, 0.5), (measures.lengths, math.sqrt(2)), (measures.jensen_shannon, None)],
)
def test_of_what_they_do_not_see(distance: Callable[..., torch.Tensor], expected: float | None) -> None:
    one, other = torch.eye(2, dtype=torch.float64)[:1], torch.eye(2, dtype=torch.float64)[1:]
    if expected is not None:
        assert float(distance(one, other)) == pytest.approx(expected, abs=1e-15)
    if distance is measures.angles:  # no scale
        assert float(distance(one, 7 * other)) == pytest.approx(0.5, abs=1e-15)
        assert float(distance(one, -one)) == 1
    if distance is measures.jensen_shannon:  # no constant
        assert float(distance(one, one + 5)) == pytest.approx(0, abs=1e-15)
        assert float(distance(1000 * one, 1000 * other)) == math.log(2)


def test_small_angles_keep_their_digits() -> None:
    one = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    for angle in (1e-6, 1e-9, 1e-12):
        other = torch.tensor([[math.cos(angle), math.sin(angle)]], dtype=torch.float64)
        assert float(measures.angles(one, other)) * math.pi == pytest.approx(angle, rel=1e-9)


def test_tokens_that_are_ruled_out_add_nothing_and_nan_goes_on() -> None:
    one, other = rows(0, 1.0)
    one[:, 3], other[:, 3] = -math.inf, -math.inf
    kept = [i for i in range(11) if i != 3]
    expected = measures.jensen_shannon(one[:, kept], other[:, kept])
    assert torch.allclose(measures.jensen_shannon(one, other), expected, rtol=1e-12)
    other[2, 5] = math.nan
    for distance in (measures.angles, measures.lengths, measures.jensen_shannon):
        assert distance(one, other)[2].isnan()
