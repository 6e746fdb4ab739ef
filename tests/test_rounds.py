"""Prune, heal, prune again: which layers go, what the records of all rounds say as one, killed and taken up again."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from hf_prune import Pruner, PrunerConfig, healing
from hf_prune.errors import ConfigError
from hf_prune.rounds import check_rounds, shares
from hf_prune.run import RunResult, run
from hf_prune.verify import verify
from hf_prune.verify_checks import Check

from .cli.support import fast, planted, recipe, tree
from .making import logits
from .tiny import tokens


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Blocks 3 and 4 write nothing, so that a window of two is the first to go."""
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    fast(monkeypatch)


def go(base: Path | str, output: Path, heal: bool = True, **kwargs: Any) -> RunResult:
    fields = {name: kwargs.pop(name) for name in list(kwargs) if name in PrunerConfig.__dataclass_fields__}
    return run(base, recipe(**{"drop_layers": 3, "rounds": 2} | fields), output, heal=heal, progress=False, **kwargs)


def record_rounds(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The healing records of all rounds, as they are made."""
    made, heal = [], healing.heal

    def noted(*args: Any, **kwargs: Any) -> Any:
        result = heal(*args, **kwargs)
        made.append(result.record)
        return result

    monkeypatch.setattr("hf_prune.stages.healing.heal", noted)
    return made


def check(checks: tuple[Check, ...], name: str) -> Check:
    return next(each for each in checks if each.name == name)


@pytest.mark.parametrize(
    ("total", "rounds", "each"), [(3, 2, (2, 1)), (4, 2, (2, 2)), (5, 3, (2, 2, 1)), (3, 3, (1, 1, 1)), (4, 1, (4,))]
)
def test_shares(total: int, rounds: int, each: tuple[int, ...]) -> None:
    assert shares(total, rounds) == each and sum(each) == total


@pytest.mark.parametrize(
    ("fields", "heal", "message"),
    [
        ({}, False, "rounds=2 heals between cuts, and healing was not asked for"),
        (
            {"layers": [1, 2], "drop_layers": None},
            True,
            r"rounds=2 chooses anew each time; layers=\[1, 2\] are chosen",
        ),
        ({"surgery": "compensate"}, True, "rounds=2 drops whole blocks; .*surgery 'compensate'"),
        ({"method": "llm-drop"}, True, "rounds=2 drops whole blocks; .*unit 'joint'"),
        ({"healing": {"output": "adapter"}}, True, "healing.output='adapter' does not"),
        ({"rounds": 4}, True, "rounds=4 for 3 layers; expected at most one round a layer"),
        ({"drop_layers": None, "sparsity": 0.4, "sparsity_of": "parameters"}, True, "Give drop_layers"),
    ],
)
def test_refused_before_any_work(
    fields: dict[str, Any], heal: bool, message: str, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hf_prune.loading.load_model", None)
    with pytest.raises(ConfigError, match=message):
        go(base, tmp_path / "out", heal=heal, **fields)
    assert not (tmp_path / "out").exists()


def test_one_round_is_not_checked() -> None:
    check_rounds(recipe(method="llm-drop"), heal=False)


def test_the_records_of_all_rounds(base: Path, tmp_path: Path, quickly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    each, output = record_rounds(monkeypatch), tmp_path / "out"
    finished = go(base, output).finished
    plan, told = finished.plan, finished.healing
    assert told is not None and len(each) == 2 and not plan.trials

    # Blocks 3 and 4 first; what goes then is told by its place in the original.
    assert {3, 4} < set(plan.dropped) and len(plan.dropped) == 3
    assert plan.model.num_layers == 8 and len(AutoModelForCausalLM.from_pretrained(output).model.layers) == 5
    config = finished.config
    assert (config.rounds, config.drop_layers, config.base_model) == (2, 3, "tiny-base")
    assert f"3–4 gone: {each[0].held_out.merged:.4f}" in plan.reason
    assert f"gone: {each[1].held_out.merged:.4f}." in plan.reason

    assert told.steps == each[0].steps + each[1].steps and told.tokens == each[0].tokens + each[1].tokens
    assert told.seconds == each[0].seconds + each[1].seconds
    assert told.held_out == dataclasses.replace(each[1].held_out, original=each[0].held_out.original)
    # One text, of the original, in all rounds: else losses would not compare, and models learn from pruned ones.
    assert each[0].held_out_data == each[1].held_out_data and each[0].data == each[1].data
    assert plan.data is not None and plan.data.dataset is None

    assert finished.scores is None and not (output / "pruning" / "scores.json").exists()
    assert finished.evaluation is not None
    assert [(m.label, m.layers) for m in finished.evaluation.models] == [("original", 8), ("healed", 5)]
    alone = Pruner.from_pretrained(base, recipe(drop_layers=3), run_folder=tmp_path / "alone", progress=False)
    assert alone.evaluate_as("original").perplexity == finished.evaluation.models[0].perplexity
    assert {p.name for p in (output / "pruning").glob("*_tokens.safetensors")} == {
        f"{name}_tokens.safetensors" for name in ("calibration", "evaluation", "held-out", "healing")
    }
    written = "".join(p.read_text() for p in output.rglob("*") if p.suffix in (".json", ".md"))
    assert "round-" not in written and str(tmp_path) not in written
    assert "Chosen in 2 rounds" in (output / "README.md").read_text()
    assert {p.name for p in tmp_path.iterdir()} == {"out", "alone"}

    found = verify(output, original=base, replan=True, progress=False)
    assert found.passed, found.table()
    assert check(found.checks, "plan from recipe").status == "shown"

    before = tree(output)
    assert go(base, output).repeated and tree(output) == before and len(each) == 2


def test_blocks_at_the_gap_against_the_model_of_the_round_before(
    base: Path, tmp_path: Path, quickly: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    each, output = record_rounds(monkeypatch), tmp_path / "out"
    changes = {"method": "auto", "rank": None, "eval_steps": 1}
    finished = go(base, output, healing=changes, evaluate=False).finished
    told, last = finished.healing, each[1]
    assert told is not None and finished.config.healing.method == "seam"
    for one, blocks in zip(each, (6, 5), strict=True):
        assert (one.kind, one.settings["loss"], one.settings["teacher"]) == ("weights", "kl", "resident")
        trained = {int(name.split(".")[2]) for name in one.target_modules}
        assert len(trained) <= 2 and max(trained) < blocks
        assert one.curve[0].kl is not None and one.curve[0].step == 0
    # The original of the second round is what the first has healed, whose loss on the held-out text is known.
    assert last.held_out.original == pytest.approx(each[0].held_out.merged, rel=1e-3)
    assert told.held_out.original == each[0].held_out.original

    assert set(told.target_modules) >= set(last.target_modules)
    assert told.trained_parameters >= last.trained_parameters
    assert [dataclasses.replace(point, kl=None) for point in last.curve] == list(told.curve)
    assert told.best_step == last.best_step and told.steps == each[0].steps + last.steps
    assert told.reused is not None and told.reused == f"Round 1: {each[0].reused} Round 2: {last.reused}"
    assert "compared with the model that the round before had healed, not with the original" in told.warnings[-1]
    found = verify(output, original=base, progress=False)
    assert found.passed, found.table()


def test_what_searches_decided_is_told_in_layers_of_the_original(base: Path, tmp_path: Path, quickly: None) -> None:
    plan = go(base, tmp_path / "out", method="greedy-kl", evaluate=False, max_forwards=100).finished.plan
    assert [len(trial.removed) for trial in plan.trials] == [1, 2, 3]
    assert {unit.layer for unit in plan.trials[1].removed} == {3, 4}
    assert {unit.layer for unit in plan.trials[2].removed} == set(plan.dropped) and plan.forwards > 0


@pytest.mark.slow
def test_protected_layers_stay(base: Path, tmp_path: Path, quickly: None) -> None:
    plan = go(base, tmp_path / "out", evaluate=False, protect=[2, 5], protect_first=1, protect_last=1).finished.plan
    assert not {0, 2, 5, 7} & set(plan.dropped) and len(plan.dropped) == 3


@pytest.mark.slow
def test_killed_and_run_again(base: Path, tmp_path: Path, quickly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = go(base, tmp_path / "whole", evaluate=False)
    heal, calls = healing.heal, []

    def killed(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return heal(*args, **kwargs)

    monkeypatch.setattr("hf_prune.stages.healing.heal", killed)
    with pytest.raises(KeyboardInterrupt):
        go(base, tmp_path / "out", evaluate=False)
    assert not (tmp_path / "out").exists()
    again = go(base, tmp_path / "out", evaluate=False)
    assert len(calls) == 3  # the first round is not done again
    one, two = (load_file(r.folder / "model.safetensors") for r in (whole, again))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert again.finished.plan == whole.finished.plan
    assert {p.name for p in tmp_path.iterdir()} == {"whole", "out"}


@pytest.mark.slow
def test_pushed(hub, hub_token, new_repo_id, base: Path, tmp_path: Path, quickly: None) -> None:
    source, target = new_repo_id(), new_repo_id()
    commit = hub.add_repo(source, base)
    result = go(source, tmp_path / "out", push=target)
    plan = json.loads(hub.files(target)["pruning/plan.json"])
    assert plan["model"]["id"] == source and plan["model"]["revision"] == commit
    assert result.finished.config.base_revision == commit
    loaded = AutoModelForCausalLM.from_pretrained(target)
    assert torch.equal(
        logits(loaded, tokens()), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out"), tokens())
    )
    found = verify(target, progress=False)
    assert found.passed, found.table()
