"""The rendered cards in `model_cards/` are those that their records make with the code as it is."""

import hashlib
import json
import re
import shutil

import pytest

from hf_prune import PrunerConfig, demo, serial
from hf_prune.card_check import check_card
from hf_prune.config import HealingConfig
from hf_prune.output import Finished, card_text
from hf_prune.pictures import pictures
from hf_prune.sweeping.record import Sweep, perplexity_ratio
from hf_prune.sweeping.table import CSV_FILE, as_csv
from tests.cards import CARDS, MADE, NAMES, folders, render

README = (CARDS.parent / "README.md").read_text(encoding="utf-8")


def finished(folder):
    return Finished.load(folder)


@pytest.mark.parametrize("name", NAMES)
def test_card_is_what_its_records_make(name):
    """Where this fails, `python -m tests.cards --render` brings the cards up to date, `make cards` the records too."""
    folder = CARDS / name
    assert (folder / "README.md").read_text(encoding="utf-8") == card_text(folder, finished(folder))
    assert check_card(folder) == []


@pytest.mark.parametrize("made", MADE, ids=[made.pruned for made in MADE])
def test_records_are_of_the_models_that_the_folders_are_named_after(made):
    for name in filter(None, (made.pruned, made.healed)):
        found, heal = finished(CARDS / name), name == made.healed
        assert found.config.method == found.plan.method == made.changes["method"]
        assert found.plan.model.id == demo.NAME and found.plan.model.num_layers == 12
        assert (found.plan.slicing is not None) == (name == "sliced") and (found.healing is not None) == heal
        assert [m.label for m in found.evaluation.models] == ["original", "pruned", *["healed"] * heal]
        assert found.reload_level == "full"


@pytest.mark.parametrize("name", NAMES)
def test_pictures_lie_beside_the_card_and_nothing_else_does(name):
    found = finished(CARDS / name)
    drawn = pictures(found.plan, found.scores, found.healing, found.evaluation)
    files = {path.relative_to(CARDS / name).as_posix(): path for path in (CARDS / name).rglob("*") if path.is_file()}
    assert {file for file in files if file.endswith(".png")} == set(drawn)
    assert all(files[file].read_bytes().startswith(b"\x89PNG") for file in drawn)
    rest = {"README.md", "pruner_config.json", "pruning/plan.json", "pruning/output.json", "pruning/evaluation.json"}
    rest |= {"pruning/scores.json"} if found.scores else set()
    rest |= {"pruning/healing.json"} if found.healing else set()
    assert set(files) == rest | set(drawn)


def test_cards_are_small_and_name_no_machine():
    files = [path for folder in folders() for path in folder.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 1_500_000
    for path in files:
        if path.suffix in (".json", ".md"):
            assert not re.search(
                r"/(home|root|tmp|work|Users)/|\bhf_[A-Za-z0-9]{30,}", path.read_text(encoding="utf-8")
            )


def test_the_card_of_the_embedded_model_has_the_facts_of_its_files():
    text = (CARDS / f"{demo.NAME}.md").read_text(encoding="utf-8")
    folder = demo.model_folder()
    weights = (folder / "model.safetensors").read_bytes()
    config = json.loads((folder / "config.json").read_text())
    header = json.loads(weights[8 : 8 + int.from_bytes(weights[:8], "little")])
    counts = [
        (entry["data_offsets"][1] - entry["data_offsets"][0]) // 2 for key, entry in header.items() if key[0] != "_"
    ]
    assert {entry["dtype"] for key, entry in header.items() if key[0] != "_"} == {"BF16"}
    assert f"| parameters | {sum(counts):,}, bf16" in text
    assert hashlib.sha256(weights).hexdigest() in text
    assert (
        f"{config['num_hidden_layers']} layers, hidden {config['hidden_size']}, {config['num_attention_heads']} heads"
        in text
    )
    assert [finding for finding in check_card(folder) if finding.level == "error"] == []


def test_rendering_makes_the_same_cards_and_draws_the_pictures(tmp_path):
    for name in NAMES:
        shutil.copytree(CARDS / name, tmp_path / name, ignore=shutil.ignore_patterns("*.png", "README.md"))
    render(tmp_path)
    for folder in folders():
        copy = tmp_path / folder.name
        assert (copy / "README.md").read_bytes() == (folder / "README.md").read_bytes()
        assert {path.name for path in copy.glob("*.png")} == {path.name for path in folder.glob("*.png")}


def readme_rows(head):
    """Cells of the table of README that begins so, without its first column."""
    table = README.partition(head)[2].partition("\n\n")[0]
    return [line.strip("| ").split(" | ")[1:] for line in table.splitlines()[2:]]


@pytest.mark.parametrize("name", ["sweep", "sweep-healed"])
def test_the_table_of_a_sweep_is_what_its_record_says(name):
    record = Sweep.load(CARDS / name)
    assert (CARDS / name / CSV_FILE).read_text(encoding="utf-8") == as_csv(record)
    assert {path.name for path in (CARDS / name).glob("*.png")} == {picture.file for picture in record.pictures}
    recipe = PrunerConfig.from_pretrained(CARDS / "sweep").to_dict()
    assert {k: recipe["calibration"][k] for k in ("dataset", "samples", "max_length")} == {
        k: record.config["calibration"][k] for k in ("dataset", "samples", "max_length")
    }
    if record.heal:
        # Settings that came later than the record are at their defaults, under which it was made.
        assert serial.to_dict(serial.from_dict(HealingConfig, record.config["healing"])) == recipe["healing"]


def test_readme_shows_what_the_record_of_the_sweep_says():
    record = Sweep.load(CARDS / "sweep")
    rows = readme_rows("| layers, or as large a share of the width |")
    knees = {knee.point for knee in record.knees}
    for column, method in enumerate(record.methods):
        for row, point in zip(rows, [p for p in record.points if p.method == method], strict=True):
            ratio, _, rest = row[column].partition(" ")
            assert float(ratio) == pytest.approx(perplexity_ratio(point.pruned, record.original), abs=0.00501)
            if rest:
                share = float(re.search(r"[−+][\d.]+", rest)[0].replace("−", "-"))
                assert share == pytest.approx(-100 * point.share_removed, abs=0.0501)
            assert ("knee" in rest) == (point.name in knees)


def test_readme_shows_what_the_record_of_the_healed_sweep_says():
    record = Sweep.load(CARDS / "sweep-healed")
    rows = readme_rows("ratio before → after; [model_cards/sweep-healed](model_cards/sweep-healed/sweep.csv)):\n\n")
    for column, method in enumerate(record.methods):
        for row, point in zip(rows, [p for p in record.points if p.method == method], strict=True):
            shown = [float(cell) for cell in row[column].split(" → ")]
            exact = [perplexity_ratio(figures, record.original) for figures in (point.pruned, point.healed)]
            assert shown == pytest.approx(exact, abs=0.00501)
