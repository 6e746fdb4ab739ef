"""A stream that fills fewer directions than it has loses nothing when the rest is cut, and something one cut later."""

import pytest

from .support import difference, fused, points_of, ranked, sliced_by, widths_of

CASES = ["llama", "llama-biased", "opt", "phi", "gpt2", "falcon-rw", "qwen3_moe"]
LOSSLESS = 1e-8


def ranks(case: str) -> list[int]:
    return [20 + 4 * point for point in range(points_of(ranked(case)))]


@pytest.mark.parametrize("orientation", ["pca", "random"])
@pytest.mark.parametrize("case", CASES)
def test_widths_equal_to_the_ranks_are_lossless(case: str, orientation: str) -> None:
    decoder = ranked(case)
    widths = ranks(case)
    assert len(set(widths)) == len(widths) and max(widths) < 64, "every point has another rank, the head's too"
    sliced = sliced_by(decoder, widths_of(decoder, widths), orientation=orientation)
    assert difference(sliced, fused(decoder)) < LOSSLESS


@pytest.mark.parametrize("case", ["llama", "opt", "phi"])
def test_one_column_less_anywhere_is_a_loss(case: str) -> None:
    decoder = ranked(case)
    for point in range(points_of(decoder)):
        short = ranks(case)
        short[point] -= 1
        error = difference(sliced_by(decoder, widths_of(decoder, short)), fused(decoder))
        assert error > 1e-2, f"point {point} was cut below its rank"


@pytest.mark.parametrize("weighting", ["raw", "token"])
@pytest.mark.parametrize("case", ["llama", "opt", "phi"])
def test_one_basis_at_the_highest_rank_is_lossless(case: str, weighting: str) -> None:
    decoder = ranked(case)
    top = max(ranks(case))
    widths = widths_of(decoder, [top] * points_of(decoder))
    settings = {"basis": "global", "weighting": weighting}
    assert difference(sliced_by(decoder, widths, **settings), fused(decoder)) < LOSSLESS
    less = widths_of(decoder, [top - 1] * points_of(decoder))
    assert difference(sliced_by(decoder, less, **settings), fused(decoder)) > 1e-2


def test_one_table_at_the_rank_of_the_embeddings_is_lossless() -> None:
    """The tied head reads its table in the few directions that the embeddings fill, and needs no others."""
    decoder = ranked("llama-tied")
    sliced = sliced_by(decoder, widths_of(decoder, ranks("llama-tied")), tied=True)
    assert sliced.config.tie_word_embeddings
    assert difference(sliced, fused(decoder)) < LOSSLESS
