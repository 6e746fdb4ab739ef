"""Slicing on the command line: every command that meets a sliced model, what it says, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import Plan, PrunerConfig, Scores
from hf_prune.records import Evaluation
from hf_prune.slicing.modeling import model_class
from tests.cli.support import call, done, fast, recipe_file, tree
from tests.making import base_folder, edit_json, logits
from tests.tiny import tokens

DEPTH = 4
TEXT = "The wind in the thin grass was gone, and the sea was calm. "
QUARTER = ("--sparsity", 0.25, "--round-to", 4)
SLICEGPT = ("--method", "slicegpt", *QUARTER)
DYNAMIC = ("--method", "dynamic-slicing", *QUARTER)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = base_folder(tmp_path_factory.mktemp("models") / "tiny-base", depth=DEPTH)
    with torch.no_grad():
        for layer, scale in enumerate((1.0, 0.6, 0.3, 0.1)):
            model.model.layers[layer].mlp.down_proj.weight.mul_(scale)
    model.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    return folder


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> str:
    return recipe_file(tmp_path_factory.mktemp("recipe"), drop_layers=None)


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """See `fast`; work where relative paths lead to."""
    fast(monkeypatch)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever loads a model fails the test."""

    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hf_prune.loading.AutoModelForCausalLM.from_pretrained", never)


def counted(folder: str) -> int:
    return sum(parameter.numel() for parameter in AutoModelForCausalLM.from_pretrained(folder).parameters())


# ---- the whole job


def test_run(hub, hub_token, new_repo_id, base: Path, quick: str) -> None:
    target = new_repo_id()
    words = ("run", base, "--config", quick, *SLICEGPT, "--output", "out")
    first = done(*words, "--heal", "--push", target)
    said = f"slice the width of 4 layers from 32 to 24 (25.0% narrower on average, {saved('out')})"
    assert f"✓ Pruned tiny-base: {said}" in first.out and f"Plan: {said}" in first.err
    assert "Every layer keeps 24 of 32 directions." in first.err
    assert "widths: 24, 24, 24, 24" in first.out and "dropped" not in first.out
    cut = Plan.load(Path("out/pruning")).slicing
    assert f"  parameters: {cut.parameters:,} of {cut.original_parameters:,} ({-cut.saved:+.1%})" in first.out
    assert cut.parameters == counted("out")
    assert {"sliced.py", "modeling_sliced_llama.py", "configuration_sliced_llama.py"} <= set(hub.files(target))
    assert type(AutoModelForCausalLM.from_pretrained(target)) is model_class("llama")

    again = done(*words, "--heal", "--push", target, "--json")
    assert "nothing to do again" in again.err and again.json["widths"] == [24] * 4 and again.json["dropped"] is None
    assert call(*words, "--basis", "global").failed().startswith("the output folder 'out' is not empty")


def saved(folder: str) -> str:
    cut = Plan.load(Path(folder) / "pruning").slicing
    return f"{abs(cut.saved):.1%} {'fewer' if cut.saved >= 0 else 'MORE'} parameters"


@pytest.mark.parametrize(
    ("base_share", "tried"),
    [
        pytest.param("search", True, marks=pytest.mark.slow),
        ("0.1", False),
        pytest.param(None, True, marks=pytest.mark.slow),
    ],
)
def test_run_by_redundancy(base: Path, quick: str, base_share: str | None, tried: bool) -> None:
    words = () if base_share is None else ("--slice-base", base_share)
    told = done("run", base, "--config", quick, *DYNAMIC, *words, "--no-evaluate", "--output", "out")
    cut = Plan.load(Path("out/pruning")).slicing
    assert sum(cut.widths) == 96 and (len(cut.search) > 1) == tried and "widths: " in told.out
    assert ("searching among up to 5 schedules" in told.err) == tried
    assert ("nats per token" in told.err) == tried
    recipe = PrunerConfig.from_pretrained("out")
    assert recipe.planner_kwargs == {"multiple": 4} | (
        {} if base_share is None else {"slice_base": base_share if base_share == "search" else 0.1}
    )
    if not tried:
        assert cut.base == 0.1 and max(cut.widths) == 28 and min(cut.widths) < 24


