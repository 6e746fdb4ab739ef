"""QLoRA for real: bitsandbytes' NF4 on the CPU."""

import bitsandbytes as bnb
import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune.architecture import decoder_of
from hf_prune.healing import heal, held_out_loss
from hf_prune.healing.adapter import add_adapter
from hf_prune.healing.budget import Throughput
from hf_prune.healing.lora import _load_for_training
from hf_prune.healing.targets import find_targets
from tests.healing.support import pruned_checkpoint, settings, split_text
from tests.tiny import tokens

pytestmark = pytest.mark.usefixtures("fixed_speed")


def four_bit(folder):
    return _load_for_training(folder, torch.device("cpu"), True, Throughput(1e12, "float32"), False)


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


def test_resume_in_four_bits(tmp_path, monkeypatch):
    from hf_prune.healing.trainer import _Keeper

    folder = pruned_checkpoint(tmp_path / "pruned")
    config = settings(quantize="nf4", steps=6)

    def go(run):
        return heal(folder, *split_text(), config, run_folder=tmp_path / run, base_model="o/b", progress=False)

    expected = go("unstopped")
    kept = _Keeper.on_step_end

    def cut(self, args, state, control, **kwargs):
        if state.global_step == 5:
            raise RuntimeError("power cut")
        return kept(self, args, state, control, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(_Keeper, "on_step_end", cut)
        with pytest.raises(RuntimeError, match="power cut"):
            go("run")
    result = go("run")
    assert result.record.held_out == expected.record.held_out
    state = expected.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())
