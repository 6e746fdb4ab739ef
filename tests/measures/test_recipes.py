"""Recipes by gradients, weights, outputs and coalitions, from a saved model to its plan."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from hf_prune import Pruner
from hf_prune.distributed import Group
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


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        (
            {"method": "shortgpt", "measure": "angular"},
            "'top_k' chooses by the importance of each block; measure 'ang",
        ),
        (
            {"method": "shortgpt", "unit": "mlp"},
            "'top_k' chooses by the importance of each mlp; measure 'block_influe",
        ),
        (
            {"method": "llm-drop", "unit": "block"},
            "'top_k' chooses by .* measure 'sublayer_cosine' tells the importance",
        ),
        (
            {"method": "uidl", "measure": "loss"},
            "'window' chooses by distances .* measure 'loss' tells the damage of whole cuts and .* Take one of: .*cka",
        ),
        (
            {"method": "lorp", "measure": "cka"},
            "'clusters' chooses by cosines .* Take one of: cosine; or another plan",
        ),
        (
            {"method": "sleb", "measure": "angular"},
            "'greedy' chooses by the importance of each block; measure 'angular'",
        ),
        ({"method": "sleb", "measure": "taylor"}, "measure 'taylor' looks at the whole model alone"),
        ({"method": "evopress", "measure": "block_influence"}, "'evolution' chooses by the damage of whole cuts; mea"),
    ],
)
def test_planners_that_cannot_choose_by_the_measure_are_refused_before_any_text_is_read(
    fields: dict[str, Any], told: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pruner(base, **fields)
    monkeypatch.setattr(type(one.texts), "calibration", lambda _: pytest.fail("read"))
    with pytest.raises(ConfigError, match=told):
        one.plan()
    with pytest.raises(ConfigError, match=told):
        preview(str(base), recipe(**{"drop_layers": 1, **fields}), tmp_path / "out", heal=False, push=None)
    named = pruner(base, **{**fields, "drop_layers": None, "layers": (5,)})  # chooses nothing
    assert named.plan().removed[0].layer == 5


@pytest.mark.parametrize("name", ["loss", "taylor", "magnitude"])
def test_several_processes_are_refused_before_any_text_is_read(
    name: str, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pruner(base, measure=name, planner="top_k")
    monkeypatch.setattr(type(one.texts), "calibration", lambda _: pytest.fail("read"))
    with pytest.raises(ConfigError, match=f"measure '{name}' runs in one process; 2 were started"):
        one.measure(Group(0, 2))


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


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({"method": "llm-drop", "max_forwards": 2}, 3),
        ({"method": "shortened-llama-taylor", "max_forwards": 2, "protect_first": 0}, 3),
        ({"method": "shortened-llama-taylor", "measure_kwargs": {"blocks_at_once": 1}, "max_forwards": 9}, 14),
    ],
)
def test_measures_of_more_passes_than_allowed_are_refused_before_any_text_is_read(
    fields: dict[str, Any], needed: int, base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = pruner(base, **fields)
    monkeypatch.setattr(type(one.texts), "calibration", lambda _: pytest.fail("read"))
    with pytest.raises(ConfigError, match=f"measure '.*' of '.*' takes up to {needed} forwards"):
        one.plan()


def test_scores_of_another_measure_are_not_taken_for_this_one_s(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    run = tmp_path / "out.run"
    Pruner.from_pretrained(base, recipe(method="uidl", drop_layers=1), run_folder=run, progress=False).measure()
    for fields, known in (
        ({"method": "uidl"}, True),
        ({"method": "shortgpt"}, False),
        ({"method": "lorp"}, False),
    ):
        given = recipe(drop_layers=1, **fields)
        _, steps = preview(str(base), given, tmp_path / "out", heal=False, evaluate=False, push=None)
        assert ("once they are measured" not in dict(steps)["plan"]) is known
