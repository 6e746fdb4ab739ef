"""Recipes that zero weights: their plans, refusals, and whole runs."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from hf_prune import Pruner
from hf_prune.amounts import NOT_WEIGHED
from hf_prune.architecture import decoder_of
from hf_prune.config import CalibrationConfig, PrunerConfig
from hf_prune.demo import model_folder, score
from hf_prune.dry_run import preview
from hf_prune.errors import ConfigError
from hf_prune.fit import fit
from hf_prune.plan import carried_out_by, make_plan
from hf_prune.records import Operation, Plan
from hf_prune.sparsity.maps import linear_maps
from hf_prune.sparsity.options import SparsityOptions
from hf_prune.surgery import apply_plan

from ..cli.support import fast
from ..making import base_folder, logits, reference
from ..test_demo_model import SEEN_STYLE
from ..test_streamed_surgery import plan_of
from ..tiny import tiny_model, tokens
from .support import METHODS, chosen, sparse


def test_plan_says_what_happens(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    plan = chosen("wanda", decoder)
    assert (plan.operations, plan.dropped, plan.sparsity, plan.planner) == ((), (), 0.5, "every_block")
    assert plan.describe() == (
        "zero 50.0% of the weights of all 2 layers' linear maps (size and speed stay as they are without a kernel for "
        "sparse weights)"
    )
    done = sparse("wanda", decoder, tmp_path)
    assert [op.kind for op in done.operations] == ["mask"] and not done.only_drops and done.kept == (0, 1)
    done.save(tmp_path)
    assert Plan.load(tmp_path) == done
    again = carried_out_by(PrunerConfig(drop_layers=1), done)
    assert (again.method, again.sparsity, again.drop_layers, again.layers) == ("wanda", 0.5, None, None)
    same = carried_out_by(PrunerConfig("wanda", sparsity=0.4, surgery_kwargs={"inputs": "dense"}), done)
    assert (same.sparsity, same.options("surgery")) == (0.5, {"scores": "wanda"}), (
        "the plan's options, not the config's"
    )


def test_text_is_read_only_where_it_tells_something() -> None:
    assert PrunerConfig("wanda", sparsity=0.5).calibrates and PrunerConfig("owl", sparsity=0.5).calibrates
    assert not PrunerConfig("lamp", sparsity=0.5).calibrates
    assert not PrunerConfig("magnitude-sparsity", sparsity=0.5).calibrates
    assert PrunerConfig("magnitude-sparsity", sparsity=0.5, surgery_kwargs={"allocation": "owl"}).calibrates


@pytest.mark.parametrize(
    ("method", "fields", "message"),
    [
        ("wanda", {"drop_layers": 2}, "drop_layers=2: method 'wanda' zeroes weights in all layers and drops none"),
        ("wanda", {"layers": [1]}, r"layers=\(1,\): method 'wanda' zeroes"),
        ("wanda", {"sparsity": 0.5, "protect": [1]}, r"protect=\(1,\): method 'wanda' zeroes"),
        ("wanda", {"sparsity": 0.5, "protect_last": 1}, "protect_last=1: method 'wanda' zeroes"),
        ("wanda", {"sparsity": 0.5, "sparsity_of": "layers"}, "sparsity_of='layers': method 'wanda' cuts weights"),
        ("uidl", {"sparsity": 0.5, "sparsity_of": "weights"}, "sparsity_of='weights': method 'uidl' cuts layers"),
        ("wanda", {"sparsity": 0.5, "surgery": "drop"}, "surgery 'drop' cuts layers, method 'wanda' cuts weights"),
        ("uidl", {"sparsity": 0.5, "surgery": "sparsify"}, "surgery 'sparsify' cuts weights, method 'uidl' cuts la"),
        (
            "wanda",
            {"sparsity": 0.6, "surgery_kwargs": {"pattern": "2:4"}},
            r"sparsity=0\.6: pattern='2:4' zeroes 2 of",
        ),
        ("wanda", {"sparsity": 0.5, "surgery_kwargs": {"score": 1}}, "has no option 'score'.*Did you mean 'scores'"),
        ("wanda", {"sparsity": 0.5, "surgery_kwargs": {"scores": "taylor"}}, "scores='taylor'; expected one of"),
        (
            "lamp",
            {"sparsity": 0.5, "surgery_kwargs": {"allocation": "uniform"}},
            "LAMP scores are made to be compared",
        ),
        ("owl", {"sparsity": 0.5, "surgery_kwargs": {"pattern": "2:4"}}, "pattern='2:4' takes the same share"),
        ("owl", {"sparsity": 0.5, "surgery_kwargs": {"multiple": 0}}, r"multiple=0\.0: expected a number above 0"),
        ("owl", {"sparsity": 0.5, "surgery_kwargs": {"spread": 0.6}}, r"spread=0\.6: expected a share from 0 to 0\.5"),
        ("lamp", {"sparsity": 0.5, "surgery_kwargs": {"inputs": "pruned"}}, "inputs='pruned' prunes block by block"),
    ],
)
def test_refused_recipes(method: str, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrunerConfig(method, **fields)


def test_amount_is_needed_and_plans_fit_their_surgery(tmp_path: Path) -> None:
    decoder = decoder_of(tiny_model("llama", depth=2))
    with pytest.raises(ConfigError, match=r"Give sparsity, the share of the weights, such as 0\.25"):
        make_plan(PrunerConfig("wanda"), reference(2), NOT_WEIGHED, None)
    with pytest.raises(
        ConfigError, match="'sparsify' is fitted where single weights become zero; the plan does: drop"
    ):
        fit(plan_of(Operation("drop", (0,)), depth=2), decoder, "sparsify", {}, tmp_path)


def test_defaults_of_options_are_those_of_the_surgery() -> None:
    from hf_prune.registry import fitted

    defaults = SparsityOptions()
    assert fitted.get("sparsify").options() == {
        f.name: getattr(defaults, f.name) for f in dataclasses.fields(defaults)
    }


def run_of(method: str, base: Path, text: Path, **fields: Any) -> Pruner:
    calibration = CalibrationConfig(dataset=str(text), samples=6, max_length=24)
    config = PrunerConfig(method=method, sparsity=0.5, base_model="org/base", calibration=calibration, **fields)
    return Pruner.from_pretrained(base, config, progress=False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[PreTrainedModel, Path, Path]:
    """A model, its folder, and a text."""
    folder = tmp_path_factory.mktemp("base")
    model, path = base_folder(folder / "base", depth=3)
    text = folder / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {i} of a text with {i * i} words in it." for i in range(30)))
    return model, path, text


@pytest.mark.parametrize("way", [pytest.param("in memory", marks=pytest.mark.slow), "file to file"])
def test_from_pruner_to_stock_model(base: tuple[PreTrainedModel, Path, Path], way: str, tmp_path: Path) -> None:
    model, folder, text = base
    pruner = run_of("wanda", folder, text)
    plan = pruner.plan()
    assert plan.data is not None and plan.data.samples == 6
    if way == "in memory":
        pruner.prune()
    pruner.save_pretrained(tmp_path / "out")
    stock, loading = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not loading["missing_keys"] and not loading["unexpected_keys"] and type(stock) is type(model)
    apply_plan(decoder_of(again := AutoModelForCausalLM.from_pretrained(folder)), plan)
    assert torch.equal(logits(stock.eval(), tokens()), logits(again.eval(), tokens()))
    maps = linear_maps(decoder_of(stock))
    assert sum(int((each.weight == 0).sum()) for each in maps) * 2 == sum(each.weight.numel() for each in maps)
    assert not (tmp_path / "out" / Plan.FITTED).exists()


def test_healing_is_refused_before_any_work(base: tuple[PreTrainedModel, Path, Path]) -> None:
    pruner = run_of("lamp", base[1], base[2])
    for refused in (pruner.check_healing, pruner.heal):
        with pytest.raises(ConfigError, match="method 'lamp' zeroes single weights, and healing merges changes"):
            refused()
    assert pruner.models.untouched


def test_a_sparse_folder_is_not_healed_by_another_recipe(
    base: tuple[PreTrainedModel, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast(monkeypatch)
    made = Pruner.from_pretrained(base[1], PrunerConfig("magnitude-sparsity", sparsity=0.5), progress=False)
    made.save_pretrained(tmp_path / "out")
    pruner = Pruner.from_pruned(tmp_path / "out", PrunerConfig(layers=[2]), original=base[1], progress=False)
    with pytest.raises(ConfigError, match="method 'magnitude-sparsity' zeroes single weights, and healing merges"):
        pruner.heal()


def test_dry_run_tells_it_and_refuses_to_heal(base: tuple[PreTrainedModel, Path, Path], tmp_path: Path) -> None:
    config = PrunerConfig("wanda", sparsity=0.5)
    _, steps = preview(str(base[1]), config, tmp_path / "out", heal=False, push=None)
    assert dict(steps)["plan"].startswith("zero 50.0% of the weights of all 3 layers' linear maps")
    with pytest.raises(ConfigError, match="method 'wanda' zeroes single weights, and healing"):
        preview(str(base[1]), config, tmp_path / "out", heal=True, push=None)


def test_needs_the_model_in_memory(base: tuple[PreTrainedModel, Path, Path]) -> None:
    pruner = Pruner.from_pretrained(
        base[1], PrunerConfig("magnitude-sparsity", sparsity=0.5), progress=False, max_memory={"cpu": 10**6}
    )
    with pytest.raises(ConfigError, match="method 'magnitude-sparsity' needs all of '.*' in memory"):
        pruner.plan()


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_half_of_a_real_model(method: str, base: tuple[PreTrainedModel, Path, Path], tmp_path: Path) -> None:
    """Half of the weights can go, and it still models language; how well each method does is not asserted."""
    run_of(method, model_folder(), base[2]).save_pretrained(tmp_path / "out")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    whole, half = (AutoModelForCausalLM.from_pretrained(path).float() for path in (model_folder(), tmp_path / "out"))
    maps = linear_maps(decoder_of(half))
    total = sum(each.weight.numel() for each in maps)
    assert sum(int((each.weight == 0).sum()) for each in maps) / total == pytest.approx(0.5, abs=1e-4)
    dense, sparse_loss = (score.text_score(model, tokenizer, [SEEN_STYLE], name="text").nll for model in (whole, half))
    assert dense < sparse_loss < dense + 1
