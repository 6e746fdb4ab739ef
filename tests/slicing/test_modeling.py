"""Sliced models in the hands of transformers: saved, loaded, generating, trained, and what they answer."""

import copy
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from ..making import logits
from ..tiny import tokens
from .support import CASES, TIED, base, each_family, mixed, sliced_by


@functools.cache
def sliced(case: str) -> PreTrainedModel:
    """A float32 model with another width at every point; tied where it can be."""
    decoder = base(case, dtype=torch.float32)
    return sliced_by(decoder, mixed(decoder), tied=case in TIED)


@each_family
def test_saved_and_loaded_to_the_bit(case: str, tmp_path: Path) -> None:
    model, ids = sliced(case), tokens()
    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert type(loaded) is type(model) and type(loaded.config) is type(model.config)
    assert not any(info.values()), info
    assert torch.equal(logits(loaded.eval(), ids), logits(model, ids))
    assert loaded.config.slice_dims == model.config.slice_dims
    assert {name: p.shape for name, p in loaded.named_parameters()} == {
        name: p.shape for name, p in model.named_parameters()
    }
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == loaded.config.tie_word_embeddings == (case in TIED)
    files = {path.name for path in tmp_path.glob("*.py")}
    family = CASES[case][0]
    needed = {"sliced.py", f"configuration_sliced_{family}.py", f"modeling_sliced_{family}.py"}
    assert files - {"sliced_moe.py"} == needed
    assert ("sliced_moe.py" in files) == (family in ("mixtral", "qwen2_moe", "qwen3_moe"))


def test_dtype_is_kept(tmp_path: Path) -> None:
    model = sliced("llama")
    model.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.float32
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.dtype == torch.float16
    half.save_pretrained(tmp_path / "half")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "half").dtype == torch.float16


@each_family
def test_cached_generation_is_that_without_a_cache(case: str) -> None:
    model, ids = sliced(case), tokens(2, 9)
    cached, plain = (
        model.generate(ids, max_new_tokens=8, do_sample=False, eos_token_id=None, use_cache=use)
        for use in (True, False)
    )
    assert cached.shape == (2, 17) and torch.equal(cached, plain)


@each_family
def test_left_padded_rows_are_single_rows(case: str) -> None:
    model, (one, two) = sliced(case), tokens(2, 10)
    two = two[:6]
    ids = torch.stack([one, torch.cat([torch.zeros(4, dtype=torch.int64), two])])
    mask = (ids != 0).long()
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with torch.inference_mode():
        both = model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False).logits
    torch.testing.assert_close(both[0], logits(model, one[None])[0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(both[1, 4:], logits(model, two[None])[0], rtol=1e-4, atol=1e-4)
    settings: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    padded = model.generate(ids, attention_mask=mask, **settings)
    assert torch.equal(padded[1, 10:], model.generate(two[None], **settings)[0, 6:])


@each_family
def test_a_later_token_reaches_no_earlier_position(case: str) -> None:
    model, ids = sliced(case), tokens()
    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 90 + 3
    # Not to the bit: another token may go to another expert, whose products then have another shape.
    torch.testing.assert_close(logits(model, changed)[:, :-1], logits(model, ids)[:, :-1], rtol=1e-5, atol=1e-5)


@each_family
def test_hidden_states_have_the_widths(case: str) -> None:
    model, ids = sliced(case), tokens()
    dims = model.config.slice_dims
    with torch.inference_mode():
        answer = model(input_ids=ids, output_hidden_states=True)
    found = [state.shape for state in answer.hidden_states]
    last = dims["embed"] if model.config.tie_word_embeddings else dims["mlp_out"][-1]  # behind the final norm
    assert found == [(*ids.shape, width) for width in (dims["embed"], *dims["mlp_out"][:-1], last)]
    assert len({width for *_, width in found}) > 2
    assert torch.equal(answer.logits, logits(model, ids))


@each_family
def test_a_config_makes_a_model(case: str) -> None:
    fields = {key: value for key, value in sliced(case).config.to_dict().items() if key != "model_type"}
    config = AutoConfig.for_model(f"sliced_{CASES[case][0]}", **fields)
    assert type(config) is type(sliced(case).config)
    torch.manual_seed(0)
    fresh = AutoModelForCausalLM.from_config(config).eval()
    assert type(fresh) is type(sliced(case))
    assert torch.isfinite(logits(fresh, tokens())).all()
    weights = [p for p in fresh.parameters() if p.ndim > 1]
    assert all(p.std() > 0 for p in weights), "a weight was left without values"


@each_family
def test_gradient_checkpointing_gives_the_same_gradients(case: str) -> None:
    model, ids = copy.deepcopy(sliced(case)), tokens()
    model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(getattr(module, "dropout", None), float):
            module.dropout = 0.0
        elif isinstance(getattr(module, "hidden_dropout", None), float):
            module.hidden_dropout = 0.0
    gradients = []
    for on in (False, True):
        if on:
            model.activation_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-5)


# With ALiBi, transformers' own Falcon answers otherwise in each kernel.
@pytest.mark.parametrize("case", [case for case in CASES if case != "falcon-rw"])
def test_attention_kernels_agree(case: str, tmp_path: Path) -> None:
    model, ids = sliced(case), tokens()
    model.save_pretrained(tmp_path)
    eager, sdpa = (
        AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=kernel).eval()
        for kernel in ("eager", "sdpa")
    )
    assert (eager.config._attn_implementation, sdpa.config._attn_implementation) == ("eager", "sdpa")
    torch.testing.assert_close(logits(eager, ids), logits(sdpa, ids), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("case", ["llama", "llama-tied"])
def test_vocabulary_can_grow(case: str, tmp_path: Path) -> None:
    model, ids = sliced(case), tokens()
    model.save_pretrained(tmp_path)
    grown: Any = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    wanted = logits(grown, ids)
    grown.resize_token_embeddings(100, mean_resizing=False)
    assert torch.equal(logits(grown, ids)[..., :96], wanted)
    assert torch.isfinite(logits(grown, torch.full((1, 3), 99))).all()
    grown.save_pretrained(tmp_path / "grown")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "grown").eval()
    assert again.config.vocab_size == 100 and torch.equal(logits(again, ids), logits(grown, ids))


def test_static_cache_generates_the_same() -> None:
    model, ids = sliced("llama"), tokens(2, 9)
    settings: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "eos_token_id": None}
    wanted = model.generate(ids, **settings)
    assert torch.equal(model.generate(ids, cache_implementation="static", disable_compile=True, **settings), wanted)
