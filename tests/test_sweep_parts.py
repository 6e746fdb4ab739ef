"""Knees, targets, means over tasks and drawings of sweeps, on figures that were made by hand."""

import dataclasses
import io
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.image import imread

from hf_prune.config import EvaluationConfig, PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.records import Fidelity, ModelEvaluation, Perplexity, TaskResult
from hf_prune.sweeping.knee import LEAST, find_knee
from hf_prune.sweeping.plots import draw
from hf_prune.sweeping.record import Knee, Sweep, SweepPoint, accuracy, perplexity_ratio
from hf_prune.sweeping.table import as_csv
from hf_prune.sweeping.target import Target, check_target, choose, parse_size
from tests.making import ENVIRONMENT, TEXT, reference


def task(name: str, value: float, error: float | None = 0.01, **fields: Any) -> TaskResult:
    base: dict[str, Any] = {"metric": "acc", "filter": "none", "higher_is_better": True, "main": True}
    base |= {"num_fewshot": 0, "samples": 100, "limit": None, "version": "1"}
    return TaskResult(name, value=value, standard_error=error, **base | fields)


def figures(nll: float, kl: float | None = None, tasks: tuple[TaskResult, ...] = (), label: str = "pruned") -> Any:
    text = Perplexity("books", nll, 0.02, math.exp(nll), nll / (4 * math.log(2)), 100, 400, 32, 16, TEXT)
    fidelity = None if kl is None else Fidelity(kl, 0.01, 0.5, 100)
    return ModelEvaluation(label, 8, 1000, 4000, 5000, "float32", (text,), fidelity, (), None, tasks)


ORIGINAL = figures(2.0, label="original")


def point(method: str, amount: int, nll: float, share: float, healed: Any = None, **fields: Any) -> SweepPoint:
    given: dict[str, Any] = {"parameters": round(1000 * (1 - share)), "bytes": round(4000 * (1 - share))}
    given |= {"share_removed": share, "pruned": figures(nll, nll - 2), "healed": healed}
    return SweepPoint(f"{method}-{amount}", method, amount, "layers", "done", **given | fields)


def made(*points: SweepPoint, original: Any = ORIGINAL, heal: bool = False, knees: tuple[Knee, ...] = ()) -> Sweep:
    methods = tuple(dict.fromkeys(p.method for p in points))
    return Sweep(reference(8), {}, methods, heal, original, points, "rule", knees, None, (), ENVIRONMENT)


def test_elbow_is_the_knee() -> None:
    # Flat to 0.3, then steep: scaled, the elbow lies 0.3 / 0.6 - 0.03 / 1.03 below the chord.
    shares = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]
    found = find_knee(shares, [0.01, 0.02, 0.03, 0.363333, 0.696667, 1.03])
    assert found.index == 2 and found.distance == pytest.approx(0.5 - 0.03 / 1.03)
    # The elbow need not lie in the middle, and the scale of the loss does not matter.
    assert find_knee([0.5, 0.9, 1.0], [0.0, 0.0, 40.0]).index == 1
    assert find_knee([0.5, 0.9, 1.0], [0.0, 0.0, 0.004]).index == 1


def test_curves_without_a_knee() -> None:
    straight = find_knee([0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 3.0, 4.0])
    assert straight.index is None and "nearly straight" in straight.reason
    early = find_knee([0.1, 0.2, 0.3, 0.4], [3.0, 3.5, 3.8, 4.0])
    assert early.index is None and "rises fastest at its start" in early.reason
    assert "does not rise" in find_knee([0.1, 0.2, 0.3], [0.0, 0.1, -0.01]).reason
    assert "too few" in find_knee([0.1], [1.0]).reason and find_knee([], []).index is None


def test_collapse_that_saturates_has_its_knee_at_the_foot() -> None:
    assert find_knee([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], [0.0, 0.05, 0.1, 3.0, 3.9, 4.0]).index == 2


@given(st.lists(st.floats(0, 10), min_size=2, max_size=12), st.floats(0.001, 1000))
def test_knee_is_where_the_curve_bends_up(rises: list[float], scale: float) -> None:
    increases = [math.fsum(rises[: i + 1]) for i in range(len(rises))]
    shares = [(i + 1) / (2 * len(rises)) for i in range(len(rises))]
    found = find_knee(shares, increases)
    if found.index is not None:
        x, y = shares[found.index], increases[found.index]
        assert y / x < (increases[-1] - y) / (shares[-1] - x)  # flatter before than behind
        assert found.distance is not None and found.distance >= LEAST
        assert find_knee(shares, [scale * value for value in increases]).distance == pytest.approx(found.distance)


