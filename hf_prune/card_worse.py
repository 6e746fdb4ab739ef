"""What got worse: the largest losses of the shipped model against the original, beyond what chance explains."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from hf_prune.card_tables import number, percent, size
from hf_prune.card_tasks import Key, find, label
from hf_prune.errors import MeasureError
from hf_prune.markdown import Markdown, bullets, escape, one_line
from hf_prune.records import Completion, ModelEvaluation, Rate
from hf_prune.writing import REPEATED, repetition

MOST = 3
"""Losses that a card names."""

RULE = (
    "Ranked by the change relative to the original. Only what lies beyond two standard errors of the difference "
    "counts (for speeds: where the runs of models that took turns don't overlap). Not ranked: bits per byte, which "
    "say the same as perplexity; closeness to the original, which has no value of the original's to compare with; "
    "peak memory and the time to load, which rest on too few runs."
)
"""How the losses are found, for the card."""


@dataclass(frozen=True)
class Loss:
    """One figure that got worse.

    Attributes:
        name: of the figure.
        before: of the original, as text.
        after: of the shipped model, as text.
        relative: change / original's value, in the direction in which it is worse; above 0.
    """

    name: str
    before: str
    after: str
    relative: float


def losses(original: ModelEvaluation, shipped: ModelEvaluation, tasks: Sequence[Key]) -> list[Loss]:
    """Every figure measured of both that got worse beyond chance, the largest relative change first.

    Args:
        original: before pruning.
        shipped: the weights that the card accompanies.
        tasks: benchmarks to look at.

    Raises:
        MeasureError: a figure is not finite.
    """
    found = [
        *_perplexities(original, shipped),
        *_benchmarks(original, shipped, tasks),
        *_repeats(original.completions, shipped.completions),
        *_speeds(original, shipped),
        *_weights(original, shipped),
    ]
    for loss in found:
        if not math.isfinite(loss.relative):
            raise MeasureError(f"{loss.name} changed by {loss.relative}; expected finite figures. Measure again")
    return sorted(found, key=lambda loss: -loss.relative)


def sentence(found: Sequence[Loss]) -> Markdown:
    """The largest losses as a list, or that there are none."""
    if not found:
        return Markdown("No figure that was measured of both models got worse beyond two standard errors.")
    return bullets(
        [
            Markdown(f"**{escape(x.name)}**: {escape(x.before)} → {escape(x.after)} ({percent(x.relative)} worse)")
            for x in found[:MOST]
        ]
    )


def _perplexities(original: ModelEvaluation, shipped: ModelEvaluation) -> Iterable[Loss]:
    before = {p.name: p for p in original.perplexity}
    for after in shipped.perplexity:
        was = before.get(after.name)
        if was is not None and _beyond(after.nll - was.nll, was.standard_error, after.standard_error):
            shown = [number(p.perplexity, p.perplexity * p.standard_error) for p in (was, after)]
            name = f"Perplexity, {one_line(after.name, 100)}"
            yield _loss(name, shown, after.perplexity / was.perplexity - 1)


def _benchmarks(original: ModelEvaluation, shipped: ModelEvaluation, tasks: Sequence[Key]) -> Iterable[Loss]:
    for wanted in tasks:
        was, now = find(original, wanted), find(shipped, wanted)
        if was is None or now is None or was.value == 0:
            continue
        if was.standard_error is None or now.standard_error is None:
            continue  # nothing tells chance from loss
        change = (was.value - now.value) * (1 if was.higher_is_better else -1)
        if _beyond(change, was.standard_error, now.standard_error):
            shown = [number(r.value, r.standard_error) for r in (was, now)]
            yield _loss(label(now), shown, change / abs(was.value))


def _repeats(before: Sequence[Completion], after: Sequence[Completion]) -> Iterable[Loss]:
    """The share of n-grams that are no repeats: unlike the share of repeats, hardly ever 0 in the original."""
    (was, error_was), (now, error_now) = map(_fresh, (before, after))
    if was and now is not None and _beyond(was - now, error_was, error_now):
        name = f"{REPEATED}-grams in greedy completions that are no repeats"
        yield _loss(name, [percent(was), percent(now)], (was - now) / was)


def _fresh(completions: Sequence[Completion]) -> tuple[float | None, float]:
    """Mean over greedy completions of 1 - repetition, and its standard error; None where fewer than two say."""
    shares = [repetition([c]) for c in completions if c.kind == "greedy"]
    known = [1 - share for share in shares if share is not None]
    if len(known) < 2:
        return None, 0.0
    mean = sum(known) / len(known)
    variance = sum((share - mean) ** 2 for share in known) / (len(known) - 1)
    return mean, math.sqrt(variance / len(known))


def _speeds(original: ModelEvaluation, shipped: ModelEvaluation) -> Iterable[Loss]:
    if original.speed and shipped.speed:
        if not original.speed.in_turns_with(shipped.speed):
            return  # what the machine did meanwhile may be the whole difference
        for name in ("prefill", "decode"):
            was, now = getattr(original.speed, name), getattr(shipped.speed, name)
            if now.maximum < was.minimum:
                yield _loss(
                    f"{name.capitalize()} (tokens per second)", _medians(was, now), 1 - now.median / was.median
                )


def _weights(original: ModelEvaluation, shipped: ModelEvaluation) -> Iterable[Loss]:
    if shipped.bytes > original.bytes:
        yield _loss("Weights", [size(original.bytes), size(shipped.bytes)], shipped.bytes / original.bytes - 1)


def _loss(name: str, shown: list[str], relative: float) -> Loss:
    before, after = shown
    return Loss(name, before, after, relative)


def _medians(*rates: Rate) -> list[str]:
    return [number(rate.median) for rate in rates]


def _beyond(change: float, *errors: float) -> bool:
    """Whether a change for the worse is more than two standard errors of a difference."""
    return change > 2 * math.hypot(*errors)
