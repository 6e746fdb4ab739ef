import dataclasses
import io
import math

import numpy as np
import pytest
from matplotlib.image import imread

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.layer_states import layer_states
from hf_prune.pictures import pictures
from hf_prune.plots import (
    plot_comparison,
    plot_distances,
    plot_importance,
    plot_layer_map,
    plot_widths,
    windows_matrix,
)
from hf_prune.plotting.figures import Bar, PerLayer, per_layer, ratios
from hf_prune.records import Environment, ModelRef, Operation, Plan, Scores, Slicing, TaskResult, TextUse
from tests import test_cards as cards


def scores(layers=6, **changes):
    positions = [0.0, 0.1, 0.3, 0.35, 0.37, 0.7, 1.0, 1.1][: layers + 1]
    distances = tuple(tuple(abs(a - b) for b in positions) for a in positions)
    made = Scores(
        model=ModelRef("org/base", None, "llama", layers),
        measure="angular",
        options={},
        distances=distances,
        standard_errors=distances,
        data=TextUse(None, None, None, None, 8, 100, 16, 0, "ab"),
        environment=Environment("CPU", {}, "float32", "cpu"),
        seconds=1.0,
    )
    return dataclasses.replace(made, **changes)


def plan(*dropped, layers=6):
    model = ModelRef("org/base", None, "llama", layers)
    return Plan(model, "uidl", "window", (Operation("drop", dropped),), "closest")


def pixels(png):
    return imread(io.BytesIO(png), format="png")


def test_matrix_holds_each_window_once():
    matrix = windows_matrix(scores())
    assert matrix.shape == (6, 6)
    assert matrix[0].tolist() == pytest.approx([0.1, 0.2, 0.05, 0.02, 0.33, 0.3])
    assert matrix[1, 2] == pytest.approx(0.07)
    assert matrix[5, 0] == pytest.approx(1.0)
    assert np.isnan(matrix).sum() == 15


def test_picture_is_a_png_that_depends_on_the_figures_alone():
    first = plot_distances(scores(), plan(2, 3))
    assert first.startswith(b"\x89PNG\r\n\x1a\n") and len(first) < 200_000
    assert first == plot_distances(scores(), plan(2, 3))
    assert pixels(first).std() > 0.05


def red(png):
    """Rows and columns of the pixels of the mark."""
    image = pixels(png)
    return np.argwhere((image[..., 0] > 0.95) & (image[..., 1] < 0.05) & (image[..., 2] < 0.05))


def test_the_removed_run_is_marked_where_it_stands():
    near = red(plot_distances(scores(), plan(0, 1)))
    far = red(plot_distances(scores(), plan(4, 5)))
    high = red(plot_distances(scores(), plan(0, 1, 2, 3)))
    assert len(near) > 50 and len(far) > 50 and len(high) > 50
    assert far[:, 1].mean() > near[:, 1].mean() + 100  # further to the right: a later start
    assert high[:, 0].mean() < near[:, 0].mean() - 50  # further up: a longer run


def test_scattered_layers_have_no_mark():
    assert len(red(plot_distances(scores(), plan(1, 4)))) == 0


def test_hostile_measure_name_is_plain_text():
    assert plot_distances(scores(measure="$\\frac{$ <b>"), plan(2)).startswith(b"\x89PNG")


def test_bad_records_are_refused():
    with pytest.raises(ConfigError, match="6 layers, the plan of one with 8"):
        plot_distances(scores(), plan(1, layers=8))
    broken = [list(row) for row in scores().distances]
    broken[2][4] = math.nan
    with pytest.raises(MeasureError, match="the distance of 2 layers from layer 2 is nan"):
        plot_distances(scores(distances=tuple(map(tuple, broken))), plan(1))


# --- widths of a sliced model


def slicing(widths=(96, 64, 48, 48, 32, 80), redundancy=None, attn_out=None):
    after = (*widths[1:], 96)
    attn_out = widths if attn_out is None else attn_out
    counts = (1000, 900, 100)
    return Slicing(96, widths[0], attn_out, after, "per_block", False, False, 0.3, "width", *counts, None, redundancy)


