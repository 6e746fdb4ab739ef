"""Amounts and what went, for people."""

from hf_prune.comparing.record import Attempt
from hf_prune.planners.choice import in_words
from hf_prune.units import layers_of


def amount_in_words(amount: float, of: str) -> str:
    """What was asked for: "4 blocks", "33.3 % of the width".

    Args:
        amount: a number of units, or a share below 1.
        of: what it counts.
    """
    return f"{amount:.0f} {of if amount > 1 else of.removesuffix('s')}" if amount >= 1 else f"{amount:.1%} of the {of}"


def contents(attempt: Attempt, depth: int) -> str:
    """What went by a finished attempt: "blocks 4–7 (4 of 12)", "width 120–136".

    Args:
        attempt: finished.
        depth: blocks of the original.
    """
    if attempt.widths:
        narrow, wide = min(attempt.widths), max(attempt.widths)
        return f"width {narrow}" if narrow == wide else f"width {narrow}–{wide}"
    if not attempt.removed:
        return amount_in_words(attempt.amount, attempt.amount_of)
    parts = [part for part in ("block", "attention", "mlp") if layers_of(attempt.removed, part)]  # type: ignore[arg-type]
    told = in_words(attempt.removed)
    if parts == ["block"]:
        return f"blocks {told} ({len(attempt.removed)} of {depth})"
    return f"{told} ({len(attempt.removed)} of {depth * len(parts)} parts)"


def share_in_words(attempt: Attempt) -> str:
    """How many parameters went: "−28.6 %", and those that are silent where some are."""
    silent = "" if attempt.share_silent < 0.0005 else f" ({attempt.share_silent:.1%} silent)"
    some = abs(attempt.share_removed) >= 0.0005
    return (f"{-attempt.share_removed:+.1%}".replace("-", "−") if some else "0.0%") + silent
