"""The figures behind the pictures, by name and model; the text behind a picture is made from the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_prune.card_tasks import Key, find
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.records import Evaluation, ModelEvaluation, Rate, Scores
from hf_prune.soundness import check_importances
from hf_prune.units import PARTS, Part

MOST_TASKS = 6
"""Benchmarks drawn; the table holds all of them."""


@dataclass(frozen=True)
class Bar:
    """One model's figure: value, and how far the error bar reaches below and above it."""

    label: str
    value: float
    below: float = 0.0
    above: float = 0.0


Group = tuple[str, list[Bar]]
"""What is compared, and one bar a model that has the figure."""


def perplexities(evaluation: Evaluation) -> list[Group]:
    """Perplexity of each text, error bars of one standard error."""
    names = dict.fromkeys(p.name for m in evaluation.models for p in m.perplexity)
    groups = []
    for name in names:
        bars = []
        for model in evaluation.models:
            text = next((p for p in model.perplexity if p.name == name), None)
            if text is not None:
                error = text.perplexity * text.standard_error
                bars.append(Bar(model.label, text.perplexity, error, error))
        groups.append((name, bars))
    return groups


def benchmarks(evaluation: Evaluation, tasks: Sequence[Key]) -> list[Group]:
    """Main figures of the first tasks, error bars of one standard error."""
    groups = []
    for wanted in tasks[:MOST_TASKS]:
        bars = []
        for model in evaluation.models:
            result = find(model, wanted)
            if result is not None:
                error = result.standard_error or 0.0
                bars.append(Bar(model.label, result.value, error, error))
        groups.append((wanted[0], bars))
    return groups


def ratios(evaluation: Evaluation) -> list[Group]:
    """Weights, prefill and decode as multiples of the original's; error bars from the slowest to the fastest run.

    The runs of the other model are divided by the original's median, so the bars hold that model's spread only. Speeds
    are there only of models that were all timed in turns: others do not compare.
    """
    original = next((m for m in evaluation.models if m.label == "original"), None)
    if original is None:
        return []
    groups: list[Group] = [("weights", [Bar(m.label, m.bytes / original.bytes) for m in evaluation.models])]
    rates: tuple[tuple[str, Callable[[ModelEvaluation], Rate | None]], ...] = (
        ("prefill", lambda m: m.speed.prefill if m.speed else None),
        ("decode", lambda m: m.speed.decode if m.speed else None),
    )
    speeds = [m.speed for m in evaluation.models if m.speed is not None]
    turns = original.speed is not None and all(original.speed.in_turns_with(speed) for speed in speeds)
    for name, get in rates:
        base = get(original)
        if base is None or not turns:
            continue
        bars = []
        for model in evaluation.models:
            rate = get(model)
            if rate is not None:
                below, above = rate.median - rate.minimum, rate.maximum - rate.median
                bars.append(Bar(model.label, *(x / base.median for x in (rate.median, below, above))))
        groups.append((name, bars))
    return groups


@dataclass(frozen=True)
class PerLayer:
    """One figure a layer: what a record holds of each layer alone.

    Attributes:
        part: of the layers that the figures are of.
        values: the figures; None where a layer has no such part, or it was not scored.
        errors: their standard errors; empty where they are not on record.
        name: what the figures are, for an axis and for the text behind a picture.
    """

    part: Part
    values: tuple[float | None, ...]
    errors: tuple[float | None, ...]
    name: str

    @property
    def known(self) -> dict[int, float]:
        """The figures that are there, by layer."""
        return {layer: value for layer, value in enumerate(self.values) if value is not None}

    def error(self, layer: int) -> float | None:
        """The standard error of a layer's figure, where it is on record."""
        return self.errors[layer] if self.errors else None


def per_layer(scores: Scores) -> tuple[PerLayer, ...]:
    """What was measured of each layer alone, one entry a part of layers; empty where nothing was.

    Args:
        scores: importances, else distances of all pairs (those across one layer), else one score a layer.

    Raises:
        ConfigError: not one figure and one standard error a layer, or an unknown part.
        MeasureError: a figure is not finite.
    """
    check_importances(scores)
    if scores.importances:
        found = tuple(
            PerLayer(
                part,
                scores.importances[part],
                scores.importance_errors.get(part, ()),
                f"{scores.measure} of the {_PARTS[part]}",
            )
            for part in PARTS
            if any(value is not None for value in scores.importances.get(part, ()))
        )
    elif scores.distances:
        windows = scores.windows(1)
        values, errors = tuple(d for _, d, _ in windows), tuple(e for _, _, e in windows)
        found = (PerLayer("block", values, errors, f"{scores.measure} distance across the layer"),)
    elif scores.layers:
        found = (PerLayer("block", scores.layers, scores.layer_standard_errors, f"{scores.measure} of the layer"),)
    else:
        found = ()
    for row in found:
        if len(row.values) != scores.model.num_layers or len(row.errors) not in (0, len(row.values)):
            raise ConfigError(
                f"the scores hold {len(row.values)} layers and {len(row.errors)} standard errors; the model has "
                f"{scores.model.num_layers} layers. Measure again"
            )
        if not np.isfinite([x for x in (*row.values, *row.errors) if x is not None]).all():
            raise MeasureError(
                f"the scores of the layers are {list(row.values)}; expected finite numbers. Measure again"
            )
    return found


_PARTS: dict[Part, str] = {"block": "layer", "attention": "attention", "mlp": "MLP"}
