"""Second moments and the basis that they name, against sums and projections written out."""

import pytest
import torch

from hf_prune.slicing.moments import SecondMoment, principal_basis

WIDTH = 12


def text(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """(batch, length, width) states and their mask, with huge numbers where the pads are."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(4, 9, WIDTH, dtype=torch.float64, generator=generator) + 0.3
    hidden[..., 2] *= 20
    mask = torch.ones(4, 9, dtype=torch.int64)
    mask[1, 5:] = mask[3, 2:] = 0
    hidden[mask == 0] = 1e6
    return hidden, mask


def brute_force(hidden: torch.Tensor, mask: torch.Tensor, weighting: str) -> torch.Tensor:
    total = torch.zeros(WIDTH, WIDTH, dtype=torch.float64)
    for row, kept in zip(hidden.double(), mask, strict=True):
        for state, counts in zip(row, kept.tolist(), strict=True):
            if counts:
                state = state / state.norm() if weighting == "token" else state
                total += torch.outer(state, state)
    return total


@pytest.mark.parametrize("weighting", ["raw", "token"])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.float16, 2e-3)]
)
def test_second_moment(weighting: str, dtype: torch.dtype, tolerance: float) -> None:
    moment = SecondMoment(WIDTH, weighting)
    total, seen = torch.zeros(WIDTH, WIDTH, dtype=torch.float64), 0
    for seed in range(3):
        hidden, mask = text(seed)
        if seed == 2:
            mask = torch.ones_like(mask)
            hidden = hidden.clamp(-50, 50)
        hidden = hidden.clamp(max=6e4).to(dtype)
        moment.add(hidden, mask)
        total += brute_force(hidden, mask, weighting)
        seen += int(mask.sum())
    assert moment.total is not None and moment.total.dtype == torch.float64
    torch.testing.assert_close(moment.total, total, rtol=tolerance, atol=tolerance * float(total.abs().max()))
    assert moment.tokens == seen
    assert moment.normalised().trace() == pytest.approx(1)
    torch.testing.assert_close(moment.normalised() * total.trace(), moment.total, rtol=1e-5, atol=0)


def test_a_token_of_huge_norm_rules_the_raw_moment_alone() -> None:
    hidden = torch.eye(4, dtype=torch.float64)[None] * torch.tensor([1.0, 1.0, 1.0, 1e3], dtype=torch.float64)[:, None]
    raw, token = SecondMoment(4, "raw"), SecondMoment(4, "token")
    for moment in (raw, token):
        moment.add(hidden, torch.ones(1, 4))
    assert raw.normalised()[3, 3] > 0.99
    assert torch.equal(token.normalised(), torch.eye(4, dtype=torch.float64) / 4)


def test_an_empty_token_is_no_reason_for_nan() -> None:
    moment = SecondMoment(4, "token")
    moment.add(torch.zeros(1, 2, 4), torch.ones(1, 2))
    assert moment.total is not None and not moment.total.any()


def test_sums_stay_exact_where_float32_forgets() -> None:
    """One huge batch first: in float32 each later one is below the last digit of the sum, all of them are not."""
    big = torch.full((1, 1, 2), 2.0**13)
    small = torch.tensor([[[1.0, -1.0]]])
    mask = torch.ones(1, 1)
    moment, plain = SecondMoment(2), torch.zeros(2, 2)
    for hidden in (big, *[small] * 200):
        moment.add(hidden, mask)
        plain += hidden[0].T @ hidden[0]
    exact = 2.0**26 * torch.ones(2, 2) + 200 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    assert moment.total is not None
    assert torch.equal(moment.total, exact.double())
    assert (plain.double() - exact.double()).abs().max() >= 100, "the sum was meant to be hard"


@pytest.mark.parametrize("orientation", ["pca", "random"])
@pytest.mark.parametrize("width", [1, 5, WIDTH])
def test_principal_basis_spans_the_top_directions(orientation: str, width: int) -> None:
    hidden, mask = text()
    moment = brute_force(hidden, mask, "raw")
    basis = principal_basis(moment, width, orientation, torch.Generator().manual_seed(0))
    assert basis.shape == (WIDTH, width) and basis.dtype == torch.float64 and basis.is_contiguous()
    torch.testing.assert_close(basis.T @ basis, torch.eye(width, dtype=torch.float64), rtol=0, atol=1e-13)
    # An independent way to the same space: the left singular vectors of the states themselves.
    left, _, _ = torch.linalg.svd(hidden[mask.bool()].T, full_matrices=True)
    top = left[:, :width]
    torch.testing.assert_close(basis @ basis.T, top @ top.T, rtol=0, atol=1e-10)


def test_pca_is_sorted_and_random_is_spread() -> None:
    hidden, mask = text()
    moment = brute_force(hidden, mask, "raw")
    carried = {}
    for orientation in ("pca", "random"):
        basis = principal_basis(moment, 8, orientation, torch.Generator().manual_seed(0))
        carried[orientation] = (basis.T @ moment @ basis).diagonal()
    assert torch.equal(carried["pca"], carried["pca"].sort(descending=True).values)
    assert carried["random"].max() < 0.8 * carried["pca"].max()
    assert carried["random"].sum() == pytest.approx(float(carried["pca"].sum()))


def test_random_orientation_is_that_of_the_seed() -> None:
    hidden, mask = text()
    moment = brute_force(hidden, mask, "raw")
    one, same, other = (
        principal_basis(moment, 8, "random", torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(one, same) and not torch.allclose(one, other)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    principal_basis(moment, 8, "random", torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before), "the caller's own random numbers were used up"


def test_random_turns_are_uniform() -> None:
    """Without the signs of the triangle's diagonal, entries on the diagonal would lean to one side."""
    eye, generator = torch.diag(torch.arange(3.0, 0.0, -1.0, dtype=torch.float64)), torch.Generator().manual_seed(0)
    turns = torch.stack([principal_basis(eye, 3, "random", generator) for _ in range(2000)])
    assert turns.mean(0).abs().max() < 0.06  # a standard error is 0.013
    torch.testing.assert_close(turns.square().mean(0), torch.full((3, 3), 1 / 3).double(), rtol=0, atol=0.03)