def coloured(png, red, green, blue):
    """Rows and columns of the pixels of one colour."""
    return np.argwhere(np.abs(pixels(png)[..., :3] * 255 - (red, green, blue)).max(-1) < 3)


BLUE, ORANGE = (0, 114, 178), (230, 159, 0)


def test_widths_are_a_png_that_depends_on_the_figures_alone():
    first = plot_widths(slicing())
    assert first.startswith(b"\x89PNG\r\n\x1a\n") and len(first) < 200_000
    assert first == plot_widths(slicing())
    assert first != plot_widths(slicing((96, 64, 48, 48, 40, 80)))
    assert pixels(first).std() > 0.05


def test_each_bar_is_as_high_as_its_layer_is_wide():
    columns = {}
    for _, column in coloured(plot_widths(slicing()), *BLUE):
        columns[column] = columns.get(column, 0) + 1
    # The legend's patch is left out: it is far lower than the lowest bar.
    bars = [columns[c] for c in sorted(columns) if columns[c] > 60]
    runs = [bars[0], *(b for a, b in zip(bars, bars[1:], strict=False) if abs(a - b) > 5)]
    assert [height / runs[0] * 96 for height in (max(bars), min(bars))] == pytest.approx([96, 32], abs=3)


def test_redundancy_has_its_own_axis_where_there_is_one():
    assert len(coloured(plot_widths(slicing()), *ORANGE)) == 0
    rising = coloured(plot_widths(slicing(redundancy=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0))), *ORANGE)
    rising = rising[rising[:, 0] < rising[:, 0].max() - 60]  # without the legend
    assert len(rising) > 100
    left, right = rising[rising[:, 1] < 300], rising[rising[:, 1] > 500]
    assert right[:, 0].mean() < left[:, 0].mean() - 50  # higher up


def test_parallel_blocks_and_single_layers_have_a_picture():
    assert plot_widths(slicing(attn_out=())).startswith(b"\x89PNG")
    assert plot_widths(slicing((64,))).startswith(b"\x89PNG")


def test_hostile_title_is_plain_text():
    assert plot_widths(slicing(), "$\\frac{$ <b>").startswith(b"\x89PNG")


def test_bad_redundancy_is_refused():
    with pytest.raises(ConfigError, match="redundancy is of 2 layers, the widths are of 6"):
        plot_widths(slicing(redundancy=(0.0, 1.0)))
    with pytest.raises(MeasureError, match="redundancy of the layers"):
        plot_widths(slicing(redundancy=(0.0, 0.2, math.nan, 0.6, 0.8, 1.0)))


# --- importance of each layer

VERMILION, GREEN, GREY = (213, 94, 0), (0, 158, 115), (153, 153, 153)


def exact(**changes):
    """Distances without standard errors worth drawing: across one layer 0.1, 0.2, 0.05, 0.02, 0.33 and 0.3."""
    made = scores(**changes)
    return dataclasses.replace(made, standard_errors=((0.0,) * 7,) * 7)


def heights(png, *colour, below=0):
    """Height of each run of columns that hold a colour, from left to right, in pixels; of rows from `below`."""
    found = [place for place in coloured(png, *colour) if place[0] >= below]
    spans = {}
    for row, column in found:
        low, high = spans.get(column, (row, row))
        spans[column] = (min(low, row), max(high, row))
    runs, last = [], None
    for column in sorted(spans):
        if last is None or column > last + 3:
            runs.append([])
        runs[-1].append(spans[column][1] - spans[column][0])
        last = column
    return [max(run) for run in runs if len(run) > 4]


def test_importance_has_one_bar_a_layer_as_high_as_its_distance():
    png = plot_importance(exact(), plan(2, 3))
    bars = heights(png, *BLUE, below=40)  # without the legend
    assert [bar / max(bars) * 0.33 for bar in bars] == pytest.approx([0.1, 0.2, 0.33, 0.3], abs=0.01)
    assert len(coloured(png, *VERMILION)) > 200


def test_importance_without_removed_layers_has_one_colour():
    assert len(coloured(plot_importance(exact(), plan()), *VERMILION)) == 0


