"""Every command of the line, called as `hf-prune` calls it."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import Plan, Scores
from hf_prune.cli import main
from hf_prune.records import Evaluation
from tests.cli.support import call, done, fast, planted, recipe, recipe_file, tree
from tests.making import base_folder, logits
from tests.tiny import tokens

TEXT = "The wind in the thin grass was gone, and the sea was calm. "


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted(tmp_path_factory.mktemp("models") / "tiny-base")
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


def test_run(hub, hub_token, new_repo_id, base: Path, quick: str) -> None:
    source, target = new_repo_id(), new_repo_id()
    commit = hub.add_repo(source, base)
    words = ("run", source, "--config", quick, "--drop-layers", 2, "--heal", "--output", "out", "--push", target)
    first = done(*words)
    assert "drop layers 3–4 (2 of 8, counted from 0)" in first.out and "healing tokens: " in first.out
    assert f"pushed: {hub.endpoint}/{target}" in first.out and "original" in first.out
    assert "Plan: drop layers 3–4" in first.err and "%|" not in first.err
    assert Plan.load(Path("out/pruning")).model.revision == commit

    again = done(*words, "--json")
    assert again.json["dropped"] == [3, 4] and again.json["commit"] == hub.commits(target)[0].sha
    assert "nothing to do again" in again.err
    assert done(*words, "--quiet").err == ""
    refused = call(*words[:4], "--drop-layers", 3, "--output", "out").failed()
    assert refused.startswith("the output folder 'out' is not empty")


def test_output_is_named_after_the_model(base: Path, quick: str) -> None:
    done("run", base, "--config", quick, "--layers", "2", "--no-evaluate")
    done("prune", base, "--config", quick, "--layers", "2,5-6", "--output", "other")
    assert len(AutoModelForCausalLM.from_pretrained("tiny-base-pruned").model.layers) == 7
    assert Plan.load(Path("other/pruning")).dropped == (2, 5, 6)


def test_dry_run_does_and_writes_nothing(hub, hub_token, new_repo_id, base: Path, quick: str, monkeypatch) -> None:
    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hf_prune.loading.AutoModelForCausalLM.from_pretrained", never)
    source, target = new_repo_id(), new_repo_id()
    hub.add_repo(source, base)
    words = ("run", source, "--config", quick, "--drop-layers", 2, "--output", "out", "--dry-run")
    told = done(*words, "--heal", "--push", target)
    assert [line.split()[0] for line in told.out.splitlines()[:8]] == [
        "stage", "measure", "plan", "prune", "heal", "evaluate", "write", "push",
    ]  # fmt: skip
    assert "angular: 6 samples, at most 72 tokens, sampled from the model itself" in told.out
    assert "window: 2 of 8 layers, once they are measured" in told.out
    assert not any(r.path.endswith("model.safetensors") for r in hub.requests) and not hub.exists(target)
    assert "evaluate" not in done(*words, "--no-evaluate").out
    found = done(*words, "--json").json
    assert found["layers"] == 8 and found["steps"]["evaluate"] == "original and pruned on 4 documents"
    assert "drop layers 5–6 (2 of 8" in done(*words, "--method", "simple").out
    by_weight = done(*words[:4], "--sparsity", 0.3, "--sparsity-of", "bytes", *words[6:])
    assert "window: 0.3 of the bytes of 8 layers, once the blocks are weighed" in by_weight.out
    assert list(Path().iterdir()) == []

    hub.add_repo(target, {"config.json": "{}", "model.safetensors": b"0"})
    assert "holds a model that hf-prune did not make" in call(*words, "--push", target).failed()
    assert done(*words, "--push", target, "--overwrite").code == 0
    assert "leaves 0 of 8 layers" in call(*words[:4], "--drop-layers", 8, *words[6:]).failed()
    assert list(Path().iterdir()) == []


def test_dry_run_names_the_layers_that_an_interrupted_run_has_measured(base: Path, quick: str, monkeypatch) -> None:
    words = ("run", base, "--config", quick, "--drop-layers", 2, "--output", "out")
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.run._work", lambda *args: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            call(*words)
    before = tree(Path())
    assert "drop layers 3–4" in done(*words, "--dry-run").out
    assert tree(Path()) == before
    base_folder(Path("other"), depth=8)
    assert "once they are measured" in done("run", "other", *words[2:], "--dry-run").out


def test_measure_plan_prune(base: Path, quick: str, monkeypatch) -> None:
    measured = done("measure", base, "--config", quick, "--output", "scores")
    assert measured.out.splitlines()[2].split()[:3] == ["2", "3–4", "0.0000"]
    assert Scores.load(Path("scores")).data.samples == 6
    assert done("measure", base, "--config", quick, "--output", "scores", "--json").json["samples"] == 6

    with monkeypatch.context() as patch:
        for name in ("hf_prune.loading.locate", "hf_prune.pruner.Pruner.from_pretrained"):
            patch.setattr(name, None)  # no model is needed
        planned = done("plan", "scores", "--drop-layers", 2, "--json").json
        assert planned["dropped"] == [3, 4] and planned["plan"] == "scores/plan.json"
        assert "runner-up: " in done("plan", "scores", "--drop-layers", 2, "--output", "elsewhere").out
        assert done("plan", "scores", "--sparsity", 0.4, "--json").json["dropped"].__len__() == 3
        assert (
            "needs the sizes of the model"
            in call("plan", "scores", "--sparsity", 0.4, "--sparsity-of", "bytes").failed()
        )
    assert Plan.load(Path("elsewhere")).dropped == (3, 4)

    done("prune", base, "--plan", "elsewhere/plan.json", "--output", "pruned")
    model = AutoModelForCausalLM.from_pretrained("pruned")
    assert torch.equal(logits(model, tokens()), logits(AutoModelForCausalLM.from_pretrained(base), tokens()))
    assert Plan.load(Path("pruned/pruning")) == Plan.load(Path("elsewhere"))
    refused = call("prune", base, "--plan", "elsewhere/plan.json", "--drop-layers", 2, "--output", "again").failed()
    assert refused == "--plan says already what goes; leave out --drop-layers, or plan again"
    gone = call("prune", base, "--plan", "nowhere.json", "--output", "again").failed()
    assert gone == "there is no file nowhere.json"
    base_folder(Path("shallow"), depth=4)
    assert (
        "the plan was made for 'tiny-base' (8 llama blocks"
        in call("prune", "shallow", "--plan", "elsewhere/plan.json", "--output", "again").failed()
    )


def test_plan_from_a_model(base: Path, quick: str) -> None:
    assert done("plan", base, "--config", quick, "--drop-layers", 2, "--json").json["dropped"] == [3, 4]
    assert Plan.load(Path("tiny-base-scores")).dropped == (3, 4)
    by_weight = ("--sparsity", 0.25, "--sparsity-of", "parameters", "--output", "by-weight", "--json")
    dropped = done("plan", base, "--config", quick, *by_weight).json["dropped"]
    model = AutoModelForCausalLM.from_pretrained(base)
    each = sum(p.numel() for p in model.model.layers[0].parameters()) / model.num_parameters()
    assert len(dropped) == int(0.25 / each) == 2


def test_heal_evaluate_card_push(hub, hub_token, new_repo_id, base: Path, quick: str) -> None:
    repo = new_repo_id()
    done("run", base, "--config", quick, "--layers", "2", "--output", "pruned")
    before = json.loads(Path("pruned/pruner_config.json").read_text())

    assert "the original of 'tiny-base' is needed" in call("heal", "pruned").failed()
    assert {path.name for path in Path().iterdir()} <= {"pruned", "pruned-healed.run"}
    healed = done("heal", "pruned", "--original", base, "--json").json
    assert healed["folder"] == "pruned-healed" and healed["tokens"] == 144
    assert {path.name for path in Path().iterdir()} == {"pruned", "pruned-healed"}
    recipe = json.loads(Path("pruned-healed/pruner_config.json").read_text())
    assert {name for name in recipe if recipe[name] != before[name]} == {"healing"}  # resolved, and nothing else
    assert "the output folder 'pruned-healed' is not empty" in call("heal", "pruned", "--original", base).failed()

    Path("text.txt").write_text("".join(f"{TEXT}{i}. " for i in range(300)))
    shown = done("evaluate", "pruned-healed", "--original", base, "--dataset", "text.txt", "--eval-samples", 3)
    assert "perplexity, text.txt" in shown.out
    found = Evaluation.load(Path("pruned-healed/pruning"))
    assert [m.label for m in found.models] == ["original", "healed"]
    recipe = json.loads(Path("pruned-healed/pruner_config.json").read_text())
    assert (recipe["evaluation"]["dataset"], recipe["evaluation"]["samples"]) == ("text.txt", 3)
    assert recipe["calibration"] == before["calibration"]
    card = Path("pruned-healed/README.md").read_text()
    assert "text.txt" in card

    Path("pruned-healed/README.md").unlink()
    assert done("card", "pruned-healed", "--json").json == {"card": "pruned-healed/README.md"}
    assert Path("pruned-healed/README.md").read_text() == card

    would = done("push", "pruned-healed", repo, "--dry-run")
    assert would.out.startswith(f"✓ Would push pruned-healed to {repo}") and not hub.exists(repo)
    assert Path("pruned-healed/README.md").read_text() == card
    pushed = done("push", "pruned-healed", repo, "--json").json
    assert pushed["commit"] == hub.commits(repo)[0].sha and pushed["new repo"] is True
    assert f'name = "{repo}"' in hub.files(repo)["README.md"].decode()
    info = done("info", repo, "--json").json
    assert (info["pruned from"], info["healed"], info["layers"]) == ("tiny-base", "yes", 7)
    assert info["pruning"] == "drop layer 2 (1 of 8, counted from 0)"


def test_evaluate_with_the_same_text_keeps_the_pruned_figures(base: Path, quick: str) -> None:
    done("run", base, "--config", quick, "--layers", "2", "--heal", "--output", "out")
    before = Evaluation.load(Path("out/pruning"))
    told = done("evaluate", "out", "--original", base, "--json").json
    after = Evaluation.load(Path("out/pruning"))
    assert Evaluation.from_dict(told["evaluation"]) == after
    assert [m.label for m in after.models] == ["original", "pruned", "healed"]
    assert after.models[1] == before.models[1]
    assert [m.perplexity for m in after.models] == [m.perplexity for m in before.models]
    assert [m.fidelity for m in after.models] == [m.fidelity for m in before.models]


def test_heal_with_a_dataset_of_its_own(base: Path, quick: str) -> None:
    done("prune", base, "--config", quick, "--layers", "2", "--output", "pruned")
    Path("text.txt").write_text("".join(f"{TEXT}{i}. " for i in range(300)))
    done("heal", "pruned", "--output", "healed", "--dataset", "text.txt", "--heal-rank", 3)
    recipe = json.loads(Path("healed/pruner_config.json").read_text())
    assert (recipe["healing"]["dataset"], recipe["healing"]["rank"]) == ("text.txt", 3)
    assert recipe["calibration"]["dataset"] is None


def test_info(hub, new_repo_id, base: Path, tmp_path: Path) -> None:
    repo = new_repo_id()
    commit = hub.add_repo(repo, base)
    found = done("info", repo, "--json").json
    assert (found["model_type"], found["layers"], found["commit"]) == ("llama", 8, commit)
    assert found["can be pruned"] == "yes"
    assert not any(r.path.endswith("model.safetensors") for r in hub.requests)
    shown = done("info", base)
    assert shown.out.startswith("✓ tiny-base\n") and "  can be pruned: yes" in shown.out
    assert (
        done("info", base, "--json").json["parameters stored"]
        == AutoModelForCausalLM.from_pretrained(base).num_parameters()
    )

    encoder = tmp_path / "encoder"
    encoder.mkdir()
    (encoder / "config.json").write_text(json.dumps({"model_type": "bert", "architectures": ["BertForMaskedLM"]}))
    assert done("info", encoder, "--json").json["can be pruned"].startswith("no: ")
    assert "there is no model 'alice/nothing'" in call("info", "alice/nothing").failed()
    assert "revision='main' of the folder" in call("info", base, "--revision", "main").failed()


def test_demo(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a smaller model: the real one takes minutes, and is what `make demo` runs."""
    monkeypatch.setattr("hf_prune.demo.model_folder", lambda: base)
    monkeypatch.setattr("hf_prune.demo.config", lambda: recipe(drop_layers=4))
    told = done("demo")
    assert "healed" in told.out and "✓ Pruned tiny-base: drop layers " in told.out
    assert done("demo", "--json").json["folder"] == "demo-output"


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("heal", "d"), "--revision"),
        (("heal", "d"), "--samples"),
        (("evaluate", "d"), "--base-model"),
        (("evaluate", "d"), "--batch-size"),
        (("measure", "m"), "--eval-samples"),
        (("prune", "m"), "--heal-rank"),
    ],
)
def test_no_command_takes_what_it_would_ignore(words: tuple[str, ...], option: str) -> None:
    called = call(*words, option, "1")
    assert called.code == 2 and f"No such option: {option}" in called.err


