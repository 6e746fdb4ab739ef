"""What a sweep is made for: the bound that the chosen point has to meet."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.figures import ModelEvaluation
from hf_prune.sweeping.record import Choice, Stage, SweepPoint, accuracy, perplexity_ratio

_ROUNDING = 1e-9
"""What sums and differences of floats may be off by: 0.75 - 0.73 is above 0.02."""

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


@dataclass(frozen=True)
class Target:
    """A bound.

    Attributes:
        kind: "ppl-ratio": perplexity on the first text at most `value` times the original's, with as many parameters
            removed as possible; "accuracy-drop": mean main result of the tasks at most `value` below the original's,
            likewise; "size": weights of at most `value` bytes, with as low a perplexity as possible.
        value: the bound.
    """

    kind: Literal["ppl-ratio", "accuracy-drop", "size"]
    value: float


def parse_size(text: str) -> int:
    """Bytes from "4GB" (10^9 each), "1.5GiB" (2^30), "500 MB", or a plain number of bytes.

    Raises:
        ConfigError: the text is something else.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    unit = (found[2] or "B").upper() if found is not None else ""
    size = int(float(found[1]) * _UNITS[unit]) if found is not None and unit in _UNITS else 0
    if size < 1:
        raise ConfigError(f"size {text!r}; expected bytes, or such as 4GB, 500MB or 1.5GiB")
    return size


def check_target(target: Target | None, config: PrunerConfig) -> None:
    """Refuse a target that no sweep of this recipe can be held against, before any work.

    Raises:
        ConfigError: names the target and its value.
    """
    if target is None:
        return
    if target.kind == "accuracy-drop" and not config.evaluation.tasks:
        raise ConfigError(
            f"target accuracy-drop={target.value} needs benchmark tasks to measure accuracy by; name some "
            "(evaluation.tasks, --tasks)"
        )
    least = {"ppl-ratio": 0.0, "accuracy-drop": 0.0, "size": 1.0}[target.kind]
    wrong = (
        not math.isfinite(target.value) or target.value < least or (target.kind == "ppl-ratio" and not target.value)
    )
    if wrong or (target.kind == "accuracy-drop" and target.value >= 1):
        expected = {
            "ppl-ratio": "a number above 0, such as 1.1",
            "accuracy-drop": "a number from 0 and below 1, such as 0.02",
            "size": "a number of bytes",
        }[target.kind]
        raise ConfigError(f"target {target.kind}={target.value}; expected {expected}")


def choose(points: Sequence[SweepPoint], original: ModelEvaluation, target: Target, stage: Stage) -> Choice:
    """Pick the point that meets the target best; curves need not be monotone.

    Args:
        points: of all methods.
        original: figures of the base model.
        target: the bound.
        stage: whose figures count.
    """
    known = [(p, figures) for p in points if (figures := p.figures(stage)) is not None]
    if target.kind != "size":  # what removes nothing is no pruned model; a bound on the size can leave it so
        known = [(p, figures) for p, figures in known if p.share_removed > 0]
    measured = [
        (p, figures, found) for p, figures in known if (found := _value(p, figures, original, target)) is not None
    ]
    if not measured:
        return Choice(
            target.kind, target.value, stage, None, None, None, f"No {stage} point could be held against the target."
        )
    meeting = [entry for entry in measured if entry[2] <= target.value + _ROUNDING]
    if not meeting:
        point, _, value = min(measured, key=lambda entry: entry[2])
        reason = (
            f"No point meets {_words(target, target.value)}; {point.name} comes closest, with {_words(target, value)}."
        )
        return Choice(target.kind, target.value, stage, None, point.name, None, reason)
    if target.kind == "size":
        point, _, value = min(meeting, key=lambda entry: (entry[1].perplexity[0].nll, -entry[0].share_removed))
        why = f"of {len(meeting)} points that meet it the lowest perplexity, {_perplexity(point, stage):.4g}"
    else:
        point, figures, value = max(meeting, key=lambda entry: (entry[0].share_removed, -entry[2]))
        why = f"of {len(meeting)} points that meet it the most parameters removed, {point.share_removed:.1%}"
    reason = f"{point.name} meets {_words(target, target.value)} with {_words(target, value)}: {why}."
    return Choice(target.kind, target.value, stage, point.name, None, None, reason)


def _value(point: SweepPoint, figures: ModelEvaluation, original: ModelEvaluation, target: Target) -> float | None:
    """What is held against the bound; less is better."""
    if target.kind == "size":
        return point.bytes
    if target.kind == "ppl-ratio":
        return perplexity_ratio(figures, original)
    before, after = accuracy(original), accuracy(figures)
    return None if before is None or after is None else before[0] - after[0]


def _words(target: Target, value: float) -> str:
    if target.kind == "size":
        return f"{int(value):,} bytes"
    return f"a perplexity ratio of {value:.4g}" if target.kind == "ppl-ratio" else f"an accuracy drop of {value:.4f}"


def _perplexity(point: SweepPoint, stage: Stage) -> float:
    figures = point.figures(stage)
    assert figures is not None
    return figures.perplexity[0].perplexity
