"""What slicing cannot do is refused before any weight is touched, with the reason."""

import logging
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError, MeasureError
from hf_prune.slicing import slicer
from hf_prune.slicing.families import check_sliceable
from hf_prune.slicing.modeling import SLICEABLE
from hf_prune.slicing.points import Widths
from hf_prune.slicing.read_costs import costs_of_config
from hf_prune.slicing.slicer import Settings, slice_model

from ..tiny import tiny_config, tiny_model, tokens
from .support import DEPTH, base, full, mixed, points_of, sliced_by, text, widths_of

POST_NORM = "norms act on what attention and MLP write.*no rotation of the residual stream passes through"
NOT_YET = "for which slicing is not done yet; expected one of: llama, mistral"
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("gemma2", {}, POST_NORM),
    ("gemma3_text", {}, POST_NORM),
    ("olmo2", {}, POST_NORM),
    ("olmo3", {}, POST_NORM),
    ("glm4", {}, POST_NORM),
    ("exaone4", {}, POST_NORM),
    ("mamba", {}, "no attention and MLP"),
    *((name, {}, NOT_YET) for name in ("bloom", "mpt", "gptj", "stablelm", "starcoder2", "cohere", "glm")),
    ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False"),
    ("opt", {"_remove_final_layer_norm": True}, "no norm stands before the head .*'_remove_final_layer_norm'"),
    ("opt", {"word_embed_proj_dim": 16}, "word_embed_proj_dim=16 and hidden_size=32"),
    ("gpt2", {"add_cross_attention": True}, "cross-attention reads another stream .*'add_cross_attention'"),
]
"""model_type, config keys, and what the error says."""


