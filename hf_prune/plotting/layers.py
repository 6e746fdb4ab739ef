"""The layers of the model that came out: which are there and which were healed, or how wide each is."""

import math
from typing import Any

import numpy as np
from matplotlib.patches import Patch, Rectangle
from matplotlib.ticker import MaxNLocator

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.layer_states import STATES, State, layer_states
from hf_prune.plotting.drawing import BLUE, GREEN, GREY, ORANGE, SKY, Format, encode, new_figure
from hf_prune.records import Plan, Slicing

_ROW = 16
"""Layers in a row of the map: 32 and 64 layers fall into even rows."""

_LEGEND = 3
"""States in a row of its legend."""

_LOOKS: dict[State, dict[str, Any]] = {
    "kept": {"facecolor": BLUE},
    "weights changed": {"facecolor": SKY, "hatch": "ooo"},
    "attention silenced": {"facecolor": ORANGE, "hatch": "///"},
    "MLP silenced": {"facecolor": ORANGE, "hatch": "\\\\\\"},
    "attention and MLP silenced": {"facecolor": GREY, "hatch": "+++"},
    "without attention": {"facecolor": "white", "hatch": "///"},
    "without MLP": {"facecolor": "white", "hatch": "\\\\\\"},
    "without attention and MLP": {"facecolor": "white", "hatch": "+++"},
    "removed": {"facecolor": "white", "hatch": "xxx", "linestyle": "--"},
}
"""Colour and hatch of each state: the hatch tells them apart in grey print too."""


def plot_layer_map(plan: Plan, healed: bool, format: Format = "png") -> bytes:
    """Draw all layers of the base as cells: kept, removed, or with a part silenced or weights changed.

    Args:
        plan: which layers were dropped, silenced or changed.
        healed: whether the layers that stayed were trained after the cut.
        format: of what is returned.

    Returns:
        A PNG file, or an `svg` element.
    """
    layers, states = plan.model.num_layers, layer_states(plan)
    rows = math.ceil(layers / _ROW)
    columns = min(layers, _ROW)
    there = [state for state in STATES if state in states]
    legend_rows = math.ceil(len(there) / _LEGEND)
    figure, axes = new_figure(0.55 + 0.5 * rows + 0.25 * (legend_rows - 1))
    looks = _LOOKS | ({"kept": {"facecolor": GREEN, "hatch": "..."}} if healed else {})
    for layer in range(layers):
        corner = (layer % _ROW, -(layer // _ROW))
        axes.add_patch(Rectangle(corner, 0.9, 0.84, edgecolor="black", linewidth=0.8, **looks[states[layer]]))
        # A plain box behind the number: hatching would cross it out.
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.0}
        axes.text(corner[0] + 0.45, corner[1] + 0.42, str(layer), ha="center", va="center", fontsize=9, bbox=box)
    axes.set_xlim(-0.05, columns)
    axes.set_ylim(1 - rows - 0.05, 0.9)
    axes.set_axis_off()
    names = {state: "kept and healed" if state == "kept" and healed else state for state in there}
    handles = [Patch(edgecolor="black", label=names[state], **looks[state]) for state in there]
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(there), _LEGEND), frameon=False)
    return encode(figure, format)


def plot_widths(
    slicing: Slicing, title: str = "Width of the residual stream in each layer", format: Format = "png"
) -> bytes:
    """Draw the width in which each layer reads the residual stream, and its redundancy on a second axis.

    Args:
        slicing: how wide the model is.
        title: plain text, never a formula.
        format: of what is returned.

    Returns:
        A PNG file, or an `svg` element.

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
    figure, axes = new_figure(3.6)
    axes.bar(layers, widths, color=BLUE, label="width")
    axes.axhline(slicing.hidden_size, color="black", linestyle="--", linewidth=1, label="width before slicing")
    axes.set_ylim(0, 1.08 * slicing.hidden_size)
    axes.set_xlabel("layer")
    axes.set_ylabel("width")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if redundancy is not None:
        second = axes.twinx()
        second.plot(layers, redundancy, color=ORANGE, marker="o", markersize=4, label="redundancy")
        second.set_ylim(0, 1.08)
        second.set_ylabel("layer redundancy")
    figure.suptitle(title, parse_math=False)
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return encode(figure, format)
