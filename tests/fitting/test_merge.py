"""Blocks that become one: the formulas against each other and by hand."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.fitting.merge import merge
from hf_prune.records import Plan

from ..making import logits
from ..tiny import every_type, tiny_model, tokens
from .support import cut, fitted, task_of

MODES: list[dict[str, Any]] = [
    {"mode": "mean"},
    {"mode": "weighted", "shares": (1, 2, 3)},
    {"mode": "sum"},
    {"mode": "copy_top"},
]


def linear(model: PreTrainedModel, layer: int) -> torch.Tensor:
    weight: torch.Tensor = decoder_of(model).blocks[layer].mlp.up_proj.weight.data  # type: ignore[union-attr]
    return weight


def becomes(model: PreTrainedModel, layers: tuple[int, ...], folder: Path, **options: Any) -> torch.Tensor:
    """The MLP's first weight of the block that stays, from the file."""
    fitted(model, layers, "merge", folder, **options)
    return load_file(folder / Plan.FITTED)["0.mlp.up_proj.weight"]


@pytest.mark.parametrize("options", MODES, ids=str)
def test_equal_blocks_stay_what_they_are(options: dict[str, Any], tmp_path: Path) -> None:
    model = tiny_model("llama")
    blocks = decoder_of(model).blocks
    for layer in (3, 4):
        blocks[layer].load_state_dict(blocks[2].state_dict())
    made = cut(model, fitted(model, (3, 4), "merge", tmp_path, **options))
    assert made.config.num_hidden_layers == 6
    for name, tensor in decoder_of(made).blocks[2].state_dict().items():
        assert torch.allclose(tensor, blocks[2].state_dict()[name], atol=1e-6)


def test_formulas_of_three_blocks(tmp_path: Path) -> None:
    model = tiny_model("llama")
    one, two, three = (linear(model, layer) for layer in (2, 3, 4))
    found = [becomes(model, (3, 4), tmp_path, **options) for options in MODES]
    wanted = [(one + two + three) / 3, (one + 2 * two + 3 * three) / 6, two + three - one, three]
    for name, got, want in zip(MODES, found, wanted, strict=True):
        assert torch.allclose(got, want, atol=1e-6), name
    assert not torch.allclose(found[2], found[3], atol=1e-2)  # as written is not as released


def test_of_two_blocks_the_sum_is_the_top_one(tmp_path: Path) -> None:
    model = tiny_model("llama")
    found = [becomes(model, (3,), tmp_path, mode=mode) for mode in ("sum", "copy_top")]
    assert torch.allclose(*found, atol=1e-6)


def test_norms_keep_the_gains_of_the_block_that_stays(tmp_path: Path) -> None:
    model = tiny_model("qwen3")
    made = cut(model, fitted(model, (3, 4), "merge", tmp_path, mode="copy_top"))
    block, stays, top = decoder_of(made).blocks[2], decoder_of(model).blocks[2], decoder_of(model).blocks[4]
    for name, parameter in block.named_parameters():
        source = stays if "norm" in name else top
        assert torch.equal(parameter, source.get_parameter(name)), name
        assert not torch.equal(stays.get_parameter(name), top.get_parameter(name)), name


def test_all_other_weights_stay(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = fitted(model, (3, 4), "merge", tmp_path)
    made, before = cut(model, plan).state_dict(), model.state_dict()
    for name, tensor in made.items():
        number = next((int(part) for part in name.split(".") if part.isdecimal()), None)
        if number != 2:
            origin = name if number is None else name.replace(f".{number}.", f".{plan.kept[number]}.")
            assert torch.equal(tensor, before[origin])


def test_from_block_0_the_block_behind_stays(tmp_path: Path) -> None:
    model = tiny_model("llama")
    plan = fitted(model, (0, 1), "merge", tmp_path)
    one, two, stays = (linear(model, layer) for layer in (0, 1, 2))
    assert plan.operations[0].layers == (2,) and "merged into layer 2" in plan.fits[0]
    found = load_file(tmp_path / Plan.FITTED)["0.mlp.up_proj.weight"]
    assert torch.allclose(found, one + two - stays, atol=1e-6)
    found = becomes(model, (0, 1), tmp_path, mode="copy_top")
    assert torch.equal(found, stays)
    found = becomes(model, (0, 1), tmp_path, mode="weighted", shares=(3, 2, 1))
    assert torch.allclose(found, (3 * one + 2 * two + stays) / 6, atol=1e-6)


def test_several_windows(tmp_path: Path) -> None:
    model = tiny_model("llama")
    made = cut(model, fitted(model, (1, 4, 5), "merge", tmp_path, mode="mean"))
    assert torch.allclose(linear(made, 0), (linear(model, 0) + linear(model, 1)) / 2, atol=1e-6)
    assert torch.allclose(linear(made, 2), sum(linear(model, i) for i in (3, 4, 5)) / 3, atol=1e-6)
    assert torch.equal(linear(made, 1), linear(model, 2))


# Neighbouring blocks of these differ: some layers have experts, or another token mixer.
MIXED = {"qwen2_moe", "qwen3_moe", "qwen3_next", "lfm2", "deepseek_v3", "afmoe"}


@pytest.mark.parametrize("model_type", every_type())
def test_every_family(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    if model_type in MIXED:
        with pytest.raises(ArchitectureError, match="differ in kind"):
            fitted(model, (1, 2, 3, 4, 5, 6), "merge", tmp_path, mode="mean")
        return
    before = logits(model, tokens())
    made = cut(model, fitted(model, (3, 4), "merge", tmp_path, mode="mean"))
    assert torch.isfinite(logits(made, tokens())).all()
    assert torch.equal(logits(model, tokens()), before)


def test_refusals() -> None:
    task = task_of(tiny_model("llama"), (3, 4))
    with pytest.raises(ConfigError, match="mode='median'; expected one of: mean"):
        merge(task, mode="median")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected 3 numbers, none below 0"):
        merge(task, mode="weighted", shares=(1, 2))
    for mode, shares in (("mean", (1.0, 1.0, 1.0)), ("weighted", ())):
        with pytest.raises(ConfigError, match="shares belong to 'weighted'"):
            merge(task, mode=mode, shares=shares)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="layer 2 of .* would take in layers 3 and those from 0"):
        merge(task_of(tiny_model("llama"), (0, 1, 3)))
