"""The drawings of a sweep: loss, distance from the original and benchmarks against share of parameters removed."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter

from hf_prune.figures import ModelEvaluation, Perplexity
from hf_prune.plotting.drawing import BLUE, GREEN, GREY, ORANGE, VERMILION, encode, new_figure
from hf_prune.sweeping.record import STAGES, Picture, Stage, Sweep, accuracy, counted

QUALITY_FILE, FIDELITY_FILE, ACCURACY_FILE = PICTURES = ("quality.png", "fidelity.png", "accuracy.png")

Value = Callable[[ModelEvaluation], tuple[float, float | None] | None]
"""A figure and its standard error."""

# Colours of Okabe and Ito, and a marker for each, which tells methods apart without colour.
_LOOKS = ((BLUE, "o"), (VERMILION, "s"), (GREEN, "^"), (ORANGE, "D"), ("#CC79A7", "v"), ("#56B4E9", "P"))
_LINES: dict[Stage, Literal["--", "-"]] = {"pruned": "--", "healed": "-"}


def draw(sweep: Sweep) -> list[tuple[Picture, bytes]]:
    """Draw what was measured.

    Returns:
        Names with the same in words, and PNG files: loss always, the distance from the original where it was
        measured, accuracy where benchmark tasks were run. Nothing where no point is finished.
    """
    if not any(p.status == "done" for p in sweep.points):
        return []
    drawn = [
        (QUALITY_FILE, "loss", _loss, "loss, nats per token (± standard error)", True),
        (FIDELITY_FILE, "KL divergence from the original", _kl, "KL(original ‖ model), nats per token", False),
        (ACCURACY_FILE, "mean accuracy", accuracy, f"accuracy, mean of {_tasks(sweep)}", False),
    ]
    shown = [entry for entry in drawn if any(_curve(sweep, m, s, entry[2]) for m in sweep.methods for s in STAGES)]
    return [
        (Picture(file, _alt(sweep, name, value)), _draw(sweep, value, label, quality))
        for file, name, value, label, quality in shown
    ]


def _loss(found: ModelEvaluation) -> tuple[float, float | None]:
    return found.perplexity[0].nll, found.perplexity[0].standard_error


def _kl(found: ModelEvaluation) -> tuple[float, float | None] | None:
    return None if found.fidelity is None else (found.fidelity.kl, found.fidelity.kl_standard_error)


def _tasks(sweep: Sweep) -> str:
    number = len(counted(sweep.original))
    return "1 task (± standard error)" if number == 1 else f"{number} tasks (± standard error)"


def _curve(sweep: Sweep, method: str, stage: Stage, value: Value) -> list[tuple[float, float, float | None, str]]:
    """Share, figure, standard error and name of each point."""
    found = []
    for point in sweep.curve(method, stage):
        figures = point.figures(stage)
        measured = None if figures is None else value(figures)
        if measured is not None:
            found.append((point.share_removed, *measured, point.name))
    return found


def _draw(sweep: Sweep, value: Value, label: str, quality: bool) -> bytes:
    figure, axes = new_figure(4.4)
    handles: list[Line2D] = []
    for number, method in enumerate(sweep.methods):
        colour, marker = _LOOKS[number % len(_LOOKS)]
        for stage in STAGES:
            curve = _curve(sweep, method, stage, value)
            if curve:
                _line(axes, curve, colour, marker, _LINES[stage])
        handles.append(Line2D([], [], color=colour, marker=marker, label=method))
    before = value(sweep.original)
    if before is not None:
        axes.axhline(before[0], color=GREY, linewidth=1)
        axes.plot(0, before[0], color=GREY, marker="*", markersize=10)
        handles.append(Line2D([], [], color=GREY, linewidth=1, marker="*", markersize=10, label="original"))
    if quality:
        handles += _knees(axes, sweep)
        _bits_per_byte(axes, sweep.original.perplexity[0])
    stages = STAGES if sweep.heal else STAGES[:1]
    handles += [Line2D([], [], color="black", linestyle=_LINES[stage], label=stage) for stage in stages]
    axes.set_xlabel("parameters removed")
    axes.set_ylabel(label)
    axes.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.grid(alpha=0.3)
    figure.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return encode(figure, "png")


def _line(
    axes: Axes, curve: Sequence[tuple[float, float, float | None, str]], colour: str, marker: str, style: str
) -> None:
    shares, values = [entry[0] for entry in curve], [entry[1] for entry in curve]
    errors = [math.nan if entry[2] is None else entry[2] for entry in curve]
    axes.errorbar(
        shares,
        values,
        yerr=errors,
        color=colour,
        marker=marker,
        linestyle=style,
        markersize=5,
        capsize=2,
        linewidth=1.5,
    )


def _bits_per_byte(axes: Axes, text: Perplexity) -> None:
    """A second scale of the same curves: all models predict the same tokens of the same bytes."""
    ratio = text.bits_per_byte / text.nll

    def there(nats: Any) -> Any:
        return nats * ratio

    def back(bits: Any) -> Any:
        return bits / ratio

    axes.secondary_yaxis("right", functions=(there, back)).set_ylabel("bits per byte")


def _knees(axes: Axes, sweep: Sweep) -> list[Line2D]:
    """A ring around each knee."""
    rings = [(k, sweep.point(k.point)) for k in sweep.knees if k.point is not None]
    look: dict[str, Any] = {
        "color": "black",
        "marker": "o",
        "markersize": 12,
        "fillstyle": "none",
        "linestyle": "none",
    }
    for knee, point in rings:
        figures = point.figures(knee.stage)
        assert figures is not None
        axes.plot(point.share_removed, figures.perplexity[0].nll, **look, zorder=5)
    return [Line2D([], [], label="knee", **look)] if rings else []


def _alt(sweep: Sweep, name: str, value: Value) -> str:
    """The drawing in words: where each curve begins and ends, and its knee."""
    before = value(sweep.original)
    told = [f"Line chart of {name} against share of parameters removed from {sweep.model.id}."]
    if before is not None:
        told.append(f"The original has {before[0]:.4g}.")
    for method in sweep.methods:
        for stage in STAGES:
            curve = _curve(sweep, method, stage, value)
            if curve:
                ends = " to ".join(f"{y:.4g} at {x:.1%}" for x, y, _, _ in (curve[0], curve[-1])[: len(curve)])
                told.append(f"{method}, {stage}: {ends}.")
    if name == "loss":
        told += [f"Knee of {k.method}, {k.stage}: {k.share_removed:.1%}." for k in sweep.knees if k.share_removed]
    return " ".join(told)
