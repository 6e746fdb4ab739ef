"""The Anatomy tab without a browser: what records say, as text, rows, cells and drawings that are safe in a page."""

import dataclasses
import re
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest

from hf_prune.errors import ConfigError, MeasureError, PruneError
from hf_prune.pictures import COMPARISON_FILE, IMPORTANCE_FILE, LAYERS_FILE, PLOT_FILE, WIDTHS_FILE, pictures
from hf_prune.plotting.drawing import BLUE, GREEN, GREY, ORANGE, VERMILION
from hf_prune.records import Operation
from hf_prune.space.anatomy import anatomy
from hf_prune.space.anatomy_page import page
from hf_prune.space.drawings import drawn
from hf_prune.space.layer_map import Cell, layer_map
from hf_prune.space.record_checks import MOST_LAYERS, MOST_ROWS, check_scores
from tests.space.records import CARDS, card_pair, deeper, demo_pair, with_records

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)> **b** [x](javascript:a) ${7*7} {{7*7}} \u202e\x07\x00"
_TAGS = {
    "a", "b", "caption", "code", "dd", "details", "div", "dl", "dt", "figcaption", "figure", "h3", "i", "li", "p",
    "section", "small", "span", "summary", "table", "tbody", "td", "th", "thead", "tr", "ul",
    "svg", "g", "defs", "path", "use", "rect", "clippath", "pattern", "image",
}  # fmt: skip


