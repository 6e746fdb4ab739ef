"""Distances and importances, as measured: the heat map over all runs of layers, and one bar a layer."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.plotting.drawing import BLUE, VERMILION, Format, canvas, encode, new_figure
from hf_prune.plotting.figures import PerLayer, per_layer
from hf_prune.records import Plan, Scores, ranges
from hf_prune.units import layers_of


def windows_matrix(scores: Scores) -> np.ndarray:
    """Distances by window: row n-1, column s holds the distance between h_s and h_{s+n}; NaN where s+n > L.

    Returns:
        (L, L) float64.

    Raises:
        MeasureError: a distance is not finite.
    """
    layers = scores.model.num_layers
    matrix = np.full((layers, layers), np.nan)
    for size in range(1, layers + 1):
        for start, distance, _ in scores.windows(size):
            if not np.isfinite(distance):
                raise MeasureError(
                    f"the distance of {size} layers from layer {start} is {distance}; expected a finite number. "
                    "Measure again"
                )
            matrix[size - 1, start] = distance
    return matrix


def plot_distances(scores: Scores, plan: Plan, format: Format = "png") -> bytes:
    """Draw the distance between input and output of every run of layers, with the removed one marked.

    Args:
        scores: distances of all (start, size) pairs.
        plan: what was cut; its removed layers are marked where they are one run.
        format: of what is returned.

    Returns:
        A PNG file, or an `svg` element.

    Raises:
        ConfigError: scores and plan speak of models with different numbers of layers.
        MeasureError: a distance is not finite.
    """
    _check_one_model(scores, plan)
    layers = scores.model.num_layers
    matrix = windows_matrix(scores)
    figure, axes = new_figure(5.6)
    image = axes.imshow(matrix, origin="lower", cmap="viridis", extent=(-0.5, layers - 0.5, 0.5, layers + 0.5))
    # A name from a record is plain text, never a formula.
    figure.colorbar(image, ax=axes).set_label(f"{scores.measure} distance", parse_math=False)
    axes.set_xlabel("first layer of the run")
    axes.set_ylabel("layers in the run")
    _whole_numbers(axes)
    removed = plan.dropped
    if removed:
        axes.set_title(f"Removed: layers {ranges(removed)} of {layers}")
    if removed and removed == tuple(range(removed[0], removed[-1] + 1)):
        corner = (removed[0] - 0.5, len(removed) - 0.5)
        # A white edge below the red one: seen on dark and on light cells, and without red.
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="white", linewidth=5))
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2))
    return encode(figure, format)


def plot_importance(scores: Scores, plan: Plan, format: Format = "png") -> bytes:
    """Draw one bar a layer, with its standard error; what was removed stands out by colour and hatch.

    Args:
        scores: importances, one panel a part of layers; else distances of all pairs (shown: those across one layer),
            or one score a layer.
        plan: what was cut.
        format: of what is returned.

    Returns:
        A PNG file, or an `svg` element.

    Raises:
        ConfigError: scores and plan speak of models with different numbers of layers, or scores that are not whole.
        MeasureError: a figure is not finite.
    """
    _check_one_model(scores, plan)
    rows = per_layer(scores)
    if not rows:
        raise ConfigError(f"the scores of measure '{scores.measure}' hold no figure of any layer; nothing to draw")
    figure = canvas(1.2 + 2.2 * len(rows))
    for axes, row in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        _bars(axes, row, {*plan.dropped, *layers_of(plan.removed, row.part)})
        axes.set_ylabel(row.name, parse_math=False, fontsize=9)
    axes.set_xlabel("layer")
    if plan.removed:
        kept = Patch(facecolor=BLUE, edgecolor="black", label="kept")
        gone = Patch(facecolor=VERMILION, edgecolor="black", hatch="///", label="removed")
        figure.legend(handles=[kept, gone], loc="outside upper right", ncols=2, frameon=False)
    return encode(figure, format)


def _bars(axes: Axes, row: PerLayer, gone: set[int]) -> None:
    layers, known = range(len(row.values)), row.known
    heights = [known.get(layer, 0.0) for layer in layers]
    errors = [row.error(layer) or 0.0 for layer in layers] if row.errors else None
    bars = axes.bar(layers, heights, color=BLUE, edgecolor="black", linewidth=0.6, yerr=errors, capsize=2)
    for layer in gone & set(layers):
        bars[layer].set(facecolor=VERMILION, hatch="///")
    for layer in set(layers) - known.keys():  # nothing to score: no bar of height zero, which would be a score
        axes.text(layer, 0, "–", ha="center", va="bottom", fontsize=8)
    axes.axhline(0, color="black", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlim(-0.6, len(heights) - 0.4)


def _whole_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))


def _check_one_model(scores: Scores, plan: Plan) -> None:
    if plan.model.num_layers != scores.model.num_layers:
        raise ConfigError(
            f"the scores are of a model with {scores.model.num_layers} layers, the plan of one with "
            f"{plan.model.num_layers}; expected records of one model"
        )