def test_standard_errors_are_drawn():
    spread = tuple(tuple(0.05 for _ in row) for row in exact().distances)
    with_bars = plot_importance(dataclasses.replace(exact(), standard_errors=spread), plan(2))
    # The tallest bar is lower in the picture, as its error bar needs room above it.
    plain = plot_importance(exact(), plan(2))
    assert max(heights(with_bars, *BLUE, below=40)) < max(heights(plain, *BLUE, below=40)) - 10


def layer_scores(values=(0.1, 0.9, 0.5, 0.5, 0.2, 0.3), errors=(0.01,) * 6):
    empty = {"distances": (), "standard_errors": ()}
    return dataclasses.replace(scores(), measure="redundancy", layers=values, layer_standard_errors=errors, **empty)


def test_layer_scores_are_drawn_as_they_are():
    bars = heights(plot_importance(layer_scores(errors=()), plan()), *BLUE)
    assert [bar / max(bars) * 0.9 for bar in bars] == pytest.approx([0.1, 0.9, 0.5, 0.5, 0.2, 0.3], abs=0.01)
    values = (0.1, 0.9, 0.5, 0.5, 0.2, 0.3)
    assert per_layer(layer_scores()) == (PerLayer("block", values, (0.01,) * 6, "redundancy of the layer"),)
    assert per_layer(layer_scores((), ())) == ()


def importances(**rows):
    empty = {"distances": (), "standard_errors": ()}
    return dataclasses.replace(scores(), measure="block_influence", importances=rows, **empty)


def silence(part, *layers):
    return Operation("silence", layers, {"part": part})


def test_importances_are_drawn_one_panel_a_part_with_what_went_marked():
    values = (0.4, 0.1, 0.2, 0.3, 0.8, 0.6)
    one = plot_importance(importances(block=values), plan(1, 2))
    bars = heights(one, *BLUE, below=40)
    assert [bar / max(bars) * 0.8 for bar in bars] == pytest.approx([0.4, 0.3, 0.8, 0.6], abs=0.01)
    joint = importances(attention=values, mlp=values[::-1])
    gone = dataclasses.replace(plan(), operations=(silence("attention", 1), silence("mlp", 4), plan(3).operations[0]))
    two = plot_importance(joint, gone)
    assert len(pixels(two)) > len(pixels(one)) + 200
    # Of attention 1 and 3 (which went with its block), of the MLPs 3 and 4.
    middle = len(pixels(two)) // 2
    spots = coloured(two, *VERMILION)
    for upper, wanted in ((True, 2), (False, 2)):
        columns = sorted({c for r, c in spots if 40 < r and (r < middle) == upper})
        assert 1 + sum(b > a + 8 for a, b in zip(columns, columns[1:], strict=False)) == wanted
    rows = per_layer(joint)
    assert [row.name for row in rows] == ["block_influence of the attention", "block_influence of the MLP"]


def test_importances_may_be_negative_and_missing():
    made = importances(mlp=(None, -0.5, 0.5, None, 0.1, 0.2))
    assert per_layer(made)[0].known == {1: -0.5, 2: 0.5, 4: 0.1, 5: 0.2}
    drop = dataclasses.replace(plan(), operations=(silence("mlp", 1),))
    assert texts(drop, made, None, None) == {
        "layers.png": "Map of the base model's 6 layers, counted from 0: kept 0, 2–5; MLP silenced 1.",
        "importance.png": "Bars, one a layer: block_influence of the MLP, from -0.5000 (layer 1) to 0.5000 (layer 2). "
        "Marked as removed: 1.",
    }
    assert plot_importance(made, drop).startswith(b"\x89PNG")
    # Nothing scored at all is no picture, and no error.
    assert "importance.png" not in texts(drop, importances(mlp=(None,) * 6), None, None)
    with pytest.raises(ConfigError, match="hold no figure of any layer"):
        plot_importance(importances(mlp=(None,) * 6), drop)


def test_importances_go_before_distances():
    both = dataclasses.replace(exact(), importances={"block": (1.0,) * 6})
    assert per_layer(both)[0].name == "angular of the layer"
    assert list(pictures(plan(2), both, None, None)) == ["layers.png", "scores.png", "importance.png"]


