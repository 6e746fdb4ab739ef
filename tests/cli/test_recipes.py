"""The options that make a recipe, what `methods` tells of recipes, and parts of blocks from the command line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import Plan, PrunerConfig
from hf_prune.cli.configs import make_config, parse_options
from hf_prune.cli.options import CalibrationOptions, RecipeOptions, SliceOptions
from hf_prune.errors import ConfigError
from hf_prune.healing.recipes import RECIPES
from hf_prune.method_table import ENTRY_HEADER, METHOD_HEADER, described, entry_rows, method_rows
from hf_prune.methods import METHODS, get_method
from hf_prune.records import Evaluation
from tests.cli.support import call, done, fast, planted, recipe_file


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in which the attention of blocks 2 and 5, and the MLP of block 4, write nothing already."""
    folder = planted(tmp_path_factory.mktemp("models") / "tiny-base", ())
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        for layer in (2, 5):
            model.model.layers[layer].self_attn.o_proj.weight.zero_()
        model.model.layers[4].mlp.down_proj.weight.zero_()
    model.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fast(monkeypatch)
    monkeypatch.chdir(tmp_path)


def made(slicing: SliceOptions | None = None, **fields: Any) -> PrunerConfig:
    return make_config(RecipeOptions(**fields), CalibrationOptions(), slicing=slicing)


def test_every_part_of_a_recipe_can_be_named() -> None:
    config = made(
        method="sleb", drop_layers=3, measure="kl", planner="evolution", unit="joint", protect="0,5-6",
        max_forwards=50, planner_option=["generations=7", "survivors=[4, 1]", "seed=null"],
    )  # fmt: skip
    assert (config.measure, config.planner, config.unit, config.protect) == ("kl", "evolution", "joint", (0, 5, 6))
    assert config.planner_kwargs == {"generations": 7, "survivors": [4, 1], "seed": None}
    assert config.max_forwards == 50
    assert made(method="uidl", drop_layers=1).max_forwards == 1000
    assert made(measure="cosine", measure_option=["tokens=last"]).measure_kwargs == {"tokens": "last"}


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("true", True), ("last", "last"), ("'a'", "'a'"), ('"a=b"', "a=b"), ("x=y", "x=y"), ("", ""),
     ("[1, 2]", [1, 2]), ("null", None)],
)  # fmt: skip
def test_values_are_json_where_they_can_be(text: str, value: Any) -> None:
    assert parse_options([f"some-name={text}"], "--o") == {"some_name": value}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"planner": "greedi"}, "unknown planner 'greedi'.*Did you mean 'greedy'"),
        ({"measure": "kll"}, "unknown measure 'kll'.*Did you mean 'kl'"),
        ({"surgery": "silence"}, "unknown surgery 'silence'"),
        ({"unit": "head"}, "unit='head'.*block.*attention.*mlp.*joint"),
        ({"protect": "a"}, "--protect 'a': 'a' is no layer or range"),
        ({"max_forwards": 0}, "max_forwards=0"),
        ({"measure_option": ["tokens"]}, "--measure-option 'tokens'; expected NAME=VALUE"),
        ({"measure_option": ["=1"]}, "--measure-option '=1'; expected NAME=VALUE"),
        ({"measure_option": ["a=1", "a=2"]}, r"--measure-option names 'a' twice \(1 and '2'\)"),
        ({"measure": "cosine", "measure_option": ["token=last"]}, "no option 'token'.*Did you mean 'tokens'"),
        ({"method": "simple", "measure_option": ["tokens=last"]}, "method 'simple' measures nothing"),
        ({"unit": "mlp", "surgery": "merge"}, "stands in for whole blocks; unit='mlp' removes parts"),
    ],
)
def test_what_cannot_be_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(**fields)


def test_options_of_slicing_and_options_by_name_are_one_thing() -> None:
    slicing = SliceOptions(round_to=16)
    found = made(slicing, method="dynamic-slicing", sparsity=0.2, planner_option=["slice_base=0.1"])
    assert found.planner_kwargs == {"multiple": 16, "slice_base": 0.1}
    with pytest.raises(ConfigError, match="--planner-option multiple=8 and an option of slicing"):
        made(slicing, method="dynamic-slicing", sparsity=0.2, planner_option=["multiple=8"])


