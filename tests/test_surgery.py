"""Dropping blocks: indices, what is renumbered with them, and checkpoints that are quantized already."""

import copy
import json
import warnings
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from bitsandbytes.nn import Linear4bit
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from hf_prune import prune_layers
from hf_prune.architecture import decoder_of, rewrite_config, rewrite_quantization
from hf_prune.architecture.decoder import block_sizes, parameter_bytes, structural_copy
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.loading import load_model, locate
from hf_prune.probe import probe
from hf_prune.reload import check_reload
from hf_prune.runner import Walker
from hf_prune.samples import batches
from hf_prune.saving import save_model
from hf_prune.surgery.drop import check_layers

from .evaluation.text import VOCAB, byte_tokenizer
from .making import edit_json, logits
from .tiny import DEPTH, tiny_model, tokens


@given(st.integers(2, 12), st.lists(st.integers(-2, 13), max_size=14))
def test_indices_are_taken_or_refused(depth: int, layers: list[int]) -> None:
    fits = 0 < len(set(layers)) == len(layers) < depth and all(0 <= i < depth for i in layers)
    if fits:
        assert check_layers(layers, depth, "m") == tuple(sorted(layers))
    else:
        with pytest.raises(ConfigError, match="layers="):
            check_layers(layers, depth, "m")


@pytest.mark.parametrize(
    "layers", [range(2, 4), (3, 2), {2, 3}, numpy.array([2, 3]), (i for i in (2, 3)), torch.tensor([2, 3]).tolist()]
)
def test_indices_of_any_kind(layers: Any) -> None:
    model, same = tiny_model("llama"), tiny_model("llama")
    assert prune_layers(model, layers) is model
    prune_layers(same, [2, 3])
    assert torch.equal(logits(model, tokens()), logits(same, tokens()))


def test_blocks_keep_their_weights_and_get_new_numbers() -> None:
    model = tiny_model("gemma3_text")
    wanted = [model.model.layers[i] for i in (0, 2, 3, 6)]
    prune_layers(model, [1, 4, 5, 7])
    assert list(model.model.layers) == wanted, "the very modules, in order"
    for position, block in enumerate(model.model.layers):
        numbers = {m.layer_idx for m in block.modules() if hasattr(m, "layer_idx")}
        assert numbers == {position}
    assert model.config.num_hidden_layers == len(model.config.layer_types) == 4


def test_parameters_that_are_gone_are_counted() -> None:
    model = tiny_model("deepseek_v3")
    decoder = decoder_of(model)
    each, weight = block_sizes(decoder)
    assert each[0] != each[-1], "dense and sparse blocks differ"
    before, before_bytes = sum(p.numel() for p in model.parameters()), parameter_bytes(model)
    prune_layers(model, [0, 5])
    assert sum(p.numel() for p in model.parameters()) == before - each[0] - each[5]
    assert parameter_bytes(model) == before_bytes - weight[0] - weight[5]
    tied = tiny_model("gemma")
    assert parameter_bytes(tied) == 4 * sum(p.numel() for p in tied.parameters())


def test_training_goes_on() -> None:
    model = prune_layers(tiny_model("llama"), [2]).train()
    model(input_ids=tokens(), labels=tokens()).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_adapters_are_refused() -> None:
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(target_modules=["up_proj"]))
    with pytest.raises(
        ArchitectureError, match=r"PeftModel.* with adapters; expected a plain model: call merge_and_unload\(\)"
    ):
        prune_layers(model, [1])


KEEP = [0, 1, 3, 6, 7]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("lm_head", "lm_head"),
        ("model.layers.3", "model.layers.2"),
        ("model.layers.3.mlp.up_proj", "model.layers.2.mlp.up_proj"),
        ("transformer.h.6.attn", "transformer.h.3.attn"),
        ("transformer.blocks.7.ffn", "transformer.blocks.4.ffn"),
        ("h.7.mlp", "h.4.mlp"),
        ("layers.6", "layers.3"),
        (r"model\.layers\.6\.mlp\..*", r"model\.layers\.3\.mlp\..*"),
        (r"re:.*layers\.7\.self_attn.*", r"re:.*layers\.4\.self_attn.*"),
        ("^model.layers.6$", "^model.layers.3$"),
        ("+:model.layers.6.mlp", "+:model.layers.3.mlp"),
        (r"-:model\.layers\.7\.", r"-:model\.layers\.4\."),
        ("model.layers.6.mlp.experts.2.w1", "model.layers.3.mlp.experts.2.w1"),
        ("model.layers.60.mlp", None),  # a layer behind the last (multi-token prediction) goes with its weights
        ("model.layers.2.mlp", None),
        ("layers.4", None),
        ("model.decoder.layers.1.fc1", "model.decoder.layers.1.fc1"),
        ("re:.*mlp.*", "re:.*mlp.*"),
        ("bitsandbytes", "bitsandbytes"),
        ("mlayers.3.x", "mlayers.3.x"),
        ("model.layers.3x", "model.layers.3x"),
    ],
)
def test_layer_names_in_quantization_settings(before: str, after: str | None) -> None:
    settings = {
        "a": ["lm_head", before],
        "b": {before: {"bits": 4}, "rest": 1},
        "n": None,
        "t": torch.bfloat16,
        "f": True,
    }
    original = copy.deepcopy(settings)
    found = rewrite_quantization(settings, KEEP)
    assert found["a"] == ["lm_head", *([after] if after else [])]
    assert found["b"] == {**({after: {"bits": 4}} if after else {}), "rest": 1}
    assert (found["n"], found["t"], found["f"]) == (None, torch.bfloat16, True)
    assert settings == original, "the settings given are left alone"


