"""What cannot be is refused before any work: nothing is sampled, loaded or run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hf_prune.architecture import decoder_of
from hf_prune.auto import resolved
from hf_prune.comparing.allowed import check_forwards
from hf_prune.comparing.entries import Amount, entries
from hf_prune.comparing.estimate import alike, estimated_forwards
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.judging import CutJudge
from hf_prune.methods import METHODS
from hf_prune.plan import choose_plan
from hf_prune.pruner import Pruner
from hf_prune.records import ModelRef
from hf_prune.registry import measure, planner
from hf_prune.rounds import check_rounds
from hf_prune.scored import check_scored
from hf_prune.sweeping.amounts import wanted_points

from .cli.support import call, done, planted, recipe_file
from .evaluation.text import byte_tokenizer
from .tiny import tiny_config, tiny_model

DEPTH = 6
REF = ModelRef("org/six", None, "llama", DEPTH, "")
SEARCHES = [
    name
    for name, method in METHODS.items()
    if name != "auto" and method.measure is not None and method.cuts == "layers"
    and (planner.get(method.planner).needs == "judge" or measure.get(method.measure).needs == "outputs")
]  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture
def nothing_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("text was read")

    monkeypatch.setattr("hf_prune.texts.Texts.calibration", never)


@pytest.mark.parametrize("name", SEARCHES)
def test_as_many_forwards_are_refused_as_the_search_itself_refuses(name: str) -> None:
    method = METHODS[name]
    assert method.measure is not None
    config = PrunerConfig(method=name, drop_layers=2, max_forwards=1)
    decoder = decoder_of(tiny_model("llama", depth=DEPTH), REF.id)
    texts = [torch.arange(8), torch.arange(8)]
    judge = CutJudge(decoder, texts, method.measure, config.options("measure"), limit=1)
    with pytest.raises(ConfigError, match="max_forwards allows 1") as early:
        check_forwards(config, REF)
    with pytest.raises(ConfigError, match="max_forwards allows 1") as late:
        if planner.get(method.planner).needs == "judge":
            choose_plan(config, REF, alike(DEPTH), None, judge)
        else:
            from hf_prune.measure import _without_each

            _without_each(judge, decoder, method.unit)
    if planner.get(method.planner).name == "evolution":  # of small shares of the text whole sequences are taken
        assert _number(early) <= _number(late)
    else:
        assert str(early.value) == str(late.value)
    needed = _number(early)
    check_forwards(PrunerConfig(method=name, drop_layers=2, max_forwards=needed), REF)
    with pytest.raises(ConfigError):
        check_forwards(PrunerConfig(method=name, drop_layers=2, max_forwards=needed - 1), REF)


def _number(error: pytest.ExceptionInfo[ConfigError]) -> int:
    return int(str(error.value).rpartition("--max-forwards ")[2].rstrip(")"))


def test_a_task_is_asked_as_often_as_there_are_blocks_to_leave_out() -> None:
    config = PrunerConfig(
        method="kl-one-shot", measure="task_accuracy", measure_kwargs={"task": "boolq"}, drop_layers=2, max_forwards=5
    )
    assert estimated_forwards(config, REF) == pytest.approx(DEPTH - 1)
    with pytest.raises(ConfigError, match=r"measure 'task_accuracy'.* takes up to 6"):
        check_forwards(config, REF)


def test_every_method_can_choose_by_what_it_measures() -> None:
    for method in METHODS.values():
        check_scored(method)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"unit": "joint"}, "planner 'window' chooses among whole blocks"),
        ({"measure": "kl"}, "planner 'window' chooses by distances between all pairs of layers"),
        ({"method": "simple", "measure": "kl"}, "planner 'before_last' chooses without measuring; leave out"),
        ({"method": "greedy-kl", "max_forwards": 2}, "up to .* forwards .* max_forwards allows 2"),
        ({"method": "kl-one-shot", "max_forwards": 2}, "up to .* forwards .* max_forwards allows 2"),
        ({"method": "evopress", "planner_kwargs": {"generations": -1}}, "generations=-1; expected 1 at least"),
        ({"protect": (1, 3, 5, 7)}, "no 2 blocks of .* in a row may go; those that may: 0, 2, 4, 6"),
        ({"rounds": 2}, "rounds=2 chooses anew behind each healing"),
    ],
)
def test_refused_before_text_is_read(
    fields: dict[str, Any], message: str, tmp_path: Path, nothing_is_read: None
) -> None:
    config = PrunerConfig(**{"drop_layers": 2, **fields})
    pruner = Pruner(tiny_model("llama"), byte_tokenizer(), config, run_folder=tmp_path / "run", progress=False)
    with pytest.raises(ConfigError, match=message):
        pruner.plan()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "evopress", "planner_kwargs": {"generations": "abc"}}, "generations='abc' is a str; expected int"),
        ({"method": "evopress", "planner_kwargs": {"survivors": 3}}, "survivors=3 is a int; expected a list"),
        ({"method": "replaceme", "surgery_kwargs": {"held_out": "x"}}, "held_out='x' is a str; expected a number"),
        ({"method": "shortgpt", "measure_kwargs": {"tokens": "some"}}, "tokens='some'; expected 'all', or 'last'"),
        ({"measure": "task_accuracy"}, "task=''; expected a task or group"),
        ({"method": "slicegpt", "unit": "mlp", "drop_layers": None, "sparsity": 0.2}, "unit=mlp: method 'slicegpt'"),
        ({"method": "slicegpt", "protect": (3,), "drop_layers": None, "sparsity": 0.2}, "narrows all layers"),
        ({"method": "wanda", "unit": "mlp", "drop_layers": None, "sparsity": 0.2}, "zeroes weights in all layers"),
    ],
)
def test_values_that_mean_nothing(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PrunerConfig(**{"drop_layers": 2, **fields})


def test_options_may_be_lists_and_whole_numbers() -> None:
    config = PrunerConfig(method="evopress", planner_kwargs={"survivors": [8, 2]}, drop_layers=2)
    assert config.options("planner")["survivors"] == [8, 2]
    PrunerConfig(method="bypass-backprop", planner_kwargs={"rate": 1}, drop_layers=2)


def test_a_planner_that_looks_at_nothing_has_nothing_measured() -> None:
    config = PrunerConfig(planner="last", drop_layers=2)
    assert config.recipe().measure is None and not config.calibrates
    assert PrunerConfig(planner="last", measure="angular", drop_layers=2).recipe().measure == "angular"


def test_auto_puts_nothing_in_place_of_parts_and_between_rounds() -> None:
    for fields in ({"unit": "mlp", "effort": "hours"}, {"rounds": 2}):
        config = PrunerConfig(method="auto", drop_layers=2, **fields)  # type: ignore[arg-type]
        assert resolved(config, 8, gpu=False, rescales=True).recipe().surgery == "drop"
    check_rounds(resolved(PrunerConfig(method="auto", drop_layers=2, rounds=2), 8, gpu=False, rescales=True), True)


def test_a_comparison_tells_of_named_methods() -> None:
    text_config = tiny_config("llama", depth=DEPTH)
    config = PrunerConfig(drop_layers=2)
    listed = entries(config, Amount(), REF, text_config, None, heal=False)
    assert [entry.method for entry in listed] == [name for name in METHODS if name != "auto"]
    with pytest.raises(ConfigError, match="method 'auto' becomes another one"):
        entries(config, Amount(), REF, text_config, ["uidl", "auto"], heal=False)
    (skipped,) = entries(PrunerConfig(max_forwards=3), Amount(2), REF, text_config, ["greedy-kl"], heal=False)
    assert skipped.impossible is not None and "max_forwards allows 3" in skipped.impossible


def test_a_sweep_draws_against_parameters_that_go() -> None:
    shape: dict[str, Any] = {"min_drop": None, "max_drop": 2, "step": 1, "shares": None}
    with pytest.raises(ConfigError, match="method 'blockpruner' silences parts of blocks and removes no parameters"):
        wanted_points(PrunerConfig(), REF, tiny_config("llama", depth=DEPTH), methods=["blockpruner"], **shape)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--max-forwards", 2, "--method", "greedy-kl"), "max_forwards allows 2"),
        (("--unit", "joint"), "chooses among whole blocks"),
        (("--rounds", 2), "healing was not asked for"),
        (("--rounds", 3, "--heal"), "rounds=3 for 2 layers; expected at most one round a layer"),
        (("--rounds", 2, "--heal", "--method", "slicegpt"), "narrows all layers"),
        (("--dataset", "/nowhere.txt"), "no file or folder '/nowhere.txt'"),
        (("--effort", "hours"), "effort='hours' is for method 'auto'"),
    ],
)
def test_a_dry_run_refuses_what_the_run_refuses(
    base: Path, tmp_path: Path, words: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    quick = recipe_file(tmp_path / "recipe", drop_layers=2)
    assert message in call("run", base, "--config", quick, "--output", "out", "--dry-run", *map(str, words)).failed()
    assert message in call("run", base, "--config", quick, "--output", "out", *map(str, words)).failed()
    assert not (tmp_path / "out").exists()


def test_a_dry_run_with_a_budget_refuses_what_needs_the_whole_model(base: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(
        "\n\n".join(f"Chapter {number} of the sea and the ships." for number in range(60))
    )
    quick = recipe_file(tmp_path / "recipe", drop_layers=2, calibration={"dataset": str(tmp_path / "text.txt")})
    words = ("run", base, "--config", quick, "--output", tmp_path / "out", "--no-evaluate", "--memory-budget", "1GB")
    for method, told in (
        ("greedy-kl", "method 'greedy-kl' needs all of"),
        ("replaceme", "method 'replaceme' needs all of"),
        ("kl-one-shot", "measure 'kl' needs all of"),
    ):
        assert told in call(*words, "--method", method, "--dry-run").failed()
        assert told in call(*words, "--method", method).failed()
    assert done(*words, "--method", "shortgpt", "--dry-run").code == 0


def test_a_dry_run_tells_of_efforts_and_rounds(base: Path, tmp_path: Path) -> None:
    quick = recipe_file(tmp_path / "recipe", drop_layers=3)
    words = ("run", base, "--config", quick, "--output", tmp_path / "out", "--dry-run", "--heal")
    told = done(*words, "--method", "auto", "--effort", "minutes", "--rounds", 2)
    assert (
        "greedy: 2 + 1 of 8 layers in 2 rounds" in told.out and "is 'shortgpt-iterative', surgery 'drop'" in told.err
    )
    weighed = done(*words, "--method", "greedy-kl", "--config", recipe_file(tmp_path / "share", sparsity=0.4,
                   sparsity_of="parameters"))  # fmt: skip
    assert " go (" not in weighed.err, "a made-up choice is told to nobody"


def test_what_scores_cannot_tell(base: Path, tmp_path: Path) -> None:
    quick = recipe_file(tmp_path / "recipe", drop_layers=2)
    done("measure", base, "--config", quick, "--method", "shortgpt", "--output", tmp_path / "scores")
    for words, message in (
        (("--method", "auto"), "method 'auto' becomes another one by the model"),
        (("--method", "shortgpt", "--unit", "mlp"), "tell of whole blocks; measure again with --unit mlp"),
        (("--method", "shortgpt", "--rounds", "2"), "rounds=2 chooses anew"),
    ):
        assert message in call("plan", tmp_path / "scores", "--drop-layers", 2, *words).failed()
