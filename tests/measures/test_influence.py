"""How much each block changes the stream: against brute force, and on blocks that do what is known."""

import math
from typing import Any

import numpy
import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import prune_layers
from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.judging import CutJudge
from hf_prune.measure import measure_model
from hf_prune.measures.influence import relative_change
from hf_prune.measures.means import LayerMeans, spans
from hf_prune.observing import Place
from hf_prune.planners.order import greedy, top_k
from hf_prune.planners.problem import Problem
from hf_prune.registry import measure
from hf_prune.samples import Samples, by_length
from hf_prune.units import Unit

from ..making import TEXT, asked, logits, reference
from ..tiny import DEPTH, tiny_model, tokens
from .walking import SEQUENCES, captured, measured, write_nothing

NAMES = ("block_influence", "relative_magnitude")
VALUES: dict[tuple[str, str], Any] = {
    ("block_influence", ""): lambda u, v: 1 - float(u @ v / math.sqrt((u @ u) * (v @ v))),
    ("relative_magnitude", "l1"): lambda u, v: float((v - u).abs().sum() / u.abs().sum()),
    ("relative_magnitude", "l2"): lambda u, v: float(((v - u) ** 2).sum().sqrt() / (u**2).sum().sqrt()),
}


def brute_force(model: PreTrainedModel, value: Any, tokens: str, skip_first: bool) -> tuple[Any, Any]:
    """Mean over tokens and its standard error over samples, by layer."""
    rows = []
    for ids in SEQUENCES:
        h = captured(model, ids)
        chosen = range(int(skip_first), len(ids))[-1 if tokens == "last" else 0 :]
        rows.append(numpy.array([[value(h[k][t], h[k + 1][t]) for t in chosen] for k in range(DEPTH)]))
    means = numpy.array([row.mean(1) for row in rows])
    return numpy.concatenate(rows, 1).mean(1), means.std(0, ddof=1) / math.sqrt(len(rows))


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("which", ["all", "last"])
@pytest.mark.parametrize(("name", "norm"), list(VALUES))
def test_scores_equal_brute_force(name: str, norm: str, which: str, skip_first: bool) -> None:
    options: dict[str, Any] = {"tokens": which, "skip_first": skip_first} | ({"norm": norm} if norm else {})
    for model_type in ("llama", "gpt2", "falcon"):
        model = tiny_model(model_type)
        mean, error = brute_force(model, VALUES[name, norm], which, skip_first)
        for batch_size, tolerance in ((1, 1e-9), (4, 2e-5)):
            found = measured(model, name, batch_size=batch_size, **options)
            assert found["samples"] == len(SEQUENCES) and numpy.ptp(mean) > 0.01
            numpy.testing.assert_allclose(found["importances"]["block"], mean, rtol=tolerance, atol=tolerance)
            numpy.testing.assert_allclose(
                found["importance_errors"]["block"], error, rtol=tolerance, atol=10 * tolerance
            )


def test_influence_is_one_less_redundancy() -> None:
    model = tiny_model("llama")
    influence, cosine = measured(model, "block_influence"), measured(model, "redundancy")
    assert influence["importances"]["block"] == pytest.approx([1 - c for c in cosine["layers"]], abs=1e-12)
    assert influence["importance_errors"]["block"] == pytest.approx(cosine["layer_standard_errors"], abs=1e-9)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("which", ["all", "last"])
def test_blocks_that_write_nothing_have_none_and_go_first(name: str, which: str) -> None:
    model = tiny_model("llama")
    for index in (3, 5):
        write_nothing(model.model.layers[index], "attention", "mlp")
    found = measured(model, name, batch_size=4, tokens=which)
    zero = [k for k, value in enumerate(found["importances"]["block"]) if value == 0]
    assert zero == [3, 5] and min(found["importances"]["block"]) == 0
    assert [found["importance_errors"]["block"][k] for k in zero] == [0, 0]
    samples = Samples(tuple(SEQUENCES), TEXT)
    record = measure_model(decoder_of(model), samples, model=reference(DEPTH), name=name, options={"tokens": which})
    assert record.importances == measured(model, name, by_length(SEQUENCES), 8, tokens=which)["importances"]
    assert record.forwards == 1
    assert top_k(asked(record, 2, range(DEPTH))).layers == (3, 5)
    before = logits(model, tokens(3, 11))
    assert torch.equal(logits(prune_layers(model, [3, 5]), tokens(3, 11)), before)


def stream(*factors: float) -> list[torch.Tensor]:
    """States of two samples behind blocks that multiply by factors."""
    states = [torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))]
    for factor in factors:
        states.append(states[-1] * factor)
    return states


def shown(name: str, states: list[torch.Tensor], **options: Any) -> tuple[float, ...]:
    observer = measure.get(name).function(**options)
    for layer, (before, after) in enumerate(zip(states, states[1:], strict=False)):
        observer.see(Place(layer, len(states) - 1, 0), before, after, torch.ones(2, 6, dtype=torch.int64))
    found: tuple[float, ...] = observer.result()["importances"]["block"]
    return found


