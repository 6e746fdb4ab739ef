"""What the log of a training run says: the recovery curve, whether it over-fits, whether it has come off its way.

All of it is read from Trainer's `log_history`, which checkpoints hold: a continued run says the same as one that was
never stopped. An entry has a "step" and either "loss", the mean training loss since the entry of that kind before it,
or "eval_loss" (and "eval_kl"), measured on held-out text at that step; the first of those is the untrained model's.
"""

from collections.abc import Sequence
from typing import Any

from hf_prune.records import CurvePoint

History = Sequence[dict[str, Any]]

OVERFIT = 0.01
"""Rise of the held-out loss above its lowest, as a part of it, that over-fitting is told from."""

EXPLODED_HELD_OUT = 1.0
"""Nats per token above the untrained model's held-out loss that no run comes to which is on its way."""

EXPLODED_FOR = 3
"""Measurements in a row at which that is so."""

EXPLODED_TRAINING = 1.5
"""Training loss, as a multiple of the first that was logged, that goes with it."""


def curve_of(history: History) -> tuple[CurvePoint, ...]:
    """The held-out figures on the way.

    Args:
        history: see the module.
    """
    return tuple(
        CurvePoint(
            step=entry["step"],
            tokens=int(entry["num_input_tokens_seen"]),
            flops=float(entry["total_flos"]),
            loss=entry["eval_loss"],
            kl=entry.get("eval_kl"),
        )
        for entry in history
        if "eval_loss" in entry
    )


def training_loss(history: History, until: int) -> float | None:
    """Mean training loss between the measurement before step `until` and that step; None where none was logged.

    Args:
        history: see the module.
        until: a step of the curve.
    """
    start = max((entry["step"] for entry in history if "eval_loss" in entry and entry["step"] < until), default=0)
    total, last = 0.0, max((e["step"] for e in history if "loss" in e and e["step"] <= start), default=0)
    begun = last
    for entry in history:
        if "loss" in entry and start < entry["step"] <= until:
            total += entry["loss"] * (entry["step"] - last)
            last = entry["step"]
    return total / (last - begun) if last > begun else None


def overfit(history: History, taken: int) -> str | None:
    """A sentence where the weights that were taken lie behind the point at which train and held-out loss part.

    That is: the held-out loss is more than 1 % above its lowest, although the training loss has fallen since.

    Args:
        history: see the module.
        taken: step of the weights that are taken.
    """
    points = [point for point in curve_of(history) if point.step <= taken]
    if len(points) < 3:
        return None
    last, lowest = points[-1], min(points, key=lambda point: point.loss)
    at_lowest = training_loss(history, lowest.step or points[1].step)
    at_last = training_loss(history, last.step)
    if lowest.step == last.step or last.loss <= (1 + OVERFIT) * lowest.loss:
        return None
    if at_lowest is None or at_last is None or at_last >= at_lowest:
        return None
    return (
        f"Healing over-fits: the held-out loss rose from {lowest.loss:.4f} at step {lowest.step} to {last.loss:.4f} "
        f"at step {last.step} (nats per token), while the training loss fell from {at_lowest:.4f} to {at_last:.4f}. "
        "Set healing.patience to keep the best weights, heal on more text, or on fewer tokens of this one."
    )


def exploded(history: History) -> str | None:
    """Why a run has come off its way, or None.

    At three measurements in a row the held-out loss is more than 1 nat per token above the untrained model's, and the
    training loss since the measurement before is above 1.5 times the first that was logged; and the held-out loss has
    not fallen over these three. So neither a bad batch, nor a shock at the end of the warm-up from which training
    recovers, nor over-fitting (where the training loss falls) meets the rule.

    Args:
        history: see the module.
    """
    points = curve_of(history)
    first = next((entry for entry in history if "loss" in entry), None)
    if len(points) <= EXPLODED_FOR or first is None or points[-1].loss < points[-EXPLODED_FOR].loss:
        return None
    for point in points[-EXPLODED_FOR:]:
        loss = training_loss(history, point.step)
        off = loss is not None and loss > EXPLODED_TRAINING * first["loss"]
        if not off or point.loss <= points[0].loss + EXPLODED_HELD_OUT:
            return None
    return (
        f"the held-out loss is {points[-1].loss:.4f} nats per token, {points[0].loss:.4f} before training, and the "
        f"training loss has grown from {first['loss']:.4f} to {training_loss(history, points[-1].step):.4f}: training "
        "diverges"
    )