@pytest.mark.parametrize(
    ("text", "size"),
    [("4GB", 4 * 10**9), ("1.5GiB", 3 * 2**29), ("500 MB", 5 * 10**8), ("123", 123), ("2kb", 2000), ("7 b", 7)],
)
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "GB", "4 gigs", "-1", "0", "1e9", "4 G B", "1.5.2GB"])
def test_sizes_that_are_none(text: str) -> None:
    with pytest.raises(ConfigError, match="expected bytes, or such as 4GB"):
        parse_size(text)


def test_targets_are_checked() -> None:
    tasks = PrunerConfig(evaluation=EvaluationConfig(tasks=("boolq",)))
    check_target(Target("accuracy-drop", 0.0), tasks)
    check_target(None, PrunerConfig())
    with pytest.raises(ConfigError, match=r"accuracy-drop=0.02 needs benchmark tasks.*--tasks"):
        check_target(Target("accuracy-drop", 0.02), PrunerConfig())
    for target in (Target("accuracy-drop", 1.0), Target("accuracy-drop", -0.1), Target("size", 0.5)):
        with pytest.raises(ConfigError, match=f"target {target.kind}={target.value}; expected"):
            check_target(target, tasks)


def test_most_removed_within_the_ratio() -> None:
    ratio = Target("ppl-ratio", 1.1)
    within, above = 2.0 + math.log(1.09), 2.0 + math.log(1.2)
    # Not monotone: the largest share that meets it counts, though a smaller one does not.
    points = [
        point("a", 1, within, 0.1),
        point("a", 2, above, 0.2),
        point("a", 3, within, 0.3),
        point("b", 1, above, 0.4),
    ]
    found = choose(points, ORIGINAL, ratio, "pruned")
    assert found.point == "a-3" and "a perplexity ratio of 1.1 with a perplexity ratio of 1.09" in found.reason
    healed = [dataclasses.replace(points[3], healed=figures(within)), points[0]]
    assert choose(healed, ORIGINAL, ratio, "healed").point == "b-1"
    missed = choose(points[1:2] + points[3:], ORIGINAL, Target("ppl-ratio", 1.0), "pruned")
    assert missed.point is None and missed.closest == "a-2" and missed.reason.startswith("No point meets")
    # The bound itself is within; a model that grew is no pruned one.
    exact = Target("ppl-ratio", perplexity_ratio(figures(within), ORIGINAL))
    assert choose(points[:1], ORIGINAL, exact, "pruned").point == "a-1"
    assert choose([point("s", 1, 1.9, -0.05)], ORIGINAL, ratio, "pruned").closest is None
    assert choose([], ORIGINAL, ratio, "pruned").point is None


def test_best_within_the_size() -> None:
    points = [point("a", 1, 2.1, 0.1), point("a", 2, 2.5, 0.3), point("b", 2, 2.4, 0.3), point("b", 3, 3.0, 0.5)]
    assert choose(points, ORIGINAL, Target("size", 2800), "pruned").point == "b-2"
    assert choose(points, ORIGINAL, Target("size", 4000), "pruned").point == "a-1"
    found = choose(points, ORIGINAL, Target("size", 1000), "pruned")
    assert found.point is None and found.closest == "b-3" and "with 2,000 bytes" in found.reason


def test_most_removed_within_the_accuracy() -> None:
    original = figures(2.0, tasks=(task("boolq", 0.8), task("piqa", 0.7)))
    points = [
        point("a", n, 2.1, n / 10, pruned=figures(2.1, tasks=(task("boolq", 0.8 - drop), task("piqa", 0.7))))
        for n, drop in ((1, 0.02), (2, 0.03), (3, 0.2))
    ]
    assert choose(points, original, Target("accuracy-drop", 0.0151), "pruned").point == "a-2"
    found = choose(points, original, Target("accuracy-drop", 0.005), "pruned")
    assert found.closest == "a-1" and "an accuracy drop of 0.0100" in found.reason
    # The bound itself is within, though 0.75 - 0.73 is 0.020000000000000018.
    before, after = (figures(2.0, tasks=(task("boolq", value),)) for value in (0.75, 0.73))
    exact = [point("a", 1, 2.1, 0.1, pruned=after)]
    assert choose(exact, before, Target("accuracy-drop", 0.02), "pruned").point == "a-1"


