"""The reload contract of folders that were written without a model: what is wrong with one is found out."""

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_prune import reload, reload_streamed
from hf_prune.checkpoint import SINGLE
from hf_prune.errors import ReloadError
from hf_prune.records import Operation, Plan
from hf_prune.reload import check_streamed

from .damage import flip, swap, tensors_of
from .making import base_folder, edit_json
from .test_streamed_surgery import drop, plan_of, streamed
from .tiny import DEPTH

PLAN = drop(1, 4, 5, model_type="gemma2")


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The child's work done here: seconds faster, and the same code but for the start of Python."""

    def run(command: list[str], **_kwargs: object) -> subprocess.CompletedProcess:
        try:
            if "hf_prune.reload" in command:
                *_, folder, wanted, settings = command
                problems = reload._compare(folder, wanted, json.loads(settings))
            else:
                problems = reload_streamed._main(json.loads(command[-1]))
        except Exception as error:  # what a child would die of
            return subprocess.CompletedProcess(command, 1, "", f"Traceback ...\n{type(error).__name__}: {error}")
        return subprocess.CompletedProcess(command, 0, json.dumps({"problems": problems}) + "\n", "")

    monkeypatch.setattr(reload.subprocess, "run", run)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A base, and what was cut from it."""
    folder = tmp_path_factory.mktemp("good")
    _, base = base_folder(folder / "base", "gemma2")
    streamed(base, PLAN, folder / "out")
    return base, folder / "out"


def without_weights(base: Path, folder: Path) -> Path:
    return shutil.copytree(base, folder / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))


def test_what_was_written_passes(good: tuple[Path, Path], in_process: None, tmp_path: Path) -> None:
    base, out = good
    assert check_streamed(out, source=base, plan=PLAN) == "streamed"
    assert check_streamed(out, source=None, origin=without_weights(base, tmp_path), plan=PLAN) == "streamed"
    assert check_streamed(out, source=None, plan=PLAN) == "streamed"
    assert check_streamed(out, source=base, plan=PLAN, level="full") == "full"
    with pytest.raises(ReloadError, match="cannot be checked at level 'full': the base's weights are not on this"):
        check_streamed(out, source=None, plan=PLAN, level="full")


@pytest.mark.parametrize("level", ["streamed", pytest.param("full", marks=pytest.mark.slow)])
def test_damage_is_found_in_a_child_for_real(good: tuple[Path, Path], tmp_path: Path, level: reload.Level) -> None:
    base, out = good
    damaged = shutil.copytree(out, tmp_path / "damaged")
    DAMAGE["a flipped bit"][0](damaged)
    with pytest.raises(ReloadError, match=r"damaged' loads back as another model: .* differ"):
        check_streamed(damaged, source=base, plan=PLAN, level=level)


@pytest.mark.slow
@pytest.mark.parametrize("level", ["streamed", "full"])
def test_what_was_written_passes_in_a_child_for_real(good: tuple[Path, Path], level: reload.Level) -> None:
    base, out = good
    assert check_streamed(out, source=base, plan=PLAN, level=level) == level


# What is done to a folder -> what the error names.
DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (
        tensors_of(flip),
        "'model.layers.3.mlp.down_proj.weight' differs from 'model.layers.6.mlp.*differ by",
    ),
    "blocks in each other's place": (tensors_of(swap), "q_proj.weight' differs"),
    "a missing tensor": (
        tensors_of(lambda t: t.pop("model.layers.2.mlp.up_proj.weight")),
        "missing: model.layers.2.mlp",
    ),
    "a tensor too many": (
        tensors_of(lambda t: t.update({"model.layers.5.mlp.up_proj.weight": torch.zeros(48, 32)})),
        "unexpected keys.*model.layers.5.mlp",
    ),
    "another shape": (
        tensors_of(lambda t: t.update({"model.layers.2.mlp.up_proj.weight": torch.zeros(3, 3)})),
        "mismatched",
    ),
    "another dtype": (
        tensors_of(lambda t: t.update({k: v.half() for k, v in t.items() if "layers.2.mlp.up" in k})),
        "up_proj.weight' is torch.float16",
    ),
    "numbers that are none": (
        tensors_of(lambda t: t["model.layers.2.mlp.up_proj.weight"].fill_(torch.nan)),
        "not finite|NaN",
    ),
    "the layer count of the base": (
        lambda f: edit_json(f / "config.json", num_hidden_layers=DEPTH, layer_types=None),
        "missing",
    ),
    "another pattern of layer types": (
        lambda f: edit_json(f / "config.json", layer_types=["full_attention"] * 5),
        "config key 'layer_types'",
    ),
    "a regenerated pattern": (lambda f: edit_json(f / "config.json", layer_types=None), "config key 'layer_types'"),
    "another dtype in the config": (lambda f: edit_json(f / "config.json", dtype="bfloat16"), "bfloat16"),
    "no config": (lambda f: (f / "config.json").unlink(), "does not load back.*config.json"),
    "a truncated file": (lambda f: (f / SINGLE).write_bytes((f / SINGLE).read_bytes()[:-1]), "truncated"),
}

# Without the base, these cannot be seen: the numbers themselves.
_UNSEEN = ("a flipped bit", "blocks in each other's place")


@pytest.mark.parametrize("local", [True, False], ids=["local", "remote"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found(good: tuple[Path, Path], in_process: None, tmp_path: Path, damage: str, local: bool) -> None:
    base, out = good
    folder = shutil.copytree(out, tmp_path / "out")
    act, message = DAMAGE[damage]
    act(folder)
    source, origin = (base, None) if local else (None, without_weights(base, tmp_path))
    if damage in _UNSEEN and not local:
        check_streamed(folder, source=source, origin=origin, plan=PLAN)
        return
    with pytest.raises(ReloadError, match=rf"(?s){message}"):
        check_streamed(folder, source=source, origin=origin, plan=PLAN)


def test_another_plan_is_found(good: tuple[Path, Path], in_process: None) -> None:
    base, out = good
    for layers in ((1, 4, 6), (1, 4)):
        with pytest.raises(ReloadError):
            check_streamed(out, source=base, plan=drop(*layers, model_type="gemma2"))


@pytest.mark.parametrize("model_type", ["gpt2", "mixtral", "deepseek_v3", "gpt_neo", "falcon", "mamba"])
def test_every_layout_passes(tmp_path: Path, in_process: None, model_type: str) -> None:
    _, base = base_folder(tmp_path / "base", model_type)
    plan = drop(0, 3, model_type=model_type)
    streamed(base, plan, tmp_path / "out")
    check_streamed(tmp_path / "out", source=base, plan=plan)


def test_casts_and_edits(tmp_path: Path, in_process: None) -> None:
    model, base = base_folder(tmp_path / "base")
    model.to(torch.bfloat16).save_pretrained(base)
    scaled = Operation("scale", (2, 3), {"weights": ["mlp.down_proj.weight"], "factor": 1.5})
    plans: list[tuple[Plan, str | torch.dtype]] = [
        (drop(1), torch.float16),
        (plan_of(Operation("drop", (1,)), scaled), "auto"),
    ]
    for number, (plan, dtype) in enumerate(plans):
        out = tmp_path / str(number)
        streamed(base, plan, out, dtype=dtype)
        check_streamed(out, source=base, plan=plan, dtype=dtype)
        check_streamed(out, source=base, plan=plan, dtype=dtype, level="full")
        tensors = load_file(out / SINGLE)
        tensors["model.layers.1.mlp.down_proj.weight"][3, 3] += 1
        save_file(tensors, out / SINGLE, {"format": "pt"})
        with pytest.raises(ReloadError, match="'model.layers.1.mlp.down_proj.weight' differs from .*'model.layers.2"):
            check_streamed(out, source=base, plan=plan, dtype=dtype)


# Plans whose kept weights are not the base's.

SCALE = Operation("scale", (6, 7), {"weights": ["mlp.down_proj.weight"], "factor": 0.8})
SILENCE = Operation("silence", (2, 6), {"part": "attention"})


def made(base: Path, folder: Path, *operations: Operation) -> tuple[Path, Plan]:
    plan = plan_of(*operations, model_type="gemma2")
    streamed(base, plan, folder / "out")
    return folder / "out", plan


@pytest.mark.parametrize("operations", [(SCALE,), (SILENCE,), (SILENCE, SCALE)], ids=["scale", "silence", "both"])
def test_changed_weights_are_held_against_the_plan(
    good: tuple[Path, Path], in_process: None, tmp_path: Path, operations: tuple[Operation, ...]
) -> None:
    base, _ = good
    out, plan = made(base, tmp_path, *operations, *PLAN.operations)
    for level in ("streamed", "full"):
        assert check_streamed(out, source=base, plan=plan, level=level) == level
    name = "self_attn.o_proj" if operations == (SILENCE,) else "mlp.down_proj"
    tensors_of(lambda t: t[f"model.layers.3.{name}.weight"].view(torch.int32)[5, 7].bitwise_xor_(1 << 12))(out)
    wanted = f"3.{name}.weight' differs from what the plan makes of 'model.layers.6.{name}.weight' of the base"
    with pytest.raises(ReloadError, match=wanted):
        check_streamed(out, source=base, plan=plan)


def test_the_probe_passes_silenced_parts_by(good: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = good
    out, plan = made(base, tmp_path, SILENCE, *PLAN.operations)
    assert not list(reload_streamed._probe_problems(out, base, plan, "auto", False))
    for other in (
        (*PLAN.operations,),
        (Operation("silence", (2,), {"part": "attention"}), *PLAN.operations),
        (Operation("silence", (2, 6), {"part": "mlp"}), *PLAN.operations),
    ):
        (found,) = reload_streamed._probe_problems(out, base, plan_of(*other, model_type="gemma2"), "auto", False)
        assert "hidden states behind the last block differ" in found