def on_meta(model_type: str, overrides: dict[str, Any]) -> Decoder:
    """A model without weights: whoever touches one gets an error of another kind."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(tiny_config(model_type, DEPTH, **overrides))
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    return Decoder(model, model.config, blocks, "blocks", "org/model")


@pytest.mark.parametrize(("model_type", "overrides", "reason"), REFUSED)
def test_families_and_settings(model_type: str, overrides: dict[str, Any], reason: str) -> None:
    config = tiny_config(model_type, DEPTH, **overrides)
    for attempt in (
        lambda: check_sliceable(config, "org/model"),
        lambda: costs_of_config(config, "org/model"),
        lambda: slice_model(on_meta(model_type, overrides), Widths(24, (24,) * 3, (24,) * 3), text()),
    ):
        with pytest.raises(ArchitectureError, match=reason) as refused:
            attempt()
        assert "org/model" in str(refused.value)


@pytest.mark.parametrize("model_type", SLICEABLE)
def test_every_family_of_the_table_is_taken(model_type: str) -> None:
    check_sliceable(tiny_config(model_type, DEPTH), "org/model")


def test_quantized_weights() -> None:
    config = tiny_config("llama", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with pytest.raises(CheckpointError, match="'org/model' holds quantized weights .*'quantization_config'"):
        check_sliceable(config, "org/model")


def test_a_sliced_model() -> None:
    decoder = base("llama")
    again = decoder_of(sliced_by(decoder, mixed(decoder)), "org/model")
    with pytest.raises(ArchitectureError, match="'org/model' is sliced already .*'sliced_llama'"):
        sliced_by(again, full(decoder))


def test_a_weight_that_is_not_known_to_meet_the_stream() -> None:
    decoder = decoder_of(tiny_model("llama", DEPTH), "org/model")
    decoder.blocks[1].mlp.gain = torch.nn.Parameter(torch.ones(32))
    with pytest.raises(ArchitectureError, match=r"block 1 holds 'mlp\.gain' of shape \(32,\)"):
        sliced_by(decoder, full(decoder))


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise AssertionError("work began")

    monkeypatch.setattr(slicer, "Walker", fail)


@pytest.mark.parametrize(
    ("case", "widths", "message"),
    [
        ("llama", Widths(33, (24,) * 3, (24,) * 3), r"width 33: expected 1 to 32, the hidden size of 'llama'"),
        ("llama", Widths(24, (24,) * 3, (24, 24, 40)), "width 40: expected 1 to 32"),
        ("llama", Widths(0, (24,) * 3, (24,) * 3), "width 0: expected 1 to 32"),
        ("llama", Widths(24, (24, -8, 24), (24,) * 3), "width -8: expected 1 to 32"),
        ("llama", Widths(24, (24,) * 2, (24,) * 3), "attn_out holds 2 widths; 'llama' with 3 layers takes 3"),
        ("llama", Widths(24, (24,) * 3, (24,) * 4), "mlp_out holds 4 widths; 'llama' with 3 layers takes 3"),
        ("llama", Widths(24, (), (24,) * 3), "attn_out holds 0 widths; 'llama' with 3 layers takes 3"),
        ("phi", Widths(24, (24,) * 3, (24,) * 3), "attn_out holds 3 widths; 'phi' with 3 layers takes 0"),
        ("phi", Widths(24, (), (24,) * 2), "mlp_out holds 2 widths; 'phi' with 3 layers takes 3"),
    ],
)
def test_widths_that_do_not_fit(case: str, widths: Widths, message: str, no_work: None) -> None:
    with pytest.raises(ConfigError, match=message):
        sliced_by(base(case), widths)


@pytest.mark.parametrize("case", ["llama", "phi"])
def test_one_basis_takes_one_width(case: str, no_work: None) -> None:
    decoder = base(case)
    widths = widths_of(decoder, [24] * (points_of(decoder) - 1) + [32])
    with pytest.raises(ConfigError, match="basis='global' keeps one basis .* got 24 to 32.*basis='per_block'"):
        sliced_by(decoder, widths, basis="global")


def test_far_too_little_text(no_work: None) -> None:
    decoder = base("llama")
    with pytest.raises(ConfigError, match=r"^7 calibration tokens are too few .*hidden_size=32; .*refused below 8\."):
        slice_model(decoder, full(decoder), [tokens(1, 4)[0], tokens(1, 3)[0]])
    with pytest.raises(ConfigError, match=r"^0 calibration tokens"):
        slice_model(decoder, full(decoder), [])


def test_little_text_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    decoder = base("llama")
    logging.getLogger("hf_prune").propagate = True
    with caplog.at_level(logging.WARNING, "hf_prune"):
        slice_model(decoder, full(decoder), [tokens(1, 32)[0]], Settings())
        assert not caplog.records
        slice_model(decoder, full(decoder), [tokens(1, 20)[0], tokens(1, 11)[0]])
    (record,) = caplog.records
    assert "31 calibration tokens for hidden_size=32: fewer than one for each direction" in record.getMessage()


@pytest.mark.parametrize("basis", ["per_block", "global"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
@pytest.mark.parametrize(
    ("case", "parameter", "where"),
    [
        ("llama", "model.layers.1.mlp.down_proj.weight", "layer 1"),
        ("llama", "model.layers.2.self_attn.q_proj.weight", "layer 2"),
        ("llama", "model.embed_tokens.weight", "the embeddings"),
        ("gpt2", "transformer.h.0.attn.c_proj.bias", "layer 0"),
        ("phi", "model.layers.2.mlp.fc1.weight", "layer 2"),
        ("mixtral", "model.layers.1.mlp.experts.down_proj", "layer 1"),
    ],
)
def test_bad_weights_name_their_layer(case: str, parameter: str, where: str, number: float, basis: str) -> None:
    decoder = base(case)
    tensor = decoder.model.get_parameter(parameter)
    kept = tensor.detach().clone()
    try:
        with torch.no_grad():
            tensor.fill_(number)
        with pytest.raises(MeasureError, match=rf"^{where} of '{case}' gives NaN or infinite hidden states"):
            sliced_by(decoder, full(decoder), basis=basis)
    finally:
        with torch.no_grad():
            tensor.copy_(kept)
