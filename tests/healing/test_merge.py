import copy

import pytest
import torch

from hf_prune.architecture import decoder_of
from hf_prune.errors import CheckpointError
from hf_prune.healing.adapter import adapter_state, add_adapter, scaling
from hf_prune.healing.merge import merge_adapter
from hf_prune.healing.targets import find_targets
from tests.healing.support import attached, settings, with_shortcuts
from tests.tiny import tiny_model, tokens

CONFIG = settings(rank=4, alpha=12)


def trained_adapter(model, seed=0, config=CONFIG):
    """An adapter whose B is not zero."""
    adapted = add_adapter(copy.deepcopy(model), config, find_targets(decoder_of(model), config.target))
    generator = torch.Generator().manual_seed(seed)
    state = adapter_state(adapted)
    return {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in state.items()}


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "phi3", "gpt_neox", "falcon", "qwen2_moe"])
def test_merged_computes_what_the_adapter_computes(model_type):
    model = tiny_model(model_type, depth=4)
    state = trained_adapter(model)
    ids = tokens()
    with torch.no_grad():
        before = model(ids).logits
        adapted = attached(copy.deepcopy(model), CONFIG, state, "org/base")(ids).logits
        merge_adapter(model, state, scaling(CONFIG))
        merged = model(ids).logits
    assert (adapted - before).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("model_type", ["llama", "gpt2"])
def test_shortcuts_are_merged_beside_maps_of_another_kind(model_type):
    model = with_shortcuts(tiny_model(model_type, depth=3), "attn_shortcut", "mlp_shortcut")
    config = settings(rank=4, alpha=12, target="all")
    state = trained_adapter(model, config=config)
    assert sum("shortcut" in name for name in state) == 3 * 2 * 2
    ids = tokens()
    with torch.no_grad():
        adapted = attached(copy.deepcopy(model), config, state, "org/base")(ids).logits
        before = model.get_submodule(f"{decoder_of(model).blocks_path}.2.attn_shortcut").weight.clone()
        merge_adapter(model, state, scaling(config))
        merged = model(ids).logits
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    assert not torch.equal(model.get_submodule(f"{decoder_of(model).blocks_path}.2.attn_shortcut").weight, before)


def test_only_adapted_weights_change_and_are_cast_once():
    model = tiny_model("llama", depth=3).to(torch.bfloat16)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = trained_adapter(model)
    assert merge_adapter(model, state, scaling(CONFIG)) == 9
    for name, tensor in model.state_dict().items():
        if "mlp" not in name:
            assert torch.equal(tensor, original[name]), name
            continue
        key = f"base_model.model.{name.removesuffix('.weight')}"
        delta = 3 * state[f"{key}.lora_B.weight"].double() @ state[f"{key}.lora_A.weight"].double()
        exact = original[name].double() + delta
        assert tensor.dtype == torch.bfloat16
        # bfloat16 keeps 8 significant bits: one rounding errs by half a unit in the last place.
        assert ((tensor.double() - exact).abs() <= exact.abs() * 2**-8 + 1e-9).all(), name
        assert not torch.equal(tensor, original[name])


def test_unload_gives_the_plain_model_back():
    model = tiny_model("llama", depth=2)
    original = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    back = attached(model, CONFIG, trained_adapter(model), "org/base").unload()
    assert back is model
    assert type(back).__name__ == "LlamaForCausalLM"
    assert list(back.state_dict()) == list(original)
    assert all(torch.equal(t, original[n]) for n, t in back.state_dict().items())


def test_an_adapter_of_another_model_is_refused():
    model = tiny_model("llama", depth=2)
    state = trained_adapter(model)
    with pytest.raises(CheckpointError, match="has shape .* the weight has"):
        merge_adapter(tiny_model("llama", depth=2, intermediate_size=64), state, scaling(CONFIG))
    state.pop(next(iter(state)))
    with pytest.raises(CheckpointError, match="expected pairs"):
        merge_adapter(model, state, scaling(CONFIG))
