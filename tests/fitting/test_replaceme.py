"""A linear map in place of blocks: folding, planted truth, refusals."""

import dataclasses
import functools
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.architecture.writes import writes_of
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.fitting.replaceme import folded, replaceme
from hf_prune.fitting.replaceme_cosine import replaceme_cosine
from hf_prune.fitting.seams import split
from hf_prune.records import Operation, Plan
from hf_prune.registry import fitted as registry
from hf_prune.samples import batches

from ..making import logits, reference
from ..tiny import every_type, tiny_model, tokens
from .support import apart, cut, fitted, passed_by, silence, states, task_of, texts

WIDTH = 32
BOTH = ("replaceme", "replaceme_cosine")
ENOUGH = texts(50, 16)

NORM_BEHIND = ("gemma2", "gemma3_text", "glm4", "afmoe", "olmo2", "olmo3", "exaone4")
EXPERTS = ("mixtral", "gpt_oss", "granitemoe", "qwen3_next")
REFUSED = {
    **dict.fromkeys(NORM_BEHIND, "stands between its MLP and the residual stream"),
    **dict.fromkeys(EXPERTS, "made of experts"),
    "mamba": "it has no MLP",
}


def plant(model: PreTrainedModel, layer: int, change: torch.Tensor) -> None:
    """Let a block add a linear map of what the MLP before it writes: M Δ."""
    blocks: Any = decoder_of(model).blocks
    kept: list[torch.Tensor] = []
    blocks[layer - 1].mlp.down_proj.register_forward_hook(lambda _m, _a, out: kept.append(out))

    def forward(_self: Any, hidden_states: torch.Tensor, *_args: Any, **_kwargs: Any) -> torch.Tensor:
        return hidden_states + kept[-1] @ change

    blocks[layer].forward = types.MethodType(forward, blocks[layer])


def small(seed: int = 5) -> torch.Tensor:
    return 0.3 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("model_type", every_type(without=REFUSED))
def test_folding_is_the_map_behind_the_mlp(model_type: str, tmp_path: Path) -> None:
    """Blocks whose attention and MLP are parallel are no exception: what their MLP writes is added as it is too."""
    # Of the families with experts, those of the table have a dense layer in front of this window.
    start = 2 if model_type == "qwen3_moe" else 3
    model, ids, change = tiny_model(model_type), tokens(3), small()
    task, gone = task_of(model, (start, start + 1)), (start, start + 1)
    writes, block = writes_of(task.decoder, start - 1), task.decoder.blocks[start - 1]
    assert writes.projection is not None
    kept: list[torch.Tensor] = []
    handle = block.get_submodule(writes.projection).register_forward_hook(lambda _m, _a, out: kept.append(1 * out))

    def seam(hidden: torch.Tensor) -> torch.Tensor:
        return hidden + writes.multiplier * kept[-1].reshape(hidden.shape) @ change

    with passed_by(model, gone, {start: seam}):
        wanted = logits(model, ids)
    handle.remove()
    made = carried(model, folded(task, [change.double()], ()), gone, tmp_path)
    assert apart(logits(made, ids), wanted) < 1e-5
    assert apart(logits(cut(model, _plan(model, gone)), ids), wanted) > 1e-3


def _plan(model: PreTrainedModel, gone: tuple[int, ...]) -> Plan:
    ref = reference(model.config.num_hidden_layers, model_type=model.config.model_type)
    return Plan(ref, "some", "named", (Operation("drop", gone),), "")


def carried(model: PreTrainedModel, made: Any, gone: tuple[int, ...], folder: Path) -> PreTrainedModel:
    """A fit that was made by hand, carried out."""
    save_file({name: tensor.contiguous() for name, tensor in made.tensors.items()}, folder / Plan.FITTED)
    operations = tuple(
        dataclasses.replace(op, options={"file": ""}) if op.kind == "replace" else op for op in made.operations
    )
    return cut(model, dataclasses.replace(_plan(model, gone), operations=operations).at(folder))


