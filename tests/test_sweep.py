"""Sweeps of tiny models: planted curves, work that is done once, and going on after a kill."""

import csv
import dataclasses
import importlib
import io
import math
import random
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from matplotlib.image import imread

from hf_prune import extras, streaming
from hf_prune.architecture.decoder import parameter_bytes
from hf_prune.config import PrunerConfig
from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError, DataError, MeasureError, OutputError
from hf_prune.records import Healing, Plan
from hf_prune.run_folder import RunFolder
from hf_prune.sweeping import point as module
from hf_prune.sweeping.early import prepare
from hf_prune.sweeping.original import has_room
from hf_prune.sweeping.record import Sweep, accuracy
from hf_prune.sweeping.sweep import sweep
from hf_prune.sweeping.table import as_csv
from hf_prune.sweeping.target import Target
from tests.cli.support import fast, planted, recipe, tree
from tests.evaluation.questions import write_task
from tests.making import base_folder, edit_json
from tests.tiny import tiny_model

USELESS = (3, 4, 5)
FOUR = ["uidl", "simple", "slicegpt", "dynamic-slicing"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", USELESS)


@pytest.fixture(scope="module")
def book(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A local text in which no two sequences are the same."""
    path = tmp_path_factory.mktemp("text") / "book.txt"
    draw = random.Random(0)
    path.write_text(" ".join("".join(draw.choices("thein wr", k=draw.randint(2, 9))) for _ in range(6000)))
    return str(path)


@pytest.fixture(autouse=True)
def no_collection(monkeypatch: pytest.MonkeyPatch) -> None:
    """Searching all of a test process for garbage takes longer than a tiny model's point, several times a point."""
    monkeypatch.setattr("gc.collect", lambda *args: 0)


@pytest.fixture
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `fast`."""
    fast(monkeypatch)


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
    count("hf_prune.healing.held_out_loss", "original loss")
    return counted


def swept(base: Path, folder: Path, config: PrunerConfig | None = None, **given: Any) -> Sweep:
    given = {"methods": ["uidl"], "max_drop": 2, "progress": False, **given}
    return sweep(base, config or recipe(), folder, **given)


def timeless(found: Sweep) -> Sweep:
    """Without what no two runs have in common."""
    alike = tuple(
        dataclasses.replace(
            p,
            seconds=0.0,
            pruned=p.pruned and dataclasses.replace(p.pruned, peak_memory=0),
            healed=p.healed and dataclasses.replace(p.healed, peak_memory=0),
        )
        for p in found.points
    )
    return dataclasses.replace(found, points=alike, original=dataclasses.replace(found.original, peak_memory=0))


def test_curve_is_flat_for_as_long_as_planted_layers_go(base: Path, tmp_path: Path) -> None:
    found = swept(base, tmp_path / "out", methods=["uidl", "simple"], max_drop=5)
    assert [p.name for p in found.points] == [f"{m}-{n}" for m in ("uidl", "simple") for n in range(1, 6)]
    nll = found.original.perplexity[0].nll
    for point in found.points[:5]:
        assert point.pruned is not None and point.pruned.fidelity is not None
        if len(point.dropped) <= 3:
            assert set(point.dropped) <= set(USELESS)
            assert point.pruned.perplexity[0].nll == nll and point.pruned.fidelity.kl == 0
        else:
            assert set(point.dropped) > set(USELESS) and point.pruned.fidelity.kl > 0.01
    assert [p.dropped for p in found.points[5:7]] == [(6,), (5, 6)]
    first = found.points[0]
    block = found.original.parameters - first.parameters
    assert [p.parameters for p in found.points[:5]] == [found.original.parameters - n * block for n in range(1, 6)]
    assert first.share_removed == pytest.approx(block / found.original.parameters)
    knee = next(k for k in found.knees if k.method == "uidl")
    assert (knee.point, knee.share_removed) == ("uidl-3", found.points[2].share_removed)
    assert Sweep.load(tmp_path / "out") == found


def test_what_points_share_is_made_once(base: Path, book: str, tmp_path: Path, calls: Counter[str]) -> None:
    config = recipe(
        method="dynamic-slicing", sparsity=0.5, planner_kwargs={"multiple": 4, "slice_base": "search"},
        calibration={"dataset": book},
    )  # fmt: skip
    found = swept(base, tmp_path / "out", config, methods=FOUR, max_drop=3)
    assert [p.status for p in found.points] == ["done"] * 12
    # Angular distances and redundancy, each once; one original; one text to calibrate, one to evaluate.
    assert calls == {"measure": 2, "original": 1, "evaluate": 12, "load": 1, "text": 2}
    texts = {f.perplexity[0].data for p in found.points if (f := p.pruned) is not None}
    assert texts == {found.original.perplexity[0].data}
    sliced = [p for p in found.points if p.amount_of == "width"]
    assert [p.amount for p in sliced] == [1 / 8, 2 / 8, 3 / 8] * 2
    assert [p.widths for p in sliced[:3]] == [(28,) * 8, (24,) * 8, (20,) * 8]
    # What went on one text, went on the same text as alone.
    plan = Plan.load(tmp_path / "out" / "points" / "dynamic-slicing-0.25")
    alone = Plan.load(tmp_path / "out" / "points" / "slicegpt-0.25")
    assert plan.slicing is not None and alone.slicing is not None
    assert plan.slicing.calibration == alone.slicing.calibration and len(plan.slicing.search) > 1


def test_evaluation_text_does_not_depend_on_the_methods(base: Path, book: str, tmp_path: Path) -> None:
    config = recipe(calibration={"dataset": book})
    texts = [
        swept(base, tmp_path / name, config, methods=[name], max_drop=1).original.perplexity[0].data
        for name in ("simple", "uidl", "slicegpt")
    ]
    assert texts[0] == texts[1] == texts[2]


def test_finished_points_are_never_made_again(base: Path, tmp_path: Path, calls: Counter[str]) -> None:
    first = swept(base, tmp_path / "out")
    before = dict(calls)
    assert swept(base, tmp_path / "out") == first
    assert dict(calls) == before  # nothing was loaded either
    more = swept(base, tmp_path / "out", max_drop=3, methods=["uidl", "simple"])
    assert more.points[:2] == first.points and len(more.points) == 6
    assert calls["evaluate"] == 2 + 4 and calls["measure"] == calls["original"] == 1
    # Another evaluation leaves the scores.
    swept(base, tmp_path / "out", recipe(evaluation={"new_tokens": 2}))
    assert calls["evaluate"] == 8 and calls["original"] == 2 and calls["measure"] == 1


def test_killed_sweep_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    work, done = module._work, []

    def killed(branch: Any, empty: Any, *rest: Any) -> Any:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(empty.name)
        return work(branch, empty, *rest)

    monkeypatch.setattr(module, "_work", killed)
    with pytest.raises(KeyboardInterrupt):
        swept(base, tmp_path / "out", max_drop=4)
    assert not (tmp_path / "out" / Sweep.FILE).exists()
    monkeypatch.setattr(module, "_work", work)
    kept = [(tmp_path / "out" / "points" / name / "point.json").read_bytes() for name in done]
    calls.clear()
    found = swept(base, tmp_path / "out", max_drop=4)
    assert calls == {"evaluate": 2, "load": 1}
    assert [(tmp_path / "out" / "points" / name / "point.json").read_bytes() for name in done] == kept
    assert timeless(found) == timeless(swept(base, tmp_path / "whole", max_drop=4))


def test_room_for_the_original(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama")
    assert has_room(model)
    for name, value in (("hf_device_map", {"model": 0, "lm_head": "cpu"}), ("hf_quantizer", object())):
        with monkeypatch.context() as patch:
            patch.setattr(model, name, value, raising=False)
            assert not has_room(model)
    memory = type("Memory", (), {"available": 4 * parameter_bytes(model)})
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    assert not has_room(model)


def test_without_room_the_original_is_loaded_for_each_point(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    kept = swept(base, tmp_path / "kept")
    assert calls["load"] == 1
    monkeypatch.setattr("hf_prune.sweeping.original.has_room", lambda model: False)
    calls.clear()
    loaded = swept(base, tmp_path / "loaded")
    assert calls["load"] >= 3 and timeless(loaded) == timeless(kept)


def test_a_sweep_streams_nothing(base: Path, tmp_path: Path, quickly: None, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = swept(base, tmp_path / "whole", methods=["uidl"])
    monkeypatch.setattr(streaming, "_free", lambda device_map: 1000)  # the rest is taken by the original itself
    monkeypatch.setattr(streaming, "streamed", None)
    assert timeless(swept(base, tmp_path / "little", methods=["uidl"])) == timeless(whole)


def test_without_room_points_are_made_beside_no_original(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    work, held = module._work, []

    def look(branch: Any, *rest: Any) -> Any:
        held.append(branch._trunk.models._current)
        return work(branch, *rest)

    monkeypatch.setattr("hf_prune.sweeping.original.has_room", lambda model: False)
    monkeypatch.setattr(module, "_work", look)
    swept(base, tmp_path / "out")
    assert held == [None, None]


def test_a_point_that_fails_is_told_and_the_sweep_goes_on(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    broken: list[int] = []

    def refuse(*args: Any, **kwargs: Any) -> Any:
        broken.append(1)
        raise MeasureError("layer 2 gives NaN")

    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.choosing.measure_model", refuse)
        found = swept(base, tmp_path / "out", methods=["uidl", "simple"])
    assert [(p.status, p.message) for p in found.points] == [
        *[("failed", "layer 2 gives NaN")] * 2, *[("done", None)] * 2,
    ]  # fmt: skip
    assert found.failed == 2 and len(broken) == 1  # it is not tried for each point
    assert next(k for k in found.knees if k.method == "uidl").point is None
    again = swept(base, tmp_path / "out", methods=["uidl", "simple"])
    assert again.failed == 0 and calls["evaluate"] == 4


def test_messages_in_the_record_hold_no_path_of_the_machine(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(branch: Any, *rest: Any) -> Any:
        raise MeasureError(f"{branch.run.path / 'pruned'} is not {base / 'model.safetensors'}")

    monkeypatch.setattr(module, "_work", fail)
    monkeypatch.chdir(tmp_path)
    told = "out/points/uidl-1/pruned is not tiny-base/model.safetensors"
    for folder in (tmp_path / "out", Path("out")):
        assert swept(base, folder, max_drop=1).points[0].message == told


def test_unreachable_shares_are_skipped_with_their_reason(base: Path, tmp_path: Path) -> None:
    config = recipe(method="slicegpt", sparsity=0.5, sparsity_of="parameters", planner_kwargs={"multiple": 8})
    found = swept(base, tmp_path / "out", config, methods=["slicegpt"], shares=[0.3, 0.9])
    many, few = found.points
    assert few.status == "skipped" and "is more than slicing can save" in (few.message or "")
    assert many.status == "done" and many.amount_of == "parameters"
    assert many.share_removed == pytest.approx(0.3, abs=0.1)


@pytest.mark.slow
def test_healing(base: Path, tmp_path: Path, quickly: None, calls: Counter[str]) -> None:
    out = tmp_path / "out"
    found = swept(base, out, heal=True, methods=["uidl", "simple"], min_drop=5, max_drop=5)
    assert calls["heal"] == 2 and calls["original loss"] == 1 and calls["evaluate"] == 4
    for point in found.points:
        assert point.healed is not None and point.pruned is not None and point.healing_tokens == 3 * 4 * 12
        assert point.healed.perplexity[0].data == point.pruned.perplexity[0].data
        assert point.healed.perplexity[0].nll != point.pruned.perplexity[0].nll
        left = {path.name for path in (out / "points" / point.name).iterdir()}
        assert "healing.json" in left and not left & {"pruned", "healing"}
    records = [Healing.load(out / "points" / p.name) for p in found.points]
    assert records[0].data == records[1].data and records[0].held_out.original == records[1].held_out.original
    assert records[0].held_out.original is not None
    assert {(k.method, k.stage) for k in found.knees} == {
        (m, s) for m in ("uidl", "simple") for s in ("pruned", "healed")
    }
    # Other healing: the pruned models' figures stay.
    calls.clear()
    other = swept(base, out, recipe(healing={"steps": 2}), heal=True, methods=["uidl"], max_drop=5, step=5)
    assert calls["evaluate"] == 1 and other.points[0].pruned == found.points[0].pruned
    assert other.points[0].healing_tokens == 2 * 4 * 12


@pytest.mark.slow
def test_point_killed_while_it_heals_goes_on(
    base: Path, tmp_path: Path, quickly: None, monkeypatch: pytest.MonkeyPatch, calls: Counter[str]
) -> None:
    def killed(*args: Any, **kwargs: Any) -> Any:
        raise KeyboardInterrupt

    given: dict[str, Any] = {"heal": True, "max_drop": 5, "step": 5}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("hf_prune.healing.heal", killed)
        swept(base, tmp_path / "out", **given)
    assert calls["evaluate"] == 1 and calls["original loss"] == 1
    calls.clear()
    found = swept(base, tmp_path / "out", **given)
    assert calls["evaluate"] == 1 and calls["heal"] == 1 and not calls["measure"] and not calls["original loss"]
    assert timeless(found) == timeless(swept(base, tmp_path / "whole", **given))


def test_target_writes_the_plan(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = swept(base, out, max_drop=5, target=Target("ppl-ratio", 1.0))
    assert found.choice is not None and found.choice.point == "uidl-3" and found.choice.plan == "plan.json"
    assert Plan.load(out / "plan.json").dropped == USELESS
    missed = swept(base, out, max_drop=5, target=Target("size", 1000))
    assert missed.choice is not None and missed.choice.point is None and missed.choice.closest == "uidl-5"
    assert "No point meets 1,000 bytes; uidl-5 comes closest" in missed.choice.reason
    assert not (out / "plan.json").exists() and Sweep.load(out) == missed


@pytest.mark.slow
@pytest.mark.skipif(not extras.available("lm_eval"), reason="needs the extra 'eval'")
def test_tasks_are_asked_of_each_point(base: Path, tmp_path: Path) -> None:
    task = write_task(tmp_path / "tasks", "winogrande")
    config = recipe(evaluation={"tasks": (task,), "task_path": str(tmp_path / "tasks")})
    found = swept(base, tmp_path / "out", config, max_drop=4, step=2, target=Target("accuracy-drop", 0.0))
    before, (two, four) = accuracy(found.original), found.points
    assert before is not None and two.pruned is not None and four.pruned is not None
    assert accuracy(two.pruned) == before and two.pruned.tasks[0].stability == pytest.approx(1.0)
    worst = accuracy(four.pruned)
    assert worst is not None and found.choice is not None and found.choice.stage == "pruned"
    assert found.choice.point == ("uidl-4" if worst[0] >= before[0] else "uidl-2")
    assert [p.file for p in found.pictures] == ["quality.png", "fidelity.png", "accuracy.png"]
    assert str(tmp_path) not in (tmp_path / "out" / "sweep.json").read_text()
    with pytest.raises(ConfigError, match="nonesuch"):
        swept(base, tmp_path / "other", recipe(evaluation={"tasks": ("nonesuch",)}))
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("broken", ["draw", "as_csv", "Plan.save"])
def test_record_never_lies_beside_files_of_another_call(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    out = tmp_path / "out"
    swept(base, out, target=Target("ppl-ratio", 1.0))
    before = tree(out)

    def killed(*args: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(f"hf_prune.sweeping.sweep.{broken}", killed)
        swept(base, out, max_drop=1, target=Target("ppl-ratio", 2.0))
    after = tree(out)
    written = ("sweep.json", "sweep.csv", "plan.json", "quality.png", "fidelity.png")
    if "sweep.json" in after:
        assert {name: after[name] for name in written} == {name: before[name] for name in written}
    else:
        assert "sweep.csv" not in after  # nothing passes for the result of a call that was killed


def test_csv_says_what_the_record_says(base: Path, tmp_path: Path) -> None:
    found = swept(base, tmp_path / "out", methods=["uidl", "slicegpt"])
    written = (tmp_path / "out" / "sweep.csv").read_text(encoding="utf-8")
    assert written == as_csv(Sweep.load(tmp_path / "out"))  # a call that finds its points finished writes the same
    rows = list(csv.DictReader(io.StringIO(written)))
    assert [(r["point"], r["stage"]) for r in rows] == [
        ("original", "original"), ("uidl-1", "pruned"), ("uidl-2", "pruned"), ("slicegpt-0.125", "pruned"),
        ("slicegpt-0.25", "pruned"),
    ]  # fmt: skip
    for row, point in zip(rows[1:], found.points, strict=True):
        assert point.pruned is not None and point.pruned.fidelity is not None
        text = point.pruned.perplexity[0]
        assert float(row["nll"]) == text.nll and float(row["perplexity"]) == text.perplexity
        assert float(row["bits_per_byte"]) == text.bits_per_byte and float(row["kl"]) == point.pruned.fidelity.kl
        assert float(row["share_removed"]) == point.share_removed and int(row["parameters"]) == point.parameters
        assert float(row["perplexity_ratio"]) == math.exp(text.nll - found.original.perplexity[0].nll)
        assert int(row["layers_removed"]) == len(point.dropped) and row["method"] == point.method
    assert float(rows[3]["mean_width"]) == 24 and rows[0]["kl"] == ""


def test_drawings(base: Path, tmp_path: Path) -> None:
    found = swept(base, tmp_path / "out", max_drop=5)
    assert [p.file for p in found.pictures] == ["quality.png", "fidelity.png"]
    for picture in found.pictures:
        image = imread(tmp_path / "out" / picture.file)
        assert image.shape == (528, 840, 4) and image.std() > 0.05
        assert "uidl, pruned: " in picture.alt and "tiny-base" in picture.alt
    assert found.pictures[0].alt.endswith(f"Knee of uidl, pruned: {found.points[2].share_removed:.1%}.")
    again = swept(base, tmp_path / "out", max_drop=5)
    assert again == found and not list((tmp_path / "out").glob("accuracy*"))


def test_folder_of_something_else_is_left_alone(base: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    before = tree(tmp_path)
    with pytest.raises(OutputError, match="holds something else"):
        swept(base, tmp_path / "mine")
    assert tree(tmp_path) == before
    _, other = base_folder(tmp_path / "other", depth=4)
    swept(base, tmp_path / "out", max_drop=1)
    with pytest.raises(OutputError, match="holds a sweep of another model than 'other'"):
        swept(other, tmp_path / "out", max_drop=1)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"methods": ["udil"]}, ConfigError, "unknown method 'udil'.*Did you mean 'uidl'"),
        ({"methods": []}, ConfigError, "no methods to sweep 'tiny-base' with"),
        ({"max_drop": 8}, ConfigError, "max_drop=8: 'tiny-base' has 8 layers; expected 1 to 7"),
        ({"step": 0}, ConfigError, "step=0; expected"),
        ({"step": 3}, ConfigError, "step=3 is above max_drop=2"),
        ({"min_drop": 3}, ConfigError, "min_drop=3 is above max_drop=2"),
        ({"min_drop": 0}, ConfigError, "min_drop=0: 'tiny-base' has 8 layers; expected 1 to 7"),
        ({"target": Target("accuracy-drop", 0.02)}, ConfigError, "needs benchmark tasks"),
        ({"target": Target("ppl-ratio", 0)}, ConfigError, "ppl-ratio=0; expected a number above 0"),
        ({"target": Target("ppl-ratio", math.nan)}, ConfigError, "ppl-ratio=nan"),
        ({"methods": ["slicegpt"], "shares": [0.25, 0.25]}, ConfigError, "the point slicegpt-0.25 twice"),
        ({"methods": ["slicegpt"], "shares": [1.5]}, ConfigError, "sparsity=1.5"),
        (
            {"config": recipe(calibration={"dataset": "paper"}), "methods": ["uidl", "slicegpt"]},
            ConfigError,
            "dataset='paper' is another text for each method .uidl: allenai/c4, slicegpt: tatsu-lab/alpaca",
        ),
        (
            {"config": recipe(calibration={"samples": 1, "max_length": 4}), "methods": ["slicegpt"]},
            ConfigError,
            "4 calibration tokens are too few",
        ),
        ({"config": recipe(protect_first=4, protect_last=3), "max_drop": 5}, ConfigError, "at most 1 can go"),
    ],
)
def test_refused_before_any_work(
    base: Path, tmp_path: Path, calls: Counter[str], given: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        swept(base, tmp_path / "out", **given)
    assert not calls and not (tmp_path / "out").exists()


def test_quantized_weights_are_not_healed_and_a_dry_run_says_so(
    base: Path, tmp_path: Path, calls: Counter[str]
) -> None:
    shutil.copytree(base, tmp_path / "tiny-8bit")
    edit_json(
        tmp_path / "tiny-8bit" / "config.json",
        quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True},
    )
    given: dict[str, Any] = {"methods": ["uidl"], "min_drop": None, "max_drop": 1, "step": 1, "target": None}
    for talk in (sweep, prepare):
        with pytest.raises(CheckpointError, match="'tiny-8bit' holds quantized weights, into which no healing can be"):
            talk(str(tmp_path / "tiny-8bit"), recipe(), tmp_path / "out", heal=True, **given)
    assert len(prepare(str(tmp_path / "tiny-8bit"), recipe(), tmp_path / "out", heal=False, **given).wanted) == 1
    assert not calls and not (tmp_path / "out").exists()


def test_family_that_cannot_be_sliced(tmp_path: Path, calls: Counter[str]) -> None:
    _, folder = base_folder(tmp_path / "olmo", "olmo2", depth=3)
    with pytest.raises(ArchitectureError, match="'olmo' .model_type 'olmo2'. cannot be sliced"):
        swept(folder, tmp_path / "out", methods=["slicegpt"])
    assert not calls
    found = swept(folder, tmp_path / "out", methods=None, max_drop=None)
    assert found.methods == ("uidl", "simple") and [p.name for p in found.points] == ["uidl-1", "simple-1"]


def test_missing_text_is_told_before_any_point(base: Path, tmp_path: Path, calls: Counter[str], quickly: None) -> None:
    config = recipe(healing={"dataset": str(tmp_path / "nowhere.txt")})
    with pytest.raises((DataError, ConfigError), match="nowhere"):
        swept(base, tmp_path / "out", config, heal=True)
    assert calls["evaluate"] == 0


def test_options_go_to_the_methods_that_know_them() -> None:
    from hf_prune.sweeping.amounts import config_of

    config = recipe(
        method="dynamic-slicing", sparsity=0.5, planner_kwargs={"multiple": 4, "slice_base": 0.1},
        surgery_kwargs={"weighting": "token"},
    )  # fmt: skip
    assert config_of(config, "slicegpt", sparsity=0.25).planner_kwargs == {"multiple": 4}
    assert config_of(config, "slicegpt", sparsity=0.25).surgery_kwargs == {"weighting": "token"}
    dropping = config_of(config, "uidl", drop_layers=2)
    assert (dropping.planner_kwargs, dropping.surgery_kwargs, dropping.sparsity) == ({}, {}, None)
    kept = config_of(recipe(protect_first=1), "slicegpt", sparsity=0.25)
    assert kept.protect_first is None and config_of(recipe(protect_first=1), "simple").protect_first == 1


def test_unwritable_folder_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: RunFolder, *args: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(RunFolder, "finish", deny)
    with pytest.raises(OutputError, match="out' cannot be made: .*Permission denied"):
        swept(base, tmp_path / "out")
