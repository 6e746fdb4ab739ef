"""The recipes of one pass, from the text to the plan, on a model of which two blocks write nothing."""

from pathlib import Path

import pytest

from hf_prune import Pruner
from hf_prune.recipes.passes import METHODS
from hf_prune.registry import measure, planner
from hf_prune.units import Unit, layers_of, parts_of

from ..cli.support import planted, recipe

USELESS = (3, 4)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", USELESS)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)
def test_what_is_useless_goes(method, base: Path) -> None:
    parts = parts_of(method.unit)
    size = 2 * len(parts)
    plan = Pruner.from_pretrained(base, recipe(method=method.name, drop_layers=size), progress=False).plan()
    gone = plan.removed
    assert len(gone) == size and {unit.part for unit in gone} == set(parts)
    if method.planner == "clusters":  # gives one of each cluster first
        assert set(layers_of(gone)) <= set(range(1, 7)) and set(layers_of(gone)) & set(USELESS)
    else:
        assert gone == tuple(sorted(Unit(layer, part) for layer in USELESS for part in parts))
    if planner.get(method.planner).needs == "scores":
        assert plan.scores is not None
    assert measure.get(method.measure).needs == "pass" and method.cost != "none"


def test_protections_are_those_of_the_papers() -> None:
    ends = {method.name: (method.protect_first, method.protect_last) for method in METHODS}
    assert {name: end for name, end in ends.items() if end != (0, 0)} == {"lorp": (1, 1), "entrodrop": (2, 1)}
