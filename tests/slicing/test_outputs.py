"""What a model gives and takes besides ids and logits: attentions, router losses, embeddings, token types."""

import copy

import pytest
import torch

from ..tiny import tokens
from .support import CASES, base, fused_case

IDS = tokens(2, 14)


# Falcon has its attentions in a class of its own for each kernel, and the one used by default gives none.
@pytest.mark.parametrize("case", [case for case in CASES if CASES[case][0] != "falcon"])
def test_attentions(case: str) -> None:
    found, wanted = (copy.deepcopy(model) for model in (fused_case(case), base(case).model))
    for model in (found, wanted):
        model.set_attn_implementation("eager")
    with torch.inference_mode():
        one, other = (model(input_ids=IDS, output_attentions=True).attentions for model in (found, wanted))
    assert len(one) == len(other) == base(case).num_layers
    for a, b in zip(one, other, strict=True):
        assert a.std() > 0.01
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


@pytest.mark.parametrize("case", ["mixtral", "qwen2_moe", "qwen3_moe"])
def test_routers(case: str) -> None:
    with torch.inference_mode():
        one, other = (
            model(input_ids=IDS, labels=IDS, output_router_logits=True)
            for model in (fused_case(case), base(case).model)
        )
    assert len(one.router_logits) == len(other.router_logits) >= 2
    for a, b in zip(one.router_logits, other.router_logits, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-4)
    assert float(one.aux_loss) == pytest.approx(float(other.aux_loss), rel=1e-5)
    assert float(one.loss) == pytest.approx(float(other.loss), rel=1e-5)


@pytest.mark.parametrize("case", ["llama", "gpt2", "opt", "falcon"])
def test_embeddings_in_place_of_ids(case: str) -> None:
    model = fused_case(case)
    with torch.inference_mode():
        given = model(inputs_embeds=model.get_input_embeddings()(IDS)).logits
        assert torch.equal(given, model(input_ids=IDS).logits)


def test_token_types_of_gpt2() -> None:
    types = torch.arange(14).expand(2, 14) % 2
    with torch.inference_mode():
        found, wanted, without = (
            fused_case("gpt2")(input_ids=IDS, token_type_ids=types).logits,
            base("gpt2").model(input_ids=IDS, token_type_ids=types).logits,
            fused_case("gpt2")(input_ids=IDS).logits,
        )
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-10)
    assert (found - without).abs().max() > 0.1


def test_gpt2_takes_one_of_ids_and_embeddings() -> None:
    model = fused_case("gpt2")
    for given in ({}, {"input_ids": IDS, "inputs_embeds": model.get_input_embeddings()(IDS)}):
        with pytest.raises(ValueError, match="either input_ids or inputs_embeds"):
            model(**given)


def test_a_loss_is_that_of_the_base() -> None:
    for case in ("llama", "gpt2", "falcon"):
        with torch.inference_mode():
            one, other = (m(input_ids=IDS, labels=IDS).loss for m in (fused_case(case), base(case).model))
        assert float(one) == pytest.approx(float(other), rel=1e-5)
