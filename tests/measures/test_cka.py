"""Centred kernel alignment: its invariances, and the sums against formulas over whole tables."""

import itertools
import math
from collections.abc import Sequence

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.architecture import decoder_of
from hf_prune.errors import MeasureError
from hf_prune.measure import measure_model
from hf_prune.measures import states
from hf_prune.measures.cka import PairwiseAlignment, alignments
from hf_prune.planners.window import window
from hf_prune.samples import Samples

from ..making import TEXT, asked, reference
from ..tiny import DEPTH, tiny_model, tokens
from .walking import SEQUENCES, captured, measured, write_nothing


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hsic(x: torch.Tensor, y: torch.Tensor) -> float:
    """The unbiased estimate, as it is written down (Song et al.)."""
    n = len(x)
    k, other = ((z @ z.T).numpy() for z in (x, y))
    numpy.fill_diagonal(k, 0)
    numpy.fill_diagonal(other, 0)
    last = 2 / (n - 2) * (k @ other).sum()
    middle = k.sum() * other.sum() / ((n - 1) * (n - 2))
    return float((numpy.trace(k @ other) + middle - last) / (n * (n - 3)))


def biased(x: torch.Tensor, y: torch.Tensor) -> float:
    """CKA of centred tables, |X'Y|^2 / (|X'X| |Y'Y|)."""
    x, y = x - x.mean(0), y - y.mean(0)
    return float((x.T @ y).norm() ** 2 / ((x.T @ x).norm() * (y.T @ y).norm()))


def found(*samples: Sequence[torch.Tensor]) -> numpy.ndarray:
    observer = PairwiseAlignment()
    for sample in samples:
        observer.add(sample)
    return numpy.array(observer.result()["distances"])


@pytest.mark.parametrize("held", [2**28, 1, 700])
@pytest.mark.parametrize("tokens", [4, 5, 20])
def test_sums_over_rows_are_those_of_whole_tables(held: int, tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states, "CHUNK_BYTES", held)
    points = [random(tokens, 3, seed=1), random(tokens, 7, seed=2), random(tokens, 7, seed=3) + 3]
    expected = [[tokens * hsic(x, y) for y in points] for x in points]
    numpy.testing.assert_allclose(
        alignments(points), expected, rtol=1e-9, atol=1e-9 * abs(numpy.array(expected)).max()
    )


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_table_equals_brute_force(model_type: str) -> None:
    model = tiny_model(model_type)
    rows = []
    for ids in SEQUENCES:
        h = captured(model, ids)
        rows.append([[len(ids) * hsic(x, y) for y in h] for x in h])
    total = numpy.array(rows).sum(0)
    own = numpy.sqrt(total.diagonal())
    result = measured(model, "cka")
    assert result["samples"] == len(SEQUENCES)
    numpy.testing.assert_allclose(result["distances"], 1 - total / numpy.outer(own, own), rtol=0, atol=1e-9)
    batched = measured(model, "cka", batch_size=4)
    numpy.testing.assert_allclose(batched["distances"], result["distances"], rtol=0, atol=1e-4)


@given(st.integers(4, 12), st.integers(1, 6), st.floats(1e-3, 1e3), st.integers(0, 10**6))
def test_rotation_scale_and_shift_do_not_matter(tokens: int, width: int, scale: float, seed: int) -> None:
    x, y = random(tokens, width, seed=seed), random(tokens, width, seed=seed + 1)
    rotation, _ = torch.linalg.qr(random(width, width, seed=seed + 2))
    table = found([x, y, scale * x @ rotation, x + random(width, seed=seed + 3)])
    assert table[0, 2] == pytest.approx(0, abs=1e-9) and table[0, 3] == pytest.approx(0, abs=1e-9)
    assert table[1, 2] == pytest.approx(table[1, 0], abs=1e-9)
    assert ((table >= 0) & (table <= 2)).all()


def test_equal_states_are_not_apart() -> None:
    x = random(30, 8)
    assert found([x, x.clone(), random(30, 8, seed=1)])[0, 1] == pytest.approx(0, abs=1e-12)


def test_the_dense_formula_is_met_where_there_are_many_tokens_for_few_channels() -> None:
    x = random(1500, 4)
    y = torch.cat([x[:, :2], random(1500, 2, seed=1)], 1) @ random(4, 4, seed=2)
    assert 0.1 < 1 - biased(x, y) < 0.9
    assert found([x, y])[0, 1] == pytest.approx(1 - biased(x, y), abs=0.01)


def test_unrelated_states_are_wholly_apart_where_the_biased_formula_calls_them_alike() -> None:
    x, y = random(20, 400), random(20, 400, seed=1)
    assert biased(x, y) > 0.9
    assert found([x, y])[0, 1] == pytest.approx(1, abs=0.1)


def test_flat_states_have_no_direction() -> None:
    flat, x = torch.ones(6, 3), random(6, 3)
    table = found([flat, x, 2 * flat])
    assert table[0, 1] == 1 and table[0, 2] == 0 and numpy.isfinite(table).all()


def test_standard_errors_are_those_of_a_resampled_quotient() -> None:
    mix = random(6, 6, seed=9)
    samples = []
    for seed in range(300):
        x = random(24, 6, seed=2 * seed) * (1 + seed % 3)
        samples.append([x, x @ mix + random(24, 6, seed=2 * seed + 1)])
    observer = PairwiseAlignment()
    for sample in samples:
        observer.add(sample)
    table = torch.stack([alignments(sample) for sample in samples])
    draws = torch.randint(len(samples), (2000, len(samples)), generator=torch.Generator().manual_seed(0))
    total = table[draws].sum(1)
    spread = float((total[:, 0, 1] / (total[:, 0, 0] * total[:, 1, 1]).sqrt()).std())
    result = observer.result()
    assert result["standard_errors"][0][1] == pytest.approx(spread, rel=0.1) and spread > 1e-4
    assert result["standard_errors"][0][0] == 0


def test_short_samples_do_not_count() -> None:
    model, short = tiny_model("llama"), [tokens(1, 3)[0], tokens(1, 2)[0]]
    assert measured(model, "cka", [*SEQUENCES, *short]) == measured(model, "cka")
    assert measured(model, "cka", SEQUENCES[:1])["standard_errors"][0][3] == 0
    with pytest.raises(MeasureError, match="measure 'cka' found no sample of 4 tokens or more"):
        measured(model, "cka", short)


def test_planted_blocks_make_the_window() -> None:
    model = tiny_model("llama")
    for index in (4, 5):
        write_nothing(model.model.layers[index], "attention", "mlp")
    samples = Samples(tuple(SEQUENCES), TEXT)
    record = measure_model(decoder_of(model), samples, model=reference(DEPTH), name="cka")
    choice = window(asked(record, 2, range(DEPTH)))
    assert choice.layers == (4, 5) and choice.reason.endswith("apart (1 - CKA).")
    assert "4–5 changes the residual stream least" in choice.reason


def test_first_tokens_may_be_left_out() -> None:
    model = tiny_model("llama")
    rows = [captured(model, ids)[:, 1:] for ids in SEQUENCES if len(ids) > 4]
    result = measured(model, "cka", skip_first=True)
    assert result["samples"] == len(rows)
    total = numpy.array([[[h.shape[1] * hsic(x, y) for y in h] for x in h] for h in rows]).sum(0)
    for i, j in itertools.combinations(range(DEPTH + 1), 2):
        expected = 1 - total[i, j] / math.sqrt(total[i, i] * total[j, j])
        assert result["distances"][i][j] == pytest.approx(expected, abs=1e-9)
