"""What healing has won back of the quality that pruning lost, on its way and at its end; from its record alone."""

from dataclasses import dataclass

from hf_prune.records import CurvePoint, Healing


@dataclass(frozen=True)
class Regained:
    """How much is back at one point of the training.

    Attributes:
        point: the figures behind it.
        loss: (pruned - x) / (pruned - original) of the held-out loss: 0 is the pruned model, 1 the original.
        kl: 1 - KL / KL of the first point, of the divergence from the original; None where it was not measured.
    """

    point: CurvePoint
    loss: float
    kl: float | None


def regained(healing: Healing, loss: float) -> float | None:
    """(pruned - loss) / (pruned - original), the share of the lost held-out loss that is back at `loss`.

    Args:
        healing: the record.
        loss: held-out loss, nats per token.

    Returns:
        The share; None where the original's loss was not measured, or pruning lost nothing.
    """
    pruned, original = healing.held_out.pruned, healing.held_out.original
    if original is None or not pruned > original:
        return None
    return (pruned - loss) / (pruned - original)


def shipped_loss(healing: Healing) -> float:
    """The held-out loss of what is shipped, nats per token."""
    return healing.held_out.merged if healing.output == "merged" else healing.held_out.adapter


def recovery(healing: Healing) -> tuple[Regained, ...]:
    """The recovery curve; empty where the original's loss is not known or fewer than two points were measured.

    The curve is of the model as it is trained: where that was quantized, the first point is the quantized pruned
    model, whose share lies off 0 by what quantizing has changed.

    Args:
        healing: the record.
    """
    if len(healing.curve) < 2:
        return ()
    start, found = healing.curve[0].kl, []
    for point in healing.curve:
        share = regained(healing, point.loss)
        if share is None:
            return ()
        known = start is not None and start > 0 and point.kl is not None
        found.append(Regained(point, share, 1 - point.kl / start if known else None))  # type: ignore[operator]
    return tuple(found)
