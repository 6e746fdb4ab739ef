"""Weights trained themselves from end to end: healed, saved, loaded back, and verified against every lie."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune import Pruner
from hf_prune.architecture import decoder_of
from hf_prune.errors import ConfigError
from hf_prune.records import Healing
from hf_prune.run import run
from hf_prune.saving import RECORDS
from hf_prune.verify import verify

from ..cli.support import fast, recipe
from ..making import base_folder, edit_json, logits
from ..tiny import tokens

SEAM: dict[str, Any] = {"target": "seam", "rank": None}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "tiny-base")[1]


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished folder of which the blocks 2 and 5 were trained, and which is measured."""
    folder = tmp_path_factory.mktemp("made") / "out"
    with pytest.MonkeyPatch.context() as patch:
        fast(patch)
        run(base, recipe(layers=(3, 4), healing=SEAM), folder, heal=True, evaluate=True, progress=False)
    return folder


def checks(folder: Path, base: Path) -> dict[str, Any]:
    return {check.name: check for check in verify(folder, original=base, evaluations="none", progress=False).checks}


def failed(folder: Path, base: Path) -> dict[str, str]:
    return {name: check.reason for name, check in checks(folder, base).items() if check.status == "fail"}


def spoil(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "model.safetensors", {"format": "pt"})


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / RECORDS / Healing.FILE).read_text())
    return found


def test_the_folder_is_the_healed_model_and_true(base: Path, made: Path) -> None:
    found, told = checks(made, base), record(made)
    assert {name for name, check in found.items() if check.status == "fail"} == set()
    assert found["healed tensors"].claimed == "18 trained, shapes of the base"
    before = load_file(base / "model.safetensors")
    for name, tensor in load_file(made / "model.safetensors").items():
        at = int(name.split(".")[2]) if ".layers." in name else None
        original = name if at is None else name.replace(f".{at}.", f".{at if at < 3 else at + 2}.", 1)
        assert torch.equal(tensor, before[original]) != (at in (2, 3)), name
    assert told["kind"] == "weights"
    assert not (made / "adapter").exists()
    labels = [model["label"] for model in json.loads((made / RECORDS / "evaluation.json").read_text())["models"]]
    assert labels == ["original", "pruned", "healed"]


def test_a_model_in_memory_is_what_its_folder_holds(base: Path, tmp_path: Path) -> None:
    config = recipe(layers=(3, 4), healing=SEAM)
    pruner = Pruner.from_pretrained(base, config, run_folder=tmp_path / "run", progress=False)
    pruner.heal()
    assert (
        pruner.evaluate_as("pruned").label == "pruned"
    )  # it lies in the run folder, though no adapter tells it apart
    folder = pruner.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(loaded, tokens()), logits(pruner.model, tokens()))
    again = Pruner.from_pruned(folder, original=base, progress=False)
    assert again._labels() == ["original", "healed"]


def test_lies_about_weights_are_caught(base: Path, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "out"))

    def back() -> None:
        shutil.copytree(made, folder, dirs_exist_ok=True)

    spoil(folder, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"][0, 0].add_(1))
    assert "'model.layers.1.mlp.up_proj.weight' is not" in failed(folder, base)["kept tensors"]
    back()
    spoil(folder, lambda tensors: tensors["model.norm.weight"][0].add_(1))
    assert "'model.norm.weight' is not" in failed(folder, base)["kept tensors"]
    back()
    before = load_file(base / "model.safetensors")
    names = record(folder)["target_modules"]
    origin = {n: n.replace("layers.3.", "layers.5.") for n in names}
    spoil(folder, lambda tensors: tensors.update({n: before[origin[n]] for n in names}))
    assert "none of its tensors differs" in failed(folder, base)["healed tensors"]


def test_lies_in_the_record_are_caught(base: Path, made: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "out"))
    path, told = folder / RECORDS / Healing.FILE, record(folder)
    names = told["target_modules"]
    edit_json(path, target_modules=[*names, "model.norm.weight"])
    assert "target='seam' means" in failed(folder, base)["healing record"]
    edit_json(path, target_modules=names[:-1])
    assert "target='seam' means" in failed(folder, base)["healing record"]
    edit_json(path, target_modules=names, trained_parameters=told["trained_parameters"] + 1)
    assert "these weights have" in failed(folder, base)["healing record"]
    edit_json(path, trained_parameters=told["trained_parameters"], kind="adapters")
    assert "trains weights; it says adapters" in failed(folder, base)["healing record"]
    edit_json(path, kind="weights", output="adapter")
    assert "output='adapter'" in str(failed(folder, base))