@pytest.mark.parametrize("surgery", BOTH)
@pytest.mark.parametrize("model_type", list(REFUSED))
def test_refused_where_there_is_nothing_to_fold_into(model_type: str, surgery: str) -> None:
    with pytest.raises(ArchitectureError, match=REFUSED[model_type]):
        registry.get(surgery).function(task_of(tiny_model(model_type), (3, 4), ENOUGH))


def test_planted_linear_blocks_are_recovered(tmp_path: Path) -> None:
    """Two windows, each fitted on the original; the cut model is the original."""
    model = tiny_model("llama")
    plant(model, 2, small(1))
    plant(model, 5, small(2))
    plan = fitted(model, (2, 5), "replaceme", tmp_path, ENOUGH, strengths=(1e-9,))
    assert [op.kind for op in plan.operations] == ["replace", "drop"] and plan.operations[0].layers == (1, 4)
    assert plan.fitted and plan.operations[0].options == {"file": str(tmp_path / Plan.FITTED)}
    assert apart(logits(cut(model, plan), tokens()), logits(model, tokens())) < 1e-4


def test_planted_residual_multiplier(tmp_path: Path) -> None:
    model = tiny_model("granite")
    plant(model, 3, small())
    plan = fitted(model, (3,), "replaceme", tmp_path, ENOUGH, strengths=(1e-9,))
    assert apart(logits(cut(model, plan), tokens()), logits(model, tokens())) < 1e-4


@pytest.mark.parametrize("surgery", BOTH)
def test_blocks_that_do_nothing_are_dropped_alone(surgery: str, tmp_path: Path) -> None:
    model = tiny_model("llama")
    silence(model, (3, 4))
    plan = fitted(model, (3, 4), surgery, tmp_path, ENOUGH)
    assert plan.only_drops and plan.fitted is None and "NOT used" in plan.fits[0]
    assert not (tmp_path / Plan.FITTED).exists()
    assert torch.equal(logits(cut(model, plan), tokens()), logits(model, tokens()))


