"""`run`: the whole job by one call, repeated, refused, pushed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune import PrunerConfig
from hf_prune.errors import ConfigError, DataError, HubError, MissingExtraError, OutputError
from hf_prune.output import Finished
from hf_prune.run import run
from tests.cli.support import fast, parses, planted, recipe, tree
from tests.hub.fixtures import ALICE
from tests.making import logits
from tests.tiny import tokens

TEXT = "The wind in the thin grass was gone, and the sea was calm. Café and thé in the rain. "


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted(tmp_path_factory.mktemp("models") / "tiny-base")
    (folder / "LICENSE").write_text("Do what you like.")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: en\n---\n# Base\n")
    return folder


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `fast`."""
    fast(monkeypatch)


@pytest.fixture
def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever runs a model or downloads its weights fails the test."""

    def never(*args, **kwargs):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr("hf_prune.loading.load_model", never)
    monkeypatch.setattr("hf_prune.loading.AutoModelForCausalLM.from_pretrained", never)


def go(base: Path | str, output: Path, **kwargs):
    fields = {name: kwargs.pop(name) for name in list(kwargs) if name in PrunerConfig.__dataclass_fields__}
    return run(base, recipe(**fields), output, progress=False, **kwargs)


def ours(hub, repo: str) -> int:
    """Commits that a push made."""
    return sum(commit.author == "alice" and commit.title.startswith("Upload") for commit in hub.commits(repo))


def test_the_whole_job(hub, hub_token, new_repo_id, base: Path, tmp_path: Path, caplog) -> None:
    source, target, output = new_repo_id(), new_repo_id(), tmp_path / "out"
    commit = hub.add_repo(source, base)
    plans = []
    result = go(source, output, heal=True, push=target, on_plan=plans.append)

    assert [plan.dropped for plan in plans] == [(3, 4)] and result.finished.plan == plans[0]
    assert [m.label for m in result.evaluation.models] == ["original", "pruned", "healed"]
    assert result.evaluation.models[1].fidelity.kl == 0.0
    assert not result.repeated and result.finished.reload_level == "full"
    assert {path.name for path in tmp_path.iterdir()} == {"out"}  # neither out.run nor anything half-written
    assert (output / "LICENSE").read_text() == "Do what you like."
    config = PrunerConfig.from_pretrained(output)
    assert (config.base_model, config.base_revision) == (source, commit)
    assert {p.name for p in (output / "pruning").glob("*_tokens.safetensors")} == {
        f"{name}_tokens.safetensors" for name in ("calibration", "evaluation", "held-out", "healing")
    }

    assert ours(hub, target) == 1 and result.push.commit == hub.commits(target)[0].sha
    remote = hub.files(target)
    assert set(remote) - {".gitattributes"} == set(tree(output))
    assert all(remote[path] == (output / path).read_bytes() for path in tree(output))
    card = remote["README.md"].decode()
    command = next(line for line in card.splitlines() if line.startswith("hf-prune run "))
    assert parses(command) == "run" and f"--revision {commit}" in command
    assert f"base_model: {source}" in card and "license: mit" in card and f'name = "{target}"' in card

    model, info = AutoModelForCausalLM.from_pretrained(target, output_loading_info=True)
    assert not any(info.values())
    assert torch.equal(logits(model, tokens()), logits(AutoModelForCausalLM.from_pretrained(output), tokens()))
    assert AutoTokenizer.from_pretrained(target)("The sea")["input_ids"]

    caplog.set_level("INFO", logger="hf_prune")
    before = tree(output)
    again = go(source, output, heal=True, push=target)
    assert again.repeated and "was made by this very command; nothing to do again" in caplog.text
    assert again.finished == result.finished and tree(output) == before
    assert ours(hub, target) == 1 and again.push.additions == () and again.push.commit == result.push.commit
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


def test_other_settings_in_the_same_folder_are_refused(base: Path, tmp_path: Path, quickly, monkeypatch) -> None:
    output, text = tmp_path / "out", tmp_path / "text.txt"
    text.write_text(TEXT * 200)
    settings = {"calibration": {"dataset": str(text)}, "evaluate": False}
    go(base, output, **settings)
    before = tree(output)
    monkeypatch.setattr("hf_prune.choosing.measure_model", None)  # whatever would measure fails
    assert go(base, output, **settings).repeated
    for change in (
        {"drop_layers": 3},
        {"method": "simple"},
        {"evaluate": True},
        {"heal": True},
        {"dtype": "bfloat16"},
        {"calibration": {"dataset": str(text), "seed": 1}},
    ):
        with pytest.raises(OutputError, match="the output folder .* is not empty"):
            go(base, output, **settings | change)
    text.write_text(TEXT * 201)
    with pytest.raises(OutputError, match="the output folder .* is not empty"):
        go(base, output, **settings)
    assert tree(output) == before and not (tmp_path / "out.run").exists()


def test_without_evaluation_and_healing(base: Path, tmp_path: Path, quickly) -> None:
    result = go(base, tmp_path / "out", layers=[5, 2], evaluate=False)
    assert result.evaluation is None and result.finished.scores is None and result.finished.healing is None
    assert result.finished.plan.dropped == (2, 5)
    assert len(AutoModelForCausalLM.from_pretrained(tmp_path / "out").model.layers) == 6


def test_text_of_a_dataset(base: Path, tmp_path: Path, quickly) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "text.txt").write_text("".join(f"{TEXT} {i}. " for i in range(400)))
    dataset = str(tmp_path / "secret" / "text.txt")
    finished = go(base, tmp_path / "out", calibration={"dataset": dataset}, heal=True).finished
    uses = [finished.scores.data, finished.healing.data, finished.healing.held_out_data]
    uses.append(finished.evaluation.models[0].perplexity[0].data)
    assert {use.dataset for use in uses} == {"text.txt"} and len({use.sha256 for use in uses}) == 4
    assert not list((tmp_path / "out" / "pruning").glob("*_tokens.safetensors"))
    written = "".join(p.read_text() for p in (tmp_path / "out").rglob("*") if p.suffix in (".json", ".md"))
    assert "secret" not in written and str(tmp_path) not in written


def test_a_link_as_output(base: Path, tmp_path: Path, quickly) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "disk" / "out")
    go(base, tmp_path / "link", layers=[2], evaluate=False)
    assert (tmp_path / "disk" / "out" / "model.safetensors").is_file() and (tmp_path / "link").is_symlink()
    assert {p.name for p in tmp_path.iterdir()} == {"disk", "link"}


def test_somebody_else_s_folder_is_not_taken_for_working_state(base: Path, tmp_path: Path, no_work) -> None:
    (tmp_path / "out.run").mkdir()
    (tmp_path / "out.run" / "thesis.txt").write_text("years of work")
    with pytest.raises(
        OutputError, match="out.run', where working state would be kept, is a file or holds something else"
    ):
        go(base, tmp_path / "out")
    assert (tmp_path / "out.run" / "thesis.txt").read_text() == "years of work"


def test_what_is_refused_before_any_work(hub, new_repo_id, base: Path, tmp_path: Path, no_work, monkeypatch) -> None:
    output = tmp_path / "out"
    source, foreign = new_repo_id(), new_repo_id()
    hub.add_repo(source, base)
    hub.add_repo(foreign, {"config.json": "{}", "model.safetensors": b"0"})

    def refused(error: type[Exception], message: str, **kwargs) -> None:
        hub.requests.clear()
        with pytest.raises(error, match=message):
            go(source, output, **kwargs)
        assert not [r for r in hub.requests if r.path.endswith("model.safetensors") and r.method == "GET"]
        assert not list(tmp_path.iterdir())

    refused(HubError, "no access token is saved: log in with `hf auth login`", push=foreign)
    monkeypatch.setenv("HF_TOKEN", "hf_" + "wrong" * 7)
    refused(HubError, "401 .*the access token is missing, expired or mistyped", push=foreign)
    monkeypatch.setenv("HF_TOKEN", ALICE)
    refused(HubError, f"'{foreign}' holds a model that hf-prune did not make", push=foreign)
    monkeypatch.setitem(__import__("sys").modules, "peft", None)
    refused(MissingExtraError, r"healing needs the package 'peft'.*hf-prune\[heal\]", heal=True)
    monkeypatch.undo()


def test_a_public_target_of_a_gated_base_is_refused_before_the_work(
    hub, hub_token, new_repo_id, base: Path, tmp_path: Path, no_work
) -> None:
    source, target = new_repo_id(), new_repo_id()
    hub.add_repo(source, base, gated=True)
    hub.add_repo(target, {"pruner_config.json": "{}"})
    with pytest.raises(HubError, match="is public and private=True was asked for"):
        go(source, tmp_path / "out", push=target)
    assert not list(tmp_path.iterdir())


def test_missing_healing_text_is_told_before_the_evaluation(base: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("hf_prune.evaluation.stage.evaluate_original", None)  # whatever would evaluate fails
    with pytest.raises(DataError, match="no file or folder './nowhere.txt'"):
        go(base, tmp_path / "out", heal=True, healing={"dataset": "./nowhere.txt"})


def test_healing_without_bitsandbytes_is_refused_early_where_nf4_was_asked_for(
    base: Path, tmp_path: Path, no_work, monkeypatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "bitsandbytes", None)
    with pytest.raises(MissingExtraError, match="quantize='nf4' needs the package 'bitsandbytes'"):
        go(base, tmp_path / "out", heal=True, healing={"quantize": "nf4"})


def test_an_amount_is_needed(base: Path, tmp_path: Path, no_work) -> None:
    with pytest.raises(ConfigError, match=r"how much of 'tiny-base' shall go\? Give one of drop_layers \(1 to 7\)"):
        run(base, PrunerConfig(), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_state_of_other_settings_is_not_used(base: Path, tmp_path: Path, quickly, monkeypatch) -> None:
    """A run that was broken off, taken up with other settings, gives what those settings give from nothing."""
    settings = {"heal": True, "evaluate": False}
    wanted = go(base, tmp_path / "wanted", layers=[2], **settings)
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.pruner.write_output", None)  # breaks off at the end, with all state written
        with pytest.raises(TypeError):
            go(base, tmp_path / "out", layers=[5], **settings)
    assert (tmp_path / "out.run" / "pruned").is_dir()
    found = go(base, tmp_path / "out", layers=[2], **settings)
    assert tree(tmp_path / "out")["model.safetensors"] == tree(tmp_path / "wanted")["model.safetensors"]
    assert found.finished.plan == wanted.finished.plan
    record = dataclasses.replace(found.finished.healing, seconds=0.0)
    assert record == dataclasses.replace(wanted.finished.healing, seconds=0.0)
    assert Finished.load(tmp_path / "out").inputs == Finished.load(tmp_path / "wanted").inputs