@pytest.mark.slow
def test_run_with_one_basis(base: Path, quick: str) -> None:
    done("run", base, "--config", quick, *SLICEGPT, "--basis", "global", "--output", "out")
    config = json.loads(Path("out/config.json").read_text())
    assert config["model_type"] == "llama" and config["hidden_size"] == 24 and not list(Path("out").rglob("*.py"))
    assert "can be pruned: yes" in done("info", "out").out


@pytest.mark.slow
def test_untie(quick: str) -> None:
    _, tied = base_folder(Path("tied"), depth=DEPTH, tie_word_embeddings=True)
    for words, kept in (((), True), (("--untie",), False)):
        told = done("prune", tied, "--config", quick, *SLICEGPT, *words, "--output", f"out-{kept}")
        assert Plan.load(Path(f"out-{kept}/pruning")).slicing.tied is kept
        assert ("Warning: slicing makes 'tied' LARGER: " in told.err) == (not kept)
        assert ("the table that head and embeddings shared becomes two" in told.err) == (not kept)
        assert counted(f"out-{kept}") == Plan.load(Path(f"out-{kept}/pruning")).slicing.parameters
    assert "MORE parameters" in told.out


@pytest.mark.slow
def test_a_share_of_the_parameters(base: Path, quick: str) -> None:
    words = ("--method", "slicegpt", "--sparsity", 0.1, "--sparsity-of", "parameters", "--round-to", 1)
    found = done("plan", base, "--config", quick, *words, "--json").json
    cut = Plan.load(Path("tiny-base-scores")).slicing
    assert found["widths"] == list(cut.widths) and abs(cut.saved - 0.1) < 0.02


# ---- each stage alone


def test_measure_plan_prune(base: Path, quick: str) -> None:
    measured = done("measure", base, "--config", quick, "--method", "dynamic-slicing", "--output", "scores")
    head, *lines = measured.out.splitlines()[: DEPTH + 1]
    assert head.split() == ["layer", "redundancy", "±", "se"]
    scores = Scores.load(Path("scores"))
    assert [line.split() for line in lines] == [
        [str(layer), f"{score:.4f}", f"{error:.4f}"]
        for layer, (score, error) in enumerate(zip(scores.layers, scores.layer_standard_errors, strict=True))
    ]
    assert (scores.measure, len(scores.layers), scores.data.samples) == ("redundancy", DEPTH, 6)
    assert "✓ Measured tiny-base" in measured.out

    refused = call("plan", "scores", *DYNAMIC, "--slice-base", 0.1).failed()
    assert refused.startswith("sparsity_of='width' needs the sizes of the model's parts, which scores do not hold;")

    planned = done("plan", base, "--config", quick, *DYNAMIC, "--slice-base", 0.1, "--output", "plan", "--json").json
    plan = Plan.load(Path("plan"))
    assert planned["widths"] == list(plan.slicing.widths) and planned["dropped"] is None
    assert (planned["plan"], planned["method"]) == ("plan/plan.json", "dynamic-slicing")
    shown = done("plan", base, "--config", quick, *DYNAMIC, "--slice-base", 0.1, "--output", "plan").out
    assert shown.startswith("✓ slice the width of 4 layers from 32 to ") and "  widths: " in shown

    told = done("prune", base, "--config", quick, "--plan", "plan/plan.json", "--output", "pruned")
    assert "✓ slice the width of 4 layers from 32 to " in told.out
    done("prune", base, "--config", quick, *DYNAMIC, "--slice-base", 0.1, "--output", "straight")
    one, two = (AutoModelForCausalLM.from_pretrained(name) for name in ("pruned", "straight"))
    assert torch.equal(logits(one, tokens()), logits(two, tokens()))
    assert Plan.load(Path("pruned/pruning")).slicing == plan.slicing == Plan.load(Path("straight/pruning")).slicing


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--sparsity", 0.5), "--sparsity"),
        (("--method", "slicegpt"), "--method"),
        (("--basis", "global"), "--basis"),
        (("--slice-base", 0.1), "--slice-base"),
        (("--round-to", 4), "--round-to"),
        (("--untie",), "--untie"),
    ],
)
def test_a_plan_and_options_that_it_has_decided(base: Path, quick: str, words: tuple, named: str) -> None:
    done("plan", base, "--config", quick, *SLICEGPT, "--output", "plan")
    refused = call("prune", base, "--config", quick, "--plan", "plan/plan.json", *words, "--output", "out").failed()
    assert refused == f"--plan says already what goes; leave out {named}, or plan again"