def test_errors_in_the_note_are_those_at_the_seam(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plant(model, 3, small())
    plan = fitted(model, (3, 4), "replaceme", tmp_path, ENOUGH)
    made, dropped = cut(model, plan), cut(model, _plan(model, (3, 4)))

    def error(other: PreTrainedModel) -> float:
        total, count = 0.0, 0
        for ids in split(ENOUGH, 0.2, "")[1]:
            wanted = states(model, ids[None])[5]
            found = _entering(other, 3, ids[None])
            total, count = total + float((found - wanted).double().square().sum()), count + len(ids)
        return total / count

    assert f"{error(made):.4g} on held-out text, {error(dropped):.4g} without it" in plan.fits[0]
    assert error(made) < error(dropped)


def _entering(model: PreTrainedModel, layer: int, ids: torch.Tensor) -> torch.Tensor:
    kept: list[torch.Tensor] = []
    block = decoder_of(model).blocks[layer]
    handle = block.register_forward_hook(
        lambda _m, a, k, _o: kept.append(a[0] if a else k["hidden_states"]), with_kwargs=True
    )
    logits(model, ids)
    handle.remove()
    return kept[0]


@pytest.mark.parametrize("surgery", BOTH)
def test_pads_do_not_matter(surgery: str) -> None:
    model = tiny_model("llama")
    plant(model, 3, small())
    options = {} if surgery == "replaceme" else {"learning_rate": 1e-2}
    made = []
    for pad in (0, 7):
        task = dataclasses.replace(task_of(model, (3,), ENOUGH), batch_size=50)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("hf_prune.fitting.seams.batches", functools.partial(batches, pad_id=pad))
            made.append(registry.get(surgery).function(task, **options).tensors)
    assert made[0]
    for name, tensor in made[0].items():
        assert torch.equal(made[1][name], tensor)


def test_batches_do_not_matter() -> None:
    model = tiny_model("llama")
    plant(model, 3, small())
    made = [replaceme(dataclasses.replace(task_of(model, (3,), ENOUGH), batch_size=size)).tensors for size in (1, 50)]
    assert made[0]
    for name, tensor in made[0].items():
        assert apart(made[1][name], tensor) < 1e-4


@pytest.mark.parametrize(("accurate", "share"), [(False, 0.25), (True, 0.05)])
def test_cosine_comes_closer_on_a_planted_block(accurate: bool, share: float, tmp_path: Path) -> None:
    model, options = tiny_model("llama"), {"epochs": 60, "learning_rate": 3e-3, "tokens_at_once": 128}
    plant(model, 3, small())
    plan = fitted(model, (3,), "replaceme_cosine", tmp_path, ENOUGH, accurate=accurate, **options)
    found = plan.fits[0].split()
    error, dropped = float(found[found.index("is") + 1]), float(found[found.index("text,") + 1])
    assert error < share * dropped
    made, alone, wanted = (logits(m, tokens()) for m in (cut(model, plan), cut(model, _plan(model, (3,))), model))
    assert apart(made, wanted) < 0.6 * apart(alone, wanted)


def test_cosine_takes_no_more_tokens_than_allowed() -> None:
    model = tiny_model("llama")
    with pytest.raises(ConfigError, match="to .* tokens of 2[0-9] samples"):
        replaceme_cosine(task_of(model, (3,), ENOUGH), max_tokens=400)
    with pytest.raises(ConfigError, match="max_tokens=399: a map of 32 x 32 numbers .* expected at least 400"):
        replaceme_cosine(task_of(model, (3,), ENOUGH), max_tokens=399)


@pytest.mark.parametrize("surgery", BOTH)
def test_too_few_tokens_are_refused_and_it_says_how_many_would_do(surgery: str) -> None:
    model, function = tiny_model("llama"), registry.get(surgery).function
    even = [ids[:12] for ids in texts(60, 14)]
    with pytest.raises(
        ConfigError, match=r"to 96 tokens of 8 samples.*expected at least 10 x 32 = 320.*about 34 "
    ) as told:
        function(task_of(model, (3,), even[:10]))
    enough = int(str(told.value).split("about ")[1].split()[0])
    function(task_of(model, (3,), even[:enough]))
    function(task_of(model, (3,), even[:10]), min_tokens_per_width=3)


@pytest.mark.parametrize("surgery", BOTH)
def test_block_0_has_no_mlp_before_it(surgery: str) -> None:
    with pytest.raises(ConfigError, match=r"layers \[0, 1\] of .* have none before them"):
        registry.get(surgery).function(task_of(tiny_model("llama"), (0, 1, 4), ENOUGH))


@pytest.mark.parametrize(("share", "count"), [(0.0, 10), (1.0, 10), (0.2, 1), (0.9, 2)])
def test_held_out_share(share: float, count: int) -> None:
    with pytest.raises(ConfigError, match="leaves at least one sample on each side"):
        split(ENOUGH[:count], share, "replaceme")


def test_held_out_are_the_last_ones() -> None:
    fit, decide = split(ENOUGH, 0.2, "replaceme")
    assert len(decide) == 10 and all(a is b for a, b in zip([*fit, *decide], ENOUGH, strict=True))


def test_ridges_are_above_zero() -> None:
    with pytest.raises(ConfigError, match="above 0"):
        replaceme(task_of(tiny_model("llama"), (3,), ENOUGH), strengths=(0.0,))


@pytest.mark.parametrize("surgery", BOTH)
def test_half_precision_is_told(surgery: str, tmp_path: Path) -> None:
    model, options = tiny_model("llama"), {"min_tokens_per_width": 1}
    options |= {"strengths": [100.0]} if surgery == "replaceme" else {"epochs": 1, "learning_rate": 1e-5}
    plain = fitted(model, (3, 4), surgery, tmp_path, ENOUGH, **options)
    half = fitted(model.to(torch.bfloat16), (3, 4), surgery, tmp_path, ENOUGH, **options)
    assert not plain.only_drops and not half.only_drops
    assert [("before rounding to bfloat16" in plan.fits[-1]) for plan in (plain, half)] == [False, True]
