"""The block walker: what it refuses, what it puts back, and models that lie in several places."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import prune_layers
from hf_prune.activation_store import ActivationStore
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.architecture.decoder import structural_copy
from hf_prune.block_calls import KeptCalls
from hf_prune.block_weights import BlockWeights, StreamedWeights
from hf_prune.errors import ArchitectureError, ConfigError, MeasureError
from hf_prune.loading import Source
from hf_prune.observing import Place
from hf_prune.probe import probe
from hf_prune.runner import Walker, evaluating
from hf_prune.samples import Batch, batches
from hf_prune.skeleton import skeleton

from .making import act_between_blocks, logits, reference
from .tiny import DEPTH, tiny_model, tokens

SEQUENCES = [tokens(1, length, length)[0] for length in (6, 11, 4, 11)]


class Tracer:
    """Notes what it is shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        self.seen.append((at.layer, inputs, outputs, mask))

    def result(self) -> dict:
        return {}


def walked(model: PreTrainedModel, batch_size: int = 2) -> list[tuple[int, torch.Tensor, torch.Tensor, torch.Tensor]]:
    tracer = Tracer()
    Walker(decoder_of(model)).walk(batches(SEQUENCES, batch_size), [tracer])
    return tracer.seen


def test_every_batch_passes_every_block_in_order() -> None:
    seen = walked(tiny_model("llama"), 3)
    assert [layer for layer, *_ in seen] == [*range(DEPTH)] * 2
    for (_, _, outputs, mask), (following, inputs, _, _) in zip(seen[:-1], seen[1:], strict=True):
        assert inputs is outputs or following == 0
        assert mask.shape == outputs.shape[:2]
    assert [mask.sum(1).tolist() for layer, *_, mask in seen if layer == 0] == [[6, 11, 4], [11]]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gemma2", "mamba", "falcon", "qwen3_next"])