@pytest.mark.parametrize(
    "method", [SLICEGPT, pytest.param(DYNAMIC, marks=pytest.mark.slow)], ids=["slicegpt", "dynamic-slicing"]
)
def test_heal_evaluate_card_info(base: Path, quick: str, method: tuple) -> None:
    done("prune", base, "--config", quick, *method, "--output", "pruned")
    before = json.loads(Path("pruned/pruner_config.json").read_text())
    healed = done("heal", "pruned", "--original", base, "--json").json
    assert healed["folder"] == "pruned-healed" and healed["tokens"] == 144
    recipe = json.loads(Path("pruned-healed/pruner_config.json").read_text())
    assert {name for name in recipe if recipe[name] != before[name]} == {"healing"}
    assert recipe["healing"]["target"] == "all" and recipe["healing"]["alpha"] == 10
    assert {path.name for path in Path("pruned-healed").glob("*.py")} == {
        path.name for path in Path("pruned").glob("*.py")
    }
    assert {path.name for path in Path().iterdir()} == {"pruned", "pruned-healed"}

    Path("text.txt").write_text("".join(f"{TEXT}{i}. " for i in range(300)))
    shown = done("evaluate", "pruned-healed", "--original", base, "--dataset", "text.txt", "--eval-samples", 3)
    assert "perplexity, text.txt" in shown.out
    found = Evaluation.load(Path("pruned-healed/pruning"))
    cut = Plan.load(Path("pruned-healed/pruning")).slicing
    assert [(m.label, m.parameters) for m in found.models] == [
        ("original", cut.original_parameters), ("healed", cut.parameters),
    ]  # fmt: skip
    assert "perplexity" in done("evaluate", "pruned", "--original", base).out
    card = Path("pruned-healed/README.md").read_text()
    assert "text.txt" in card and "trust_remote_code=True" in card
    Path("pruned-healed/README.md").unlink()
    done("card", "pruned-healed")
    assert Path("pruned-healed/README.md").read_text() == card

    info = done("info", "pruned-healed", "--json").json
    assert (info["model_type"], info["layers"], info["healed"]) == ("sliced_llama", DEPTH, "yes")
    assert info["pruning"].startswith("slice the width of 4 layers from 32 to ")
    assert info["parameters stored"] == cut.parameters and info["method"] in method
    assert info["can be pruned"].startswith("no: 'pruned-healed' is sliced already (model_type 'sliced_llama')")
    shown = done("info", "pruned").out
    assert "  healed: no" in shown and "  can be pruned: no: 'pruned' is sliced already" in shown


@pytest.mark.slow
def test_heal_with_text_of_its_own_needs_no_original(base: Path, quick: str) -> None:
    done("prune", base, "--config", quick, *SLICEGPT, "--output", "pruned")
    assert "the original of 'tiny-base' is needed" in call("heal", "pruned").failed()
    Path("text.txt").write_text("".join(f"{TEXT}{i}. " for i in range(300)))
    done("heal", "pruned", "--output", "healed", "--dataset", "text.txt", "--heal-target", "mlp")
    recipe = json.loads(Path("healed/pruner_config.json").read_text())
    assert (recipe["healing"]["dataset"], recipe["healing"]["target"]) == ("text.txt", "mlp")
    one, two = (AutoModelForCausalLM.from_pretrained(name).state_dict() for name in ("pruned", "healed"))
    assert {name.rpartition(".layers.")[2].split(".")[1] for name in one if not torch.equal(one[name], two[name])} == {
        "mlp"
    }


# ---- what would be done


def test_dry_run(base: Path, quick: str, no_weights: None) -> None:
    words = ("run", base, "--config", quick, "--output", "out", "--dry-run")
    told = done(*words, *SLICEGPT, "--heal")
    assert [line.split()[0] for line in told.out.splitlines()[:6]] == [
        "stage", "plan", "prune", "heal", "evaluate", "write",
    ]  # fmt: skip
    assert "slice the width of 4 layers from 32 to 24 (25.0% narrower on average, " in told.out
    assert "calibrated on at most 72 tokens, sampled from the model itself" in told.out

    told = done(*words, *DYNAMIC)
    assert [line.split()[0] for line in told.out.splitlines()[:6]] == [
        "stage", "measure", "plan", "prune", "evaluate", "write",
    ]  # fmt: skip
    assert "redundancy: 6 samples, at most 72 tokens, sampled from the model itself" in told.out
    assert "dynamic_width: 0.25 of the width, the best of at most 5 schedules" in told.out
    told = done(*words, *DYNAMIC, "--slice-base", 0.1)
    assert "dynamic_width: 0.25 of the width, once layers are measured" in told.out
    found = done(*words, *SLICEGPT, "--json").json
    assert found["layers"] == DEPTH and found["steps"]["plan"].startswith("slice the width of 4 layers")
    assert list(Path().iterdir()) == []


