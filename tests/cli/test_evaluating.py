"""`evaluate` on any model, and `compare`."""

from pathlib import Path

import pytest

from hf_prune import extras
from hf_prune.compare import Comparison
from hf_prune.records import Evaluation
from hf_prune.subject import Measured
from tests.cli.support import call, done, fast, recipe_file
from tests.evaluation.questions import write_task
from tests.making import base_folder

WORDS = ("--max-length", "12", "--eval-samples", "2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "tiny-base", depth=4)[1]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Nothing is timed; see `fast`."""
    fast(monkeypatch)
    monkeypatch.setattr("hf_prune.subject.timed", lambda figures, *others: tuple(figures))
    monkeypatch.setattr("hf_prune.compare.timed", lambda figures, *others: tuple(figures))
    monkeypatch.chdir(tmp_path)


def test_any_folder(base: Path) -> None:
    shown = done("evaluate", base, *WORDS, "--output", "model.json")
    assert "perplexity, sampled from the model" in shown.out and "✓ Evaluated tiny-base" in shown.out
    assert "original" not in shown.out
    record = Measured.load(Path("model.json"))
    assert record.evaluation.models[0].perplexity[0].data.samples == 2
    as_json = done("evaluate", base, *WORDS, "--json").json
    assert Measured.from_dict(as_json).evaluation.models[0].perplexity == record.evaluation.models[0].perplexity


def test_a_repo_that_hf_prune_made_is_a_model_like_any_other(hub, hub_token, new_repo_id, base: Path) -> None:
    repo = new_repo_id()
    done("run", base, "--config", recipe_file(Path("recipe")), "--output", "out", "--no-evaluate")
    commit = hub.add_repo(repo, Path("out"))
    told = done("evaluate", repo, *WORDS)
    assert f"hold it against what its card claims: hf-prune verify {repo}" in told.err
    assert f"revision: {commit}" in told.out
    at = done("evaluate", repo, *WORDS, "--revision", commit[:9], "--json").json
    assert at["model"]["revision"] == commit and at["evaluation"]["models"][0]["layers"] == 2


def test_a_finished_folder_is_held_against_its_original(base: Path) -> None:
    done("run", base, "--config", recipe_file(Path("recipe")), "--output", "out")
    shown = done("evaluate", "out", "--original", base, "--output", "again.json")
    assert "original" in shown.out.splitlines()[0] and "record: again.json" in shown.out
    assert Evaluation.load(Path("again.json")) == Evaluation.load(Path("out/pruning"))
    assert "only models on the Hub have revisions" in call("evaluate", "out", "--revision", "main").failed()


def test_original_is_for_finished_folders(base: Path) -> None:
    refused = call("evaluate", base, "--original", "org/model").failed()
    assert f"hf-prune compare org/model {base}" in refused
    assert "holds no config.json" in call("evaluate", ".").failed()


def test_record_that_cannot_be_written_is_told_before_any_work(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("run", base, "--config", recipe_file(Path("recipe")), "--output", "out", "--no-evaluate")
    Path("taken").write_text("")
    finished = ("evaluate", "out", "--original", base)
    for command in (finished, ("evaluate", base, *WORDS), ("compare", base, base, *WORDS)):
        told = call(*command, "--output", "taken/deep/model.json")
        assert told.failed() == (
            f"the record 'taken/deep/model.json' cannot be written: '{Path('taken').absolute()}' is a file. Name "
            "another (--output)"
        )
        assert "evaluating" not in told.err
    assert not Path("out/pruning/evaluation.json").exists()
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert "is not writable" in call("compare", base, base, "--output", "model.json").failed()


def test_two_models(base: Path) -> None:
    other = base_folder(Path("other"), depth=2, seed=1)[1]
    shown = done("compare", base, other, *WORDS, "--output", "pair.json")
    assert shown.out.splitlines()[0].split() == ["a", "b"]
    assert "a: tiny-base (a folder), llama" in shown.out and "✓ Compared tiny-base with other" in shown.out
    found = Comparison.load(Path("pair.json"))
    assert [m.layers for m in found.evaluation.models] == [4, 2]
    assert Comparison.from_dict(done("compare", base, other, *WORDS, "--json").json).models == found.models
    assert "names no task" in call("compare", base, other, "--tasks", ",").failed()


@pytest.mark.slow
@pytest.mark.skipif(not extras.available("lm_eval"), reason="needs the extra 'eval'")
def test_tasks(base: Path, tmp_path: Path) -> None:
    write_task(tmp_path / "tasks", "winogrande")
    words = ("--tasks", "winogrande_local", "--task-path", "tasks", "--limit", "4")
    alone = done("evaluate", base, *WORDS, *words, "--json").json
    assert alone["evaluation"]["models"][0]["tasks"][0]["samples"] == 4
    pair = done("compare", base, base, *WORDS, *words, "--json").json["evaluation"]["models"]
    assert pair[0]["tasks"] == alone["evaluation"]["models"][0]["tasks"]
    assert pair[0]["tasks"][0]["stability"] is None  # it is that of b to a
    assert pair[1]["tasks"] == [{**pair[0]["tasks"][0], "stability": 1.0}]
    assert "no_such_task" in call("compare", base, base, "--tasks", "no_such_task").failed()
