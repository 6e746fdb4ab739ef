"""The block walker: what it refuses, what it puts back, and models that lie in several places."""

import types
from pathlib import Path

import pytest
import torch
from accelerate import cpu_offload, disk_offload
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune import prune_layers
from hf_prune.architecture import decoder_of
from hf_prune.errors import ArchitectureError, MeasureError
from hf_prune.reload import probe
from hf_prune.runner import Place, Walker, evaluating
from hf_prune.samples import Batch, batches

from .making import logits
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
    inner = type(model.model).forward

    def forward(self, *args, **kwargs):
        handles = [block.register_forward_hook(lambda _m, _a, out: out * 1.01) for block in self.layers[:-1]]
        try:
            return inner(self, *args, **kwargs)
        finally:
            for handle in handles:
                handle.remove()

    model.model.forward = types.MethodType(forward, model.model)
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
