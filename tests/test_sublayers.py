"""What of a block is its attention and its MLP, and that silencing one is what zero weights do."""

from contextlib import ExitStack

import pytest
import torch
from torch import nn

from hf_prune.architecture import FAMILIES, decoder_of, sublayers
from hf_prune.architecture.sublayers import (
    has_part,
    part_modules,
    part_sizes,
    silenced,
    why_no_part,
    write_parameters,
)
from hf_prune.errors import ArchitectureError
from hf_prune.units import Part

from .making import logits
from .tiny import DEPTH, tiny_model, tokens

TYPES = [t for family in FAMILIES for t in family.model_types if t != "mamba"]
CUTS: tuple[tuple[Part, ...], ...] = (("attention",), ("mlp",), ("attention", "mlp"))


def zeroed(model_type: str, parts: tuple[Part, ...], layers: range, **overrides: object) -> torch.Tensor:
    """Logits where the weights by which the parts write are zero."""
    model = tiny_model(model_type, **overrides)
    for layer in layers:
        block = decoder_of(model).blocks[layer]
        for part in parts:
            for name in write_parameters(block, part):
                block.get_parameter(name).data.zero_()
    return logits(model, tokens())


def masked(model_type: str, parts: tuple[Part, ...], layers: range, **overrides: object) -> torch.Tensor:
    """Logits where the parts are silenced."""
    model = tiny_model(model_type, **overrides)
    with ExitStack() as stack:
        for layer in layers:
            stack.enter_context(silenced(decoder_of(model).blocks[layer], parts))
        found = logits(model, tokens())
    assert not any("forward" in m.__dict__ or m._forward_hooks for m in model.modules())
    return found


@pytest.mark.parametrize("model_type", TYPES)
def test_silencing_is_what_zero_weights_do(model_type: str) -> None:
    whole = logits(tiny_model(model_type), tokens())
    for parts, layers in zip(CUTS, (range(DEPTH), range(2, 4), range(DEPTH)), strict=True):
        found = masked(model_type, parts, layers)
        torch.testing.assert_close(found, zeroed(model_type, parts, layers), rtol=0, atol=1e-6)
        assert not torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize("model_type", TYPES)
def test_a_block_of_which_both_parts_are_silenced_hands_on_what_it_gets(model_type: str) -> None:
    model = tiny_model(model_type)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def see(_block: nn.Module, args: tuple, kwargs: dict, output: object) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen.append((given, output[0] if isinstance(output, tuple) else output))

    block = decoder_of(model).blocks[3]
    block.register_forward_hook(see, with_kwargs=True)
    with silenced(block, ("attention", "mlp")):
        logits(model, tokens())
    torch.testing.assert_close(seen[0][1], seen[0][0], rtol=0, atol=0)


@pytest.mark.parametrize("model_type", TYPES)
def test_it_is_so_in_bfloat16_and_where_the_family_is_not_known(
    model_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(model_type).to(torch.bfloat16)
    blocks = decoder_of(model).blocks
    found = []
    for known in (True, False):
        monkeypatch.setattr(sublayers, "_STOCK", sublayers._STOCK if known else set())
        with silenced(blocks[1], ("attention",)), silenced(blocks[4], ("mlp",)):
            found.append(logits(model, tokens()))
    assert found[0].dtype == found[1].dtype
    assert torch.equal(found[0], found[1])


@pytest.mark.parametrize(
    ("model_type", "overrides"),
    [
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("gpt_neox", {"use_parallel_residual": False}),
        ("falcon", {"new_decoder_architecture": False, "multi_query": True, "parallel_attn": True, "bias": True}),
        ("falcon", {"new_decoder_architecture": False, "parallel_attn": False, "alibi": True}),
        ("stablelm", {"use_parallel_residual": True}),
        ("llama", {"attention_bias": True, "mlp_bias": True}),
    ],
)
def test_variants_within_families(model_type: str, overrides: dict[str, object]) -> None:
    for parts in CUTS:
        found = masked(model_type, parts, range(1, 5), **overrides)
        torch.testing.assert_close(found, zeroed(model_type, parts, range(1, 5), **overrides), rtol=0, atol=1e-6)


def test_silenced_parts_are_not_computed() -> None:
    model = tiny_model("llama")
    block, ran = decoder_of(model).blocks[2], []
    block.self_attn.q_proj.register_forward_hook(lambda *_: ran.append("attention"))
    block.mlp.up_proj.register_forward_hook(lambda *_: ran.append("mlp"))
    with silenced(block, ("attention",)):
        logits(model, tokens())
    assert ran == ["mlp"]


def test_biases_and_all_experts_are_among_what_writes() -> None:
    moe = decoder_of(tiny_model("gpt_oss")).blocks[0]
    assert write_parameters(moe, "mlp") == ["mlp.experts.down_proj", "mlp.experts.down_proj_bias"]
    assert write_parameters(moe, "attention") == ["self_attn.o_proj.weight", "self_attn.o_proj.bias"]
    shared = decoder_of(tiny_model("qwen2_moe")).blocks[1]
    assert set(write_parameters(shared, "mlp")) == {"mlp.experts.down_proj", "mlp.shared_expert.down_proj.weight"}


@pytest.mark.parametrize("model_type", [*TYPES, "mamba"])
def test_parts_weigh_what_their_parameters_do(model_type: str) -> None:
    decoder = decoder_of(tiny_model(model_type))
    found = part_sizes(decoder)
    for layer, block in enumerate(decoder.blocks):
        modules = [m for part in ("attention", "mlp") for m in part_modules(block, part).values()]
        weighed = found["attention"]["parameters"][layer] + found["mlp"]["parameters"][layer]
        everything = {id(p) for m in modules for p in m.parameters()}
        rest = [n for n, p in block.named_parameters() if id(p) not in everything]
        if model_type == "mamba":
            assert weighed == 0
        else:
            assert weighed == sum(p.numel() for p in block.parameters() if id(p) in everything)
            assert all("norm" in name or "ln_" in name for name in rest), rest
            assert found["mlp"]["bytes"][layer] == 4 * found["mlp"]["parameters"][layer] > 0


def test_a_block_without_parts_is_refused() -> None:
    decoder = decoder_of(tiny_model("mamba"))
    for part in ("attention", "mlp"):
        assert not has_part(decoder.blocks[0], part)
        with pytest.raises(ArchitectureError, match=f"MambaBlock has no {part} that could go alone.*norm, mixer"):
            write_parameters(decoder.blocks[0], part)
        assert "MambaBlock" in why_no_part(decoder, part)
    assert why_no_part(decoder_of(tiny_model("llama")), "mlp") == ""
    assert has_part(decoder.blocks[0], "block")


def test_quantized_weights_and_norms_that_write_by_themselves_are_refused() -> None:
    block = decoder_of(tiny_model("llama")).blocks[0]
    block.mlp.down_proj.weight = nn.Parameter(torch.zeros(32, 48, dtype=torch.int8), requires_grad=False)
    with pytest.raises(ArchitectureError, match="mlp of a LlamaDecoderLayer writes by quantized weights"):
        write_parameters(block, "mlp")
    del block.mlp.down_proj.weight  # as GPTQ has it: buffers, by other names
    block.mlp.down_proj.register_buffer("qweight", torch.zeros(4, dtype=torch.int32))
    assert not has_part(block, "mlp")
    post = decoder_of(tiny_model("olmo2")).blocks[0]
    post.post_feedforward_layernorm = nn.LayerNorm(32)
    with pytest.raises(ArchitectureError, match="post_feedforward_layernorm"):
        write_parameters(post, "mlp")
    assert has_part(post, "attention")
