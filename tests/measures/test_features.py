"""1 - CKA of what enters the last norm."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.errors import MeasureError
from hf_prune.judging import CutJudge
from hf_prune.measures.features import FeatureDistance
from hf_prune.objective import Left
from hf_prune.units import Cut, Unit

from ..tiny import tiny_model, tokens

SEQUENCES = [tokens(1, 40)[0], tokens(1, 9, seed=1)[0]]  # more tokens than the width of 32, and fewer


def dense(x: torch.Tensor, y: torch.Tensor) -> float:
    """1 - CKA as papers write it."""
    x, y = x.double() - x.double().mean(0), y.double() - y.double().mean(0)
    cross = torch.linalg.matrix_norm(x.T @ y) ** 2
    return 1 - float(cross / (torch.linalg.matrix_norm(x.T @ x) * torch.linalg.matrix_norm(y.T @ y)))


def distance(pairs: list[tuple[torch.Tensor, torch.Tensor]], **options: Any) -> float:
    """What the running sums make of features, one pair of (tokens, width) a sequence."""
    running = FeatureDistance(**options)
    for ours, theirs in pairs:
        ids = torch.zeros(len(ours), dtype=torch.int64)
        left, whole = (Left(ids, hidden, lambda *_: pytest.fail("asks for logits")) for hidden in (ours, theirs))
        left.whole = whole
        running.add(left)
    return running.value()


def features(seed: int, tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, width, generator=generator, dtype=torch.float64)


@given(st.integers(0, 100), st.integers(2, 30), st.integers(1, 20))
def test_one_sequence_is_the_dense_formula(seed: int, tokens: int, width: int) -> None:
    x, y = features(seed, tokens, width), features(seed + 1000, tokens, width)
    found = distance([(x, y)])
    assert found == pytest.approx(dense(x, y), abs=1e-12)
    assert -1e-12 <= found <= 1 + 1e-12


@given(st.integers(0, 100), st.floats(0.01, 100), st.sampled_from([(30, 8), (8, 30)]))
def test_rotation_scale_and_shift_change_nothing(seed: int, scale: float, shape: tuple[int, int]) -> None:
    x, y = features(seed, *shape), features(seed + 1000, *shape)
    rotation = torch.linalg.qr(features(seed + 2000, shape[1], shape[1])).Q
    assert distance([(x, scale * x @ rotation + 3)]) == pytest.approx(0, abs=1e-9)
    assert distance([(scale * x @ rotation + 3, y)]) == pytest.approx(distance([(x, y)]), abs=1e-9)


def test_sequences_are_centred_each_on_its_own() -> None:
    x, y = features(0, 10, 6), features(1, 10, 6)
    apart = distance([(x, y), (x + 100, y - 100)])
    assert apart == pytest.approx(distance([(x, y)]), abs=1e-9)
    assert dense(torch.cat([x, x + 100]), torch.cat([y, y - 100])) == pytest.approx(0, abs=1e-2)


def test_a_huge_first_token_hides_all_else_unless_it_is_left_out() -> None:
    x, y = features(0, 20, 6), features(1, 20, 6)
    x[0], y[0] = 1e4, 1e4
    assert distance([(x, y)]) == pytest.approx(0, abs=1e-2)
    assert distance([(x, y)], skip_first=True) == pytest.approx(dense(x[1:], y[1:]), abs=1e-12)


def test_features_that_do_not_differ() -> None:
    same, other = torch.ones(5, 4), features(0, 5, 4)
    assert distance([(same, other)]) == 1
    with pytest.raises(MeasureError, match="the same for all tokens"):
        distance([(other, same)])


@pytest.mark.parametrize("batch_size", [1, 2])
def test_it_is_that_of_a_model_that_lost_the_blocks(batch_size: int) -> None:
    def entering(blocks: tuple[int, ...], ids: torch.Tensor) -> torch.Tensor:
        model, seen = tiny_model("llama"), []
        model.model.layers = torch.nn.ModuleList(b for i, b in enumerate(model.model.layers) if i not in blocks)
        model.model.norm.register_forward_hook(lambda _module, given, _output: seen.append(given[0][0]))
        with torch.inference_mode():
            model(input_ids=ids[None], use_cache=False)
        return seen[0]

    cuts = [(3,), (0, 6, 7)]
    for sequences in (SEQUENCES[:1], SEQUENCES[1:]):
        judge = CutJudge(decoder_of(tiny_model("llama")), sequences, "output_cka", batch_size=batch_size)
        found = judge.scores([frozenset(map(Unit, cut)) for cut in cuts])
        for cut, value in zip(cuts, found, strict=True):
            assert value == pytest.approx(dense(entering(cut, sequences[0]), entering((), sequences[0])), abs=1e-6)


def test_nothing_cut_is_no_distance() -> None:
    nothing: Cut = frozenset()
    found = CutJudge(decoder_of(tiny_model("llama")), SEQUENCES, "output_cka").scores([nothing])
    assert found == [pytest.approx(0, abs=1e-12)]
