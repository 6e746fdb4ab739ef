"""Healing leaves silenced parts silent: no adapter on them, whatever is trained, merged or shipped beside."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_prune import Pruner
from hf_prune.architecture import decoder_of
from hf_prune.architecture.sublayers import write_parameters
from hf_prune.errors import ArchitectureError
from hf_prune.healing.targets import find_targets
from hf_prune.output import ADAPTER, Finished
from hf_prune.records import Operation, Plan
from hf_prune.space.opening import _heal
from hf_prune.units import Unit
from hf_prune.verify import verify

from ..cli.support import fast, recipe
from ..making import base_folder, reference
from ..tiny import tiny_model


@pytest.mark.parametrize(("model_type", "output"), [("llama", "merged"), ("llama", "adapter"), ("opt", "merged")])
def test_they_stay_silent(model_type: str, output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    base = base_folder(tmp_path / "tiny-base", model_type)[1]
    config = recipe(method="llm-drop", drop_layers=5, healing={"target": "all", "output": output})
    pruner = Pruner.from_pretrained(base, config, run_folder=tmp_path / "run", progress=False)
    pruner.heal()
    folder = pruner.save_pretrained(tmp_path / "out")
    units = pruner.plan().removed
    assert len(units) == 5
    blocks = decoder_of(AutoModelForCausalLM.from_pretrained(folder)).blocks
    for unit in units:
        for name in write_parameters(blocks[unit.layer], unit.part):
            assert not blocks[unit.layer].get_parameter(name).any(), (unit, name)
    if output == "adapter":
        healed = AutoModelForCausalLM.from_pretrained(folder)
        _heal(healed, folder / ADAPTER, Finished.load(folder), folder.name)  # as the Space does, without PEFT
        for name, tensor in pruner.model.merge_and_unload().state_dict().items():
            torch.testing.assert_close(healed.state_dict()[name], tensor)
        held = load_file(folder / ADAPTER / "adapter_model.safetensors")
        assert held
        for unit in units:
            part = {"attention": "self_attn", "mlp": "mlp"}[unit.part]
            assert not [key for key in held if f"layers.{unit.layer}.{part}." in key]
    found = verify(folder, original=base, evaluations="none", progress=False)
    assert found.passed, found.table()


def test_what_is_left_to_train() -> None:
    decoder = decoder_of(tiny_model("llama"))
    every = [Unit(layer, "mlp") for layer in range(decoder.num_layers)]
    assert all("self_attn" in name for name in find_targets(decoder, "all", every).names)
    with pytest.raises(ArchitectureError, match=r"found no linear map for target='mlp'"):
        find_targets(decoder, "mlp", every)
    assert find_targets(decoder, "mlp", every[:1]).names == find_targets(decoder, "mlp").names


def test_positions_are_those_of_what_is_left() -> None:
    plan = Plan(
        reference(8), "m", "p", (Operation("silence", (1, 5), {"part": "mlp"}), Operation("drop", (0, 3, 5))), "why"
    )
    assert plan.silenced == (Unit(0, "mlp"),)
    assert plan.kept == (1, 2, 4, 6, 7)