@pytest.mark.parametrize(
    ("model_type", "fields", "healing"),
    [
        # One tensor in memory, several in the file: experts.
        ("mixtral", {"layers": (3, 4)}, SEAM),
        pytest.param(
            "gpt2", {"layers": (3, 4)}, {"target": "last", "rank": None, "last_blocks": 2}, marks=pytest.mark.slow
        ),
        pytest.param(
            "llama",
            {"method": "llm-drop", "drop_layers": 3},
            {"target": "full", "rank": None},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            "llama",
            {"layers": (3, 4), "surgery": "merge", "surgery_kwargs": {"mode": "mean"}},
            {"target": "replaced", "rank": None},
            marks=pytest.mark.slow,
        ),
        ("llama", {"layers": (3, 4), "surgery": "emulate"}, {"target": "patch", "rank": None}),
        ("llama", {"method": "nbl", "drop_layers": 2}, {"target": "patch", "rank": None}),
    ],
    ids=["experts", "tied", "silenced", "replaced", "patch", "linear attention"],
)
def test_every_kind_of_cut_verifies(
    model_type: str, fields: dict[str, Any], healing: dict[str, Any], tmp_path: Path
) -> None:
    folder = base_folder(tmp_path / "tiny-base", model_type)[1]
    if fields.get("method") == "nbl":
        fields = fields | {"surgery_kwargs": {"min_tokens_per_width": 1}}
    config = recipe(healing=healing, calibration={"samples": 12, "max_length": 32}, **fields)
    pruner = Pruner.from_pretrained(folder, config, run_folder=tmp_path / "run", progress=False)
    pruner.heal()
    out = pruner.save_pretrained(tmp_path / "out")
    found = verify(out, original=folder, evaluations="none", progress=False)
    assert found.passed, found.table()
    loaded = AutoModelForCausalLM.from_pretrained(out)
    assert torch.equal(logits(loaded, tokens()), logits(pruner.model, tokens()))
    pruned = AutoModelForCausalLM.from_pretrained(pruner.models.checkpoint(pruner.plan()).folder)
    trained = set(record(out)["target_modules"])
    changed = {n for n, p in pruned.named_parameters() if not torch.equal(p, loaded.get_parameter(n))}
    assert changed and changed <= trained
    for unit in pruner.plan().silenced:
        part = decoder_of(loaded).block_prefix(unit.layer) + {"attention": "self_attn", "mlp": "mlp"}[unit.part]
        assert not [name for name in trained if name.startswith(f"{part}.")]


@pytest.mark.slow
def test_in_rounds(base: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    run(base, recipe(drop_layers=2, rounds=2, healing=SEAM), folder, heal=True, evaluate=False, progress=False)
    assert failed(folder, base) == {}


def test_nothing_to_train_is_told_before_training(base: Path, tmp_path: Path) -> None:
    pruner = Pruner.from_pretrained(
        base, recipe(layers=(3, 4), healing={"target": "patch", "rank": None}), run_folder=tmp_path / "run"
    )
    with pytest.raises(ConfigError, match=r"target='patch' trains maps of the stream.*target 'seam'"):
        pruner.heal()
    with pytest.raises(ConfigError, match="output='adapter'"):
        Pruner.from_pretrained(base, recipe(healing=SEAM | {"output": "adapter"}), progress=False).check_healing()
