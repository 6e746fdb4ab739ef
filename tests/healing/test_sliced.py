"""Healing models that are really sliced: adapters on every linear map of the blocks, shortcuts among them."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture import decoder_of
from hf_prune.healing import heal, held_out_loss
from hf_prune.healing.adapter import adapter_state, add_adapter, scaling
from hf_prune.healing.merge import merge_adapter
from hf_prune.healing.targets import find_targets
from hf_prune.slicing.modeling import model_class
from hf_prune.slicing.points import Widths
from hf_prune.slicing.slicer import Settings, slice_model
from tests.healing.support import attached, settings, split_text
from tests.healing.support import text as counting
from tests.tiny import tiny_model, tokens

pytestmark = pytest.mark.usefixtures("fixed_speed")

DEPTH = 3
MAPS = {
    *(f"self_attn.{name}_proj" for name in "qkvo"), *(f"mlp.{name}_proj" for name in ("gate", "up", "down")),
    "attn_shortcut", "mlp_shortcut",
}  # fmt: skip
EVERYWHERE = {f"model.layers.{layer}.{name}" for layer in range(DEPTH) for name in MAPS}
CONFIG = settings(rank=4, alpha=12, target="all", schedule="linear", beta2=0.95)


def sliced(*, tied: bool = False, widths: Widths | None = None) -> PreTrainedModel:
    """A tiny Llama of which every point of the stream has another width; float32."""
    model = tiny_model("llama", DEPTH, tie_word_embeddings=tied)
    widths = widths or Widths(28, (24, 20, 26), (22, 30, 32))
    sequences = [sequence for sequence in counting(60, seed=3).sequences if len(sequence) > 1]
    return slice_model(decoder_of(model, "org/tiny"), widths, sequences, Settings(tied=tied, batch_size=8))


def state_of(model: PreTrainedModel, seed: int = 0, config: Any = CONFIG) -> dict[str, torch.Tensor]:
    """An adapter whose B is not zero."""
    adapted = add_adapter(copy.deepcopy(model), config, find_targets(decoder_of(model), config.target))
    generator = torch.Generator().manual_seed(seed)
    return {name: 0.1 * torch.randn(t.shape, generator=generator) for name, t in adapter_state(adapted).items()}


def carrying(model: nn.Module) -> set[str]:
    return {
        name.removeprefix("base_model.model.").removesuffix(".lora_A.default.weight")
        for name, _ in model.named_parameters()
        if name.endswith("lora_A.default.weight")
    }


@pytest.mark.parametrize("tied", [False, True])
def test_adapters_sit_on_every_map_of_the_blocks_and_nowhere_else(tied: bool) -> None:
    model = sliced(tied=tied)
    targets = find_targets(decoder_of(model), "all")
    assert set(targets.names) == MAPS and targets.warning is None and not targets.transposed
    adapted = add_adapter(model, CONFIG, targets)
    assert carrying(adapted) == EVERYWHERE
    shapes = {name: tuple(tensor.shape) for name, tensor in adapter_state(adapted).items()}
    prefix = "base_model.model.model.layers.0"
    assert shapes[f"{prefix}.attn_shortcut.lora_A.weight"] == (4, 28)
    assert shapes[f"{prefix}.attn_shortcut.lora_B.weight"] == (24, 4)
    assert shapes[f"{prefix}.mlp_shortcut.lora_A.weight"] == (4, 24)
    assert shapes[f"{prefix}.self_attn.q_proj.lora_A.weight"] == (4, 28)
    assert shapes[f"{prefix}.mlp.down_proj.lora_B.weight"] == (22, 4)
    assert all(p.requires_grad == ("lora_" in name) for name, p in adapted.named_parameters())


def test_the_mlp_alone_leaves_shortcuts_out() -> None:
    targets = find_targets(decoder_of(sliced()), "mlp")
    assert set(targets.names) == {name for name in MAPS if name.startswith("mlp.")}


def test_without_shortcuts_there_are_none() -> None:
    model = slice_model(
        decoder_of(tiny_model("llama", DEPTH)), Widths(24, (24,) * 3, (24,) * 3), counting(60, seed=3).sequences,
        Settings(basis="global"),
    )  # fmt: skip
    assert set(find_targets(decoder_of(model), "all").names) == {name for name in MAPS if "shortcut" not in name}


@pytest.mark.parametrize("tied", [False, True])
def test_merged_computes_what_the_adapter_computes(tied: bool) -> None:
    model, ids = sliced(tied=tied), tokens()
    state = state_of(model)
    untouched = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with torch.no_grad():
        before = model(ids).logits
        adapted = attached(copy.deepcopy(model), CONFIG, state, "org/base")(ids).logits
        assert merge_adapter(model, state, scaling(CONFIG)) == len(EVERYWHERE)
        merged = model(ids).logits
    assert (adapted - before).abs().max() > 0.1
    torch.testing.assert_close(merged, adapted, rtol=1e-4, atol=1e-4)
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, untouched[name])}
    assert changed == {f"{name}.weight" for name in EVERYWHERE}


@pytest.fixture(scope="module", params=[False, True], ids=["untied", "tied"])
def checkpoint(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sliced")
    sliced(tied=request.param).save_pretrained(folder)
    return folder


def healed(checkpoint: Path, run: Path, config: Any = CONFIG, **kwargs: Any) -> Any:
    samples, held_out = split_text()
    return heal(checkpoint, samples, held_out, config, run_folder=run, base_model="org/base", progress=False, **kwargs)


def test_healing_lowers_the_loss_and_the_model_reloads(checkpoint: Path, tmp_path: Path) -> None:
    result = healed(checkpoint, tmp_path / "run")
    losses, held_out = result.record.held_out, split_text()[1]
    assert losses.merged < losses.pruned - 0.1
    assert losses.adapter == pytest.approx(losses.merged, abs=1e-4)
    before = AutoModelForCausalLM.from_pretrained(checkpoint)
    assert losses.pruned == pytest.approx(held_out_loss(before, held_out, batch_size=2), abs=1e-6)
    assert losses.merged == pytest.approx(held_out_loss(result.model, held_out, batch_size=2), abs=1e-6)

    record = result.record
    assert set(record.target_modules) == MAPS
    rank = 4
    size = sum(sum(before.get_submodule(name).weight.shape) for name in EVERYWHERE)
    assert record.trained_parameters == rank * size
    old, new = before.state_dict(), result.model.state_dict()
    assert old.keys() == new.keys()
    assert {name for name in old if not torch.equal(old[name], new[name])} == {f"{n}.weight" for n in EVERYWHERE}

    result.model.save_pretrained(tmp_path / "healed")
    found, info = AutoModelForCausalLM.from_pretrained(tmp_path / "healed", output_loading_info=True)
    assert type(found) is type(result.model) is model_class("llama") and not any(info.values())
    with torch.no_grad():
        assert torch.equal(found(tokens()).logits, result.model(tokens()).logits)
    assert found.config.slice_dims == before.config.slice_dims
    assert found.config.tie_word_embeddings == before.config.tie_word_embeddings
    if before.config.tie_word_embeddings:
        assert found.lm_head.weight is found.model.embed_tokens.weight


def test_healing_goes_on_after_a_break(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hf_prune.healing.keeper import Keeper

    whole, saved = healed(checkpoint, tmp_path / "whole"), Keeper.on_save

    def break_off(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        saved(self, args, state, control, **kwargs)
        if state.global_step == 4:
            raise RuntimeError("broken off")

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_save", break_off)
        with pytest.raises(RuntimeError, match="broken off"):
            healed(checkpoint, tmp_path / "run")
    again = healed(checkpoint, tmp_path / "run")
    wanted = whole.model.state_dict()
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in again.model.state_dict().items())