@pytest.mark.parametrize(
    ("rows", "error", "words"),
    [
        ({"block": (0.1,) * 5}, ConfigError, "importances of 5 layers"),
        ({"head": (0.1,) * 6}, ConfigError, "importances of 'head'"),
        ({"block": (0.1, math.nan, 0.1, 0.1, 0.1, 0.1)}, MeasureError, "importances of nan"),
        ({"mlp": (math.inf,) * 6}, MeasureError, "finite numbers"),
    ],
)
def test_bad_importances_are_one_error(rows, error, words):
    with pytest.raises(error, match=words):
        per_layer(importances(**rows))
    with pytest.raises(error, match=words):
        pictures(plan(2), importances(**rows), None, None)
    wrong = dataclasses.replace(importances(block=(0.1,) * 6), importance_errors={"mlp": (0.1,) * 6})
    with pytest.raises(ConfigError, match="standard errors of 'mlp'"):
        per_layer(wrong)


def test_bad_importance_is_refused():
    with pytest.raises(ConfigError, match="hold 2 layers and 6 standard errors; the model has 6"):
        plot_importance(layer_scores((0.1, 0.2)), plan())
    with pytest.raises(MeasureError, match="expected finite numbers"):
        plot_importance(layer_scores((0.1, math.inf, 0.5, 0.5, 0.2, 0.3)), plan())
    with pytest.raises(ConfigError, match="6 layers, the plan of one with 8"):
        plot_importance(layer_scores(), plan(layers=8))


# --- layer map


def cells(png, *colour):
    """Cells of a colour in the first row of the map, counted just below their upper edge."""
    found = coloured(png, *colour)
    columns = sorted(column for row, column in found if row == found[:, 0].min() + 3)
    return sum(b > a + 8 for a, b in zip(columns, columns[1:], strict=False)) + bool(columns)


def test_layer_map_shows_what_stayed():
    assert cells(plot_layer_map(plan(2, 3), False), *BLUE) == 4
    assert cells(plot_layer_map(plan(0, 1, 2, 3, 4), False), *BLUE) == 1
    assert cells(plot_layer_map(plan(20, layers=40), False), *BLUE) == 16


def test_silenced_and_changed_layers_have_a_look_of_their_own():
    operations = (
        silence("attention", 1, 2),
        silence("mlp", 2),
        Operation("scale", (4,), {"weights": ["mlp.down_proj.weight"], "factor": 0.8}),
        Operation("drop", (3,)),
    )
    mixed = dataclasses.replace(plan(), operations=operations)
    png = plot_layer_map(mixed, False)
    assert (cells(png, *BLUE), cells(png, *ORANGE), cells(png, *GREY), cells(png, 86, 180, 233)) == (2, 1, 1, 1)
    assert texts(mixed, None, None, None)["layers.png"] == (
        "Map of the base model's 6 layers, counted from 0: kept 0, 5; weights changed 4; attention silenced 1; "
        "attention and MLP silenced 2; removed 3."
    )
    assert layer_states(mixed) == (
        "kept", "attention silenced", "attention and MLP silenced", "removed", "weights changed", "kept",
    )  # fmt: skip


def test_healed_layers_have_their_own_look():
    healed, pruned = plot_layer_map(plan(2), True), plot_layer_map(plan(2), False)
    assert len(coloured(healed, *BLUE)) == len(coloured(pruned, *GREEN)) == 0
    assert cells(healed, *GREEN) >= 5


# --- side by side


def top(png, colour):
    """Height of a colour's bar in the left panel, in pixels."""
    found = coloured(png, *colour)
    inside = found[(found[:, 1] < 300) & (found[:, 0] < 380)]  # without the legend
    rows, counts = np.unique(inside[:, 0], return_counts=True)
    broad = rows[counts > 20]  # letters have grey edges too
    return broad.max() - broad.min()


def models(*nlls, **changes):
    labels = ("original", "pruned", "healed")
    return cards.evaluation(*(cards.model(label, nll, **changes) for label, nll in zip(labels, nlls, strict=False)))


