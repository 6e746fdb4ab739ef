"""Pictures of records, as PNG bytes; drawn without a display and without global state."""

import io

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.records import Plan, Scores, Slicing, ranges

PLOT_FILE = "scores.png"
"""Name of the heat map in a run folder and beside a card."""

WIDTHS_FILE = "widths.png"
"""Name of the drawing of a sliced model's widths beside a card."""


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


def plot_distances(scores: Scores, plan: Plan) -> bytes:
    """Draw the distance between input and output of every run of layers, with the removed one marked.

    Args:
        scores: distances of all (start, size) pairs.
        plan: what was cut; its removed layers are marked where they are one run.

    Returns:
        A PNG file.

    Raises:
        ConfigError: scores and plan speak of models with different numbers of layers.
        MeasureError: a distance is not finite.
    """
    layers = scores.model.num_layers
    if plan.model.num_layers != layers:
        raise ConfigError(
            f"the scores are of a model with {layers} layers, the plan of one with {plan.model.num_layers}; "
            "expected records of one model"
        )
    matrix = windows_matrix(scores)
    figure, axes = _figure(7.0, 5.6)
    image = axes.imshow(matrix, origin="lower", cmap="viridis", extent=(-0.5, layers - 0.5, 0.5, layers + 0.5))
    # A name from a record is plain text, never a formula.
    figure.colorbar(image, ax=axes).set_label(f"{scores.measure} distance", parse_math=False)
    axes.set_xlabel("first layer of the run")
    axes.set_ylabel("layers in the run")
    removed = plan.dropped
    if removed:
        axes.set_title(f"Removed: layers {ranges(removed)} of {layers}")
    if removed and removed == tuple(range(removed[0], removed[-1] + 1)):
        corner = (removed[0] - 0.5, len(removed) - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, edgecolor="red", linewidth=2))
    return _png(figure)


def plot_widths(slicing: Slicing, title: str = "Width of the residual stream in each layer") -> bytes:
    """Draw the width in which each layer reads the residual stream, and its redundancy on a second axis.

    Args:
        slicing: how wide the model is.
        title: plain text, never a formula.

    Returns:
        A PNG file.

    Raises:
        ConfigError: the redundancy speaks of another number of layers.
        MeasureError: a redundancy is not finite.
    """
    widths, redundancy = slicing.widths, slicing.redundancy
    layers = range(len(widths))
    if redundancy is not None and len(redundancy) != len(widths):
        raise ConfigError(
            f"the redundancy is of {len(redundancy)} layers, the widths are of {len(widths)}; expected those of one "
            "model"
        )
    if redundancy is not None and not np.isfinite(redundancy).all():
        raise MeasureError(
            f"the redundancy of the layers is {list(redundancy)}; expected finite numbers. Measure again"
        )
    figure, axes = _figure(7.0, 3.6)
    axes.bar(layers, widths, color="tab:blue", label="width")
    axes.axhline(slicing.hidden_size, color="black", linestyle="--", linewidth=1, label="width before slicing")
    axes.set_ylim(0, 1.08 * slicing.hidden_size)
    axes.set_xlabel("layer")
    axes.set_ylabel("width")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if redundancy is not None:
        second = axes.twinx()
        second.plot(layers, redundancy, color="tab:orange", marker="o", markersize=4, label="redundancy")
        second.set_ylim(0, 1.08)
        second.set_ylabel("layer redundancy")
    figure.suptitle(title, parse_math=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return _png(figure)


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of its own, in inches, that no display and no global list of figures knows of."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.add_subplot()


def _png(figure: Figure) -> bytes:
    """The same bytes for the same drawing: no version in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