def test_padded_walk_equals_the_padded_forward(model_type: str) -> None:
    model = tiny_model(model_type)
    decoder = decoder_of(model)
    (batch,) = batches(SEQUENCES, 4)
    outputs: list[torch.Tensor] = []
    handles = [
        block.register_forward_hook(lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for block in decoder.blocks
    ]
    with torch.inference_mode():
        model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False)
    for handle in handles:
        handle.remove()
    for (_, _, found, _), expected in zip(walked(model, 4), outputs, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("layer", [0, 5, DEPTH - 1])
def test_bad_numbers_stop_at_the_first_batch_and_name_the_block(layer: int, value: float) -> None:
    model = tiny_model("llama")
    model.model.layers[layer].mlp.down_proj.weight.data[3, 2] = value
    tracer = Tracer()
    with pytest.raises(MeasureError, match=rf"block {layer} of '.*' gives NaN or infinite .* in batch 0 \("):
        Walker(decoder_of(model)).walk(batches(SEQUENCES, 2), [tracer])
    assert [seen for seen, *_ in tracer.seen] == list(range(layer)), "no observer saw the bad numbers"


def test_bad_embeddings_are_not_blamed_on_a_block() -> None:
    model = tiny_model("llama")
    model.model.embed_tokens.weight.data[SEQUENCES[0][2]] = float("nan")
    with pytest.raises(MeasureError, match=r"the embeddings of '.*' hold NaN"):
        walked(model)


def test_bad_numbers_in_pads_do_not_matter() -> None:
    model = tiny_model("llama")
    expected = walked(model)
    used = set(torch.cat(SEQUENCES).tolist())
    unused = next(i for i in range(3, 96) if i not in used)
    model.model.embed_tokens.weight.data[unused] = 1e38
    tracer = Tracer()
    Walker(decoder_of(model)).walk(batches(SEQUENCES, 2, unused), [tracer])
    assert len(tracer.seen) == len(expected)


def test_huge_but_finite_numbers_are_numbers() -> None:
    model = tiny_model("llama").bfloat16()
    model.model.embed_tokens.weight.data.fill_(3e38)  # their sum overflows float32
    assert len(walked(model)) == 2 * DEPTH


def test_model_that_acts_between_blocks_is_refused() -> None:
    model = tiny_model("llama")
    act_between_blocks(model.model)
    with pytest.raises(ArchitectureError, match="LlamaForCausalLM.* changes the hidden states between two blocks"):
        Walker(decoder_of(model))


def test_model_that_skips_a_block_is_refused() -> None:
    model = tiny_model("llama")
    decoder = decoder_of(model)
    model.model.config.num_hidden_layers = DEPTH - 1
    with pytest.raises(ArchitectureError, match=f"calls {DEPTH - 1} blocks in one forward; expected {DEPTH}"):
        Walker(decoder)


def attributes(model: PreTrainedModel) -> list[tuple[set[str], object]]:
    return [(set(block.__dict__), block.__dict__.get("forward")) for block in decoder_of(model).blocks]


def test_blocks_are_put_back_even_on_error() -> None:
    model = tiny_model("llama")
    own = model.model.layers[2].forward
    model.model.layers[2].forward = lambda *args, **kwargs: own(*args, **kwargs)  # as hooks of accelerate do
    before, expected = attributes(model), logits(model, tokens())
    walker = Walker(decoder_of(model))
    walker.walk(batches(SEQUENCES, 2), [])
    assert attributes(model) == before

    out_of_range = Batch(torch.tensor([[1, 10**6]]), torch.ones(1, 2, dtype=torch.int64))
    with pytest.raises(IndexError):
        walker.walk([out_of_range], [])
    assert attributes(model) == before

    class Failing(Tracer):
        def see(self, *args) -> None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        walker.walk(batches(SEQUENCES, 2), [Failing()])
    assert attributes(model) == before
    assert torch.equal(logits(model, tokens()), expected)


def test_each_module_gets_its_own_mode_back() -> None:
    model = tiny_model("llama", attention_dropout=0.5)
    expected = [outputs for *_, outputs, _ in walked(model)]
    model.train()
    model.model.layers[1].eval()
    before = [module.training for module in model.modules()]
    for (*_, outputs, _), wanted in zip(walked(model), expected, strict=True):
        assert torch.equal(outputs, wanted), "dropout while measuring"
    assert [module.training for module in model.modules()] == before
    with pytest.raises(RuntimeError), evaluating(model):
        raise RuntimeError
    assert [module.training for module in model.modules()] == before
    assert not model.model.layers[1].training and model.training


def test_nothing_is_left_to_differentiate() -> None:
    model = tiny_model("llama")
    assert all(not outputs.requires_grad for *_, outputs, _ in walked(model))
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def everything_equal(model: PreTrainedModel, plain: PreTrainedModel) -> None:
    for (*_, found, _), (*_, expected, _) in zip(walked(model), walked(plain), strict=True):
        assert torch.equal(found.cpu(), expected)
    prune_layers(model, [2, 5])
    prune_layers(plain, [2, 5])
    for (*_, found, _), (*_, expected, _) in zip(walked(model), walked(plain), strict=True):
        assert torch.equal(found.cpu(), expected)
    for key, value in probe(plain).items():
        assert torch.equal(probe(model)[key], value), key


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_model_offloaded_to_memory(model_type: str) -> None:
    model = cpu_offload(tiny_model(model_type), execution_device=torch.device("cpu"))
    assert next(model.parameters()).is_meta
    everything_equal(model, tiny_model(model_type))


def test_model_offloaded_to_disk(tmp_path: Path) -> None:
    model = disk_offload(tiny_model("llama"), str(tmp_path), execution_device=torch.device("cpu"))
    everything_equal(model, tiny_model("llama"))


def test_model_loaded_with_a_device_map(tmp_path: Path) -> None:
    plain = tiny_model("llama")
    plain.save_pretrained(tmp_path / "base")
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "lm_head": "cpu", "model.rotary_emb": "cpu"}
    places |= {f"model.layers.{i}": "disk" if i % 2 else "cpu" for i in range(DEPTH)}
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", device_map=dict(places), offload_folder=str(tmp_path / "offload")
    )
    everything_equal(model, plain)
    kept = [i for i in range(DEPTH) if i not in (2, 5)]
    expected = {key: place for key, place in places.items() if "layers" not in key}
    expected |= {f"model.layers.{new}": places[f"model.layers.{old}"] for new, old in enumerate(kept)}
    assert {key: str(place) for key, place in model.hf_device_map.items()} == expected

    with pytest.warns(UserWarning, match="offloaded modules"):
        model.save_pretrained(tmp_path / "cut")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "cut")
    assert torch.equal(logits(loaded, tokens()), logits(plain, tokens()))


def ends(
    decoder: Decoder, weights: BlockWeights | None, cuts: Sequence[Sequence[int]]
) -> dict[tuple[int, int], tuple]:
    """What enters the last norm, by cut and batch, with its mask."""
    found: dict[tuple[int, int], tuple] = {}

    def leave(cut: int, batch: int, hidden: torch.Tensor, mask: torch.Tensor) -> None:
        assert (cut, batch) not in found
        found[cut, batch] = hidden.clone(), mask

    Walker(decoder, weights).walk(batches(SEQUENCES, 3), cuts=cuts, leave=leave)
    return found


def last_states(model: PreTrainedModel) -> list[tuple[torch.Tensor, torch.Tensor]]:
    tracer = Tracer()
    decoder = decoder_of(model)
    Walker(decoder).walk(batches(SEQUENCES, 3), [tracer])
    return [(out, mask) for layer, _, out, mask in tracer.seen if layer == decoder.num_layers - 1]


