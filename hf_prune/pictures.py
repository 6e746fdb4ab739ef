"""Which pictures a card holds, what each shows in words, and how it is drawn; all from records."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from hf_prune.card_tables import number, percent
from hf_prune.card_tasks import quoted
from hf_prune.layer_states import layers_in
from hf_prune.markdown import one_line
from hf_prune.plotting.figures import MOST_TASKS, PerLayer, benchmarks, per_layer, perplexities, ratios
from hf_prune.records import Evaluation, Healing, Plan, Scores, Slicing, ranges
from hf_prune.recovery import Regained, recovery
from hf_prune.units import layers_of

if TYPE_CHECKING:
    from hf_prune.plotting.drawing import Format

PLOT_FILE = "scores.png"
"""Name of the heat map in a run folder and beside a card."""

IMPORTANCE_FILE = "importance.png"
"""Name of the drawing of each layer's importance beside a card."""

LAYERS_FILE = "layers.png"
"""Name of the layer map beside a card."""

WIDTHS_FILE = "widths.png"
"""Name of the drawing of a sliced model's widths beside a card."""

COMPARISON_FILE = "comparison.png"
"""Name of the drawing of original, pruned and healed side by side beside a card."""

RECOVERY_FILE = "recovery.png"
"""Name of the drawing of what healing won back, on its way, beside a card."""


class Draw(Protocol):
    """Makes a picture; what draws is imported only then."""

    def __call__(self, format: "Format" = "png") -> bytes:
        """The picture as a PNG file, or as an `svg` element for a page."""


@dataclass(frozen=True)
class Picture:
    """A picture beside a card.

    Attributes:
        file: its name.
        alt: what it shows, for those who can't see it; plain text.
        draw: makes it, as PNG unless asked otherwise.
    """

    file: str
    alt: str
    draw: Draw


def pictures(
    plan: Plan, scores: Scores | None, healing: Healing | None, evaluation: Evaluation | None
) -> dict[str, Picture]:
    """The pictures that these records make, by file name.

    Args:
        plan: what was cut.
        scores: what was measured.
        healing: how it was healed; None when it was not.
        evaluation: original, pruned and healed.

    Raises:
        ConfigError: scores that are not whole.
        MeasureError: a figure that is not finite.
    """
    found = []
    if plan.slicing is not None:
        found.append(_widths(plan.slicing))
    else:
        found.append(_layer_map(plan, healing is not None))
    if scores is not None and scores.distances:
        found.append(_distances(scores, plan))
    if scores is not None and (rows := per_layer(scores)):
        found.append(_importance(scores, plan, rows))
    if evaluation is not None and _can_compare(evaluation):
        found.append(_comparison(evaluation))
    if healing is not None and (curve := recovery(healing)):
        found.append(_recovery(healing, curve))
    return {picture.file: picture for picture in found}


def _widths(slicing: Slicing) -> Picture:
    def draw(format: "Format" = "png") -> bytes:
        from hf_prune.plotting.layers import plot_widths

        return plot_widths(slicing, format=format)

    alt = (
        f"Width of the residual stream in each of {len(slicing.widths)} layers: {_list(slicing.widths)}, of "
        f"{slicing.hidden_size} before slicing."
    )
    return Picture(WIDTHS_FILE, alt, draw)


def _layer_map(plan: Plan, healed: bool) -> Picture:
    def draw(format: "Format" = "png") -> bytes:
        from hf_prune.plotting.layers import plot_layer_map

        return plot_layer_map(plan, healed, format=format)

    told = map_words(plan, healed)
    alt = f"Map of the base model's {plan.model.num_layers} layers, counted from 0: {told}."
    return Picture(LAYERS_FILE, alt, draw)


def map_words(plan: Plan, healed: bool) -> str:
    """A layer map in words: "kept 0–2, 6; removed 3–5".

    Args:
        plan: which layers were dropped, silenced or changed.
        healed: whether the layers that stayed were trained after the cut.
    """
    names = {"kept": "kept and healed" if healed else "kept"}
    return "; ".join(f"{names.get(state, state)} {ranges(layers)}" for state, layers in layers_in(plan).items())


def _distances(scores: Scores, plan: Plan) -> Picture:
    def draw(format: "Format" = "png") -> bytes:
        from hf_prune.plotting.distances import plot_distances

        return plot_distances(scores, plan, format=format)

    alt = (
        f"Heat map: {one_line(scores.measure, 60)} distance between the input and the output of every run of layers, "
        "by first layer and by number of layers."
    )
    if plan.dropped:
        chosen = f"layers {ranges(plan.dropped)}"
        alt += f" Removed: {chosen}"
        alt += f", at distance {number(plan.distance)}." if plan.distance is not None else "."
    return Picture(PLOT_FILE, alt, draw)


def _importance(scores: Scores, plan: Plan, rows: Sequence[PerLayer]) -> Picture:
    def draw(format: "Format" = "png") -> bytes:
        from hf_prune.plotting.distances import plot_importance

        return plot_importance(scores, plan, format=format)

    told = []
    for row in rows:
        known = row.known
        low, high = min(known, key=lambda i: known[i]), max(known, key=lambda i: known[i])
        ends = [f"{number(known[i], row.error(i))} (layer {i})" for i in (low, high)]
        spread = " with its standard error" if row.errors else ""
        told.append(f"Bars, one a layer{spread}: {one_line(row.name, 100)}, from {ends[0]} to {ends[1]}.")
        if gone := tuple(sorted({*plan.dropped, *layers_of(plan.removed, row.part)})):
            told.append(f"Marked as removed: {ranges(gone)}.")
    return Picture(IMPORTANCE_FILE, " ".join(told), draw)


def _comparison(evaluation: Evaluation) -> Picture:
    tasks = quoted(evaluation)[0]

    def draw(format: "Format" = "png") -> bytes:
        from hf_prune.plotting.comparison import plot_comparison

        return plot_comparison(evaluation, tasks, format=format)

    parts = []
    for kind, groups in (
        ("Perplexity", perplexities(evaluation)),
        ("Size and speed, original = 1", ratios(evaluation)),
        ("Benchmarks", benchmarks(evaluation, tasks)),
    ):
        shown = [
            f"{one_line(name, 60)}: {', '.join(f'{bar.label} {number(bar.value)}' for bar in bars)}"
            for name, bars in groups
        ]
        if shown:
            parts.append(f"{kind}: {'; '.join(shown)}.")
    if len(tasks) > MOST_TASKS:
        parts.append(f"The other {len(tasks) - MOST_TASKS} benchmarks are in the table.")
    return Picture(COMPARISON_FILE, f"Bars with error bars. {' '.join(parts)}", draw)


def _recovery(healing: Healing, curve: Sequence[Regained]) -> Picture:
    def draw(format: "Format" = "png") -> bytes:
        from hf_prune.plotting.recovery import plot_recovery

        return plot_recovery(curve, healing.best_step, format=format)

    first, last = curve[0], curve[-1]
    alt = (
        "Curve: share of the held-out loss lost by pruning that healing has won back, from "
        f"{percent(first.loss)} to {percent(last.loss)} at {last.point.tokens:,} training tokens"
    )
    if last.kl is not None:
        alt += f"; of the divergence from the original {percent(last.kl)}"
    return Picture(RECOVERY_FILE, alt + ".", draw)


def _can_compare(evaluation: Evaluation) -> bool:
    labels = [m.label for m in evaluation.models]
    return "original" in labels and len(labels) > 1


def _list(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
