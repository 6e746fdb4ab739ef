import dataclasses
import io
import math

import numpy as np
import pytest
from matplotlib.image import imread

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.plots import plot_distances, plot_widths, windows_matrix
from hf_prune.records import Environment, ModelRef, Operation, Plan, Scores, Slicing, TextUse


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


BLUE, ORANGE = (31, 119, 180), (255, 127, 14)


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
