"""Recipes by gradients, weights, outputs and coalitions, from a saved model to its plan."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_prune import Pruner
from hf_prune.dry_run import preview
from hf_prune.errors import ConfigError
from hf_prune.methods import METHODS
from hf_prune.recipes import gradients
from hf_prune.records import Scores
from hf_prune.units import Unit
from tests.cli.support import fast, planted, recipe
from tests.making import edit_json

USELESS = (5,)
# Random halves of a random model differ by more than one block does.
NAMES = [method.name for method in gradients.METHODS if method.name != "deeper-look-shapley"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", USELESS)


def pruner(base: Path, **fields: Any) -> Pruner:
    return Pruner.from_pretrained(base, recipe(**{"drop_layers": 1, **fields}), progress=False)


@pytest.mark.parametrize("name", NAMES)
def test_what_writes_nothing_goes_first(name: str, base: Path) -> None:
    joint = METHODS[name].unit == "joint"
    made = pruner(base, method=name, drop_layers=2 if joint else 1).plan()
    expected = [Unit(layer, part) for layer in USELESS for part in (("attention", "mlp") if joint else ("block",))]
    assert made.removed == tuple(expected)


def test_magnitude_reads_no_text(base: Path, tmp_path: Path) -> None:
    given = {"method": "shortened-llama-magnitude", "calibration": {"dataset": str(tmp_path / "missing.jsonl")}}
    one = pruner(base, **given)
    assert one.plan().dropped == USELESS
    scores = one.measure()
    assert scores.data is None and scores.forwards == 0
    scores.save(tmp_path)
    assert Scores.load(tmp_path) == scores


def test_halves_choose_what_they_say(base: Path) -> None:
    one = pruner(base, method="deeper-look-shapley")
    importances = one.measure().importances["block"]
    assert one.plan().dropped == (importances.index(min(importances)),)


def test_magnitude_is_told_without_text(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)
    output = tmp_path / "pruned"
    given = recipe(method="shortened-llama-magnitude", drop_layers=1)
    _, steps = preview(str(base), given, output, heal=False, evaluate=False, push=None)
    assert dict(steps)["measure"] == "magnitude: without calibration text"
    one = pruner(base, method="shortened-llama-magnitude")
    one.save_pretrained(output)
    assert "on the model alone, without calibration text." in (output / "README.md").read_text()


def test_a_measure_of_weights_cannot_be_asked_again(base: Path) -> None:
    with pytest.raises(ConfigError, match="looks at the whole model alone"):
        pruner(base, measure="magnitude", planner="greedy").plan()


@pytest.mark.parametrize("name", ["taylor", "magnitude"])
def test_quantized_weights_are_refused_before_any_text_is_read(
    name: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(base, tmp_path / "quantized")
    settings = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    edit_json(tmp_path / "quantized" / "config.json", quantization_config=settings)
    one = pruner(tmp_path / "quantized", measure=name, planner="top_k")
    monkeypatch.setattr(type(one.texts), "calibration", lambda _: pytest.fail("read"))
    with pytest.raises(ConfigError, match=f"measure '{name}' adds up weights, and 'quantized' holds quantized ones"):
        one.plan()