class Seen(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.attributes, self.text = set(), [], ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def readable(table):
    """Cells of a card's table, as text."""
    return [re.sub(r"\\([_*~\[\]])", r"\1", cell.strip()) for cell in table.strip("|").split("|")]


@pytest.mark.parametrize("name", ["uidl-pruned", "uidl-healed", "sliced"])
def test_figures_are_those_of_the_rendered_card(name):
    card = (CARDS / name / "README.md").read_text()
    found = anatomy(card_pair(name))
    rows = [readable(line) for line in card.splitlines() if line.startswith("| ")]
    assert found.figures is not None and len(found.figures.rows) > 10
    for row in found.figures.rows:
        assert list(row) in rows
    for row in found.stations:
        assert list(row) in rows
    for warning in found.warnings:
        assert f"> - {warning}" in card
    assert found.reason in card.replace("\\", "") and found.runner_up in card
    assert found.worse is not None and all(
        f"**{name}**: {before} → {after}" in card for name, before, after, _ in found.worse
    )


def test_the_layer_map_tells_what_became_of_each_layer():
    pruned, healed = (anatomy(card_pair(name)) for name in ("uidl-pruned", "uidl-healed"))
    assert [cell.state for cell in pruned.cells] == ["kept"] * 4 + ["removed"] * 3 + ["kept"] * 5
    assert [cell.state for cell in healed.cells] == ["healed"] * 4 + ["removed"] * 3 + ["healed"] * 5
    assert pruned.cells[0].detail.startswith("angular distance across the layer 0.")
    assert healed.alt.endswith("kept and healed 0–3, 7–11; removed 4–6.")
    assert set(pruned.drawings) == {PLOT_FILE, IMPORTANCE_FILE, COMPARISON_FILE}
    assert healed.healing and not pruned.healing


def test_a_sliced_model_shows_its_widths():
    pair = card_pair("sliced")
    found = anatomy(pair)
    assert [cell.figure for cell in found.cells] == list(map(str, pair.records.plan.slicing.widths))
    assert {cell.state for cell in found.cells} == {"kept", "narrowed"}
    assert set(found.drawings) == {WIDTHS_FILE, IMPORTANCE_FILE, COMPARISON_FILE}
    assert ("Asked to cut", "25.0% of the width") in found.slicing
    assert "What was narrowed" in page(found)


def test_a_model_that_was_not_measured_says_so():
    pair = card_pair("uidl-pruned")
    plan = dataclasses.replace(
        pair.records.plan, method="simple", planner="before_last", distance=None, runner_up=None, gap=None, scores=None
    )
    bare = with_records(pair, "d" * 40, plan=plan, scores=None, evaluation=None)
    text = Seen(page(anatomy(bare))).text
    assert "Nothing was measured" in text and "not evaluated" in text and "not trained after the cut" in text


def hostile_pair():
    pair = card_pair("uidl-healed")
    records = pair.records
    texts = tuple(
        dataclasses.replace(
            model,
            dtype=HOSTILE,
            perplexity=tuple(
                dataclasses.replace(p, name=HOSTILE, data=dataclasses.replace(p.data, dataset=HOSTILE, split=HOSTILE))
                for p in model.perplexity
            ),
        )
        for model in records.evaluation.models
    )
    place = dataclasses.replace(records.evaluation.environment, hardware=HOSTILE, dtype=HOSTILE)
    return with_records(
        pair,
        "e" * 40,
        plan=dataclasses.replace(
            records.plan, reason=HOSTILE, model=dataclasses.replace(records.plan.model, id=HOSTILE)
        ),
        scores=dataclasses.replace(
            records.scores, measure=HOSTILE, data=dataclasses.replace(records.scores.data, dataset=HOSTILE)
        ),
        healing=dataclasses.replace(
            records.healing,
            quantization=HOSTILE,
            target_modules=(HOSTILE,),
            warnings=(HOSTILE,),
            environment=dataclasses.replace(records.healing.environment, hardware=HOSTILE),
        ),
        evaluation=dataclasses.replace(records.evaluation, models=texts, environment=place),
    )


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font:UserWarning")
def test_names_of_strangers_stay_text():
    html = page(anatomy(hostile_pair()))
    seen = Seen(html)
    assert seen.tags <= _TAGS
    assert not [name for name, _ in seen.attributes if name.startswith("on")]
    links = [value for name, value in seen.attributes if name in ("href", "src")]
    assert links and all(value.startswith(("#d", "data:image/png;base64,", "https://arxiv.org/")) for value in links)
    assert "<script>alert(1)</script>" in seen.text and "**b**" in seen.text
    assert not set(html) & set("\u202e\x07\x00")


# --- drawings


@pytest.mark.parametrize("name", ["uidl-healed", "sliced"])
def test_drawings_are_shapes_in_the_colours_of_the_page(name):
    records = card_pair(name).records
    made = pictures(records.plan, records.scores, records.healing, records.evaluation)
    seen = []
    for picture in made.values():
        before = picture.draw()
        svg = picture.draw("svg")
        assert svg == picture.draw("svg"), "the same bytes for the same drawing"
        assert picture.draw() == before and before.startswith(b"\x89PNG"), "the card's picture is what it was"
        root = ElementTree.fromstring(svg)
        elements = list(root.iter())
        assert {e.tag.split("}")[1].lower() for e in elements} <= _TAGS
        assert root.get("viewBox") and root.get("width") is None and root.get("fill") == "currentColor"
        styles = " ".join(e.get("style", "") for e in elements)
        assert ("--paper" in styles) == (picture.file == LAYERS_FILE), "the page's own background shows through"
        assert "#000000" not in styles and "fill: #ffffff" not in styles and "currentColor" in styles
        assert "http" not in re.sub(rb'xmlns="[^"]*"', b"", svg).decode() and b"<!--" not in svg
        ids = [e.get("id") for e in elements if e.get("id")]
        assert len(ids) == len(set(ids))
        pointed = {m for e in elements for v in e.attrib.values() for m in re.findall(r"#(d[0-9a-f]{10}-\d+)", v)}
        assert pointed <= set(ids)
        seen += ids
    assert len(seen) == len(set(seen)), "no drawing points into another one"


def luminance(colour):
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one, other):
    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_colours_are_seen_in_the_dark_and_numbers_on_cells_are_read():
    dark = "#121922"
    css = (CARDS.parent / "hf_prune/space/css/base.css").read_text()
    assert f"--hp-paper: {dark}" in css.split(".dark")[1]
    for colour in (BLUE, ORANGE, GREEN, VERMILION, GREY):
        assert contrast(colour, dark) >= 3
    sheet = (CARDS.parent / "hf_prune/space/css/anatomy.css").read_text()
    cells = re.findall(r"--anatomy-\w+: (#\w{6})", sheet)
    assert len(cells) == 5 and all(contrast(colour, "#ffffff") >= 4.5 for colour in cells)


def test_each_drawing_is_described_and_scrolls_in_its_own_box():
    html = page(anatomy(card_pair("uidl-healed")))
    boxes = re.findall(r'<div class="anatomy-scroll" tabindex="0" role="img" aria-label="([^"]+)">', html)
    assert len(boxes) == 3 and any(text.startswith("Heat map: angular distance") for text in boxes)
    assert html.count("<svg") == html.count('aria-hidden="true" fill') == 3


