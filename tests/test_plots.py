import dataclasses
import io
import math

import numpy as np
import pytest
from matplotlib.image import imread

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.plots import plot_distances, windows_matrix
from hf_prune.records import Environment, ModelRef, Operation, Plan, Scores, TextUse


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