def test_mean_accuracy_counts_a_group_once() -> None:
    mmlu = [task("mmlu", 0.5, 0.03, group=True), *(task(n, 0.1, parent="mmlu") for n in ("mmlu_law", "art"))]
    rest = [task("boolq", 0.7, 0.04), task("boolq", 0.9, metric="acc_norm", main=False)]
    rest.append(task("wikitext", 40.0, metric="word_perplexity", higher_is_better=False))
    assert accuracy(figures(2.0, tasks=(*mmlu, *rest))) == (pytest.approx(0.6), pytest.approx(0.025))
    assert accuracy(figures(2.0, tasks=(task("a", 0.5, None), task("b", 0.7)))) == (pytest.approx(0.6), None)
    # Asked for beside a group whose name it begins with.
    assert accuracy(figures(2.0, tasks=(mmlu[0], task("mmlu_pro", 0.1, 0.04)))) == (pytest.approx(0.3), 0.025)
    assert accuracy(figures(2.0)) is None and accuracy(figures(2.0, tasks=tuple(rest[2:]))) is None


def swept_with_tasks() -> Sweep:
    original = figures(2.0, tasks=(task("boolq", 0.8),), label="original")
    points = [
        point(
            method, n, 2 + slope * n * n, n / 10,
            pruned=figures(2 + slope * n * n, n / 5, (task("boolq", 0.8 - n / 20),)),
            healed=figures(2 + slope * n, n / 9, (task("boolq", 0.8 - n / 40),), "healed"),
        )
        for method, slope in (("uidl", 0.1), ("simple", 0.2))
        for n in (1, 2, 3)
    ]  # fmt: skip
    knees = (Knee("uidl", "healed", "uidl-2", 0.2, 0.3, "why"),)
    failed = SweepPoint("simple-4", "simple", 4, "layers", "failed", "NaN")
    return made(*points, failed, original=original, heal=True, knees=knees)


def test_all_three_drawings() -> None:
    found = swept_with_tasks()
    drawn = draw(found)
    assert [p.file for p, _ in drawn] == ["quality.png", "fidelity.png", "accuracy.png"]
    images = [imread(io.BytesIO(content), format="png") for _, content in drawn]
    assert all(image.shape == (528, 840, 4) for image in images)
    # Methods have the blue and the vermilion of Okabe and Ito.
    for colour in ((0, 0x72, 0xB2), (0xD5, 0x5E, 0)):
        near = np.abs(images[0][..., :3] - np.array(colour) / 255).max(-1) < 0.02
        assert near.sum() > 100
    words = drawn[2][0].alt
    assert words == (
        "Line chart of mean accuracy against share of parameters removed from org/model. The original has 0.8. "
        "uidl, pruned: 0.75 at 10.0% to 0.65 at 30.0%. uidl, healed: 0.775 at 10.0% to 0.725 at 30.0%. "
        "simple, pruned: 0.75 at 10.0% to 0.65 at 30.0%. simple, healed: 0.775 at 10.0% to 0.725 at 30.0%."
    )
    assert drawn[0][0].alt.endswith("Knee of uidl, healed: 20.0%.")
    assert drawn == draw(found)  # the same bytes


def test_nothing_is_drawn_of_nothing() -> None:
    assert draw(made(SweepPoint("uidl-1", "uidl", 1, "layers", "failed", "NaN"))) == []


def test_csv_has_a_row_for_each_stage_and_a_column_for_each_task() -> None:
    lines = as_csv(swept_with_tasks()).splitlines()
    assert len(lines) == 1 + 1 + 12 and lines[0].endswith(",seconds,task:boolq:acc")
    header = lines[0].split(",")
    healed = dict(zip(header, lines[3].split(","), strict=True))
    assert (healed["point"], healed["stage"], healed["accuracy"]) == ("uidl-1", "healed", "0.775")
    assert healed["task:boolq:acc"] == "0.775" and healed["nll"] == "2.1"


def test_record_goes_to_json_and_back(tmp_path: Any) -> None:
    found = swept_with_tasks()
    found.save(tmp_path)
    assert Sweep.load(tmp_path) == found and found.failed == 1 and found.last_stage == "healed"