def cut_models_end_where_branches_do(
    decoder: Decoder, weights: BlockWeights | None, whole: PreTrainedModel, cuts: Sequence[Sequence[int]]
) -> None:
    found = ends(decoder, weights, cuts)
    assert set(found) == {(cut, batch) for cut in range(len(cuts)) for batch in range(2)}
    for index, cut in enumerate(cuts):
        model = structural_copy(whole)
        for number, (hidden, mask) in enumerate(last_states(prune_layers(model, list(cut)) if cut else model)):
            assert torch.equal(found[index, number][0], hidden), cut
            assert torch.equal(found[index, number][1], mask)


CUTS = [[0, 3, 4], [], [6, 7], [0, 1, 2, 3, 4, 5, 6]]


@pytest.mark.parametrize(
    "model_type",
    ["llama", "gpt_neo", "gemma2", "qwen3_moe", "falcon", "mamba", "lfm2"],
)
def test_branches_of_cuts_are_the_cut_models(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    cut_models_end_where_branches_do(decoder_of(model), None, model, CUTS)
    model.save_pretrained(tmp_path)
    cut_models_end_where_branches_do(*streamed(tmp_path), model, CUTS[:1])


def streamed(folder: Path, budget: int = 2000) -> tuple[Decoder, StreamedWeights]:
    decoder = skeleton(Source(reference(DEPTH), folder, False))
    return decoder, StreamedWeights(decoder, folder, states_budget=budget)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path]:
    model, folder = tiny_model("gemma3_text"), tmp_path_factory.mktemp("gemma")
    model.save_pretrained(folder)
    return model, folder


@settings(max_examples=10)
@given(st.lists(st.sets(st.integers(0, DEPTH - 1), max_size=DEPTH - 1), min_size=1, max_size=4), st.integers(0, 10**5))
def test_any_cuts_at_once(gemma: tuple[PreTrainedModel, Path], cuts: list[set[int]], budget: int) -> None:
    model, folder = gemma
    cut_models_end_where_branches_do(*streamed(folder, budget), model, [sorted(cut) for cut in cuts])


@pytest.mark.parametrize("observed", [False, True])
def test_branches_share_what_they_have_in_common(observed: bool) -> None:
    model = tiny_model("llama")
    ran = [0] * DEPTH
    walker = Walker(decoder_of(model))

    def count(layer: int) -> None:
        ran[layer] += 1

    for layer, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda _m, _a, _o, layer=layer: count(layer))
    tracer = Tracer()
    left: list[int] = []
    walker.walk(
        batches(SEQUENCES[:1], 1), [tracer] if observed else [], cuts=[{2, 5}, {2, 6}, {2}, {7}],
        leave=lambda cut, *_: left.append(cut),
    )  # fmt: skip
    #    ∅  ∅  -{7} ...: the trunk as long as somebody needs it; {2}: from block 3, {2, 5}: from block 6
    whole = [1, 1, 1, 1, 1, 1, 1, 1 if observed else 0]
    assert ran == [1, 1, whole[2], 2, 2, 2, 3, whole[7] + 3]
    assert left == [0, 1, 2, 3]
    assert [layer for layer, *_ in tracer.seen] == (list(range(DEPTH)) if observed else [])


@pytest.mark.parametrize("cut", [{8}, {-1}])
def test_cut_that_cannot_be_is_refused(cut: set[int]) -> None:
    with pytest.raises(ConfigError, match="a cut of '.*' removes block .*; expected some of blocks 0 to 7"):
        Walker(decoder_of(tiny_model("llama"))).walk([], cuts=[cut], leave=lambda *_: None)


def test_calls_of_batches_that_look_alike_are_kept_once() -> None:
    walker = Walker(decoder_of(tiny_model("gemma2")))
    store = ActivationStore(1 << 30)
    kept = KeptCalls(store)
    alike = [tokens(2, 12, seed) for seed in (1, 2)]
    sizes = []
    for number, batch in enumerate([*batches(list(alike[0]), 2), *batches(list(alike[1]), 2), *batches(SEQUENCES, 2)]):
        with torch.inference_mode():
            kept.keep(number, walker.calls(batch)[1])
        sizes.append(store.in_memory)
    assert sizes[0] == sizes[1] < sizes[2]
    with torch.inference_mode():
        _, expected = walker.calls(next(batches(list(alike[1]), 2)))
    for layer, call in enumerate(expected):
        found = kept.get(1, layer, torch.device("cpu"))
        assert found.keyword == call.keyword and found.kwargs.keys() == call.kwargs.keys()
        for key, value in call.kwargs.items():
            for one, two in zip(
                *((v if isinstance(v, tuple) else (v,)) for v in (value, found.kwargs[key])), strict=True
            ):
                assert torch.equal(one, two) if isinstance(one, torch.Tensor) else one is two
