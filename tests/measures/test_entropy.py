"""Entropy of histograms: of known numbers, by hand, and of parts that do nothing."""

import math
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import prune_layers
from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.measure import measure_model
from hf_prune.measures.entropy import channel_entropy
from hf_prune.planners.order import top_k
from hf_prune.registry import measure
from hf_prune.samples import Samples

from ..making import TEXT, asked, reference
from ..tiny import DEPTH, tiny_model
from .walking import SEQUENCES, captured, measured, write_nothing


def by_hand(states: torch.Tensor, bins: int = 20) -> float:
    """Sum over channels of the entropy of numpy's histogram."""
    total = 0.0
    for channel in states.double().numpy().T:
        counts, _ = numpy.histogram(channel, bins)
        shares = counts[counts > 0] / len(channel)
        total -= float((shares * numpy.log(shares)).sum())
    return total


@given(st.integers(1, 40), st.integers(1, 5), st.integers(2, 30), st.integers(0, 10**6))
def test_entropy_is_that_of_histograms(tokens: int, width: int, bins: int, seed: int) -> None:
    x = torch.randn(tokens, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert float(channel_entropy(x, bins)) == pytest.approx(by_hand(x, bins), abs=1e-9)


def test_uniform_channels_have_the_most() -> None:
    x = torch.rand(200_000, 3, generator=torch.Generator().manual_seed(0))
    assert float(channel_entropy(x, 20)) == pytest.approx(3 * math.log(20), rel=1e-3)
    assert float(channel_entropy(torch.arange(20.0)[:, None].expand(20, 4), 20)) == pytest.approx(4 * math.log(20))


def test_values_on_an_edge_and_flat_channels() -> None:
    x = torch.tensor([[0.0, 7], [1, 7], [2, 7], [2, 7]])  # two bins: [0, 1) and [1, 2]
    assert float(channel_entropy(x, 2)) == pytest.approx(-(0.25 * math.log(0.25) + 0.75 * math.log(0.75)))
    assert float(channel_entropy(x[:, 1:], 2)) == 0 == float(channel_entropy(x[:1], 20))


@given(st.floats(1e-3, 1e3), st.floats(-100, 100), st.integers(0, 10**6))
def test_stretching_and_shifting_channels_does_not_matter(factor: float, shift: float, seed: int) -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    factors = factor * torch.tensor([1, 2, -1, 3, -5, 0.1], dtype=torch.float64)
    assert float(channel_entropy(x * factors + shift, 20)) == pytest.approx(float(channel_entropy(x, 20)), abs=1e-9)


def test_order_of_tokens_does_not_matter() -> None:
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    assert channel_entropy(x, 20) == channel_entropy(x.flip(0), 20)


@pytest.mark.parametrize("bins", [20, 7])
def test_gain_of_blocks_equals_brute_force(bins: int) -> None:
    model = tiny_model("llama")
    rows = []
    for ids in SEQUENCES:
        entropies = [by_hand(h, bins) for h in captured(model, ids)]
        rows.append([entropies[k + 1] - entropies[k] for k in range(DEPTH)])
    lengths, table = numpy.array([len(ids) for ids in SEQUENCES]), numpy.array(rows)
    found = measured(model, "entropy", bins=bins)
    assert numpy.ptp(table) > 1
    numpy.testing.assert_allclose(found["importances"]["block"], lengths @ table / lengths.sum(), atol=1e-9)
    error = table.std(0, ddof=1) / math.sqrt(len(SEQUENCES))
    numpy.testing.assert_allclose(found["importance_errors"]["block"], error, atol=1e-8)


def test_gains_of_parts_add_up_to_those_of_their_block() -> None:
    model = tiny_model("llama")
    parts, blocks = (measured(model, name)["importances"] for name in ("sublayer_entropy", "entropy"))
    both = [a + m for a, m in zip(parts["attention"], parts["mlp"], strict=True)]
    assert both == pytest.approx(blocks["block"], abs=1e-9)


def test_what_adds_nothing_adds_no_entropy() -> None:
    model = tiny_model("llama")
    write_nothing(model.model.layers[2], "attention")
    write_nothing(model.model.layers[4], "attention", "mlp")
    parts, blocks = (measured(model, name, batch_size=4)["importances"] for name in ("sublayer_entropy", "entropy"))
    assert [k for k, value in enumerate(parts["attention"]) if value == 0] == [2, 4]
    assert [k for k, value in enumerate(parts["mlp"]) if value == 0] == [4]
    assert [k for k, value in enumerate(blocks["block"]) if value == 0] == [4]


def test_blocks_that_are_gone_are_not_there() -> None:
    gone = {0, 3, 7}
    found: Any = measured(tiny_model("llama"), "entropy", batch_size=3, seen=gone)["importances"]["block"]
    cut = measured(prune_layers(tiny_model("llama"), sorted(gone)), "entropy", batch_size=3)["importances"]["block"]
    assert [found[k] for k in sorted(gone)] == [None] * 3
    assert [value for k, value in enumerate(found) if k not in gone] == list(cut)


def test_the_least_gain_goes_first() -> None:
    samples = Samples(tuple(SEQUENCES), TEXT)
    record = measure_model(decoder_of(tiny_model("llama")), samples, model=reference(DEPTH), name="entropy")
    gains = record.importances["block"]
    (layer,) = top_k(asked(record, 1, range(2, DEPTH - 1))).layers
    assert gains[layer] == min(gains[2:-1])  # type: ignore[type-var]


@pytest.mark.parametrize("name", ["entropy", "sublayer_entropy"])
def test_one_bin_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="bins=1; expected at least 2"):
        measure.get(name).function(bins=1)
