"""Records: the same value after a round trip through their file, and nothing else is read."""

import json
from pathlib import Path
from typing import Any

import pytest

from hf_prune.errors import ConfigError
from hf_prune.records import (
    Completion,
    Evaluation,
    Fidelity,
    Healing,
    HeldOutLoss,
    ModelEvaluation,
    Operation,
    Perplexity,
    Plan,
    Rate,
    Record,
    Scores,
    Speed,
    ranges,
)

from .making import ENVIRONMENT, TEXT, reference, scores

SCORES = scores([[0, 0.1, 0.2], [0.1, 0, 0.3], [0.2, 0.3, 0]], [[0, 0.01, 0.02], [0.01, 0, 0.03], [0.02, 0.03, 0]])
PLAN = Plan(
    reference(32, revision="c0ffee"), "uidl", "window", (Operation("drop", tuple(range(21, 29)), {"a": 1}),),
    "They turn it least.", 0.1, tuple(range(20, 28)), 0.01, 0.002, "a" * 64,
)  # fmt: skip
HEALING = Healing(
    {"rank": 64, "learning_rate": 3e-4}, "nf4", 1000, ("gate_proj", "up_proj"), 10, 5000, 2.5, 3.25,
    HeldOutLoss(5.0, 5.1, 4.0, 4.01, 4.02, 3.0, 640), 0.02, "merged", TEXT, TEXT, ENVIRONMENT, ("short",),
)  # fmt: skip


def figures(label: Any, nll: float) -> ModelEvaluation:
    return ModelEvaluation(
        label, 12, 1000, 2000, 3000, "bfloat16", (Perplexity("books", nll, 0.1, 20.0, 1.1, 90, 400, 32, 16, TEXT),),
        Fidelity(0.1, 0.01, 0.8, 90), (Completion("The", " sea"),),
        Speed(Rate(10, 9, 11), Rate(5, 4, 6), 1, 32, 16, 5),
    )  # fmt: skip


EVALUATION = Evaluation((figures("original", 3.0), figures("pruned", 5.0), figures("healed", 4.0)), ENVIRONMENT)
ALL = [SCORES, PLAN, HEALING, EVALUATION]
IDS = [type(record).__name__ for record in ALL]


@pytest.mark.parametrize("record", ALL, ids=IDS)
def test_same_record_from_its_file(record: Record, tmp_path: Path) -> None:
    path = record.save(tmp_path / "run")
    assert path == tmp_path / "run" / record.FILE
    assert type(record).load(path) == record
    assert type(record).load(tmp_path / "run") == record
    assert json.loads(path.read_text())["schema"] == 1
    assert type(record).from_dict(json.loads(json.dumps(record.to_dict()))) == record
    assert [p.name for p in path.parent.iterdir()] == [record.FILE]


def test_each_record_has_its_own_file() -> None:
    assert sorted(record.FILE for record in ALL) == ["evaluation.json", "healing.json", "plan.json", "scores.json"]


@pytest.mark.parametrize("record", ALL, ids=IDS)
@pytest.mark.parametrize("schema", [None, 0, 2, "1", [1]])
def test_another_schema_is_refused(record: Record, schema: Any) -> None:
    data = record.to_dict() | {"schema": schema}
    if schema is None:
        del data["schema"]
    with pytest.raises(ConfigError, match=rf"{type(record).__name__} has schema .*reads 1"):
        type(record).from_dict(data)


@pytest.mark.parametrize("data", [[], "plan", 3, None])
def test_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ConfigError, match="Plan has schema"):
        Plan.from_dict(data)


@pytest.mark.parametrize("record", ALL, ids=IDS)
def test_missing_and_unknown_keys_are_refused(record: Record) -> None:
    name = type(record).__name__
    data = record.to_dict()
    first = [key for key in data if key != "schema"][0]
    with pytest.raises(ConfigError, match=f"{name} lacks the key '{first}'"):
        type(record).from_dict({k: v for k, v in data.items() if k != first})
    with pytest.raises(ConfigError, match=f"{name} has no key '{first}x'.*Did you mean '{first}'"):
        type(record).from_dict({**data, first + "x": 1})


def test_nan_is_neither_written_nor_read(tmp_path: Path) -> None:
    broken = scores([[0, float("nan")], [float("nan"), 0]])
    with pytest.raises(ConfigError, match=r"distances\.0\.1 is nan"):
        broken.save(tmp_path)
    assert not list(tmp_path.iterdir())
    text = json.dumps(SCORES.to_dict()).replace("0.3", "NaN")
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(ConfigError, match=r"Scores\.distances\[1\]\[2\]=nan"):
        Scores.load(tmp_path)


def test_loading_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"there is no file .*plan\.json"):
        Plan.load(tmp_path)


def test_an_older_file_is_replaced_whole(tmp_path: Path) -> None:
    PLAN.save(tmp_path)
    other = Plan(reference(4), "simple", "before_last", (Operation("drop", (1,)),), "So.")
    other.save(tmp_path)
    assert Plan.load(tmp_path) == other


def test_windows_cover_every_start() -> None:
    assert SCORES.windows(1) == [(0, 0.1, 0.01), (1, 0.3, 0.03)]
    assert SCORES.windows(2) == [(0, 0.2, 0.02)]


def test_plan_in_words() -> None:
    assert PLAN.describe() == "drop layers 21–28 (8 of 32, counted from 0)"
    assert PLAN.dropped == tuple(range(21, 29))
    assert PLAN.kept == (*range(21), 29, 30, 31)
    two = Plan(reference(6), "uidl", "window", (Operation("drop", (3, 4)), Operation("drop", (1,))), "So.")
    assert two.dropped == (1, 3, 4) and two.kept == (0, 2, 5)


@pytest.mark.parametrize(
    ("layers", "text"),
    [((), "none"), ((3,), "3"), ((1, 2), "1–2"), ((1, 2, 3, 7), "1–3, 7"), ((0, 2, 4, 5), "0, 2, 4–5")],
)
def test_ranges(layers: tuple[int, ...], text: str) -> None:
    assert ranges(layers) == text


def test_recovered_share() -> None:
    assert EVALUATION.recovered == pytest.approx(0.5)
    assert Evaluation(EVALUATION.models[:2], ENVIRONMENT).recovered is None
    same = (figures("original", 3.0), figures("pruned", 3.0), figures("healed", 3.0))
    assert Evaluation(same, ENVIRONMENT).recovered is None
