"""The drawing of a comparison: each method before and after healing, beside the original."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from hf_prune.comparing.record import Comparison
from hf_prune.comparing.standings import (
    Figure,
    Mean,
    Standing,
    mean_accuracy,
    perplexity,
    standings,
    text_names,
)
from hf_prune.figures import ModelEvaluation
from hf_prune.plotting.drawing import LOOKS, canvas, encode
from hf_prune.sweeping.record import STAGES, Picture, Stage, counted

FILES = ("comparison.png", "comparison.svg")

_MARKERS: dict[Stage, str] = {"pruned": "s", "healed": "o"}
_BESIDE: dict[Stage, float] = {"pruned": -0.12, "healed": 0.12}
_WIDE = 5
"""Ratio of perplexities above which their axis is logarithmic."""


def draw(found: Comparison) -> list[tuple[Picture, bytes]]:
    """Draw what was measured: one panel a text, and one of the mean accuracy where benchmark tasks were run.

    Returns:
        Names with the same in words, and the files: a PNG and an `svg` element. Nothing where no method is done.
    """
    order = [standing for standing in standings(found) if standing.done]
    if not order:
        return []
    panels: list[tuple[str, Figure]] = [
        (f"perplexity, {name}", perplexity(number)) for number, name in enumerate(text_names(found))
    ]
    if mean_accuracy(found.original) is not None:
        number = len(counted(found.original))
        panels.append((f"accuracy, mean of {number} task{'s' if number > 1 else ''}", mean_accuracy))
    stages = STAGES if found.heal else STAGES[:1]
    figure = canvas(1.4 + 2.3 * len(panels))
    rows = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (label, value) in zip(rows, panels, strict=True):
        _panel(axes, order, stages, found.original, label, value)
    names = [standing.contender.name for standing in order]
    rows[-1].set_xticks(range(len(names)), names, rotation=30, ha="right", fontsize=9, parse_math=False)
    handles = [
        Line2D([], [], color=LOOKS[stage][0], marker=_MARKERS[stage], linestyle="none", label=stage)
        for stage in stages
    ]
    handles.append(Line2D([], [], color="black", linestyle="--", linewidth=1, label="original"))
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False, fontsize=9)
    alt = _alt(found, order, stages, panels)
    return [(Picture(FILES[0], alt), encode(figure, "png")), (Picture(FILES[1], alt), encode(figure, "svg"))]


def _panel(
    axes: Axes,
    order: Sequence[Standing],
    stages: Sequence[Stage],
    original: ModelEvaluation,
    label: str,
    value: Figure,
) -> None:
    before, highest = value(original), 0.0
    assert before is not None
    for stage in stages:
        for place, standing in enumerate(order):
            mean = standing.figure(stage, value)
            if mean is None:
                continue
            highest = max(highest, mean.value)
            x = place + (_BESIDE[stage] if len(stages) > 1 else 0)
            colour, marker = LOOKS[stage][0], _MARKERS[stage]
            axes.errorbar(
                x, mean.value, yerr=mean.spread, color=colour, marker=marker, markersize=6, capsize=3, linewidth=1.5,
                markeredgecolor="black", markeredgewidth=0.6,
            )  # fmt: skip
    axes.axhline(before, color="black", linestyle="--", linewidth=1)
    if before > 1 and highest / before > _WIDE:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    axes.set_title(label if len(label) <= 90 else label[:89] + "…", fontsize=10, parse_math=False)
    axes.grid(alpha=0.3)
    axes.margins(x=0.04)


def _alt(
    found: Comparison, order: Sequence[Standing], stages: Sequence[Stage], panels: Sequence[tuple[str, Figure]]
) -> str:
    """The drawing in words: every figure in it."""
    told = [f"Methods compared on {found.model.id}, the best one first."]
    for label, value in panels:
        told.append(f"{label[:1].upper()}{label[1:]}: original {value(found.original):.4g};")
        for standing in order:
            means = [(stage, mean) for stage in stages if (mean := standing.figure(stage, value)) is not None]
            told.append(f"{standing.contender.name} {', '.join(f'{stage} {_short(mean)}' for stage, mean in means)};")
        told[-1] = told[-1][:-1] + "."
    return " ".join(told)


def _short(mean: Mean) -> str:
    return f"{mean.value:.4g}" + ("" if mean.spread is None else f" ± {mean.spread:.2g}")
