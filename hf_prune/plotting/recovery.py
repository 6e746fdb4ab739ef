"""The recovery curve of a healing: what share of the lost quality is back, against tokens and against arithmetic."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.ticker import EngFormatter, PercentFormatter

from hf_prune.plotting.drawing import BLUE, GREEN, ORANGE, Format, canvas, encode
from hf_prune.recovery import Regained


def plot_recovery(curve: Sequence[Regained], best: int | None = None, format: Format = "png") -> bytes:
    """Draw the share that is back of loss and divergence, one panel a way to count what it cost.

    Args:
        curve: at least two points.
        best: optimizer steps behind the weights that were taken; None where the last ones were.
        format: of what is returned.

    Returns:
        A PNG file, or an `svg` element.
    """
    costs: dict[str, list[float]] = {"training tokens": [r.point.tokens for r in curve]}
    if curve[-1].point.flops > 0:
        costs["floating point operations"] = [r.point.flops for r in curve]
    figure = canvas(3.6)
    panels = figure.subplots(1, len(costs), sharey=True, squeeze=False)[0]
    for axes, (name, cost) in zip(panels, costs.items(), strict=True):
        _draw(axes, cost, curve, best)
        axes.set_xlabel(name)
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    panels[0].set_ylabel("share of the lost quality that is back")
    panels[0].yaxis.set_major_formatter(PercentFormatter(1.0))
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    return encode(figure, format)


def _draw(axes: Axes, cost: Sequence[float], curve: Sequence[Regained], best: int | None) -> None:
    axes.plot(cost, [r.loss for r in curve], color=GREEN, marker="o", markersize=4, label="held-out loss")
    known = [(x, r.kl) for x, r in zip(cost, curve, strict=True) if r.kl is not None]
    if known:
        axes.plot(*zip(*known, strict=True), color=BLUE, marker="s", markersize=4, linestyle="--", label="KL")
    taken = [x for x, r in zip(cost, curve, strict=True) if r.point.step == best]
    if taken:
        axes.axvline(taken[0], color=ORANGE, linestyle=":", linewidth=1.5, label="weights taken")
    axes.axhline(0, color="black", linewidth=0.8)
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="original")