def test_methods() -> None:
    listed = [line.split()[0] for line in done("methods").out.splitlines()]
    assert listed[:5] == ["method", "uidl", "simple", "slicegpt", "dynamic-slicing"]
    assert done("methods", "--json").json["uidl"]["measure"] == "angular"
    assert done("methods", "--families", "--json").json["GPT-2"] == ["gpt2"]
    assert "Qwen3" in done("methods", "--families").out


def test_recipe_of_a_pushed_model(hub, hub_token, new_repo_id, base: Path, quick: str) -> None:
    repo = new_repo_id()
    done("run", base, "--config", quick, "--drop-layers", 2, "--no-evaluate", "--output", "out", "--push", repo)
    base_folder(Path("other"), depth=8)
    done("run", "other", "--config", repo, "--drop-layers", 3, "--no-evaluate", "--output", "again")
    recipe = json.loads(Path("again/pruner_config.json").read_text())
    assert (recipe["drop_layers"], recipe["calibration"]["samples"]) == (3, 6)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run",), "Missing argument 'MODEL'"),
        (("run", "m", "--drop-layers", "many"), "Invalid value for '--drop-layers'"),
        (("run", "m", "--drop-layer", "2"), "No such option: --drop-layer"),
        (("prune", "m", "--heal"), "No such option: --heal"),
        (("push", "out"), "Missing argument 'REPO'"),
        (("prun", "m"), "No such command 'prun'"),
    ],
)
def test_wrong_usage_exits_with_2(words: tuple[str, ...], said: str) -> None:
    called = call(*words)
    assert called.code == 2 and called.out == "" and said in called.err and "Traceback" not in called.err


def test_no_arguments_shows_the_help() -> None:
    called = call()
    assert "Commands:" in called.out + called.err and called.code in (0, 2)


def test_torchrun_is_refused_where_all_processes_would_do_the_same(monkeypatch, capsys, tmp_path: Path) -> None:
    monkeypatch.setattr("sys.argv", ["hf-prune", "prune", "org/model", "--output", str(tmp_path / "out")])
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "'prune' runs in one process; torchrun started 2"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(SystemExit, match="1"):
            main()
        assert said in capsys.readouterr().err
