"""The Python API, from a model to a pushed repo."""

import dataclasses
import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune import Pruner, PrunerConfig
from hf_prune.architecture import decoder_of
from hf_prune.errors import ArchitectureError, ConfigError, DataError, OutputError
from hf_prune.healing.checkpoint import quiet_peft
from hf_prune.output import Finished
from tests.cli.support import fast, planted, recipe, tree
from tests.hub.fixtures import BOB
from tests.making import base_folder, logits
from tests.tiny import tokens

USELESS = (3, 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", USELESS)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `fast`."""
    fast(monkeypatch)


def of(base: Path | str, run_folder: Path | None = None, **fields) -> Pruner:
    return Pruner.from_pretrained(base, recipe(**fields), run_folder=run_folder, progress=False)


def in_memory(base: Path, **fields) -> Pruner:
    model = AutoModelForCausalLM.from_pretrained(base)
    return Pruner(model, AutoTokenizer.from_pretrained(base), recipe(**fields), progress=False)


def texts_of(folder: Path) -> str:
    return "".join(path.read_text() for path in folder.rglob("*") if path.suffix in (".json", ".md"))


def test_the_whole_api(hub, hub_token, new_repo_id, base: Path, tmp_path: Path, monkeypatch) -> None:
    pruner = of(base, base_model="org/tiny-base")
    original = logits(pruner.model, tokens())
    scores = pruner.measure()
    assert scores.model.num_layers == 8 and scores.data.samples == 6
    assert min(scores.windows(2), key=lambda window: window[1])[:2] == (3, 0.0)
    plan = pruner.plan()
    assert plan.dropped == USELESS
    model = pruner.prune()
    assert model is pruner.model and len(model.model.layers) == 6
    assert torch.equal(logits(model, tokens()), original)

    with monkeypatch.context() as patch:
        fast(patch)  # what is saved at the end is reloaded in a process of its own; so is all in test_run
        healing = pruner.heal()
    assert (healing.steps, healing.quantization, healing.output) == (3, None, "merged")
    report = pruner.evaluate()
    first, pruned, healed = report.models
    assert [m.label for m in report.models] == ["original", "pruned", "healed"]
    assert [m.layers for m in report.models] == [8, 6, 6]
    assert pruned.perplexity == first.perplexity and pruned.completions == first.completions
    assert pruned.fidelity.kl == 0.0 and pruned.fidelity.top1_agreement == 1.0
    assert healed.perplexity[0].nll != first.perplexity[0].nll and healed.fidelity.kl > 0

    folder = pruner.save_pretrained(tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(found, tokens()), logits(pruner.model, tokens()))
    assert Finished.load(folder).reload_level == "full"
    assert str(tmp_path) not in texts_of(folder) and str(base) not in texts_of(folder)

    repo = new_repo_id()
    result = pruner.push_to_hub(repo, private=True)
    assert (result.repo_id, result.private, result.created) == (repo, True, True)
    again = PrunerConfig.from_pretrained(repo)
    assert again == PrunerConfig.from_pretrained(folder) == pruner.config
    assert (again.base_model, again.base_revision, again.healing.rank) == ("org/tiny-base", None, 2)
    loaded = AutoModelForCausalLM.from_pretrained(repo)
    assert torch.equal(logits(loaded, tokens()), logits(found, tokens()))


def test_model_in_memory(base: Path, quickly, tmp_path: Path) -> None:
    pruner = in_memory(base)
    handed = pruner.model
    assert pruner.prune() is handed
    assert pruner.plan().dropped == USELESS
    assert decoder_of(handed).num_layers == 6
    # Nothing was measured or sampled ahead of time: the removed blocks are kept, and no tensor was copied.
    assert set(pruner.texts._made) == {"calibration"} and not pruner.judge.figures
    original = pruner.models.original()
    assert torch.equal(logits(original, tokens()), logits(AutoModelForCausalLM.from_pretrained(base), tokens()))
    assert original.get_input_embeddings().weight is handed.get_input_embeddings().weight
    pruner.heal()
    report = pruner.evaluate()
    assert [m.label for m in report.models] == ["original", "pruned", "healed"]
    assert report.models[1].fidelity.kl == 0.0
    pruner.save_pretrained(tmp_path / "out")

    other = of(base)
    other.prune()
    other.heal()
    assert [m.perplexity for m in other.evaluate().models] == [m.perplexity for m in report.models]
    other.save_pretrained(tmp_path / "other")
    files, others = tree(tmp_path / "out"), tree(tmp_path / "other")
    assert files["model.safetensors"] == others["model.safetensors"]


def test_refusals_of_order(base: Path) -> None:
    pruner = of(base, drop_layers=None)
    with pytest.raises(ConfigError, match=r"how much of 'tiny-base' shall go\?"):
        pruner.plan()
    pruner = of(base, method="simple")
    with pytest.raises(ConfigError, match="method 'simple' measures nothing"):
        pruner.measure()
    assert pruner.plan().dropped == (5, 6)
    pruner.prune()
    with pytest.raises(ConfigError, match="the model is pruned already"):
        pruner.prune()


def test_evaluation_before_the_cut_is_of_the_original(base: Path) -> None:
    report = of(base).evaluate()
    assert [m.label for m in report.models] == ["original"] and report.models[0].fidelity is None


@pytest.mark.parametrize("label", ["pruned", "healed", "smaller"])
def test_a_model_that_is_not_there_is_not_evaluated(base: Path, label: str) -> None:
    """The original would be measured under its name."""
    with pytest.raises(ConfigError, match=rf"evaluate_as\('{label}'\): the model is original; expected one of orig"):
        in_memory(base).evaluate_as(label)


def test_push_after_more_work_pushes_that_work(hub, hub_token, new_repo_id, base: Path, quickly, tmp_path) -> None:
    pruner, repo = of(base, layers=[2]), new_repo_id()
    pruner.save_pretrained(tmp_path / "pruned")
    pruner.push_to_hub(repo)
    assert "pruning/healing.json" not in hub.files(repo)
    pruner.heal()
    pruner.push_to_hub(repo)
    assert "pruning/healing.json" in hub.files(repo) and "pruning/evaluation.json" not in hub.files(repo)
    pruner.evaluate()
    pruner.push_to_hub(repo)
    assert "pruning/evaluation.json" in hub.files(repo)
    assert "healing.json" not in str(list((tmp_path / "pruned").rglob("*")))


def test_push_under_a_bare_name_names_the_whole_id_in_the_card(hub, hub_token, base: Path, quickly) -> None:
    result = of(base, layers=[2]).push_to_hub("bare-name")
    assert result.repo_id == "alice/bare-name"
    assert 'name = "alice/bare-name"' in hub.files("alice/bare-name")["README.md"].decode()


def test_save_and_push_in_one_call(hub, hub_token, new_repo_id, base: Path, quickly, tmp_path: Path) -> None:
    repo = new_repo_id()
    of(base, layers=[2]).save_pretrained(tmp_path / "out", push_to_hub=True, repo_id=repo, private=True)
    assert hub.store.get("model", repo).private
    assert {path for path in hub.files(repo) if path != ".gitattributes"} == set(tree(tmp_path / "out"))


def test_a_plan_made_before(base: Path, tmp_path: Path) -> None:
    plan = of(base).plan()
    pruner = of(base, method="simple")
    pruner.use_plan(plan)
    assert len(pruner.prune().model.layers) == 6 and pruner.plan() == plan
    assert (pruner.config.method, pruner.config.layers, pruner.config.drop_layers) == ("uidl", USELESS, None)
    planted(tmp_path / "other", (1, 2))
    with pytest.raises(ConfigError, match="the plan was made for 'tiny-base'"):
        of(tmp_path / "other").use_plan(plan)


def test_a_recipe_that_travelled_does_not_name_another_folder(base: Path, quickly, tmp_path: Path) -> None:
    first = of(base, layers=[2], base_model="org/tiny-base").save_pretrained(tmp_path / "out")
    planted(tmp_path / "other")
    pruner = Pruner.from_pretrained(tmp_path / "other", PrunerConfig.from_pretrained(first), progress=False)
    assert pruner.config.base_model == "other" and pruner.plan().model.id == "other"


def test_finished_stages_are_not_repeated(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = of(base, tmp_path / "run").measure()

    def never(*args, **kwargs):
        raise AssertionError("measured again")

    monkeypatch.setattr("hf_prune.choosing.measure_model", never)
    assert of(base, tmp_path / "run").measure() == scores
    for changed in ({"calibration": {"seed": 1}}, {"calibration": {"samples": 5}}):
        with pytest.raises(AssertionError, match="measured again"):
            of(base, tmp_path / "run", **changed).measure()


def test_a_run_folder_tells_models_in_memory_apart(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    found = []
    for scale in (1.0, 1.5, 1.0):
        model = AutoModelForCausalLM.from_pretrained(base)
        model.model.layers[1].mlp.down_proj.weight.data *= scale
        found.append(Pruner(model, tokenizer, recipe(), run_folder=tmp_path, progress=False).measure().distances)
    assert found[0] == found[2] != found[1]


def test_changed_text_is_read_again(base: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("The sea is calm to-night, the tide is full. " * 300)
    settings = {"calibration": {"dataset": str(text)}}
    first = of(base, tmp_path / "run", **settings).measure()
    text.write_text("Nothing in the whole wide world was there but the wind. " * 300)
    assert of(base, tmp_path / "run", **settings).measure().data.sha256 != first.data.sha256


def test_nf4_for_real(base: Path, quickly, tmp_path: Path) -> None:
    pruner = of(base, layers=[2, 5], healing={"quantize": "nf4"})
    record = pruner.heal()
    assert record.quantization == "nf4 (double quantized)"
    assert record.held_out.adapter_quantized is not None and record.held_out.quantized != record.held_out.pruned
    folder = pruner.save_pretrained(tmp_path / "out")
    found = AutoModelForCausalLM.from_pretrained(folder)
    assert not hasattr(found.config, "quantization_config")
    assert torch.equal(logits(found, tokens()), logits(pruner.model, tokens()))


def quick_start(folder: Path, name: str) -> str:
    """The card's own first lines of code, with this repo or folder in the place of the name."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[1]
    return re.sub(r'^name = ".*"$', f'name = "{name}"', code, flags=re.MULTILINE)


def test_adapter_output(hub, hub_token, new_repo_id, base: Path, quickly, tmp_path: Path, capsys) -> None:
    pruner = of(base, layers=[2, 5], base_model="org/tiny-base", healing={"output": "adapter"})
    pruner.heal()
    report = pruner.evaluate()
    folder, repo = pruner.save_pretrained(tmp_path / "out"), new_repo_id()

    plain = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(logits(plain, tokens()), logits(pruner.models.pruned(pruner.plan()), tokens()))
    assert set(tree(folder / "adapter")) == {"adapter_config.json", "adapter_model.safetensors"}

    pruner.push_to_hub(repo)
    names: dict = {}
    with quiet_peft():
        exec(quick_start(folder, repo), names)
    assert f'name = "{repo}"' in (folder / "README.md").read_text()
    assert capsys.readouterr().out.startswith("Once upon a time")
    healed = logits(names["model"], tokens())
    assert torch.equal(healed, logits(pruner.model, tokens())) and not torch.equal(healed, logits(plain, tokens()))
    assert f'"base_model_name_or_path": "{repo}"' in hub.files(repo)["adapter/adapter_config.json"].decode()

    again = Pruner.from_pruned(folder, original=base, progress=False)
    assert [m.perplexity for m in again.evaluate().models] == [m.perplexity for m in report.models]
    with pytest.raises(ConfigError, match="healed already"):
        again.heal()


def test_quick_start_of_plain_weights(base: Path, quickly, tmp_path: Path, capsys) -> None:
    folder = of(base, layers=[2]).save_pretrained(tmp_path / "out")
    exec(quick_start(folder, str(folder)), {})
    assert capsys.readouterr().out.startswith("Once upon a time")


def test_a_hub_model_is_pinned(hub, hub_token, new_repo_id, base: Path, quickly, tmp_path: Path) -> None:
    repo = new_repo_id()
    commit = hub.add_repo(repo, base)
    hub.add_repo(repo, {"config.json": "{}"})  # main moves on, to something broken
    pruner = Pruner.from_pretrained(repo, recipe(layers=[2]), revision=commit[:10], progress=False)
    assert (pruner.config.base_model, pruner.config.base_revision) == (repo, commit)
    folder = pruner.save_pretrained(tmp_path / "out")
    assert PrunerConfig.from_pretrained(folder).base_revision == commit
    assert f"--revision {commit}" in (folder / "README.md").read_text()

    # The records name the commit: heal and evaluate find the original by themselves.
    again = Pruner.from_pruned(folder, progress=False)
    assert [m.label for m in again.evaluate().models] == ["original", "pruned"]


@pytest.mark.parametrize(("kind", "private"), [("gated", True), ("private", True), ("open", None)])
def test_what_is_made_of_restricted_models_is_private(
    hub, hub_token, new_repo_id, base: Path, quickly, kind: str, private: bool | None
) -> None:
    source, target = new_repo_id(), new_repo_id()
    hub.add_repo(source, base, private=kind == "private", gated=kind == "gated")
    pruner = of(source, layers=[2])
    assert pruner.push_to_hub(target).private is private
    assert hub.store.get("model", target).private is (private is True)
    if private:
        assert pruner.push_to_hub(new_repo_id(), private=False).private is False


def test_a_base_that_cannot_be_looked_up_is_taken_for_restricted(hub, hub_token, base: Path, quickly, caplog) -> None:
    assert of(base, layers=[2], base_model="org/nowhere").push_to_hub("unknown-base").private is True
    assert "it is not known whether 'org/nowhere' is gated or private" in caplog.text


def test_token_given_to_from_pretrained_is_used_for_all(hub, new_repo_id, base: Path, quickly) -> None:
    source, target = new_repo_id("bob"), new_repo_id("bob")
    hub.add_repo(source, base, private=True)
    pruner = Pruner.from_pretrained(source, recipe(layers=[2]), token=BOB, progress=False)
    assert pruner.push_to_hub(target).private is True
    assert BOB not in texts_of(pruner.run.path)


def test_taking_up_a_pruned_folder(base: Path, quickly, tmp_path: Path) -> None:
    (base / "LICENSE").write_text("Do what you like.")
    (base / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    first = of(base, layers=[2], base_model="org/tiny-base")
    folder = first.save_pretrained(tmp_path / "pruned")

    with pytest.raises(ConfigError, match="the original of 'org/tiny-base' is needed"):
        Pruner.from_pruned(folder, progress=False).heal()
    base_folder(tmp_path / "shallow", depth=4)
    with pytest.raises(ConfigError, match="is llama with 4 blocks; the folder was made from 'org/tiny-base'"):
        Pruner.from_pruned(folder, original=tmp_path / "shallow")
    with pytest.raises(ConfigError, match="is no folder that hf-prune has finished"):
        Pruner.from_pruned(base)

    taken = Pruner.from_pruned(folder, original=base, progress=False)
    record = taken.heal()
    assert record.held_out.pruned == pytest.approx(first_loss(base, tmp_path), rel=1e-6)
    healed = taken.save_pretrained(tmp_path / "healed")
    assert (healed / "LICENSE").read_text() == "Do what you like."
    assert (healed / "config.json").read_text() == (folder / "config.json").read_text()
    assert "license: mit" in (healed / "README.md").read_text()
    assert PrunerConfig.from_pretrained(healed).layers == (2,)

    last = Pruner.from_pruned(healed, original=base, progress=False)
    with pytest.raises(ConfigError, match=r"the model is healed; expected one of original, healed\."):
        last.evaluate_as("pruned")  # merging has taken it
    assert [m.label for m in last.evaluate().models] == ["original", "healed"]


def first_loss(base: Path, tmp_path: Path) -> float:
    return of(base, layers=[2]).heal().held_out.pruned


def test_healing_text_from_a_dataset_needs_no_original(base: Path, quickly, tmp_path: Path) -> None:
    folder = of(base, layers=[2]).save_pretrained(tmp_path / "pruned")
    (tmp_path / "text.txt").write_text("The wind in the thin grass was gone, and the sea was calm. " * 400)
    config = PrunerConfig.from_pretrained(folder)
    config = dataclasses.replace(
        config, healing=dataclasses.replace(config.healing, dataset=str(tmp_path / "text.txt"))
    )
    pruner = Pruner.from_pruned(folder, config, progress=False)
    record = pruner.heal()
    assert record.data.dataset == "text.txt" and record.data.sha256 != record.held_out_data.sha256


def test_wrong_things_in_memory(base: Path, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = AutoModelForCausalLM.from_pretrained(base)
    with pytest.raises(ArchitectureError, match="expected a transformers PreTrainedModel; got Linear"):
        Pruner(torch.nn.Linear(2, 2), tokenizer)
    with pytest.raises(ArchitectureError, match="without a language modelling head"):
        Pruner(model.model, tokenizer)
    with pytest.raises(ConfigError, match="drop_layers=8 leaves 0 of 8 layers"):
        Pruner(model, tokenizer, recipe(drop_layers=8))
    (tmp_path / "run").write_text("")
    with pytest.raises(OutputError, match="where working state would be kept, is a file or holds"):
        Pruner(model, tokenizer, recipe(), run_folder=tmp_path / "run")
    with pytest.raises(DataError, match="no file or folder"):
        Pruner(model, tokenizer, recipe(calibration={"dataset": "./nowhere.txt"}), progress=False).measure()
