"""Named functions: found by name, refused by name, with their options."""

import pytest

from hf_prune.errors import ConfigError
from hf_prune.registry import Entry, Registry, did_you_mean, measure, planner, surgery


def table() -> Registry:
    registry = Registry("colour", "hf_prune.planners")

    @registry("red", title="Red", url="https://example.org/red")
    def red(scores: object, *, depth: int = 3, warm: bool = True) -> str:
        return f"{scores} {depth} {warm}"

    return registry


def test_what_is_there() -> None:
    assert {entry.name for entry in measure} >= {"angular", "redundancy"}
    assert {entry.name for entry in planner} >= {"window", "before_last", "constant_width", "dynamic_width"}
    assert {entry.name for entry in surgery} >= {"drop", "slice"}
    for registry in (measure, planner, surgery):
        for entry in registry:
            assert entry.title and entry.url.startswith("https://") and entry.function.__doc__
            assert registry.get(entry.name) is entry
    width = {entry.name for registry in (planner, surgery) for entry in registry if entry.cuts == "width"}
    assert width == {"constant_width", "dynamic_width", "slice"}


def test_lookup_and_call() -> None:
    entry = table().get("red")
    assert entry.function("x", depth=1) == "x 1 True"
    assert entry.options() == {"depth": 3, "warm": True}
    entry.check_options({"depth": 1}, "colour")


@pytest.mark.parametrize(
    ("registry", "name", "message"),
    [
        (measure, "angle", "unknown measure 'angle'; expected one of: .*angular"),
        (measure, "angulr", "Did you mean 'angular'"),
        (planner, "windows", "unknown planner 'windows'.*Did you mean 'window'"),
        (surgery, "", "unknown surgery ''; expected one of: .*drop"),
    ],
)
def test_unknown_names(registry: Registry, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        registry.get(name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dept": 1}, r"colour 'red' has no option 'dept' \(value 1\); it has: depth, warm\. Did you mean 'depth'"),
        ({"scores": 1}, "has no option 'scores'"),
    ],
)
def test_unknown_options(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        table().get("red").check_options(options, "colour")


def test_no_options_at_all() -> None:
    with pytest.raises(ConfigError, match="measure 'angular' has no option 'tokens'.*it has: none"):
        measure.get("angular").check_options({"tokens": "all"}, "measure")


def test_one_name_one_function() -> None:
    registry = table()
    with pytest.raises(ConfigError, match="colour 'red' is registered twice"):
        registry("red", title="Again", url="https://example.org")(lambda: None)


def test_hints_only_for_close_names() -> None:
    assert did_you_mean("windo", ["window", "tail"]) == " Did you mean 'window'?"
    assert did_you_mean("zzz", ["window"]) == ""
    assert Entry("a", "A", "https://example.org", lambda x: x).options() == {}
