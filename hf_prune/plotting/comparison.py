"""Original, pruned and healed side by side: loss, benchmarks, and size and speed as multiples of the original's."""

from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Patch

from hf_prune.card_tasks import Key
from hf_prune.plotting.drawing import LOOKS, Format, canvas, encode
from hf_prune.plotting.figures import Group, benchmarks, perplexities, ratios
from hf_prune.records import Evaluation

_WIDE = 20
"""Ratio of perplexities above which their axis is logarithmic: below, bars are honest from zero."""


def plot_comparison(evaluation: Evaluation, tasks: Sequence[Key] = (), format: Format = "png") -> bytes:
    """Draw what the evaluation found, one panel a kind of figure.

    Args:
        evaluation: of the original and at least one other model.
        tasks: benchmarks to show, at most `MOST_TASKS` of them.
        format: of what is returned.

    Returns:
        A PNG file, or an `svg` element.
    """
    panels = {
        "perplexity": perplexities(evaluation),
        "size and speed (original = 1)": ratios(evaluation),
        "benchmarks": benchmarks(evaluation, tasks),
    }
    loss, size, asked = panels
    top = [name for name in (loss, size) if any(bars for _, bars in panels[name])]
    rows: list[Any] = [top, [asked] * len(top)] if panels[asked] else [top]
    figure = canvas(0.6 + 3.0 * len(rows))
    widths = [max(1.6, len(panels[name])) for name in top]
    for name, axes in figure.subplot_mosaic(rows, width_ratios=widths).items():
        axes.set_title(name, fontsize=10)
        _draw(axes, panels[name])
        if name == loss and _spread(panels[name]) > _WIDE:
            axes.set_yscale("log")
        if name == size:
            axes.axhline(1, color="black", linestyle="--", linewidth=1)
    labels = dict.fromkeys(m.label for m in evaluation.models)
    handles = [Patch(facecolor=LOOKS[n][0], hatch=LOOKS[n][1], edgecolor="black", label=n) for n in labels]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return encode(figure, format)


def _draw(axes: Axes, groups: Sequence[Group]) -> None:
    most = max(len(bars) for _, bars in groups)
    width = 0.8 / most
    for place, (_, bars) in enumerate(groups):
        for number, bar in enumerate(bars):
            colour, hatch = LOOKS[bar.label]
            x = place + (number - (len(bars) - 1) / 2) * width
            error = [[bar.below], [bar.above]]
            axes.bar(
                x, bar.value, width, color=colour, hatch=hatch, edgecolor="black", linewidth=0.6, yerr=error, capsize=3
            )
            axes.annotate(
                _short(bar.value),
                (x, bar.value + bar.above),
                (0, 2),
                textcoords="offset points",
                ha="center",
                fontsize=7.5,
            )
    names = [name if len(name) <= 28 else name[:27] + "…" for name, _ in groups]
    axes.set_xticks(range(len(groups)), names, fontsize=9, parse_math=False)
    axes.margins(y=0.12)


def _short(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:.3g}"


def _spread(groups: Sequence[Group]) -> float:
    values = [bar.value for _, bars in groups for bar in bars]
    return max(values) / min(values)