def test_bars_are_as_high_as_the_perplexities():
    png = plot_comparison(models(3.0, 3.5, 3.25))
    grey = top(png, GREY)
    assert top(png, ORANGE) / grey == pytest.approx(math.exp(0.5), rel=0.03)
    assert top(png, GREEN) / grey == pytest.approx(math.exp(0.25), rel=0.03)
    assert len(coloured(plot_comparison(models(3.0, 3.5)), *GREEN)) == 0


def test_far_perplexities_have_a_logarithmic_axis():
    png = plot_comparison(models(3.0, 9.0))
    assert top(png, ORANGE) / top(png, GREY) < 20


def test_benchmarks_have_a_row_of_their_own():
    results = [TaskResult("boolq", "acc", "none", v, 0.01, True, True, 0, 9, None, "1") for v in (0.8, 0.4)]
    made = models(3.0, 3.5)
    made = cards.evaluation(*(dataclasses.replace(m, tasks=(r,)) for m, r in zip(made.models, results, strict=True)))
    with_tasks = plot_comparison(made, [("boolq", "acc", "none")])
    assert len(pixels(with_tasks)) > len(pixels(plot_comparison(made))) + 300
    lower = [p for p in coloured(with_tasks, *GREY) if 400 < p[0] < 730]
    assert len(lower) > 500


def test_hostile_text_names_are_plain_text():
    text = dataclasses.replace(cards.perplexity(), name="$\\frac{$ <b>")
    made = cards.evaluation(*(cards.model(label, perplexity=(text,)) for label in ("original", "pruned")))
    assert plot_comparison(made).startswith(b"\x89PNG")


def test_figures_are_relative_to_the_original():
    found = dict(ratios(models(3.0, 3.5)))
    assert [(bar.label, bar.value) for bar in found["weights"]] == [("original", 1.0), ("pruned", 8.4e6 / 11_010_048)]
    assert found["prefill"][1] == Bar("pruned", 1.0, 0.1, 0.1)  # 1000, of 900 to 1100, against a median of 1000
    assert list(dict(ratios(models(3.0, 3.5, speed=None)))) == ["weights"]
    assert ratios(cards.evaluation(cards.model("pruned"))) == []


# --- all of a card's


def texts(*records):
    return {name: picture.alt for name, picture in pictures(*records).items()}


def test_alternative_texts_tell_the_figures():
    assert texts(plan(2, 3), exact(), None, None) == {
        "layers.png": "Map of the base model's 6 layers, counted from 0: kept 0–1, 4–5; removed 2–3.",
        "scores.png": "Heat map: angular distance between the input and the output of every run of layers, by first "
        "layer and by number of layers. Removed: layers 2–3.",
        "importance.png": "Bars, one a layer with its standard error: angular distance across the layer, from "
        "0.02000 ± 0.00000 (layer 3) to 0.3300 ± 0.0000 (layer 4). Marked as removed: 2–3.",
    }
    assert texts(plan(2), None, cards.healing(), models(3.0, 3.5)) == {
        "layers.png": "Map of the base model's 6 layers, counted from 0: kept and healed 0–1, 3–5; removed 2.",
        "comparison.png": "Bars with error bars. Perplexity: The Time Machine: original 20.09, pruned 33.12. Size and "
        "speed, original = 1: weights: original 1.000, pruned 0.7629; prefill: original 1.000, pruned 1.000; decode: "
        "original 1.000, pruned 1.000.",
    }
    sliced = dataclasses.replace(plan(), slicing=slicing(), operations=())
    assert texts(sliced, layer_scores(errors=()), None, cards.evaluation(cards.model("pruned"))) == {
        "widths.png": "Width of the residual stream in each of 6 layers: 96, 64, 48, 48, 32, 80, of 96 before "
        "slicing.",
        "importance.png": "Bars, one a layer: redundancy of the layer, from 0.1000 (layer 0) to 0.9000 (layer 1).",
    }


def test_every_picture_draws_itself_and_is_as_wide_as_a_card():
    found = pictures(plan(2, 3), exact(), cards.healing(), models(3.0, 3.5, 3.2))
    assert list(found) == ["layers.png", "scores.png", "importance.png", "comparison.png"]
    for picture in found.values():
        png = picture.draw()
        assert pixels(png).shape[1] == 840 and len(png) < 150_000
        assert png == picture.draw()