def test_dry_run_tells_growth_and_global(base: Path, quick: str, no_weights: None) -> None:
    words = ("run", base, "--config", quick, "--output", "out", "--dry-run", "--method", "slicegpt", "--round-to", 4)
    assert "MORE parameters" in done(*words, "--sparsity", 0.1).out
    assert "Warning: slicing makes 'tiny-base' LARGER" in done(*words, "--sparsity", 0.1).err
    assert "from 32 to 24" in done(*words, "--sparsity", 0.25, "--basis", "global").out


def test_dry_run_after_a_broken_off_run(base: Path, quick: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its scores tell the widths already, where nothing is searched."""
    words = ("run", base, "--config", quick, *DYNAMIC, "--slice-base", 0.1, "--output", "out")
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.run._work", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(*words)
    before = tree(Path())
    planned = Plan.load(Path("out.run")).describe()
    assert planned in done(*words, "--dry-run").out and tree(Path()) == before


def test_dry_run_of_layers_still_names_them(base: Path, quick: str, no_weights: None) -> None:
    words = ("run", base, "--config", quick, "--output", "out", "--dry-run")
    assert "drop layer 2 (1 of 4" in done(*words, "--method", "simple", "--sparsity", 0.25).out
    told = done(*words, "--sparsity", 0.25).out
    assert "window: 0.25 of the layers of 4 layers, once they are measured" in told


def test_a_share_of_the_layers_is_planned_without_weights(base: Path, quick: str, no_weights: None) -> None:
    words = ("--method", "simple", "--sparsity", 0.25, "--json")
    assert done("plan", base, "--config", quick, *words).json["dropped"] == [2]


# ---- lists


def test_methods() -> None:
    lines = {line.split()[0]: line for line in done("methods").out.splitlines()}
    assert {"slicegpt", "dynamic-slicing"} <= lines.keys()
    assert "constant_width" in lines["slicegpt"] and " none " in lines["slicegpt"]
    assert "dynamic_width" in lines["dynamic-slicing"] and " redundancy " in lines["dynamic-slicing"]
    found = done("methods", "--json").json
    assert found["slicegpt"]["cuts"] == found["dynamic-slicing"]["cuts"] == "width"
    assert (found["slicegpt"]["measure"], found["dynamic-slicing"]["measure"]) == (None, "redundancy")
    assert found["dynamic-slicing"]["paper"] == "https://arxiv.org/abs/2411.03513"


@pytest.mark.parametrize("command", ["run", "plan", "prune"])
def test_options_are_in_the_help(command: str) -> None:
    said = done(command, "--help").out
    assert all(option in said for option in ("--slice-base", "--round-to", "--basis", "--untie"))


# ---- what is refused


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((*DYNAMIC, "--slice-base", "x"), "--slice-base 'x'; expected 'search' or a share such as 0.2"),
        ((*DYNAMIC, "--slice-base", "-0.1"), "slice_base=-0.1; expected 'search', or a share from 0 to the sparsity"),
        ((*DYNAMIC, "--slice-base", "nan"), "slice_base=nan; expected"),
        ((*DYNAMIC, "--slice-base", "0.3"), "slice_base=0.3 is above sparsity=0.25"),
        ((*DYNAMIC, "--basis", "global"), "basis='global' keeps one width in all layers; planner 'dynamic_width'"),
        ((*SLICEGPT, "--slice-base", "0.1"), "planner 'constant_width' has no option 'slice_base'"),
        ((*SLICEGPT, "--basis", "foo"), "SliceOptions.basis='foo'; expected one of: 'per_block', 'global'"),
        (("--method", "slicegpt", "--sparsity", 0.25, "--round-to", 0), "WidthOptions.multiple=0; expected a whole"),
        (("--method", "slicegpt", "--sparsity", 0.25, "--round-to", 33), "widths cannot be multiples of 33"),
        (("--method", "slicegpt", "--drop-layers", 2), "drop_layers=2: method 'slicegpt' narrows all layers"),
        (("--method", "slicegpt", "--layers", "1-2"), "layers=(1, 2): method 'slicegpt' narrows all layers"),
        ((*SLICEGPT, "--protect-last", 1), "protect_last=1: method 'slicegpt' narrows all layers"),
        ((*SLICEGPT, "--sparsity-of", "bytes"), "sparsity_of='bytes': method 'slicegpt' cuts width"),
        (("--method", "slicegpt"), "how much of 'tiny-base' shall go? Give sparsity, the share of the width"),
        (
            ("--method", "slicegpt", "--sparsity", 1.2),
            "PrunerConfig.sparsity=1.2; expected a number above 0 and below",
        ),
        (("--method", "slicegpt", "--sparsity", 0.99), "sparsity 0.99 leaves no width"),
        (("--sparsity", 0.25, "--sparsity-of", "width"), "sparsity_of='width': method 'uidl' cuts layers"),
        (("--drop-layers", 2, "--basis", "global"), "surgery 'drop' has no option 'basis'"),
        (("--drop-layers", 2, "--round-to", 4), "planner 'window' has no option 'multiple'"),
        ((*SLICEGPT, "--samples", 1, "--max-length", 7), "7 calibration tokens are too few to slice 'tiny-base'"),
    ],
)
@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_bad_recipes(base: Path, quick: str, no_weights: None, words: tuple, said: str, more: tuple) -> None:
    assert said in call("run", base, "--config", quick, "--output", "out", *words, *more).failed()
    assert not Path("out").exists()


def broken(kind: str) -> Path:
    """A model that cannot be sliced."""
    if kind == "quantized":
        _, folder = base_folder(Path(kind), depth=2)
        edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
        return folder
    return base_folder(Path(kind), kind, depth=2)[1]


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("gemma2", "'gemma2' (model_type 'gemma2') cannot be sliced: its norms act on what attention and MLP write"),
        ("olmo2", "cannot be sliced: its norms act on"),
        ("mamba", "'mamba' (model_type 'mamba') cannot be sliced: its blocks have no attention and MLP"),
        ("cohere", "'cohere' has model_type 'cohere', for which slicing is not done yet; expected one of: llama"),
        ("quantized", "'quantized' holds quantized weights (config key 'quantization_config'), which cannot be rotat"),
    ],
)
@pytest.mark.parametrize("command", [("run",), ("run", "--dry-run"), ("plan",), ("prune",)], ids=" ".join)
def test_models_that_cannot_be_sliced(
    quick: str, monkeypatch: pytest.MonkeyPatch, kind: str, said: str, command: tuple[str, ...]
) -> None:
    folder = broken(kind)
    monkeypatch.setattr("hf_prune.loading.load_model", None)
    for method in (SLICEGPT, DYNAMIC):
        refused = call(command[0], folder, "--config", quick, *method, "--output", "out", *command[1:]).failed()
        assert said in refused and "Traceback" not in refused
    assert not Path("out").exists()


def test_a_sliced_model_is_sliced_once(base: Path, quick: str) -> None:
    done("prune", base, "--config", quick, *SLICEGPT, "--output", "pruned")
    for command in ("run", "plan", "prune"):
        for words in (SLICEGPT, DYNAMIC, ("--drop-layers", 1)):
            refused = call(command, "pruned", "--config", quick, *words, "--output", "again").failed()
            assert "is sliced already (model_type 'sliced_llama')" in refused
            assert "Start from the model that it was made from" in refused
    assert "is sliced already" in call("run", "pruned", "--config", quick, *SLICEGPT, "--dry-run").failed()
    assert "is sliced already" in call("measure", "pruned", "--config", quick).failed()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "m", "--round-to", "many"), "Invalid value for '--round-to'"),
        (("run", "m", "--slice_base", "0.1"), "No such option: --slice_base"),
        (("measure", "m", "--slice-base", "0.1"), "No such option: --slice-base"),
        (("heal", "m", "--basis", "global"), "No such option: --basis"),
    ],
)
def test_wrong_usage_exits_with_2(words: tuple[str, ...], said: str) -> None:
    called = call(*words)
    assert called.code == 2 and called.out == "" and said in called.err and "Traceback" not in called.err
