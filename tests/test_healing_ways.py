"""What README and model_cards tell of healing in several ways is what the records say."""

import dataclasses
import re
from pathlib import Path

import pytest

from hf_prune.healing.step import parse_losses
from hf_prune.records import CurvePoint
from tests import healing_ways
from tests.healing_ways import FOLDER, WAYS, Ways

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def found() -> Ways:
    return Ways.load(FOLDER)


def test_readme_shows_the_table(found: Ways) -> None:
    readme = (ROOT / "README.md").read_text()
    shown = re.search(r"<!-- healing ways -->\n(.*?)\n<!-- /healing ways -->", readme, re.DOTALL)
    assert shown is not None
    assert shown.group(1) == healing_ways.render(found)


def test_every_way_is_a_target_and_a_loss() -> None:
    from hf_prune.config import HealingConfig

    for name in WAYS:
        target, loss = name.split("/")
        assert target in healing_ways.RATES
        assert parse_losses(HealingConfig(loss=loss))


def test_all_were_healed_from_the_same_model_on_the_same_text(found: Ways) -> None:
    for count in {len(way.dropped) for way in found.ways}:
        group = [way for way in found.ways if len(way.dropped) == count]
        assert len({way.dropped for way in group}) == 1
        assert len({way.pruned.perplexity[0].nll for way in group}) == 1
        assert len({way.healing.held_out.pruned for way in group if way.seed == 0}) == 1
    assert len({way.healed.perplexity[0].data.sha256 for way in found.ways}) == 1
    for way in found.ways:
        assert way.name == f"{way.healing.settings['target']}/{way.healing.settings['loss']}"
        assert way.healing.settings["learning_rate"] == healing_ways.RATES[way.name.split("/")[0]]


def test_shares_and_means_by_hand(found: Ways) -> None:
    one = found.ways[0]
    held_out = dataclasses.replace(one.healing.held_out, original=2.0, pruned=4.0, merged=3.0)
    curve = (CurvePoint(0, 0, 0.0, 4.0), CurvePoint(9, 90, 3e15, 3.0))
    healing = dataclasses.replace(one.healing, held_out=held_out, curve=curve, seconds=10.0)
    first = dataclasses.replace(one, name="seam/kl", seed=0, budget=90, healing=healing)
    worse = dataclasses.replace(healing, held_out=dataclasses.replace(held_out, merged=3.5), seconds=20.0)
    second = dataclasses.replace(first, seed=1, healing=worse)
    row = healing_ways.render(Ways(found.original, (first, second))).splitlines()[-1]
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells[:4] == [str(len(one.dropped)), "90", "`seam/kl`", "2"]
    assert cells[-3:] == ["38%", "3000.00", "15"]  # (50 % + 25 %) / 2, TFLOP, seconds


def test_curves_begin_where_the_pruned_model_stands(found: Ways) -> None:
    for way in found.ways:
        assert way.healing.curve[0].tokens == 0
        assert way.healing.curve[0].loss == pytest.approx(way.healing.held_out.pruned, rel=2e-2)
    pictures = healing_ways.draw(found, found.ways[0].budget, len(found.ways[0].dropped))
    assert {name for name in pictures} == {path.name for path in FOLDER.glob("*.png")}


def test_a_way_has_a_file_of_its_own(found: Ways) -> None:
    files = [way.file for way in found.ways]
    assert len(set(files)) == len(files)