def test_drawings_are_made_once_a_commit():
    pair = card_pair("uidl-healed")
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(drawn, [pair] * 8))
    assert all(drawings is found[0] for drawings in found)
    assert drawn(with_records(pair, "f" * 40)) is not found[0]
    for number in range(40):
        drawn(with_records(pair, f"{number:040}", scores=None, evaluation=None))
    assert drawn(pair) is not found[0], "those not looked at for long are forgotten"


# --- records that can't be


def test_tables_that_are_not_whole_are_refused():
    scores = card_pair("uidl-pruned").records.scores
    for changes in (
        {"distances": scores.distances[:-1]},
        {"distances": (scores.distances[0][:-1], *scores.distances[1:])},
        {"standard_errors": ()},
        {"distances": (), "standard_errors": scores.standard_errors[:3]},
    ):
        with pytest.raises(ConfigError, match="expected 13 rows of 13"):
            check_scores(dataclasses.replace(scores, **changes))
    check_scores(scores)


def test_records_that_contradict_each_other_or_are_too_large_are_refused():
    pair = card_pair("uidl-healed")
    records = pair.records
    models = records.evaluation.models
    broken = dataclasses.replace(models[1], label="<b>")
    huge = dataclasses.replace(models[1], perplexity=models[1].perplexity * (MOST_ROWS + 1))
    negative = dataclasses.replace(
        models[1], perplexity=(dataclasses.replace(models[1].perplexity[0], perplexity=-1.0),)
    )
    endless = dataclasses.replace(models[1], bytes=10**400)
    for changes, error, words in (
        (
            {"evaluation": dataclasses.replace(records.evaluation, models=(models[0], broken))},
            ConfigError,
            "original, p",
        ),
        ({"evaluation": dataclasses.replace(records.evaluation, models=(models[0], huge))}, ConfigError, "501 texts"),
        (
            {"evaluation": dataclasses.replace(records.evaluation, models=(models[0], negative))},
            MeasureError,
            "above z",
        ),
        (
            {"evaluation": dataclasses.replace(records.evaluation, models=(models[0], endless))},
            ConfigError,
            "Overflow",
        ),
        ({"plan": dataclasses.replace(records.plan, operations=(Operation("drop", (99,)),))}, ConfigError, "99"),
        ({"plan": dataclasses.replace(records.plan, operations=())}, ConfigError, "removes no layer"),
        ({"plan": dataclasses.replace(records.plan, method="magic")}, ConfigError, "unknown method"),
        ({"reload_level": "never" * 10_000}, ConfigError, "reload_level"),
    ):
        with pytest.raises(error, match=words) as said:
            anatomy(with_records(pair, "9" * 40, **changes))
        assert len(str(said.value)) <= 500
    with pytest.raises(ConfigError, match=f"page shows models of 1 to {MOST_LAYERS}"):
        anatomy(deeper(pair, MOST_LAYERS + 1))


def test_every_failure_is_one_that_a_visitor_is_told():
    pair = card_pair("uidl-healed")
    odd = with_records(pair, "8" * 40, healing=dataclasses.replace(pair.records.healing, target_modules=(3,)))
    with pytest.raises(PruneError, match="org/uidl-healed' can't be shown"):
        anatomy(odd)


# --- layer map


def test_a_map_of_80_layers_is_one_picture_in_words():
    found = anatomy(deeper(card_pair("uidl-pruned"), 80))
    html = layer_map(found.cells, found.alt)
    assert html.count("layers-cell layers-kept") == 77 + 1 and html.count("layers-cell layers-removed") == 3 + 1
    assert 'role="img" aria-label="Map of the base model&#x27;s 80 layers' in html
    assert re.findall(r"<b>(\d+)</b>", html) == list(map(str, range(80)))


def test_cells_keep_text_as_text():
    html = layer_map([Cell(0, "kept", HOSTILE, HOSTILE)], HOSTILE)
    assert Seen(html).tags <= {"div", "span", "b", "small", "p", "i"} and "\u202e" not in html


def test_the_demo_is_shown():
    found = anatomy(demo_pair())
    assert len(found.cells) == 12 and sum(cell.state == "removed" for cell in found.cells) == 4
    assert set(found.drawings) == {PLOT_FILE, IMPORTANCE_FILE, COMPARISON_FILE}
    assert len(page(found)) < 400_000
