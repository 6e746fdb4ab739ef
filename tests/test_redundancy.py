"""Layer cosines against brute force over hidden states that plain hooks captured."""

import math

import numpy
import pytest
import torch
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.measure import measure_model
from hf_prune.measures.redundancy import LayerCosines, cosines
from hf_prune.observing import Place
from hf_prune.planners.window import window
from hf_prune.precision import fast_arithmetic
from hf_prune.records import Scores
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import Samples, batches, by_length
from hf_prune.slicing.widths import constant_widths, dynamic_widths, layer_redundancy

from .making import TEXT, asked, logits, reference
from .tiny import DEPTH, tiny_model, tokens

LENGTHS = (5, 12, 3, 9, 12, 2, 7)
SEQUENCES = [tokens(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]


def measured(
    model: PreTrainedModel, sequences: list[torch.Tensor], batch_size: int, pad: int = 0, **options: bool
) -> dict:
    observer = measure.get("redundancy").function(**options)
    Walker(decoder_of(model)).walk(batches(sequences, batch_size, pad), [observer])
    return {key: numpy.array(value) for key, value in observer.result().items()}


def captured(model: PreTrainedModel, ids: torch.Tensor) -> numpy.ndarray:
    """(L+1, length, width) float64: h_0 … h_L of one unpadded sequence, by forward hooks."""
    states: list[torch.Tensor] = []
    blocks = decoder_of(model).blocks

    def before(_module: object, args: tuple, kwargs: dict) -> None:
        states.append((args[0] if args else kwargs["hidden_states"])[0].double())

    def after(_module: object, _args: tuple, output: object) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0].double())

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    logits(model, ids[None])
    for handle in handles:
        handle.remove()
    return torch.stack(states).numpy()


def brute_force(model: PreTrainedModel, sequences: list[torch.Tensor], first: int = 0) -> list[list[list[float]]]:
    """By sequence, layer and token from `first` on: the cosine by the textbook formula."""
    found = []
    for ids in sequences:
        h = captured(model, ids)
        found.append(
            [
                [
                    float(u @ v / (math.sqrt(u @ u) * math.sqrt(v @ v)))
                    for u, v in zip(h[layer][first:], h[layer + 1][first:], strict=True)
                ]
                for layer in range(len(h) - 1)
            ]
        )
    return found


def summary(table: list[list[list[float]]]) -> tuple[numpy.ndarray, numpy.ndarray]:
    """Mean over all tokens, and the spread of the sequences' means, by layer."""
    layers = range(len(table[0]))
    mean = numpy.array([numpy.concatenate([s[layer] for s in table]).mean() for layer in layers])
    means = numpy.array([[numpy.mean(s[layer]) for layer in layers] for s in table])
    return mean, means.std(0, ddof=1) / math.sqrt(len(table))


