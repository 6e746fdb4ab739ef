"""Fitted surgery from end to end: planned, carried out, saved, loaded back; in memory and from file to file."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune import Pruner, PrunerConfig
from hf_prune.errors import CheckpointError, ConfigError
from hf_prune.models import Models
from hf_prune.recipes.fits import METHODS
from hf_prune.records import Plan
from hf_prune.saving import RECORDS

from ..cli.support import call, done, fast, recipe
from ..making import base_folder, logits
from ..tiny import tokens

# So strong a ridge that it helps on whatever text, by little; so few tokens that tests are quick.
SURGERIES: dict[str, dict[str, Any]] = {
    "compensate": {},
    "replaceme": {"strengths": [100.0], "min_tokens_per_width": 1},
    "replaceme_cosine": {"min_tokens_per_width": 1, "epochs": 1, "learning_rate": 1e-5},
    "streamline": {"epochs": 3, "learning_rate": 1e-4},
    "merge": {"mode": "mean"},
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "tiny-base")[1]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)


def config_of(surgery: str, **fields: Any) -> PrunerConfig:
    kwargs = {"surgery_kwargs": SURGERIES[surgery], "layers": [3, 4]} | fields
    return recipe(surgery=surgery, calibration={"samples": 12, "batch_size": 4}, **kwargs)


def pruner(base: Path, surgery: str, run: Path, **fields: Any) -> Pruner:
    return Pruner.from_pretrained(base, config_of(surgery, **fields), run_folder=run, progress=False)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("surgery", "model_type"),
    [
        *((surgery, "llama") for surgery in SURGERIES),
        ("compensate", "gemma2"),
        ("compensate", "mixtral"),
        ("replaceme", "gpt2"),
    ],
)
def test_both_ways_to_the_same_checkpoint(
    surgery: str, model_type: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if model_type != "llama":
        base = base_folder(tmp_path / "other-base", model_type)[1]
    one = pruner(base, surgery, tmp_path / "one.run")
    one.prune()
    plan = one.plan()
    assert plan.fits and not plan.only_drops, plan.fits
    one.save_pretrained(tmp_path / "one")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "one")
    assert torch.equal(logits(loaded, tokens()), logits(one.model, tokens()))

    written = [path for path in (tmp_path / "one").rglob("*") if path.suffix in (".json", ".md")]
    assert [path.name for path in written if str(tmp_path) in path.read_text()] == []
    record = json.loads((tmp_path / "one.run" / Plan.FILE).read_text())
    assert [op["options"]["file"] for op in record["operations"] if op["kind"] == "replace"] in ([], [Plan.FITTED])

    two = Pruner.from_pretrained(base, run_folder=tmp_path / "two.run", progress=False)
    two.use_plan(Plan.load(tmp_path / "one.run" / Plan.FILE))
    monkeypatch.setattr(Models, "current", lambda self: pytest.fail("the model was loaded"))
    two.save_pretrained(tmp_path / "two")
    first, second, before = (weights(folder) for folder in (tmp_path / "one", tmp_path / "two", base))
    assert first.keys() == second.keys()
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    blocks = re.compile(r"^(.*\.(?:layers|h)\.)(\d+)(\..*)$")
    changed = set()
    for name, tensor in first.items():
        found = blocks.match(name)
        layer = None if found is None else plan.kept[int(found[2])]
        if not torch.equal(tensor, before[name if found is None else f"{found[1]}{layer}{found[3]}"]):
            changed.add(layer)
    assert changed == {layer for op in plan.operations if op.kind != "drop" for layer in op.layers}


@pytest.mark.parametrize("surgery", ["streamline", "compensate", "merge"])
def test_a_fit_is_taken_up_again(surgery: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pruner(base, surgery, tmp_path / "run").plan()
    monkeypatch.setattr("hf_prune.choosing.fit", lambda *_args, **_kwargs: pytest.fail("fitted again"))
    again = pruner(base, surgery, tmp_path / "run")
    assert again.plan() == made
    assert again.prune().config.num_hidden_layers == 6
    with pytest.raises(pytest.fail.Exception, match="fitted again"):
        pruner(base, surgery, tmp_path / "run", layers=[2, 3]).plan()


def test_a_fit_that_lost_its_file_is_made_again(base: Path, tmp_path: Path) -> None:
    made = pruner(base, "merge", tmp_path / "run").plan()
    file = tmp_path / "run" / Plan.FITTED
    for spoil in (file.unlink, lambda: file.write_bytes(file.read_bytes()[:-4])):
        spoil()
        again = pruner(base, "merge", tmp_path / "run")
        assert again.plan() == made
        again.prune()


def test_weights_alone_need_no_text(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_prune.texts.Texts.calibration", lambda self: pytest.fail("text was read"))
    pruner(base, "merge", tmp_path / "run").prune()


def test_in_memory(base: Path, tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    tokenizer = Pruner.from_pretrained(base, config_of("merge"), progress=False).tokenizer
    one = Pruner(model, tokenizer, config_of("streamline"), progress=False)
    one.prune()
    one.save_pretrained(tmp_path / "out")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(logits(loaded, tokens()), logits(one.model, tokens()))


def planned(base: Path, folder: Path) -> Path:
    """`hf-prune plan` with one trained block."""
    config = config_of("streamline").save_pretrained(folder / "recipe")
    done("plan", base, "--config", config, "--output", folder / "run")
    return folder / "run"


def test_commands_one_after_the_other(base: Path, tmp_path: Path) -> None:
    run = planned(base, tmp_path)
    shutil.move(run, tmp_path / "moved")  # both files together
    done("prune", base, "--plan", tmp_path / "moved" / Plan.FILE, "--output", tmp_path / "out")
    saved = Plan.load(tmp_path / "moved")
    expected = load_file(tmp_path / "moved" / Plan.FITTED)
    out = weights(tmp_path / "out")
    assert saved.operations[0].layers == (2,)
    assert all(torch.equal(out[f"model.layers.2.{name[2:]}"], tensor) for name, tensor in expected.items())
    shipped = (tmp_path / "out" / RECORDS / Plan.FILE).read_text()
    assert f'"file": "{Plan.FITTED}"' in shipped and str(tmp_path) not in shipped
    error = call("prune", base, "--plan", tmp_path / "out" / RECORDS / Plan.FILE, "--output", tmp_path / "x").failed()
    assert "it lies beside plan.json" in error


def test_a_file_of_another_plan_is_refused(base: Path, tmp_path: Path) -> None:
    run = planned(base, tmp_path)
    tensors = load_file(run / Plan.FITTED)
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, run / Plan.FITTED)
    error = call("prune", base, "--plan", run / Plan.FILE, "--output", tmp_path / "out").failed()
    assert "is not the file of fitted tensors that the plan was made with" in error
    one = Pruner.from_pretrained(base, run_folder=tmp_path / "two.run", progress=False)
    with pytest.raises(CheckpointError, match="another plan, or was changed"):
        one.use_plan(Plan.load(run))
    save_file(tensors, run / Plan.FITTED)
    one.use_plan(Plan.load(run))
    save_file({name: tensor + 1 for name, tensor in tensors.items()}, run / Plan.FITTED)
    before = {name: tensor.clone() for name, tensor in one.model.state_dict().items()}
    with pytest.raises(CheckpointError, match="another plan, or was changed"):
        one.prune()
    assert all(torch.equal(tensor, before[name]) for name, tensor in one.model.state_dict().items())


def test_scores_alone_fit_nothing(base: Path, tmp_path: Path) -> None:
    config = config_of("compensate", layers=None, drop_layers=2).save_pretrained(tmp_path / "recipe")
    done("measure", base, "--config", config, "--output", tmp_path / "scores")
    error = call("plan", tmp_path / "scores", "--config", config).failed()
    assert "surgery 'compensate' is fitted to the model, which scores do not hold" in error


@pytest.mark.parametrize("surgery", ["compensate", "merge"])
def test_parts_of_blocks_are_refused(surgery: str, base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="whole blocks"):
        pruner(base, surgery, tmp_path / "run", unit="mlp").plan()


@pytest.mark.parametrize("method", [method.name for method in METHODS])
def test_every_recipe(method: str, base: Path, tmp_path: Path) -> None:
    small = {"min_tokens_per_width": 1} if method.startswith("replaceme") else {}
    config = recipe(method=method, drop_layers=2, surgery_kwargs=small, calibration={"samples": 8})
    one = Pruner.from_pretrained(base, config, run_folder=tmp_path / "run", progress=False)
    plan = one.plan()
    assert len(plan.dropped) == 2 and 0 not in plan.dropped or method == "prune-comp"
    assert len(plan.fits) == (len(plan.dropped) if _apart(plan.dropped) else 1)
    assert one.prune().config.num_hidden_layers == 6


def _apart(dropped: tuple[int, ...]) -> bool:
    return dropped[1] - dropped[0] > 1


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        ({"kind": "silence", "layers": [1], "options": {}}, "has the part None; expected 'attention' or 'mlp'"),
        ({"kind": "scale", "layers": [1], "options": {"weights": "mlp", "factor": 2}}, "has the weights 'mlp'"),
        ({"kind": "drop", "layers": [11], "options": {}}, r"the plan speaks of layers \[11\]; the model has 8"),
        ({"kind": "replace", "layers": [1], "options": {"file": "../secret.safetensors"}}, "names no file of fitted"),
        ({"kind": "scale", "layers": [1], "options": {"weights": [], "factor": 2}}, "removes nothing"),
    ],
)
def test_a_stranger_s_plan_is_checked_before_weights_are_loaded(
    operation: dict[str, Any], message: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pruner(base, "compensate", tmp_path / "run").plan().save(tmp_path)
    data = json.loads(made.read_text()) | {"operations": [operation]}
    made.write_text(json.dumps(data))
    monkeypatch.setattr("hf_prune.loading.load_model", None)
    other = Pruner.from_pretrained(base, recipe(layers=[3, 4]), progress=False)
    with pytest.raises(ConfigError, match=message):
        other.use_plan(Plan.load(made))


def test_a_file_elsewhere_is_never_read(base: Path, tmp_path: Path) -> None:
    """What a plan says of where its fitted tensors lie counts for nothing: they lie beside it."""
    folder = tmp_path / "run"
    pruner(base, "merge", folder).plan()
    shutil.copytree(folder, tmp_path / "theirs")
    secret = (tmp_path / "secret.safetensors").absolute()
    (tmp_path / "theirs" / Plan.FITTED).rename(secret)
    path = tmp_path / "theirs" / Plan.FILE
    for name in (str(secret), "../secret.safetensors"):
        data = json.loads(path.read_text())
        data["operations"][0]["options"]["file"] = name
        path.write_text(json.dumps(data))
        other = Pruner.from_pretrained(base, recipe(layers=[3, 4]), progress=False)
        with pytest.raises(ConfigError, match=r"there is no file of fitted tensors '.*theirs/fitted\.safetensors'"):
            other.use_plan(Plan.load(path))
