import re

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hf_prune.architecture import decoder_of
from hf_prune.errors import ArchitectureError
from hf_prune.healing.targets import find_targets, is_shortcut
from tests.healing.support import with_shortcuts
from tests.tiny import tiny_model

LLAMA = ("mlp.down_proj", "mlp.gate_proj", "mlp.up_proj")
NEOX = ("mlp.dense_4h_to_h", "mlp.dense_h_to_4h")

MLP = {
    "llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "qwen3": LLAMA, "gemma2": LLAMA, "gemma3_text": LLAMA,
    "olmo2": LLAMA, "smollm3": LLAMA, "granite": LLAMA, "cohere2": LLAMA,
    "phi": ("mlp.fc1", "mlp.fc2"), "opt": ("fc1", "fc2"),
    "phi3": ("mlp.down_proj", "mlp.gate_up_proj"), "glm": ("mlp.down_proj", "mlp.gate_up_proj"),
    "gpt2": ("mlp.c_fc", "mlp.c_proj"), "gpt_neo": ("mlp.c_fc", "mlp.c_proj"),
    "gptj": ("mlp.fc_in", "mlp.fc_out"),
    "gpt_neox": NEOX, "falcon": NEOX, "bloom": NEOX, "mpt": ("ffn.down_proj", "ffn.up_proj"),
    "lfm2": ("feed_forward.w1", "feed_forward.w2", "feed_forward.w3"),
}  # fmt: skip

FUSED = ("mixtral", "gpt_oss", "granitemoe")


def matched(model, targets):
    return {name for name, _ in model.named_modules() if re.fullmatch(targets.pattern, name)}


@pytest.mark.parametrize("model_type", MLP)
def test_mlp_of_every_block_and_nothing_else(model_type):
    model = tiny_model(model_type)
    decoder = decoder_of(model)
    targets = find_targets(decoder, "mlp")
    assert targets.names == MLP[model_type]
    assert targets.warning is None
    expected = {f"{decoder.block_prefix(i)}{n}" for i in range(decoder.num_layers) for n in MLP[model_type]}
    assert matched(model, targets) == expected
    assert all(isinstance(model.get_submodule(name), nn.Linear | Conv1D) for name in expected)
    assert targets.transposed is (model_type == "gpt2")


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt", "phi3", "gpt_neox", "falcon", "mamba", "lfm2"])
def test_all_is_every_linear_of_the_blocks(model_type):
    model = tiny_model(model_type)
    decoder = decoder_of(model)
    targets = find_targets(decoder, "all")
    linears = {
        decoder.block_prefix(i) + name
        for i, block in enumerate(decoder.blocks)
        for name, module in block.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    assert matched(model, targets) & linears == linears
    assert not any(name.startswith("lm_head") for name in matched(model, targets))


@pytest.mark.parametrize("model_type", FUSED)
def test_fused_experts_fall_back_to_attention_and_say_so(model_type):
    model = tiny_model(model_type)
    targets = find_targets(decoder_of(model, "org/moe"), "mlp")
    assert set(targets.names) == {f"self_attn.{n}_proj" for n in "qkvo"}
    assert "model's experts are fused tensors" in targets.warning
    assert targets.warning.endswith("trains attention instead.")


def test_shared_experts_and_dense_layers_are_adapted_routers_never():
    targets = find_targets(decoder_of(tiny_model("qwen2_moe")), "all")
    assert {f"mlp.shared_expert.{n}_proj" for n in ("gate", "up", "down")} < set(targets.names)
    assert {"mlp.gate", "mlp.shared_expert_gate"}.isdisjoint(targets.names)
    assert "leaves some of its MLP weights as they are." in targets.warning
    mlp = find_targets(decoder_of(tiny_model("deepseek_v3")), "mlp")
    assert set(mlp.names) == {f"{p}.{n}_proj" for p in ("mlp", "mlp.shared_experts") for n in ("gate", "up", "down")}


def test_no_mlp_at_all_is_refused():
    with pytest.raises(ArchitectureError, match="no linear map for target='mlp'.*'mamba'.*--heal-target all"):
        find_targets(decoder_of(tiny_model("mamba")), "mlp")


SHORTCUTS = ("attn_shortcut", "mlp_shortcut")


@pytest.mark.parametrize(
    ("model_type", "shortcuts"),
    [("llama", SHORTCUTS), ("gpt2", SHORTCUTS), ("opt", SHORTCUTS), ("phi", ("shortcut",)), ("falcon", ("shortcut",))],
)
def test_shortcuts_are_neither_attention_nor_mlp(model_type, shortcuts):
    plain = tiny_model(model_type, depth=3)
    model = with_shortcuts(tiny_model(model_type, depth=3), *shortcuts)
    decoder = decoder_of(model)
    mlp, everything = find_targets(decoder, "mlp"), find_targets(decoder, "all")
    assert mlp == find_targets(decoder_of(plain), "mlp")
    without = find_targets(decoder_of(plain), "all")
    assert set(everything.names) == {*without.names, *shortcuts}
    assert everything.transposed is without.transposed is (model_type == "gpt2")
    expected = {f"{decoder.block_prefix(i)}{name}" for i in range(3) for name in shortcuts}
    assert matched(model, everything) - matched(plain, without) == expected


def test_shortcuts_are_told_by_their_last_name():
    assert all(is_shortcut(name) for name in (*SHORTCUTS, "shortcut", "model.layers.0.attn_shortcut"))
    assert not any(is_shortcut(name) for name in ("shortcut.proj", "mlp.shortcuts", "noshortcut", "attn_shortcut2"))


def test_a_widening_block_is_matched_by_name_alone():
    model = with_shortcuts(tiny_model("llama", depth=2), "mlp_shortcut")
    model.model.layers[1].mlp_shortcut = nn.Linear(24, 28, bias=False)
    del model.model.layers[0].mlp_shortcut
    targets = find_targets(decoder_of(model), "all")
    assert {name for name in matched(model, targets) if "shortcut" in name} == {"model.layers.1.mlp_shortcut"}


def test_fused_experts_fall_back_to_attention_without_shortcuts():
    plain = find_targets(decoder_of(tiny_model("mixtral"), "org/moe"), "mlp")
    model = with_shortcuts(tiny_model("mixtral"), *SHORTCUTS)
    assert find_targets(decoder_of(model, "org/moe"), "mlp") == plain
    assert set(find_targets(decoder_of(model), "all").names) == {*plain.names, *SHORTCUTS}


def test_names_are_not_patterns():
    model = tiny_model("llama", depth=2)
    targets = find_targets(decoder_of(model), "mlp")
    assert not re.fullmatch(targets.pattern, "model.layers.0.mlpXup_proj")
    assert not re.fullmatch(targets.pattern, "draft.model.layers.0.mlp.up_proj")


def test_peft_puts_adapters_exactly_there():
    from hf_prune.healing.adapter import add_adapter
    from tests.healing.support import settings

    model = tiny_model("gpt2", depth=2)
    targets = find_targets(decoder_of(model), "mlp")
    names = matched(model, targets)
    adapted = add_adapter(model, settings(), targets)
    carrying = {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
        for name, parameter in adapted.named_parameters()
        if name.endswith("lora_A.default.weight") and parameter.dtype == torch.float32
    }
    assert carrying == names
    assert all(p.requires_grad == ("lora_" in n) for n, p in adapted.named_parameters())