@pytest.mark.parametrize("skip_first", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gpt2", "gpt_neox", "opt", "falcon", "mixtral", "mamba"])
def test_scores_equal_brute_force(model_type: str, skip_first: bool) -> None:
    model = tiny_model(model_type)
    mean, error = summary(brute_force(model, SEQUENCES, int(skip_first)))
    found = measured(model, SEQUENCES, 1, skip_first=skip_first)
    assert found["samples"] == len(SEQUENCES) and found["layers"].shape == (DEPTH,)
    assert numpy.ptp(mean) > 0.01, "nothing to tell apart"
    numpy.testing.assert_allclose(found["layers"], mean, rtol=0, atol=1e-9)
    numpy.testing.assert_allclose(found["layer_standard_errors"], error, rtol=0, atol=1e-8)
    padded = measured(model, SEQUENCES, 4, skip_first=skip_first)
    numpy.testing.assert_allclose(padded["layers"], mean, rtol=0, atol=2e-6)
    numpy.testing.assert_allclose(padded["layer_standard_errors"], error, rtol=0, atol=2e-6)


def test_longer_samples_weigh_more() -> None:
    table = brute_force(tiny_model("llama"), SEQUENCES)
    of_means = numpy.array([[numpy.mean(layer) for layer in s] for s in table]).mean(0)
    assert abs(of_means - measured(tiny_model("llama"), SEQUENCES, 1)["layers"]).max() > 1e-4


@pytest.mark.parametrize("pad", [0, 2, 95])
def test_padding_does_not_count(pad: int) -> None:
    model = tiny_model("llama")
    alone, together = measured(model, SEQUENCES, 1), measured(model, SEQUENCES, 4, pad)
    numpy.testing.assert_allclose(alone["layers"], together["layers"], rtol=0, atol=1e-6)
    numpy.testing.assert_allclose(alone["layer_standard_errors"], together["layer_standard_errors"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("skip_first", [False, True])
def test_pads_never_enter_the_sums(skip_first: bool) -> None:
    states = torch.randn(4, 2, 6, 16, generator=torch.Generator().manual_seed(0))  # three blocks, two samples
    alone, padded, left = (LayerCosines(skip_first) for _ in range(3))
    garbage = torch.full((2, 3, 16), float("nan"))
    ones, zeros = torch.ones(2, 6, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)
    for layer in range(3):
        h, after = states[layer], states[layer + 1]
        alone.see(Place(layer, 3, 0), h, after, ones)
        padded.see(
            Place(layer, 3, 0), torch.cat([h, garbage], 1), torch.cat([after, garbage], 1), torch.cat([ones, zeros], 1)
        )
        left.see(
            Place(layer, 3, 0), torch.cat([garbage, h], 1), torch.cat([garbage, after], 1), torch.cat([zeros, ones], 1)
        )
    assert alone.result() == padded.result() == left.result()


def test_planted_identity_block_is_wholly_redundant() -> None:
    model = tiny_model("llama")
    block = model.model.layers[3]
    torch.nn.init.zeros_(block.self_attn.o_proj.weight)
    torch.nn.init.zeros_(block.mlp.down_proj.weight)
    found = measured(model, SEQUENCES, 4)
    assert found["layers"][3] == pytest.approx(1, abs=1e-12)
    assert found["layer_standard_errors"][3] == pytest.approx(0, abs=1e-7)
    assert sorted(found["layers"])[-2] < 0.999
    scaled = layer_redundancy(found["layers"].tolist())
    assert scaled[3] == 1.0 and min(scaled) == 0.0
    widths = dynamic_widths(scaled, 32, 0.25, 0.1, multiple=1)
    assert min(widths) == widths[3] < constant_widths(32, DEPTH, 0.25, multiple=1)[3]


def test_last_layer_is_before_the_final_norm() -> None:
    model = tiny_model("llama")
    before = measured(model, SEQUENCES, 2)["layers"]
    model.model.norm.weight.data.copy_(torch.randn_like(model.model.norm.weight))
    assert (measured(model, SEQUENCES, 2)["layers"] == before).all()
    ids = SEQUENCES[1]
    with torch.inference_mode():
        states = model(ids[None], output_hidden_states=True).hidden_states
    through_norm = cosines(states[-2][0], states[-1][0]).mean().item()
    assert abs(through_norm - measured(model, [ids], 1)["layers"][-1]) > 1e-3


def test_one_sample_has_no_spread() -> None:
    found = measured(tiny_model("llama"), SEQUENCES[:1], 1)
    assert found["samples"] == 1 and (found["layer_standard_errors"] == 0).all()


def test_bfloat16_states_give_the_true_cosine() -> None:
    model = tiny_model("llama").bfloat16()
    with fast_arithmetic(model):  # as the walker does where the processor is slow in half precision
        mean, error = summary(brute_force(model, SEQUENCES))
    found = measured(model, SEQUENCES, 1)
    numpy.testing.assert_allclose(found["layers"], mean, rtol=0, atol=1e-9)
    numpy.testing.assert_allclose(found["layer_standard_errors"], error, rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 6e4])
def test_equal_states_have_cosine_one(dtype: torch.dtype, scale: float) -> None:
    states = (torch.rand(200, 300, generator=torch.Generator().manual_seed(0)) * scale).to(dtype)
    assert (cosines(states, states) - 1).abs().max() < 1e-15
    assert (cosines(states, -states) + 1).abs().max() < 1e-15


def test_known_cosines() -> None:
    u = torch.tensor([[1.0, 0], [1, 0], [1, 1], [3, 4], [0, 0], [1, 0], [0, 0], [1e-30, 0], [1e38, 0]])
    v = torch.tensor([[2.0, 0], [0, 5], [1, 0], [4, 3], [0, 1], [0, 0], [0, 0], [1e-30, 1e-30], [-1e38, 1e38]])
    half = math.sqrt(0.5)
    expected = [1, 0, half, 24 / 25, 0, 0, 1, half, -half]
    assert cosines(u, v).tolist() == pytest.approx(expected, rel=0, abs=1e-15)
    assert cosines(u, v).dtype == torch.float64


def test_large_half_precision_states_do_not_overflow() -> None:
    u = torch.full((1, 1, 8), 60000.0, dtype=torch.float16)
    v = u.clone()
    v[0, 0, 0] = -60000.0
    observer = LayerCosines()
    observer.see(Place(0, 1, 0), u, v, torch.ones(1, 1, dtype=torch.int64))
    assert observer.result()["layers"] == (6 / 8,)


def test_a_sample_without_tokens_is_refused() -> None:
    h = torch.ones(1, 3, 4)
    one = torch.tensor([[1, 0, 0]])
    observer = LayerCosines(skip_first=True)
    with pytest.raises(MeasureError, match="a sample of 1 tokens has none to measure with skip_first=True; expected"):
        observer.see(Place(0, 1, 0), h, h, one)


def test_state_does_not_grow_with_samples() -> None:
    def held(count: int) -> int:
        observer = LayerCosines()
        for batch in range(count):
            for layer in range(6):
                h = torch.randn(2, 50, 32)
                observer.see(Place(layer, 6, batch), h, h + 1, torch.ones(2, 50, dtype=torch.int64))
        (sums,) = observer.sums()
        assert sums.dtype == torch.float64 and not [v for v in vars(observer).values() if isinstance(v, list | dict)]
        return sums.numel()

    assert held(1) == held(40) == 6 * 5


def test_sums_are_those_that_the_result_is_made_of() -> None:
    model = tiny_model("llama")
    halves, whole = [LayerCosines(), LayerCosines()], LayerCosines()
    for observer, sequences in zip([*halves, whole], (SEQUENCES[:3], SEQUENCES[3:], SEQUENCES), strict=True):
        Walker(decoder_of(model)).walk(batches(sequences, 1), [observer])
    with torch.inference_mode():
        halves[0].sums()[0].add_(halves[1].sums()[0])
    for key, expected in whole.result().items():
        numpy.testing.assert_allclose(halves[0].result()[key], expected, rtol=0, atol=1e-12)


def test_layer_redundancy() -> None:
    assert layer_redundancy([0.75, 0.5, 1.0]) == (0.5, 0.0, 1.0)
    # Block Influence, summed over tokens and turned around, is the same score.
    found = measured(tiny_model("llama"), SEQUENCES, 1)["layers"]
    influence = sum(LENGTHS) * (1 - found)
    turned = 1 - (influence - influence.min()) / (influence.max() - influence.min())
    assert layer_redundancy(found.tolist()) == pytest.approx(turned.tolist(), abs=1e-12)
    assert layer_redundancy([0.9, 0.9]) == (1.0, 1.0)


def test_record_of_single_layers(tmp_path) -> None:
    model = tiny_model("llama")
    samples = Samples(tuple(SEQUENCES), TEXT)
    made = measure_model(
        decoder_of(model), samples, model=reference(DEPTH), name="redundancy", options={"skip_first": True}
    )
    assert made.distances == made.standard_errors == ()
    assert made.measure == "redundancy" and made.options == {"skip_first": True}
    expected = measured(model, by_length(SEQUENCES), 8, skip_first=True)
    assert made.layers == tuple(expected["layers"])
    assert made.layer_standard_errors == tuple(expected["layer_standard_errors"])
    assert Scores.load(made.save(tmp_path)) == made
    angular = measure_model(decoder_of(model), samples, model=reference(DEPTH))
    assert len(angular.distances) == DEPTH + 1 and angular.layers == angular.layer_standard_errors == ()


def test_window_refuses_scores_of_single_layers() -> None:
    samples = Samples(tuple(SEQUENCES[:2]), TEXT)
    made = measure_model(decoder_of(tiny_model("llama")), samples, model=reference(DEPTH), name="redundancy")
    with pytest.raises(
        ConfigError, match="planner 'window' .* measure 'redundancy' gives none; expected measure 'angular'"
    ):
        window(asked(made, 2, range(DEPTH)))
