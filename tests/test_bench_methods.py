"""Methods compared on tiny models: equal terms, what is made once, failures, seeds, and going on after a kill."""

import dataclasses
import importlib
import logging
import random
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.image import imread

from hf_prune.comparing import attempt as module
from hf_prune.comparing.bench import bench_methods
from hf_prune.comparing.entries import Amount, entries
from hf_prune.comparing.estimate import estimated_forwards
from hf_prune.comparing.record import Comparison
from hf_prune.comparing.standings import perplexity, standings
from hf_prune.config import EvaluationConfig, PrunerConfig
from hf_prune.errors import ArchitectureError, ConfigError, MeasureError, OutputError
from hf_prune.plotting.drawing import png
from hf_prune.records import Healing, Plan
from hf_prune.sweeping.sweep import sweep
from tests.cli.support import fast, planted, recipe, tree
from tests.making import base_folder, reference
from tests.tiny import tiny_config

USELESS = (3, 4, 5)


def words(seed: int, count: int = 4000) -> str:
    """Text in which hardly anything comes twice."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("thein wr", k=draw.randint(2, 9))) for _ in range(count))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", USELESS)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    for number, name in enumerate(("book", "news", "talk")):
        (folder / f"{name}.txt").write_text(words(number))
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """See `fast`; searching a whole test process for garbage, and drawing, take longer than a tiny model's attempt."""
    fast(monkeypatch)
    monkeypatch.setattr("gc.collect", lambda *args: 0)
    if "draws" not in request.fixturenames:
        monkeypatch.setattr("hf_prune.comparing.bench.draw", lambda found: [])