def test_options_go_on_top_of_a_file_of_the_same_parts_alone(tmp_path: Path) -> None:
    fields: dict[str, Any] = {"measure": "cosine", "measure_kwargs": {"tokens": "last"}, "method": "shortgpt"}
    file = str(PrunerConfig(drop_layers=1, planner="window", **fields).save_pretrained(tmp_path))
    kept = made(config=file, measure_option=["skip_first=true"])
    assert kept.measure_kwargs == {"tokens": "last", "skip_first": True} and kept.planner == "window"
    assert made(config=file, method="shortgpt").measure_kwargs == {"tokens": "last"}
    other = made(config=file, measure="relative_magnitude")
    assert (other.measure, other.measure_kwargs, other.planner) == ("relative_magnitude", {}, "window")
    another = made(config=file, method="uidl")
    assert (another.measure, another.measure_kwargs, another.planner) == (None, {}, None)


def test_methods_tells_all_of_each() -> None:
    lines = done("methods").out.splitlines()
    assert [line.split()[0] for line in lines[1:]] == list(METHODS) and lines[0].startswith("method")
    assert all(len(row) == len(METHOD_HEADER) and all(row) for row in method_rows())
    table = {row[0]: dict(zip(METHOD_HEADER, row, strict=True)) for row in method_rows()}
    assert max(map(len, lines)) <= 120 and not any("http" in line for line in lines)
    told = {name: (row["needs"], row["forwards"], row["goes"]) for name, row in table.items()}
    assert told["simple"] == ("nothing", "none", "layers")
    assert told["uidl"] == ("text", "1", "layers")
    assert told["sleb"] == ("judge", "≤ n (L + 1)/2", "layers")
    assert told["blockpruner"] == ("judge", "≈ n L", "parts")
    assert told["wanda"] == ("text", "2", "weights")
    assert told["auto"][1] == "by effort"
    assert told["shortened-llama-taylor"][0] == "gradients"
    assert told["shortened-llama-magnitude"][:2] == ("nothing", "none")
    assert table["blockpruner"]["measure + planner + surgery"] == "loss + greedy + silence"
    found = done("methods", "--json").json
    assert found.keys() == METHODS.keys()
    full = {name: (found[name]["needs"], found[name]["gives"], found[name]["goes"]) for name in found}
    assert full["blockpruner"] == ("text, judge", "stock model, no smaller", "attentions and MLPs")
    assert full["slicegpt"] == ("text", "needs shipped code", "width")
    assert full["shortened-llama-taylor"] == ("text, gradients", "stock model", "layers")
    assert all(found[name]["cost"] == METHODS[name].cost and found[name]["paper"].startswith("http") for name in found)
    assert found["evopress"]["options"]["planner"]["generations"] == 50 and found["sleb"]["note"]


def test_methods_tells_all_of_one() -> None:
    told = done("methods", "evopress").out
    assert "generations=50" in told and get_method("evopress").title in told and "2410.14649" in told
    assert done("methods", "evopress", "--json").json == json.loads(json.dumps(described(get_method("evopress"))))
    assert "Did you mean 'sleb'?" in call("methods", "slep").failed()
    assert "'sleb' ask for different lists" in call("methods", "sleb", "--measures").failed()


@pytest.mark.parametrize(
    ("kind", "names"),
    [("measures", {"angular", "loss"}), ("planners", {"window", "greedy"}), ("surgeries", {"drop", "slice", "merge"})],
)
def test_lists_of_the_parts_that_recipes_are_made_of(kind: str, names: set[str]) -> None:
    lines = done("methods", f"--{kind}").out.splitlines()
    assert max(map(len, lines)) <= 120
    listed = {line.split()[0] for line in lines[1:] if not line.startswith(" ")}
    assert names <= listed and not listed & {"scale", "replace", "silence"}
    assert all(len(row) == len(ENTRY_HEADER) and all(row) for row in entry_rows(kind))
    assert done("methods", f"--{kind}", "--json").json.keys() == listed


def test_lists_of_ways_of_healing() -> None:
    lines = done("methods", "--healing").out.splitlines()
    assert max(map(len, lines)) <= 120
    listed = {line.split()[0] for line in lines if line and not line.startswith(" ")}
    found = done("methods", "--healing", "--json").json
    headers = {"recipe", "target", "loss"}
    assert listed == headers | {name for part in found.values() for name in part}
    assert {*RECIPES, "auto"} == found["recipes"].keys()
    assert {"mlp", "all", "last", "seam", "replaced", "patch", "full"} <= found["targets"].keys()
    assert {"next_token", "kl"} <= found["losses"].keys()
    assert found["recipes"]["uidl"]["models"]["mistralai/mistral-7b-v0.1"]["learning_rate"] == 3e-6
    assert found["targets"]["seam"]["trains"] == "weights" and found["losses"]["kl"]["needs"] == "predictions"
    said = call("methods", "--measures", "--healing").failed()
    assert said == "--measures and --healing ask for different lists; give one of them"


