"""Least squares with a ridge towards no change, against brute force."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.fitting.solve import Moments, Ridge, fold, solve

WIDTH = 8


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def moments(written: torch.Tensor, missing: torch.Tensor, pieces: int = 1) -> Moments:
    made = Moments.zeros(written.shape[1], written.device)
    for some, more in zip(written.chunk(pieces), missing.chunk(pieces), strict=True):
        made.add(some, more)
    return made


def test_an_exactly_linear_window_is_recovered() -> None:
    written, change = drawn(200, WIDTH), drawn(WIDTH, WIDTH, seed=1)
    found = Ridge(moments(written, written @ change, pieces=7)).solve(1e-12)
    assert torch.allclose(found, change, atol=1e-9)


def test_nothing_missing_leaves_the_identity() -> None:
    written = drawn(200, WIDTH)
    assert not Ridge(moments(written, torch.zeros_like(written))).solve(1e-6).any()


@given(st.integers(0, 2**31), st.sampled_from([1e-6, 1e-3, 0.1, 1.0, 10.0]), st.integers(1, 40))
@settings(max_examples=25)
def test_the_ridge_against_lstsq(seed: int, strength: float, rows: int) -> None:
    written, missing = drawn(rows, WIDTH, seed=seed), drawn(rows, WIDTH, seed=seed + 1)
    sums = moments(written, missing, pieces=3 if rows > 3 else 1)
    found = Ridge(sums).solve(strength)
    root = (strength * sums.gram.trace() / WIDTH).sqrt()
    stacked = torch.cat([written, root * torch.eye(WIDTH, dtype=torch.float64)])
    wanted = torch.linalg.lstsq(stacked, torch.cat([missing, torch.zeros(WIDTH, WIDTH, dtype=torch.float64)])).solution
    assert torch.allclose(found, wanted, atol=1e-6, rtol=1e-5)
    direct = (written @ found - missing).square().sum() / rows
    assert sums.error(found) == pytest.approx(float(direct), rel=1e-6, abs=1e-9)
    assert sums.error(found) <= sums.error(None) * (1 + 1e-9)


def test_too_few_tokens_do_not_make_numbers_explode() -> None:
    """The plain inverse of such a Gram matrix has entries around 1e15."""
    written, missing = drawn(3, WIDTH), drawn(3, WIDTH, seed=1)
    assert Ridge(moments(written, missing)).solve(1e-6).abs().max() < 100


def test_an_mlp_that_writes_nothing_stays_as_it_is() -> None:
    assert not Ridge(moments(torch.zeros(20, WIDTH).double(), drawn(20, WIDTH))).solve(0.1).any()


def test_held_out_tokens_decide() -> None:
    strengths = (1e-6, 1e-2, 1.0)
    written, change, noise = drawn(300, WIDTH), drawn(WIDTH, WIDTH, seed=1), drawn(300, WIDTH, seed=2)
    good = solve(moments(written, written @ change), moments(written[:50], written[:50] @ change), strengths)
    assert good.change is not None and good.error < 1e-6 * good.dropped and good.strength == 1e-6
    few = moments(written[:10], noise[:10])
    bad = solve(few, moments(written[100:], noise[100:]), strengths)
    assert bad.change is None and bad.error >= bad.dropped == pytest.approx(float(noise[100:].square().sum() / 200))


@pytest.mark.parametrize("transposed", [False, True])
def test_folding(transposed: bool) -> None:
    weight, bias, change = drawn(WIDTH, 5), drawn(WIDTH, seed=1), drawn(WIDTH, WIDTH, seed=2)
    inputs, both = drawn(9, 5, seed=3), torch.eye(WIDTH, dtype=torch.float64) + change
    wanted = (inputs @ weight.T + bias) @ both
    made = fold(weight.T if transposed else weight, change, transposed=transposed)
    assert made.shape == (weight.T if transposed else weight).shape
    found = inputs @ (made if transposed else made.T).double() + fold(bias, change, transposed=transposed).double()
    assert torch.allclose(found, wanted, atol=1e-5)
