"""What all pictures share: size, colours that everyone can tell apart, and the same bytes for the same drawing."""

import io
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

BLUE, ORANGE, GREEN, VERMILION, SKY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#56B4E9"
"""Colours of Okabe and Ito (2008), which people of every kind of colour vision can tell apart."""

GREY = "#999999"

LOOKS = {"original": (GREY, ""), "pruned": (ORANGE, "//"), "healed": (GREEN, "..")}
"""Colour and hatch of each model: the hatch tells them apart in grey print too."""

Format = Literal["png", "svg"]
"""For a card, or for a page that has its own colours."""

WIDTH = 7.0
"""Inches; 840 pixels, what a card shows without scaling."""


def canvas(height: float) -> Figure:
    """An empty figure of its own that no display and no global list of figures knows of; `height` in inches."""
    figure = Figure(figsize=(WIDTH, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def new_figure(height: float) -> tuple[Figure, Axes]:
    """A `canvas` that holds one drawing."""
    figure = canvas(height)
    return figure, figure.add_subplot()


def encode(figure: Figure, format: Format) -> bytes:
    """The drawing as a PNG file, or as an `svg` element; see `hf_prune.plotting.vector`."""
    if format == "png":
        return png(figure)
    from hf_prune.plotting.vector import svg

    return svg(figure)


def png(figure: Figure) -> bytes:
    """The same bytes for the same drawing: no version in them."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", metadata={"Software": None})
    return buffer.getvalue()