def test_parts_of_blocks_go_and_the_model_is_none_the_worse(base: Path, tmp_path: Path) -> None:
    quick = recipe_file(tmp_path / "recipe", drop_layers=None)
    words = ("--config", quick, "--method", "blockpruner", "--measure", "kl", "--drop-layers", 3)
    told = done("run", base, *words, "--output", "out").out
    expected = "silence the attention of layers 2, 5 (2 of 8, counted from 0); silence the MLP of layers 4 (1 of 8"
    assert expected in told
    original, pruned = Evaluation.load(Path("out/pruning")).models
    losses = [[figure.nll for figure in model.perplexity] for model in (original, pruned)]
    assert losses[0] and losses[1] == pytest.approx(losses[0], abs=1e-6)
    before, after = (AutoModelForCausalLM.from_pretrained(f).state_dict() for f in (base, "out"))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    done("prune", base, "--plan", "out/pruning/plan.json", "--output", "again")
    done("prune", base, *words, "--protect", "2,4-5", "--output", "spared")
    assert not {unit.layer for unit in Plan.load(Path("spared/pruning")).removed} & {2, 4, 5}
    assert (
        "--plan says already what goes; leave out --unit"
        in call("prune", base, "--plan", "out/pruning/plan.json", "--unit", "mlp", "--output", "third").failed()
    )


def test_a_search_that_takes_too_long_is_refused_with_its_number(base: Path, tmp_path: Path) -> None:
    quick = recipe_file(tmp_path / "recipe", drop_layers=None)
    words = ("plan", base, "--config", quick, "--method", "sleb", "--drop-layers", 3, "--output", "plan")
    assert "--max-forwards" in call(*words, "--max-forwards", 2).failed()


def test_a_share_of_flops(base: Path, tmp_path: Path) -> None:
    quick = recipe_file(tmp_path / "recipe", drop_layers=None)
    words = ("plan", base, "--config", quick, "--method", "simple", "--sparsity-of", "flops", "--output", "plan")
    told = done(*words, "--sparsity", 0.3)
    assert "drop layers" in told.out
    assert "sparsity 0.3 of flops" in told.err


def test_a_dry_run_says_what_is_measured_and_how_often_the_text_is_read(base: Path, tmp_path: Path) -> None:
    quick = recipe_file(tmp_path / "recipe", drop_layers=None)

    def told(*more: object) -> dict[str, str]:
        words = ("run", base, "--config", quick, "--output", "out", "--dry-run", *more)
        return {line.split()[0]: line for line in done(*words).out.splitlines()}

    assert "forwards" not in told("--method", "uidl", "--drop-layers", 2)["measure"]
    searched = told("--method", "blockpruner", "--drop-layers", 3)
    assert "loss: 6 samples" in searched["measure"] and "; about 2" in searched["measure"]
    assert "greedy: 3 of 16 attentions and MLPs, once they are measured" in searched["plan"]
    weighed = told("--method", "exhaustive-kl", "--sparsity", 0.3, "--sparsity-of", "parameters")
    assert "forwards of it" in weighed["measure"]
    random = told("--method", "random", "--unit", "mlp", "--drop-layers", 2)
    assert "silence the MLP of layers" in random["plan"] and "measure" not in random
    shared = told("--method", "simple", "--sparsity", 0.3, "--sparsity-of", "flops")
    assert "drop layers" in shared["plan"], "weighed by the config alone"
    refused = call("run", base, "--config", quick, "--unit", "mlp", "--sparsity", 0.001, "--sparsity-of", "bytes",
                   "--method", "llm-drop", "--output", "out", "--dry-run").failed()  # fmt: skip
    assert "is less than the lightest of what may go" in refused


def test_parts_planned_from_scores_alone(base: Path, tmp_path: Path) -> None:
    quick = recipe_file(tmp_path / "recipe", drop_layers=None)
    done("measure", base, "--config", quick, "--method", "llm-drop", "--output", "scores")
    told = done("plan", "scores", "--config", quick, "--method", "llm-drop", "--drop-layers", 3).out
    assert "silence the attention of layers 2, 5" in told and "silence the MLP of layers 4" in told