@pytest.fixture
def draws() -> None:
    """Ask for it to have comparisons drawn."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the expensive things are done."""
    counted: Counter[str] = Counter()

    def count(path: str, name: str) -> None:
        holder, _, attribute = path.rpartition(".")
        original: Callable[..., Any] = getattr(importlib.import_module(holder), attribute)

        def counting(*args: Any, **kwargs: Any) -> Any:
            counted[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(path, counting)

    count("hf_prune.choosing.measure_model", "measure")
    count("hf_prune.evaluation.stage.evaluate_original", "original")
    count("hf_prune.evaluation.stage.evaluate", "evaluate")
    count("hf_prune.loading.load_model", "load")
    count("hf_prune.calibration.load", "text")
    count("hf_prune.healing.heal", "heal")
    return counted


def compared(base: Path, folder: Path, config: PrunerConfig | None = None, **given: Any) -> Comparison:
    given = {"methods": ["uidl"], "amount": Amount(2), "progress": False, **given}
    return bench_methods(base, config or recipe(), folder, **given)


def without_clock(found: Comparison) -> Comparison:
    """Without what no two runs have in common."""
    alike = []
    for attempt in found.attempts:
        changes: dict[str, Any] = {"seconds": 0.0, "healing_seconds": None}
        for name in ("choosing", "cutting"):
            effort = getattr(attempt, name)
            changes[name] = effort and dataclasses.replace(effort, seconds=0.0, memory=0)
        for name in ("pruned", "healed"):
            figures = getattr(attempt, name)
            changes[name] = figures and dataclasses.replace(figures, peak_memory=0)
        alike.append(dataclasses.replace(attempt, **changes))
    original = dataclasses.replace(found.original, peak_memory=0)
    return dataclasses.replace(found, attempts=tuple(alike), original=original)


def test_methods_meet_on_equal_terms(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Counter[str], draws: None
) -> None:
    monkeypatch.setattr("hf_prune.plotting.drawing.png", png)
    out = tmp_path / "out"
    found = compared(base, out, methods=["simple", "slicegpt", "sleb", "uidl"])
    assert [a.name for a in found.attempts] == ["simple-2-s0", "slicegpt-0.25-s0", "sleb-2-s0", "uidl-2-s0"]
    assert {a.status for a in found.attempts} == {"done"}
    # Two useless blocks go for nothing; those in front of the last one do not. Ties stay as asked for.
    assert [s.contender.name for s in standings(found)] == ["sleb", "uidl", "simple", "slicegpt"]
    simple, sliced, sleb, uidl = found.attempts
    for attempt in (sleb, uidl):
        assert {unit.layer for unit in attempt.removed} < set(USELESS)
        assert attempt.pruned is not None and attempt.pruned.fidelity is not None
        assert attempt.pruned.fidelity.kl == 0 and attempt.pruned.fidelity.top1_agreement == 1
        assert attempt.pruned.perplexity[0].nll == found.original.perplexity[0].nll
    assert [unit.layer for unit in simple.removed] == [5, 6]
    assert (sliced.amount, sliced.amount_of, sliced.widths) == (0.25, "width", (24,) * 8)
    assert (simple.amount, simple.amount_of) == (2, "blocks")
    assert simple.share_removed == 1 - simple.parameters / found.original.parameters > sliced.share_removed > 0
    assert [a.share_silent for a in found.attempts] == [0.0] * 4
    # One text for all to be judged on, one to calibrate on, the original measured and loaded once.
    judged = {f.perplexity[0].data for a in found.attempts if (f := a.pruned) is not None}
    assert judged == {found.original.perplexity[0].data}
    assert calls == {"measure": 1, "original": 1, "evaluate": 4, "load": 1, "text": 2}
    # What choosing took: nothing, one pass, and as many as the search says.
    forwards = [a.choosing.forwards for a in found.attempts if a.choosing is not None]
    assert forwards == [0.0, 0.0, Plan.load(out / "points" / "sleb-2-s0").forwards, 1.0] and 5 < forwards[2] < 8
    estimate = estimated_forwards(recipe(method="sleb"), found.model)
    assert forwards[2] == pytest.approx(estimate, rel=0.15)
    assert all(a.choosing is not None and a.choosing.seconds >= 0 and a.choosing.memory >= 0 for a in found.attempts)
    assert all(a.cutting is not None and a.cutting.seconds > 0 for a in found.attempts)
    assert Comparison.load(out) == found and found.texts.keys() == {"calibration, seed 0"}
    assert {p.name for p in out.iterdir() if p.name.startswith("comparison.")} == {
        f"comparison.{kind}" for kind in ("json", "md", "csv", "png", "svg", "inputs")
    }
    image = imread(out / "comparison.png")
    assert image.shape[1:] == (840, 4) and image.std() > 0.05


@pytest.mark.slow
def test_describing_the_machine_is_no_choosing(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    describe = importlib.import_module("hf_prune.environment").describe

    def slowly(*args: Any) -> Any:
        time.sleep(1.0)
        return describe(*args)

    monkeypatch.setattr("hf_prune.environment.describe", slowly)
    found = compared(base, tmp_path / "out")
    effort = found.attempts[0].choosing
    assert effort is not None and 0 < effort.seconds < 1.0


def test_work_is_timed_and_its_memory_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def work() -> int:
        kept = torch.ones(16 * 2**20)  # 64 MB, touched
        time.sleep(0.2)
        return int(kept[-1])

    effort, answer = module._timed(work, torch.nn.Linear(1, 1))
    assert answer == 1 and 0.2 <= effort.seconds < 5 and 60e6 < effort.memory < 200e6


def test_finished_attempts_are_never_made_again(base: Path, tmp_path: Path, calls: Counter[str]) -> None:
    first = compared(base, tmp_path / "out")
    before = dict(calls)
    assert compared(base, tmp_path / "out") == first
    assert dict(calls) == before  # nothing was loaded either
    more = compared(base, tmp_path / "out", methods=["simple", "uidl"])
    assert more.attempts[1] == first.attempts[0] and calls["evaluate"] == 2 and calls["measure"] == 1
    compared(base, tmp_path / "out", amount=Amount(3))
    assert compared(base, tmp_path / "out") == first and calls["evaluate"] == 3
    # Another evaluation leaves what was chosen, and what that took.
    other = compared(base, tmp_path / "out", recipe(evaluation={"new_tokens": 2}))
    assert other.attempts[0].choosing == first.attempts[0].choosing
    assert calls["evaluate"] == 4 and calls["measure"] == 2


def test_killed_comparison_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    out, methods = tmp_path / "out", ["simple", "uidl", "sleb"]
    work = module._work

    def killed(branch: Any, empty: Any, *rest: Any) -> Any:
        if empty.method == "uidl":
            module._choose(branch)  # killed behind it
            raise KeyboardInterrupt
        return work(branch, empty, *rest)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "_work", killed)
        compared(base, out, methods=methods)
    assert not (out / Comparison.FILE).exists() and calls["measure"] == 1
    names = ("simple-2-s0/attempt.json", "uidl-2-s0/choosing.json")
    kept = {name: (out / "points" / name).read_bytes() for name in names}
    calls.clear()
    found = compared(base, out, methods=methods)
    assert calls == {"evaluate": 2, "load": 1}  # what uidl had measured was there, and what that took
    assert {name: (out / "points" / name).read_bytes() for name in kept} == kept
    assert without_clock(found) == without_clock(compared(base, tmp_path / "whole", methods=methods))


@pytest.mark.slow
def test_scores_without_their_cost_are_measured_again(
    base: Path, tmp_path: Path, calls: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed while it chose: scores that lie there would make choosing look free."""

    def killed(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hf_prune.choosing.make_plan", killed)
        compared(base, tmp_path / "out")
    assert (tmp_path / "out" / "points" / "uidl-2-s0" / "scores.json").is_file()
    compared(base, tmp_path / "out")
    assert calls["measure"] == 2


def test_what_fails_is_told_and_the_rest_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    raised = {
        "uidl": MeasureError("layer 2 gives NaN"),
        "sleb": RuntimeError("out of memory"),
        "slicegpt": ArchitectureError("'tiny' has no such norm"),
    }
    choose, out, methods = module._choose, tmp_path / "out", [*raised, "simple"]

    def refuse(branch: Any) -> Any:
        if branch.config.method in raised:
            raise raised[branch.config.method]
        return choose(branch)

    with monkeypatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(module, "_choose", refuse)
        found = compared(base, out, methods=methods)
    assert [(a.status, a.message) for a in found.attempts] == [
        ("failed", "layer 2 gives NaN"),
        ("failed", "RuntimeError: out of memory"),
        ("skipped", "'tiny' has no such norm"),
        ("done", None),
    ]
    assert found.failed == 2 and all(str(error) in caplog.text for error in raised.values())
    assert [s.contender.name for s in standings(found)] == ["simple", "uidl", "sleb", "slicegpt"]
    assert "- `sleb-2-s0` failed: " in (out / "comparison.md").read_text(encoding="utf-8")
    assert {a.status for a in compared(base, out, methods=methods).attempts} == {"done"}


def test_a_full_disk_is_no_methods_failure(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_prune.choosing.measure_model", full)
    with pytest.raises(OutputError, match="what was finished is kept"):
        compared(base, tmp_path / "out", methods=["simple", "uidl"])
    assert (tmp_path / "out" / "points" / "simple-2-s0" / "attempt.json").is_file()


@pytest.mark.slow
def test_messages_hold_no_path_of_the_machine(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(branch: Any, *rest: Any) -> Any:
        raise MeasureError(f"{branch.run.path / 'pruned'} is not {base / 'model.safetensors'}")

    monkeypatch.setattr(module, "_work", fail)
    told = compared(base, tmp_path / "out").attempts[0].message
    assert told == "out/points/uidl-2-s0/pruned is not tiny-base/model.safetensors"


def test_seeds_draw_anew_all_but_what_models_are_judged_on(base: Path, texts: Path, tmp_path: Path) -> None:
    config = recipe(calibration={"dataset": str(texts / "book.txt")})
    found = compared(base, tmp_path / "out", config, methods=["uidl", "simple"], seeds=[3, 1, 4], best=1)
    assert [a.name for a in found.attempts] == ["uidl-2-s3", "simple-2-s3", "uidl-2-s1", "uidl-2-s4"]
    assert found.seeds == (3, 1, 4) and found.best == 1
    uses = [found.texts[f"calibration, seed {seed}"] for seed in (3, 1, 4)]
    assert [use.seed for use in uses] == [3, 1, 4] and len({use.sha256 for use in uses}) == 3
    assert len({f.perplexity[0].data for a in found.attempts if (f := a.pruned) is not None}) == 1
    # The same seed alone, and among others, is the same.
    alone = compared(base, tmp_path / "alone", config, seeds=[3])
    assert alone.original.perplexity[0].data == found.original.perplexity[0].data
    assert without_clock(alone).attempts[0] == without_clock(found).attempts[0]
    # Fewer seeds, or more, find what there is.
    assert compared(base, tmp_path / "out", config, seeds=[3]).attempts == found.attempts[:1]


@pytest.mark.slow
def test_all_methods_have_all_seeds_unless_the_best_are_asked_for(base: Path, tmp_path: Path) -> None:
    found = compared(base, tmp_path / "out", methods=["simple", "uidl"], seeds=[0, 1])
    assert [a.name for a in found.attempts] == ["simple-2-s0", "uidl-2-s0", "simple-2-s1", "uidl-2-s1"]
    mean = standings(found)[1].figure("pruned", perplexity(0))
    assert mean is not None and (mean.count, mean.spread) == (2, 0.0)  # nothing of `simple` is drawn


def test_further_texts(base: Path, texts: Path, tmp_path: Path, calls: Counter[str]) -> None:
    config = recipe(calibration={"dataset": str(texts / "book.txt")})
    news = dataclasses.replace(config.evaluation, dataset=str(texts / "news.txt"))
    found = compared(base, tmp_path / "out", config, methods=["uidl", "simple"], also=[news], seeds=[0, 1], best=1)
    assert [text.name for text in found.original.perplexity] == ["book.txt", "news.txt"]
    for attempt in found.attempts:
        assert attempt.pruned is not None
        assert [t.data for t in attempt.pruned.perplexity] == [t.data for t in found.original.perplexity]
    assert calls["text"] == 4  # to calibrate on (two seeds), to judge on (two texts)
    assert "perplexity, news.txt" in (tmp_path / "out" / "comparison.md").read_text(encoding="utf-8")
    again = compared(base, tmp_path / "out", config, methods=["uidl"], also=[news])
    assert again.attempts == found.attempts[:1] and calls["text"] == 4
    # Without it, attempts are others.
    assert len(compared(base, tmp_path / "out", config).original.perplexity) == 1
    (tmp_path / "book.txt").write_text(words(7))
    twin = dataclasses.replace(news, dataset=str(tmp_path / "book.txt"))
    with pytest.raises(ConfigError, match="two texts to evaluate on are called 'book.txt'"):
        compared(base, tmp_path / "twin", config, also=[twin])


@pytest.mark.slow
def test_a_further_text_that_repeats_others_leaves_their_sequences_out(
    base: Path, texts: Path, tmp_path: Path
) -> None:
    from hf_prune.samples import Samples

    (tmp_path / "copy.txt").write_text((texts / "book.txt").read_text())
    config = recipe(calibration={"dataset": str(texts / "book.txt")})
    copy = dataclasses.replace(config.evaluation, dataset=str(tmp_path / "copy.txt"), samples=400)
    found = compared(base, tmp_path / "out", config, also=[copy])
    shared = tmp_path / "out" / "shared"
    use = found.original.perplexity[0].data
    hashes = {
        name: Samples.load(shared / f"{name}_tokens.safetensors", use).hashes()
        for name in ("calibration", "evaluation", "further-1")
    }
    assert len(hashes["further-1"]) > 100
    assert not hashes["further-1"] & (hashes["calibration"] | hashes["evaluation"])


@pytest.mark.slow
def test_healing_is_the_same_for_all(base: Path, tmp_path: Path, calls: Counter[str]) -> None:
    out = tmp_path / "out"
    found = compared(base, out, methods=["uidl", "slicegpt"], heal=True, seeds=[0, 1], best=1, amount=Amount(5))
    assert calls["heal"] == 3 and found.last_stage == "healed" and found.healing is not None
    assert {a.healing_tokens for a in found.attempts} == {3 * 4 * 12}
    records = [Healing.load(out / "points" / a.name) for a in found.attempts]
    # The recipe of slicing heals otherwise; here all are healed by one, on one text, as far as the seed goes.
    settings = [dict(record.settings, seed=0) for record in records]
    assert settings[0] == settings[1] == settings[2] and found.healing.items() <= settings[0].items()
    assert records[0].data == records[1].data != records[2].data
    assert [record.settings["seed"] for record in records] == [0, 0, 1]
    for attempt in found.attempts:
        assert attempt.healed is not None and attempt.healing_seconds is not None
        left = {path.name for path in (out / "points" / attempt.name).iterdir()}
        assert not left & {"pruned", "healing"}
    assert found.texts.keys() == {f"{t}, seed {s}" for t in ("calibration", "held-out", "healing") for s in (0, 1)}
    assert [s.contender.name for s in standings(found)][0] == found.attempts[2].method
    calls.clear()
    assert compared(
        base, out, methods=["uidl", "slicegpt"], heal=True, seeds=[0, 1], best=1, amount=Amount(5)
    ) == found  # fmt: skip
    assert not calls["heal"] and not calls["evaluate"]


@pytest.mark.slow
def test_attempt_killed_while_it_heals_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    def killed(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"heal": True, "amount": Amount(5)}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hf_prune.healing.heal", killed)
        compared(base, tmp_path / "out", **given)
    point = tmp_path / "out" / "points" / "uidl-5-s0"
    efforts = {name: (point / name).read_bytes() for name in ("choosing.json", "cutting.json")}
    calls.clear()
    found = compared(base, tmp_path / "out", **given)
    assert calls["evaluate"] == 1 and calls["heal"] == 1 and not calls["measure"]
    assert {name: (point / name).read_bytes() for name in efforts} == efforts
    assert without_clock(found) == without_clock(compared(base, tmp_path / "whole", **given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"methods": ["udil"]}, "unknown method 'udil'.*Did you mean 'uidl'"),
        ({"methods": []}, "no methods to compare on 'tiny-base'"),
        ({"methods": ["uidl", "simple", "uidl"]}, "method 'uidl' is named twice"),
        ({"seeds": [0, 1, 0]}, "seed 0 is named twice"),
        ({"seeds": []}, "no seeds; expected at least one"),
        ({"best": 2}, "best=2 tries the best methods with further seeds, and none are given"),
        ({"best": 2, "seeds": [1]}, "best=2 .* and there is one"),
        ({"best": 0, "seeds": [1, 2]}, "best=0; expected at least 1"),
        ({"amount": Amount(8)}, "drop_layers=8: 'tiny-base' has 8 layers; expected 1 to 7"),
        ({"amount": Amount(0)}, "drop_layers=0: 'tiny-base'"),
        ({"amount": Amount(2, 0.25)}, "drop_layers=2 and sparsity=0.25 at once"),
        ({"amount": Amount(2, None, "parameters")}, "sparsity_of='parameters' says what a share is of"),
        ({"amount": Amount(None, 1.5)}, "sparsity=1.5; expected a share above 0 and below 1"),
        ({"amount": Amount(), "config": recipe(layers=(2, 3))}, "leaves methods nothing to choose"),
        ({"amount": Amount(), "config": dataclasses.replace(recipe(), drop_layers=None)}, "how much of 'tiny-base'"),
        ({"amount": Amount(None, 0.3, "bytes"), "methods": ["slicegpt"]}, "counts what goes in width or parameters"),
        (
            {"config": recipe(calibration={"dataset": "paper"}), "methods": ["uidl", "slicegpt"]},
            "dataset='paper' is another text for each method",
        ),
    ],
)
def test_refused_before_any_work(
    base: Path, tmp_path: Path, calls: Counter[str], given: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compared(base, tmp_path / "out", **given)
    assert not calls and not (tmp_path / "out").exists()


def test_what_a_model_cannot_have_is_skipped_with_its_reason(tmp_path: Path) -> None:
    _, folder = base_folder(tmp_path / "olmo", "olmo2", depth=4)
    found = compared(folder, tmp_path / "out", methods=["slicegpt", "sleb", "simple"], amount=Amount(3))
    sliced, sleb, simple = found.attempts
    assert (sliced.status, sleb.status, simple.status) == ("skipped", "skipped", "done")
    assert sliced.message is not None and "'olmo' (model_type 'olmo2') cannot be sliced" in sliced.message
    assert sleb.message is not None and "protects 1 first and 1 last, so at most 2 can go" in sleb.message
    assert found.failed == 0 and [s.contender.name for s in standings(found)] == ["simple", "slicegpt", "sleb"]


def test_nothing_done_is_a_record_too(tmp_path: Path) -> None:
    _, folder = base_folder(tmp_path / "olmo", "olmo2", depth=4)
    found = compared(folder, tmp_path / "out", methods=["slicegpt"], seeds=[0, 1], best=1)
    assert [a.status for a in found.attempts] == ["skipped"] and found.pictures == ()
    assert Comparison.load(tmp_path / "out") == found


def test_folders_of_something_else_are_left_alone(base: Path, tmp_path: Path) -> None:
    sweep(base, recipe(), tmp_path / "sweep", methods=["simple"], max_drop=1, progress=False)
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="'.*sweep' holds a sweep; expected a new or empty folder"):
        compared(base, tmp_path / "sweep")
    assert tree(tmp_path) == before
    compared(base, tmp_path / "out", methods=["simple"])
    with pytest.raises(OutputError, match="'.*out' holds a comparison; expected"):
        sweep(base, recipe(), tmp_path / "out", methods=["simple"], max_drop=1, progress=False)
    _, other = base_folder(tmp_path / "other", depth=4)
    with pytest.raises(OutputError, match="holds a comparison of another model than 'other'"):
        compared(other, tmp_path / "out")


UNITS = {"block": (2, "blocks"), "attention": (2, "attentions"), "mlp": (2, "MLPs"), "joint": (4, "parts")}


@pytest.mark.parametrize("unit", UNITS)
def test_an_amount_is_as_large_a_share_of_other_units(unit: Any) -> None:
    model_config = tiny_config("llama")
    found = entries(
        recipe(method="sleb", unit=unit),
        Amount(2),
        reference(8),
        model_config,
        ["sleb", "uidl", "slicegpt"],
        heal=False,
    )
    assert [(e.amount, e.amount_of) for e in found] == [UNITS[unit], (2, "blocks"), (0.25, "width")]
    assert found[1].config.unit is None  # the unit is of the method that the recipe names
    shares = entries(
        recipe(method="sleb", unit=unit), Amount(None, 0.25), reference(8), model_config, None, heal=False
    )
    assert {(e.amount, e.config.sparsity) for e in shares} == {(0.25, 0.25)}


def test_a_share_of_the_parameters_is_one_for_all() -> None:
    found = entries(
        recipe(),
        Amount(None, 0.25, "parameters"),
        reference(8),
        tiny_config("llama"),
        ["uidl", "slicegpt"],
        heal=False,
    )
    assert [(e.amount_of, e.config.sparsity_of) for e in found] == [("parameters", "parameters")] * 2


def forwards(method: str, **fields: Any) -> float | None:
    config = dataclasses.replace(recipe(method="sleb", **fields), drop_layers=None)
    entry = entries(config, Amount(2), reference(8), tiny_config("llama"), [method], heal=False)[0]
    return estimated_forwards(entry.config, reference(8))


def test_estimate_of_forwards() -> None:
    assert [forwards(method) for method in ("uidl", "simple", "slicegpt", "dynamic-slicing")] == [1.0, 0.0, 0.0, 1.0]
    # Blocks run again without their parts; gradients are taken backward, of blocks one by one in as many passes.
    assert [forwards(method) for method in ("llm-drop", "shortened-llama-taylor")] == [3.0, 3.0]
    one_by_one = forwards("sleb", measure="taylor", planner="top_k", measure_kwargs={"blocks_at_once": 1})
    assert one_by_one == 8 + sum(range(1, 9)) / 8 + 1
    # Of 8 blocks the first and the last stay. Without block k all behind it run, for each k anew, and those before it
    # once for all: 6 of them, and 7 - k for k = 1 … 6. One block less, and one fewer to try, behind that.
    whole = 6 + sum(7 - k for k in range(1, 7))
    found = forwards("sleb")
    assert found is not None and whole / 8 < found < 2 * whole / 8
    assert forwards("sleb", planner="top_k") == pytest.approx(found, rel=0.5)
    parts = forwards("sleb", unit="joint")
    assert parts is not None and parts > 3 * found


@pytest.mark.slow
def test_original_and_texts_are_not_those_of_another_evaluation(base: Path, texts: Path, tmp_path: Path) -> None:
    config = recipe(calibration={"dataset": str(texts / "book.txt")})
    first = compared(base, tmp_path / "out", config)
    longer = dataclasses.replace(config, evaluation=EvaluationConfig(**{**vars(config.evaluation), "samples": 6}))
    second = compared(base, tmp_path / "out", longer)
    assert second.original.perplexity[0].data.samples == 6
    assert second.attempts[0].removed == first.attempts[0].removed


def test_surgery_that_writes_into_weights_leaves_the_original_to_the_others(base: Path, tmp_path: Path) -> None:
    """Points share the tensors of one original: whoever writes into them would change what all others measure."""
    writers = ["magnitude-sparsity", "llm-drop-mlp", "blockpruner", "prune-comp", "slm"]
    alone = compared(base, tmp_path / "alone", methods=["uidl", "simple"])
    found = compared(base, tmp_path / "out", methods=[*writers, "uidl", "simple"])
    assert [a.status for a in found.attempts] == ["done"] * 7
    assert without_clock(found).attempts[5:] == without_clock(alone).attempts
    changed = [a.pruned.parameters for a in found.attempts[:2] if a.pruned is not None]
    assert changed == [found.original.parameters] * 2  # these two write, and remove nothing


def test_whoever_writes_into_the_original_fails_alone(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose = module._choose

    def wrong(branch: Any) -> Any:
        if branch.config.method == "simple":
            with torch.no_grad():
                next(branch.models.current().parameters())[3] *= 1.5
        return choose(branch)

    monkeypatch.setattr(module, "_choose", wrong)
    found = compared(base, tmp_path / "out", methods=["simple", "uidl"])
    first, second = found.attempts
    assert first.status == "failed" and first.message is not None and "were written into" in first.message
    assert second.pruned is not None and second.pruned.perplexity[0].nll == found.original.perplexity[0].nll