def test_nested_quantization_settings() -> None:
    settings = {
        "quant_method": "compressed-tensors",
        "ignore": ["lm_head", "model.layers.0.mlp.gate", "model.layers.2.mlp.gate", "model.layers.7.mlp.gate"],
        "config_groups": {
            "group_0": {"targets": ["Linear", "re:.*layers\\.3\\.mlp.*", "re:.*layers\\.5\\..*"], "bits": [4, None]}
        },
    }
    assert rewrite_quantization(settings, KEEP) == {
        "quant_method": "compressed-tensors",
        "ignore": ["lm_head", "model.layers.0.mlp.gate", "model.layers.4.mlp.gate"],
        "config_groups": {"group_0": {"targets": ["Linear", "re:.*layers\\.2\\.mlp.*"], "bits": [4, None]}},
    }
    raw = json.loads(tiny_model("llama").config.to_json_string()) | {"quantization_config": settings}
    assert rewrite_config(raw, KEEP)["quantization_config"] == rewrite_quantization(settings, KEEP)


NF4 = {
    "load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
    "bnb_4bit_compute_dtype": torch.bfloat16,
    "llm_int8_skip_modules": ["lm_head", "model.layers.2.mlp.up_proj", "model.layers.3", "model.layers.5"],
}  # fmt: skip


@pytest.fixture
def quantized(tmp_path: Path) -> Path:
    """A checkpoint quantized to four bits, with some modules left as they were."""
    plain = tiny_model("llama", vocab_size=VOCAB, hidden_size=64, intermediate_size=128, head_dim=32).bfloat16()
    plain.save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain", quantization_config=BitsAndBytesConfig(**NF4))
    model.save_pretrained(tmp_path / "quantized")
    byte_tokenizer().save_pretrained(tmp_path / "quantized")
    edit_json(tmp_path / "quantized" / "config.json", rope_theta=10000.0)
    return tmp_path / "quantized"


@pytest.fixture
def repacking(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on processors for which bitsandbytes repacks weights; its own arithmetic on them needs no such processor."""
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)


def test_quantized_checkpoint_loses_blocks(quantized: Path, tmp_path: Path, repacking: None) -> None:
    model = load_model(locate(quantized)[0])
    Walker(decoder_of(model)).walk(batches([tokens()[0]], 1), [])
    prune_layers(model, [0, 3])
    save_model(model, byte_tokenizer(), tmp_path / "cut", source=quantized, keep=[1, 2, 4, 5, 6, 7])

    raw = json.loads((tmp_path / "cut" / "config.json").read_text())
    assert raw["quantization_config"]["llm_int8_skip_modules"] == [
        "lm_head",
        "model.layers.1.mlp.up_proj",
        "model.layers.3",
    ]
    assert raw["quantization_config"]["bnb_4bit_quant_type"] == "nf4" and raw["num_hidden_layers"] == 6
    loaded = load_model(locate(tmp_path / "cut")[0])
    kinds = {name: type(module) for name, module in loaded.named_modules() if name.endswith("up_proj")}
    assert [kinds[f"model.layers.{i}.mlp.up_proj"] is Linear4bit for i in range(6)] == [
        True,
        False,
        True,
        False,
        True,
        True,
    ]
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))

    before, after = load_file(quantized / "model.safetensors"), load_file(tmp_path / "cut" / "model.safetensors")
    for name, tensor in after.items():
        parts = name.split(".")
        if "layers" in parts:
            parts[2] = str([1, 2, 4, 5, 6, 7][int(parts[2])])
        assert torch.equal(tensor, before[".".join(parts)]), name
    assert any("quant_state" in name for name in after)


def test_models_from_elsewhere_are_not_repacked_either(quantized: Path, repacking: None) -> None:
    model = AutoModelForCausalLM.from_pretrained(quantized)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    probe(model)
    after = model.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.slow
def test_quantized_checkpoint_is_reloaded_in_another_process(quantized: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(quantized)
    prune_layers(model, [0, 3])
    save_model(model, byte_tokenizer(), tmp_path / "cut", source=quantized, keep=[1, 2, 4, 5, 6, 7])
    assert check_reload(model, tmp_path / "cut") == "full"


def test_half_of_everything(tmp_path: Path) -> None:
    model = tiny_model("qwen2")
    prune_layers(model, range(0, DEPTH, 2))
    model.save_pretrained(tmp_path)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path), tokens()), logits(model, tokens()))


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "gemma2", "mixtral", "falcon", "mamba"])
def test_a_structural_copy_stays_whole(model_type: str) -> None:
    model = tiny_model(model_type)
    before = logits(model, tokens())
    whole = structural_copy(model)
    prune_layers(model, [1, 4])
    assert torch.equal(logits(whole, tokens()), before)
    assert whole.config.num_hidden_layers == 8 and model.config.num_hidden_layers == 6
    own = {p.data_ptr() for p in model.parameters()}
    assert own <= {p.data_ptr() for p in whole.parameters()}
