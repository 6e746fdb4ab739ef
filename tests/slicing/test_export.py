"""A model of one basis written as a plain one of its family: the same function, and nothing of slicing left."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune.errors import ArchitectureError
from hf_prune.slicing.export import export_plain
from hf_prune.slicing.modeling import PLAIN

from ..making import logits
from ..tiny import tokens
from .support import base, difference, full, mixed, points_of, ranked, sliced_by, widths_of


def one_width(case: str, width: int = 24) -> tuple:
    decoder = base(case)
    widths = widths_of(decoder, [width] * points_of(decoder))
    return decoder, sliced_by(decoder, widths, basis="global", orientation="random")


@pytest.mark.parametrize("case", [*PLAIN, "llama-biased", "llama-tied", "qwen2-tied"])
def test_plain_model_is_the_sliced_one(case: str, tmp_path: Path) -> None:
    decoder, sliced = one_width(case)
    before = logits(sliced, tokens())
    plain = export_plain(sliced)
    assert type(plain) is type(decoder.model) and plain.config.model_type == decoder.config.model_type
    assert plain.config.hidden_size == 24 and not plain.config.tie_word_embeddings
    assert not [key for key in plain.config.to_dict() if "slice" in key or key == "auto_map"]
    assert difference(plain, sliced) < 1e-5  # transformers' RMSNorm computes in float32
    assert difference(sliced, decoder.model) > 0.1
    assert not plain.training and plain.dtype == torch.float64
    assert torch.equal(logits(sliced, tokens()), before), "the sliced model stays as it is"

    plain.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {
        "config.json", "generation_config.json", "model.safetensors",
    }, "no code is needed"  # fmt: skip
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64, output_loading_info=True)
    assert not any(info.values()) and type(loaded) is type(decoder.model)
    assert torch.equal(logits(loaded.eval(), tokens()), logits(plain, tokens()))
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None}
    ids = tokens(2, 9)
    assert torch.equal(loaded.generate(ids, **settings), sliced.generate(ids, **settings))


def test_epsilon_is_scaled_where_it_counts() -> None:
    """In a stream so small that epsilon weighs as much as it, the plain model's must be eps D / d."""
    decoder = base("llama", rms_norm_eps=1e-2)
    sliced = sliced_by(decoder, widths_of(decoder, [16] * points_of(decoder)), basis="global")
    with torch.no_grad():
        sliced.get_input_embeddings().weight.mul_(0.1)
    plain = export_plain(sliced)
    assert difference(plain, sliced) < 1e-5
    for module in plain.modules():
        if hasattr(module, "variance_epsilon"):
            module.variance_epsilon = 1e-2
    assert difference(plain, sliced) > 1e-3


def test_at_the_rank_nothing_is_lost_in_the_plain_model() -> None:
    decoder = ranked("llama")
    widths = widths_of(decoder, [48] * points_of(decoder))
    plain = export_plain(sliced_by(decoder, widths, basis="global"))
    assert type(plain) is type(decoder.model) and plain.config.hidden_size == 48
    assert difference(plain, decoder.model) < 1e-4


def test_heads_keep_their_size() -> None:
    _, sliced = one_width("llama")
    plain = export_plain(sliced)
    assert plain.config.head_dim == 8 and plain.model.layers[0].self_attn.q_proj.weight.shape == (32, 24)
    assert plain.model.layers[0].self_attn.scaling == 8**-0.5


@pytest.mark.parametrize(
    ("case", "settings", "message"),
    [
        ("llama", {"basis": "per_block"}, "shortcuts between its layers .*slice_shortcuts.*basis='global'"),
        ("llama-tied", {"basis": "global", "tied": True}, "one table for head and embeddings .*tied=False"),
        ("gpt2", {"basis": "global"}, "model_type 'sliced_gpt2'.*cannot be exported.*llama, mistral"),
        ("gemma", {"basis": "global"}, "model_type 'sliced_gemma'.*cannot be exported"),
        ("mixtral", {"basis": "global"}, "model_type 'sliced_mixtral'.*cannot be exported"),
    ],
)
def test_refused(case: str, settings: dict, message: str) -> None:
    decoder = base(case)
    with pytest.raises(ArchitectureError, match=message):
        export_plain(sliced_by(decoder, full(decoder), **settings))


def test_models_that_are_not_sliced_are_refused() -> None:
    with pytest.raises(ArchitectureError, match=r"model_type 'llama'\) cannot be exported .* expected a sliced model"):
        export_plain(base("llama").model)


def test_a_width_that_heads_do_not_divide_is_refused() -> None:
    _, sliced = one_width("llama", 26)
    with pytest.raises(ArchitectureError, match=r"widths \[26\] .*a multiple of its 4 heads"):
        export_plain(sliced)


def test_several_widths_are_refused() -> None:
    decoder = base("llama")
    sliced = sliced_by(decoder, mixed(decoder))
    sliced.config.slice_shortcuts = False
    with pytest.raises(ArchitectureError, match=r"has the widths \[.*\] .*slice_dims"):
        export_plain(sliced)
