"""Dataclasses to JSON and back: strict in what is read, whole in what is written."""

import dataclasses
import json
import os
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune import serial
from hf_prune.errors import ConfigError


@dataclass(frozen=True)
class Leaf:
    number: int
    share: float = 0.5
    name: str | None = None


@dataclass(frozen=True)
class Tree:
    leaf: Leaf
    kind: Literal["oak", "elm"] = "oak"
    leaves: tuple[Leaf, ...] = ()
    pair: tuple[int, str] = (1, "a")
    words: list[str] = field(default_factory=list)
    table: dict[str, float] = field(default_factory=dict)
    anything: dict[str, Any] = field(default_factory=dict)
    flag: bool = False
    mixed: int | str | None = None


LEAVES = st.builds(
    Leaf, st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.none() | st.text(max_size=5)
)
TREES = st.builds(
    Tree,
    leaf=LEAVES,
    kind=st.sampled_from(["oak", "elm"]),
    leaves=st.lists(LEAVES, max_size=3).map(tuple),
    pair=st.tuples(st.integers(), st.text(max_size=3)),
    words=st.lists(st.text(max_size=3), max_size=3),
    table=st.dictionaries(st.text(max_size=3), st.floats(allow_nan=False, allow_infinity=False), max_size=3),
    anything=st.dictionaries(st.text(max_size=3), st.none() | st.booleans() | st.text(max_size=3), max_size=3),
    flag=st.booleans(),
    mixed=st.none() | st.integers() | st.text(max_size=3),
)


@given(TREES)
def test_json_gives_back_the_same_value(tree: Tree) -> None:
    assert serial.from_dict(Tree, json.loads(serial.dumps(tree))) == tree


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(), lambda s: st.lists(s) | st.dictionaries(st.text(), s)
    )
)
def test_any_json_is_either_read_or_refused_clearly(data: Any) -> None:
    try:
        serial.from_dict(Tree, data)
    except ConfigError as error:
        assert "Tree" in str(error)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "Tree must be a JSON object; got list"),
        ({}, "Tree lacks the key 'leaf'"),
        ({"leaf": {"number": 1}, "leafs": []}, r"Tree has no key 'leafs'.*Did you mean 'leaf"),
        ({"leaf": {"number": 1, "nam": "x"}}, r"Tree\.leaf has no key 'nam'.*Did you mean 'name'"),
        ({"leaf": {"number": "1"}}, r"Tree\.leaf\.number='1' is a str; expected int"),
        ({"leaf": {"number": True}}, r"Tree\.leaf\.number=True is a bool; expected int"),
        ({"leaf": {"number": 1.0}}, r"Tree\.leaf\.number=1\.0 is a float; expected int"),
        ({"leaf": {"number": None}}, r"Tree\.leaf\.number=None is a NoneType; expected int"),
        ({"leaf": {"number": 1, "share": False}}, r"Tree\.leaf\.share=False is a bool; expected a number"),
        ({"leaf": {"number": 1, "share": float("nan")}}, r"Tree\.leaf\.share=nan.*finite"),
        ({"leaf": {"number": 1, "share": float("-inf")}}, r"Tree\.leaf\.share=-inf.*finite"),
        (
            {"leaf": {"number": 1}, "kind": "okk"},
            r"Tree\.kind='okk'; expected one of: 'oak', 'elm'\. Did you mean 'oak'",
        ),
        ({"leaf": {"number": 1}, "kind": ["oak"]}, r"Tree\.kind=\['oak'\]"),
        ({"leaf": {"number": 1}, "leaves": [{"number": 2}, {"number": "x"}]}, r"Tree\.leaves\[1\]\.number='x'"),
        ({"leaf": {"number": 1}, "leaves": "ab"}, r"Tree\.leaves='ab' is a str; expected a list"),
        ({"leaf": {"number": 1}, "pair": [1]}, r"Tree\.pair must hold 2 values; got 1"),
        ({"leaf": {"number": 1}, "words": ["a", 3]}, r"Tree\.words\[1\]=3"),
        ({"leaf": {"number": 1}, "table": {"a": "b"}}, r"Tree\.table\.a='b'"),
        ({"leaf": {"number": 1}, "table": []}, r"Tree\.table=\[\] is a list; expected an object"),
        ({"leaf": {"number": 1}, "flag": 1}, r"Tree\.flag=1 is a int; expected bool"),
        ({"leaf": {"number": 1}, "mixed": 1.5}, r"Tree\.mixed=1\.5"),
    ],
)
def test_what_does_not_fit_is_named(data: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        serial.from_dict(Tree, data)


def test_whole_numbers_serve_as_floats() -> None:
    leaf = serial.from_dict(Leaf, {"number": 1, "share": 2})
    assert leaf.share == 2.0 and isinstance(leaf.share, float)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_json_cannot_hold_are_refused(bad: float) -> None:
    with pytest.raises(ConfigError, match=r"Tree\.anything\.a\.1 is .*finite"):
        serial.dumps(Tree(Leaf(1), anything={"a": [1.0, bad]}))


def test_files_are_utf8_and_readable(tmp_path) -> None:
    path = tmp_path / "deep" / "er" / "file.json"
    serial.write_text(path, serial.dumps({"name": "Ægir – 海"}))
    assert path.read_bytes().decode() == '{\n  "name": "Ægir – 海"\n}\n'
    assert serial.read_json(path) == {"name": "Ægir – 海"}
    assert path.stat().st_mode & 0o777 == 0o644
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]


@pytest.mark.parametrize("failing", ["fsync", "replace"])
def test_a_file_appears_whole_or_not_at_all(tmp_path, monkeypatch, failing: str) -> None:
    path = tmp_path / "file.json"
    serial.write_text(path, "old")

    def fail(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, failing, fail)
    with pytest.raises(OSError, match="No space"):
        serial.write_text(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.json"]


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"not json"])
def test_reading_what_is_no_json(tmp_path, content: bytes) -> None:
    path = tmp_path / "file.json"
    with pytest.raises(ConfigError, match="there is no file"):
        serial.read_json(path)
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"file\.json is not JSON"):
        serial.read_json(path)


def test_values_in_place_of_dicts_are_kept() -> None:
    leaf = Leaf(3)
    assert serial.from_dict(Tree, {"leaf": leaf}).leaf is leaf
    assert dataclasses.replace(Tree(leaf), flag=True).flag
