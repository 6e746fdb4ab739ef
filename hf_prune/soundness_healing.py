"""Whether the figures of a healing can be true together: its curve, what it took, and the loss at each station."""

from collections.abc import Iterator, Sequence

from hf_prune.card_tables import finite
from hf_prune.errors import ConfigError
from hf_prune.records import CurvePoint, Healing

STATION = 0.02
"""Relative distance within which the curve's held-out loss counts as that of a station: the weights are the same, but
their products may be rounded to bfloat16 in training alone."""

_BELOW_ZERO = 1e-3
"""How far below zero rounding may bring a divergence, nats."""


def check_healing_record(healing: Healing) -> None:
    """Refuse a record whose curve nobody can have measured.

    Args:
        healing: the record.

    Raises:
        ConfigError: the curve does not begin with the untrained model, goes back, or goes on behind the end.
        MeasureError: a figure of it is not finite.
    """
    for point in healing.curve:
        for name in ("flops", "loss", "kl"):
            if getattr(point, name) is not None:
                finite(getattr(point, name), f"'{name}' of the healing record's curve at step {point.step}")
    problem = next(_impossible(healing), None)
    if problem is not None:
        raise ConfigError(f"the healing record contradicts itself: {problem}. Heal again")


def curve_problems(healing: Healing) -> list[str]:
    """What in the curve of a healing record cannot be, or is not what the stations say; one clause each.

    Args:
        healing: the record, its figures finite.
    """
    problems = list(_impossible(healing))
    return problems if problems else [*_apart(healing), *_not_best(healing)]


def taken(healing: Healing) -> CurvePoint | None:
    """The point of the curve whose weights were taken; None where they were not measured on the way."""
    wanted = healing.steps if healing.best_step is None else healing.best_step
    return next((point for point in healing.curve if point.step == wanted), None)


def _impossible(healing: Healing) -> Iterator[str]:
    curve = healing.curve
    if curve and curve[0].step != 0:
        yield f"its curve begins at step {curve[0].step}, not with the untrained model"
    for before, after in zip(curve, curve[1:], strict=False):
        if after.step <= before.step:
            yield f"step {after.step} of its curve follows step {before.step}"
        for name in ("tokens", "flops"):
            one, other = getattr(before, name), getattr(after, name)
            if other < one:
                yield f"its curve goes from {one:g} {name} at step {before.step} to {other:g} at step {after.step}"
    for point in curve:
        if min(point.tokens, point.flops, point.loss) < 0 or (point.kl or 0.0) < -_BELOW_ZERO:
            yield f"a figure of its curve at step {point.step} is below zero"
    for name in ("step", "tokens"):
        whole = healing.steps if name == "step" else healing.tokens
        if curve and getattr(curve[-1], name) > whole:
            yield f"its curve ends at {name} {getattr(curve[-1], name):,}, and the healing at {whole:,}"
    if healing.best_step is not None:
        if not 0 <= healing.best_step <= healing.steps:
            yield f"it took the weights of step {healing.best_step:,} of {healing.steps:,}"
        elif curve and taken(healing) is None:
            yield f"it took the weights of step {healing.best_step:,}, which its curve does not have"


def _apart(healing: Healing) -> Iterator[str]:
    """The curve's ends against the stations, which are losses of the same models on the same text."""
    losses, curve = healing.held_out, healing.curve
    quantized = healing.quantization is not None
    pairs: Sequence[tuple[str, CurvePoint | None, float | None]] = (
        ("the untrained model", curve[0] if curve else None, losses.quantized if quantized else losses.pruned),
        ("the weights taken", taken(healing), losses.adapter_quantized if quantized else losses.adapter),
    )
    for name, point, station in pairs:
        if point is not None and station is not None and abs(point.loss - station) > STATION * abs(station):
            yield (
                f"the held-out loss of {name} is {point.loss:.4f} on its curve (step {point.step}), and {station:.4f} "
                "among its stations"
            )


def _not_best(healing: Healing) -> Iterator[str]:
    """Weights that were taken as the best, and are not."""
    chosen = taken(healing) if healing.best_step is not None else None
    key = "kl" if healing.settings.get("stop_on") == "kl" else "loss"
    if chosen is None or getattr(chosen, key) is None:
        return
    for point in healing.curve[1:]:  # of the untrained model there is no checkpoint
        value = getattr(point, key)
        if value is not None and value < getattr(chosen, key):
            yield f"it took step {chosen.step} as the best by {key}, and its curve is lower at step {point.step}"
            return