def test_known_blocks() -> None:
    states = stream(-1, 2, 1, -0.5)
    assert shown("block_influence", states) == (2, 0, 0, 2), "a block that negates its input"
    for norm in ("l1", "l2"):
        found = shown("relative_magnitude", states, norm=norm)
        assert found == pytest.approx((2, 1, 0, 1.5), abs=1e-12) and found[2] == 0


@pytest.mark.parametrize("name", NAMES)
def test_scale_does_not_matter(name: str) -> None:
    states = [torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    for factor in (1e-3, 8.0, 1e4):
        assert shown(name, [s * factor for s in states]) == pytest.approx(shown(name, states), rel=1e-6)


def test_zero_states_give_finite_numbers() -> None:
    zero, one = torch.zeros(2, 3), torch.tensor([[0.0, 0, 0], [1, 0, 0]])
    assert relative_change(zero, one, 2).tolist() == [0, 1]
    assert relative_change(one, zero, 1).tolist() == [0, 1]


def test_last_block_is_measured_before_the_final_norm() -> None:
    model = tiny_model("llama")
    before = [measured(model, name)["importances"] for name in NAMES]
    model.model.norm.weight.data.copy_(torch.randn_like(model.model.norm.weight))
    assert [measured(model, name)["importances"] for name in NAMES] == before


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("gone", [{0, 3}, {7}, {2, 5, 6}])
def test_blocks_that_are_gone_are_not_there(name: str, gone: set[int]) -> None:
    found = measured(tiny_model("llama"), name, batch_size=3, seen=gone)
    cut = measured(prune_layers(tiny_model("llama"), sorted(gone)), name, batch_size=3)
    kept = [k for k in range(DEPTH) if k not in gone]
    assert found["samples"] == cut["samples"] == len(SEQUENCES)
    for key in ("importances", "importance_errors"):
        assert [found[key]["block"][k] for k in gone] == [None] * len(gone)
        assert [found[key]["block"][k] for k in kept] == list(cut[key]["block"])


def test_iterative_influence_measures_the_cut_model_again() -> None:
    model = tiny_model("llama")
    judge = CutJudge(decoder_of(model), SEQUENCES, "block_influence", batch_size=3)
    choice = greedy(Problem("m", DEPTH, tuple(map(Unit, range(5))), 3, judge=judge))  # those behind them change
    gone: list[int] = []
    for trial in choice.trials:
        found = measured(model, "block_influence", batch_size=3, seen=gone)["importances"]["block"]
        best = min((k for k in range(5) if k not in gone), key=lambda k: (found[k], k))
        gone.append(best)
        assert trial.removed == tuple(map(Unit, sorted(gone))) and trial.score == pytest.approx(found[best], rel=1e-5)
    once = measured(model, "block_influence")["importances"]["block"]
    assert abs(found[7] - once[7]) > 1e-3, "nothing new"


def test_padding_and_batches_do_not_matter() -> None:
    for name in NAMES:
        alone, together = (measured(tiny_model("llama"), name, batch_size=size) for size in (1, 6))
        assert together["importances"]["block"] == pytest.approx(alone["importances"]["block"], rel=1e-4)


def test_pads_never_enter_the_sums() -> None:
    h, after = torch.randn(2, 1, 5, 8, generator=torch.Generator().manual_seed(0))
    nan = torch.full((1, 2, 8), float("nan"))
    plain, padded = (measure.get("relative_magnitude").function(tokens="last") for _ in range(2))
    plain.see(Place(0, 1, 0), h, after, torch.ones(1, 5, dtype=torch.int64))
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    padded.see(Place(0, 1, 0), torch.cat([h, nan], 1), torch.cat([after, nan], 1), mask)
    assert plain.result() == padded.result()


def test_which_tokens_count() -> None:
    mask = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert spans(mask) == [slice(0, 3), slice(0, 4)]
    assert spans(mask, "last") == [slice(2, 3), slice(3, 4)]
    assert spans(mask, "all", True) == [slice(1, 3), slice(1, 4)]
    with pytest.raises(MeasureError, match="a sample of 1 tokens has none to measure with skip_first=True"):
        spans(mask[:, 2:][:1], "last", True)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("block_influence", {"tokens": "first"}, "tokens='first'; expected 'all', or 'last'"),
        ("relative_magnitude", {"norm": "l3"}, "norm='l3' .*expected one of: l1, l2"),
    ],
)
def test_unknown_choices_are_refused(name: str, options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        measure.get(name).function(**options)


def test_state_does_not_grow_with_samples() -> None:
    def held(count: int) -> int:
        observer: LayerMeans = measure.get("block_influence").function()
        for batch in range(count):
            for layer in range(6):
                h = torch.randn(2, 50, 32)
                observer.see(Place(layer, 6, batch), h, h + 1, torch.ones(2, 50, dtype=torch.int64))
        return sum(t.numel() for t in observer.sums())

    assert held(1) == held(20) == 6 * 5
