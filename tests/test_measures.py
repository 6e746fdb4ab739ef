"""Angular distances against brute force over hidden states that plain hooks captured."""

import math

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import PreTrainedModel

from hf_prune import prune_layers
from hf_prune.architecture import decoder_of
from hf_prune.measures.similarity import PairwiseAngles, pairwise_angles
from hf_prune.observing import Place
from hf_prune.precision import fast_arithmetic
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import batches, by_length

from .making import asked, logits
from .tiny import DEPTH, tiny_model, tokens

LENGTHS = (5, 12, 3, 9, 12, 2, 7)
SEQUENCES = [tokens(1, length, seed)[0] for seed, length in enumerate(LENGTHS)]


def measured(model: PreTrainedModel, sequences: list[torch.Tensor], batch_size: int, pad: int = 0) -> dict:
    observer = measure.get("angular").function()
    Walker(decoder_of(model)).walk(batches(sequences, batch_size, pad), [observer])
    result = observer.result()
    return {key: numpy.array(value) for key, value in result.items()}


def captured(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """(L+1, width) float64: h_0 … h_L at the last token of one unpadded sequence, by forward hooks."""
    states: list[torch.Tensor] = []
    blocks = decoder_of(model).blocks

    def before(_module: object, args: tuple, kwargs: dict) -> None:
        states.append((args[0] if args else kwargs["hidden_states"])[0, -1].double())

    def after(_module: object, _args: tuple, output: object) -> None:
        states.append((output[0] if isinstance(output, tuple) else output)[0, -1].double())

    handles = [block.register_forward_pre_hook(before, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(after))
    logits(model, ids[None])
    for handle in handles:
        handle.remove()
    return torch.stack(states)


def brute_force(model: PreTrainedModel, sequences: list[torch.Tensor]) -> numpy.ndarray:
    """(samples, L+1, L+1) angles by the textbook formula."""
    tables = []
    for ids in sequences:
        h = captured(model, ids).numpy()
        table = numpy.zeros((len(h), len(h)))
        for i in range(len(h)):
            for j in range(len(h)):
                if i != j:
                    cosine = h[i] @ h[j] / math.sqrt((h[i] @ h[i]) * (h[j] @ h[j]))
                    table[i, j] = math.acos(max(-1.0, min(1.0, cosine))) / math.pi
        tables.append(table)
    return numpy.array(tables)


@pytest.mark.parametrize(
    "model_type", ["llama", "qwen2", "gemma2", "gpt2", "gpt_neox", "opt", "falcon", "mixtral", "mamba"]
)
def test_table_equals_brute_force(model_type: str) -> None:
    model = tiny_model(model_type)
    angles = brute_force(model, SEQUENCES)
    found = measured(model, SEQUENCES, 1)
    assert found["samples"] == len(SEQUENCES)
    assert angles.max() > 0.05, "nothing to tell apart"
    numpy.testing.assert_allclose(found["distances"], angles.mean(0), rtol=0, atol=1e-9)
    spread = angles.std(0, ddof=1) / math.sqrt(len(SEQUENCES))
    numpy.testing.assert_allclose(found["standard_errors"], spread, rtol=0, atol=1e-8)
    padded = measured(model, SEQUENCES, 4)
    numpy.testing.assert_allclose(padded["distances"], angles.mean(0), rtol=0, atol=2e-6)
    numpy.testing.assert_allclose(padded["standard_errors"], spread, rtol=0, atol=2e-6)


def test_mean_of_angles_is_not_the_angle_of_the_mean() -> None:
    model = tiny_model("llama")
    angles = brute_force(model, SEQUENCES)
    of_mean = numpy.arccos(numpy.cos(math.pi * angles).mean(0)) / math.pi
    found = measured(model, SEQUENCES, 1)["distances"]
    assert abs(of_mean - angles.mean(0)).max() > 1e-4
    numpy.testing.assert_allclose(found, angles.mean(0), rtol=0, atol=1e-9)


@pytest.mark.parametrize("pad", [0, 2, 95])
def test_padding_does_not_count(pad: int) -> None:
    model = tiny_model("llama")
    alone, together = measured(model, SEQUENCES, 1), measured(model, SEQUENCES, 4, pad)
    numpy.testing.assert_allclose(alone["distances"], together["distances"], rtol=0, atol=1e-6)
    numpy.testing.assert_allclose(alone["standard_errors"], together["standard_errors"], rtol=0, atol=1e-6)


def test_pads_never_enter_the_sums() -> None:
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(4, 2, 6, 16, generator=generator)  # three blocks, two samples of six tokens
    alone, padded, left = PairwiseAngles(), PairwiseAngles(), PairwiseAngles()
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


def test_order_and_grouping_of_equal_lengths_leave_the_sums() -> None:
    model = tiny_model("llama")
    sequences = [tokens(1, 9, seed)[0] for seed in range(6)]
    one, three = measured(model, sequences, 1), measured(model, sequences[::-1], 3)
    numpy.testing.assert_allclose(one["distances"], three["distances"], rtol=0, atol=1e-6)
    again = measured(model, sequences, 1)
    assert (one["distances"] == again["distances"]).all(), "the same run gives the same bits"


def test_planted_identity_blocks_are_free(tmp_path) -> None:
    from hf_prune.planners.window import window

    from .making import scores

    model = tiny_model("llama")
    for index in (3, 5):
        block = model.model.layers[index]
        torch.nn.init.zeros_(block.self_attn.o_proj.weight)
        torch.nn.init.zeros_(block.mlp.down_proj.weight)
    found = measured(model, SEQUENCES, 4)
    zero = {(i, j) for i in range(DEPTH + 1) for j in range(DEPTH + 1) if found["distances"][i, j] == 0.0}
    assert zero == {(i, i) for i in range(DEPTH + 1)} | {(3, 4), (4, 3), (5, 6), (6, 5)}
    assert found["standard_errors"][3, 4] == found["standard_errors"][5, 6] == 0.0
    assert window(asked(scores(found["distances"]), 1, range(DEPTH))).layers == (3,)
    assert window(asked(scores(found["distances"]), 1, range(4, DEPTH))).layers == (5,)
    before = logits(model, tokens(3, 11))
    assert torch.equal(logits(prune_layers(model, [3, 5]), tokens(3, 11)), before)


def test_last_state_is_before_the_final_norm() -> None:
    model = tiny_model("llama")
    before = measured(model, SEQUENCES, 2)["distances"]
    model.model.norm.weight.data.copy_(torch.randn_like(model.model.norm.weight))
    assert (measured(model, SEQUENCES, 2)["distances"] == before).all()
    with torch.inference_mode():
        normed = model(SEQUENCES[1][None], output_hidden_states=True).hidden_states[-1][0, -1].double()
    raw = captured(model, SEQUENCES[1])
    assert not torch.allclose(raw[-1], normed)
    only = measured(model, [SEQUENCES[1]], 1)["distances"]
    u, v = raw[-2] / raw[-2].norm(), raw[-1] / raw[-1].norm()
    assert only[-2, -1] == pytest.approx(math.acos(float(u @ v)) / math.pi, abs=1e-9)


def test_one_sample_has_no_spread() -> None:
    found = measured(tiny_model("llama"), SEQUENCES[:1], 1)
    assert found["samples"] == 1 and (found["standard_errors"] == 0).all()


def test_bfloat16_states_give_the_true_angle() -> None:
    model = tiny_model("llama").bfloat16()
    states = [captured(model, ids) for ids in SEQUENCES]
    assert torch.equal(states[0], states[0].bfloat16().double())
    with fast_arithmetic(model):  # as the walker does where the processor is slow in half precision
        angles = brute_force(model, SEQUENCES)
    numpy.testing.assert_allclose(measured(model, SEQUENCES, 1)["distances"], angles.mean(0), rtol=0, atol=1e-9)
    # An angle far below what bfloat16 arithmetic resolves (0.028 around zero), of vectors that bfloat16 holds exactly.
    u = torch.zeros(1, 64).bfloat16()
    u[0, :32] = 1.0
    v = u.clone()
    v[0, 40] = 0.0625
    small = pairwise_angles(torch.stack([u, v]).double())[0, 0, 1].item()
    assert small == pytest.approx(math.atan(0.0625 / math.sqrt(32)) / math.pi, rel=1e-12)
    observer = PairwiseAngles()
    observer.see(Place(0, 1, 0), u[:, None], v[:, None], torch.ones(1, 1, dtype=torch.int64))
    assert observer.result()["distances"][0][1] == small


def test_large_half_precision_states_do_not_overflow() -> None:
    u = torch.full((1, 8), 60000.0, dtype=torch.float16)
    v = u.clone()
    v[0, 0] = -60000.0
    observer = PairwiseAngles()
    observer.see(Place(0, 1, 0), u[:, None], v[:, None], torch.ones(1, 1, dtype=torch.int64))
    assert observer.result()["distances"][0][1] == pytest.approx(math.acos(6 / 8) / math.pi, rel=1e-12)


VECTORS = st.integers(2, 5).flatmap(
    lambda points: st.integers(1, 6).flatmap(
        lambda width: st.lists(
            st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=width, max_size=width),
            min_size=points,
            max_size=points,
        )
    )
)


@given(VECTORS, st.floats(1e-6, 1e6))
def test_angles_behave_as_angles(vectors: list[list[float]], scale: float) -> None:
    states = torch.tensor(vectors, dtype=torch.float64)[:, None]
    angles = pairwise_angles(states)[0]
    assert torch.isfinite(angles).all() and (angles >= 0).all() and (angles <= 1).all()
    assert torch.equal(angles, angles.T)
    assert (angles.diagonal() == 0).all()
    doubled = torch.cat([states, states])
    assert (pairwise_angles(doubled)[0].diagonal(len(states)) == 0).all(), "identical vectors"
    assert torch.allclose(pairwise_angles(states * scale)[0], angles, rtol=0, atol=1e-12)


def test_known_angles() -> None:
    points = torch.tensor([[1.0, 0], [0, 2], [-3, 0], [1, 1], [0, 0]], dtype=torch.float64)[:, None]
    expected = torch.tensor(
        [[0, 0.5, 1, 0.25], [0.5, 0, 0.5, 0.25], [1, 0.5, 0, 0.75], [0.25, 0.25, 0.75, 0]], dtype=torch.float64
    )
    found = pairwise_angles(points)[0]
    assert torch.allclose(found[:4, :4], expected, rtol=0, atol=1e-15)
    assert found[4, 4] == 0 and (found[4, :4] == 0.5).all(), "a zero vector stands at right angles to all others"


def test_state_does_not_grow_with_samples() -> None:
    def held(observer: PairwiseAngles) -> int:
        kept = [v for value in vars(observer).values() for v in (value if isinstance(value, list) else [value])]
        return sum(v.numel() * v.element_size() for v in kept if isinstance(v, torch.Tensor))

    def after(count: int) -> int:
        observer = PairwiseAngles()
        generator = torch.Generator().manual_seed(0)
        for batch in range(count):
            for layer in range(6):
                h = torch.randn(2, 50, 32, generator=generator)
                observer.see(Place(layer, 6, batch), h, h + 1, torch.ones(2, 50, dtype=torch.int64))
        observer.result()
        return held(observer)

    assert after(1) == after(40) == (2 * 7 * 7 + 1) * 8


def test_sums_are_those_that_the_result_is_made_of() -> None:
    model = tiny_model("llama")
    halves, whole = [PairwiseAngles(), PairwiseAngles()], PairwiseAngles()
    for observer, sequences in zip([*halves, whole], (SEQUENCES[:3], SEQUENCES[3:], SEQUENCES), strict=True):
        Walker(decoder_of(model)).walk(batches(sequences, 1), [observer])
    for mine, other in zip(halves[0].sums(), halves[1].sums(), strict=True):
        assert mine.dtype == torch.float64 and mine.device.type == "cpu"
        with torch.inference_mode():
            mine += other
    for key, expected in whole.result().items():
        numpy.testing.assert_allclose(halves[0].result()[key], expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", ["angular", "redundancy"])
def test_batches_sorted_by_length_give_the_same_scores(name: str) -> None:
    model, results = tiny_model("llama"), []
    for sequences in (SEQUENCES, by_length(SEQUENCES)):
        observer = measure.get(name).function()
        Walker(decoder_of(model)).walk(batches(sequences, 3), [observer])
        results.append(observer.result())
    for key, expected in results[0].items():
        numpy.testing.assert_allclose(results[1][key], expected, rtol=0, atol=2e-6)


def test_batches_of_one_length_take_the_path_without_a_mask() -> None:
    walker = Walker(decoder_of(tiny_model("llama", attn_implementation="sdpa")))
    for lengths, plain in (((9, 9, 9), True), ((9, 9, 4), False)):
        (batch,) = batches([tokens(1, length)[0] for length in lengths], 3)
        _, calls = walker.calls(batch)
        assert all((call.kwargs["attention_mask"] is None) == plain for call in calls)
