"""QLoRA for real: bitsandbytes' NF4 on the CPU."""

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune.architecture import decoder_of
from hf_prune.healing import heal, held_out_loss
from hf_prune.healing.adapter import add_adapter
from hf_prune.healing.budget import Throughput
from hf_prune.healing.nf4 import kept_whole, nf4_config
from hf_prune.healing.targets import find_targets
from hf_prune.healing.training import load_for_training
from tests.healing.support import pruned_checkpoint, settings, split_text
from tests.tiny import tokens

pytestmark = pytest.mark.usefixtures("fixed_speed")


def four_bit(folder):
    return load_for_training(folder, torch.device("cpu"), True, Throughput(1e12, "float32"), False)


@pytest.mark.parametrize("quantize", ["nf4", "auto"])
def test_the_whole_path(tmp_path, quantize):
    folder = pruned_checkpoint(tmp_path / "pruned")
    samples, held_out = split_text()
    config = settings(quantize=quantize, learning_rate=0.02)
    result = heal(folder, samples, held_out, config, run_folder=tmp_path / "run", base_model="o/b", progress=False)
    record, losses = result.record, result.record.held_out
    assert record.quantization == "nf4 (double quantized)"
    assert losses.quantized != losses.pruned  # four bits are not sixteen
    assert losses.quantized == pytest.approx(losses.pruned, abs=0.6)
    assert losses.adapter_quantized < losses.quantized - 0.05
    assert losses.adapter < losses.pruned - 0.05
    assert losses.merged == pytest.approx(losses.adapter, abs=0.02)
    assert not hasattr(result.model.config, "quantization_config")
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    for name, tensor in result.model.state_dict().items():
        assert tensor.dtype == torch.bfloat16
        assert torch.equal(tensor, before[name]) != ("mlp" in name), name


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_gradients_are_those_of_the_dequantized_model(model_type, tmp_path):
    """What frozen 4-bit layers pass on must be right, in the lowest block above all, also after an evaluation."""
    shape = {"llama": {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}, "gpt2": {"n_embd": 64}}[
        model_type
    ]
    folder = pruned_checkpoint(tmp_path / "pruned", model_type, depth=3, initializer_range=0.1, **shape)
    quantized = four_bit(folder)
    held_out_loss(quantized, split_text()[1])
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    replaced = 0
    for name, module in quantized.named_modules():
        if isinstance(module, bnb.nn.Linear4bit):
            weight = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            target = plain.get_submodule(name)
            target.weight.data = weight if type(target).__name__ == "Linear" else weight.T.contiguous()
            replaced += 1
    assert replaced == {"llama": 21, "gpt2": 12}[model_type]

    gradients = []
    for model in (quantized, plain):
        torch.manual_seed(0)
        config = settings(dropout=0.0)
        adapted = add_adapter(model, config, find_targets(decoder_of(model, "tiny"), "mlp")).train()
        for module in adapted.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        ids = tokens(batch=3)
        adapted(input_ids=ids, labels=ids).loss.backward()
        gradients.append({n: p.grad for n, p in adapted.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    lowest = [name for name in gradients[0] if ".0." in name and "lora_B" in name]
    assert lowest
    for name, gradient in gradients[0].items():
        # bitsandbytes rounds the dequantized weights to bfloat16 on one way and not on the other
        error = (gradient - gradients[1][name]).norm() / gradients[1][name].norm().clamp_min(1e-6)
        assert error < 0.03, (name, error)
    assert all(gradients[0][name].abs().max() > 1e-3 for name in lowest)


def test_gpt2_in_four_bits_merges_the_right_way_round(tmp_path):
    folder = pruned_checkpoint(tmp_path / "pruned", "gpt2")
    config = settings(quantize="nf4", learning_rate=0.02)
    result = heal(folder, *split_text(), config, run_folder=tmp_path / "run", base_model="o/b", progress=False)
    losses = result.record.held_out
    assert losses.merged < losses.pruned - 0.05
    assert losses.merged == pytest.approx(losses.adapter, abs=0.02)


@pytest.mark.parametrize("tied", [False, True])
def test_shortcuts_head_and_map_of_a_sliced_model_stay_whole(tmp_path, tied):
    folder = pruned_checkpoint(tmp_path / "pruned", "shortcut_llama", tie_word_embeddings=tied)
    assert kept_whole(folder) == ["attn_shortcut", "lm_head", "mlp_shortcut", "model.norm.map"]
    model = four_bit(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    linears = {name for name, module in plain.named_modules() if isinstance(module, torch.nn.Linear)}
    whole = {f"model.layers.{i}.{name}_shortcut" for i in range(2) for name in ("attn", "mlp")}
    whole |= {"lm_head", "model.norm.map"}
    assert {n for n, m in model.named_modules() if isinstance(m, bnb.nn.Linear4bit)} == linears - whole
    for name in whole:
        assert torch.equal(model.get_submodule(name).weight, plain.get_submodule(name).weight.float()), name
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "gpt_neox"])
def test_plain_models_are_quantized_as_transformers_does(tmp_path, model_type):
    folder = pruned_checkpoint(tmp_path / "pruned", model_type)
    assert kept_whole(folder) is None
    assert nf4_config(folder, torch.float32).llm_int8_skip_modules is None
    model = four_bit(folder)
    quantized = {name for name, module in model.named_modules() if isinstance(module, bnb.nn.Linear4bit)}
    inside = find_targets(decoder_of(model), "all").names
    assert quantized == {f"{decoder_of(model).block_prefix(i)}{name}" for i in range(2) for name in inside}


def test_a_sliced_model_heals_in_four_bits(tmp_path):
    folder = pruned_checkpoint(tmp_path / "pruned", "shortcut_llama")
    config = settings(quantize="nf4", target="all", learning_rate=0.02, schedule="linear", beta2=0.95)
    result = heal(folder, *split_text(), config, run_folder=tmp_path / "run", base_model="o/b", progress=False)
    losses = result.record.held_out
    assert {"attn_shortcut", "mlp_shortcut"} < set(result.record.target_modules)
    assert losses.quantized != losses.pruned
    assert losses.merged < losses.pruned - 0.05
    assert losses.merged == pytest.approx(losses.adapter, abs=0.02)
    before = AutoModelForCausalLM.from_pretrained(folder).state_dict()
    changed = {name for name, tensor in result.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {"model.layers.0.attn_shortcut.weight", "model.layers.1.mlp_shortcut.weight"} < changed
    assert {"model.norm.map.weight", "lm_head.weight", "model.embed_tokens.weight"}.isdisjoint(changed)


def test_resume_in_four_bits(tmp_path, monkeypatch):
    from hf_prune.healing.keeper import Keeper

    folder = pruned_checkpoint(tmp_path / "pruned")
    config = settings(quantize="nf4", steps=6)

    def go(run):
        return heal(folder, *split_text(), config, run_folder=tmp_path / run, base_model="o/b", progress=False)

    expected = go("unstopped")
    kept = Keeper.on_step_end

    def cut(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise RuntimeError("power cut")
        return kept(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_step_end", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            go("run")
    result = go("run")
    assert result.record.held_out == expected.record.held_out
    state = expected.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())


def test_a_finished_run_that_is_taken_up_again_says_the_same(tmp_path):
    folder = pruned_checkpoint(tmp_path / "pruned")
    config = settings(quantize="nf4", steps=4)
    first, again = (
        heal(folder, *split_text(), config, run_folder=tmp_path / "run", base_model="o/b", progress=False).record
        for _ in range(2)
    )
    assert again.held_out == first.held_out
    # the stations in 4 bits and the curve are measured in one arithmetic
    assert first.held_out.quantized == first.curve[0].loss
    assert first.held_out.adapter_quantized == first.curve[-1].loss
