"""Figures that records claim, held against figures measured here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_prune.record_base import Environment
from hf_prune.records import Completion, Evaluation, Fidelity, ModelEvaluation, Perplexity, Rate, TaskResult
from hf_prune.verify_checks import Check

Place = Literal["same", "single", "half"]
"""Where is measured: the same hardware and versions; elsewhere in float32; elsewhere in 16 bits."""

SIGMAS = 3
"""Combined standard errors by which a sample may be off: 3 lets one figure in some 370 fail by chance."""


@dataclass(frozen=True)
class Tolerance:
    """How far apart two figures may be: the larger of a share of the claimed one and an absolute distance.

    Attributes:
        same: (relative, absolute) in the same place.
        single: elsewhere, in float32.
        half: elsewhere, in bfloat16 or float16.
        why: where these come from.
    """

    same: tuple[float, float]
    single: tuple[float, float]
    half: tuple[float, float]
    why: str

    def of(self, claimed: float, place: Place) -> float:
        """The distance allowed."""
        relative, absolute = getattr(self, place)
        return max(relative * abs(claimed), absolute)


_KL = Tolerance(
    same=(1e-3, 1e-5),
    single=(1e-2, 1e-4),
    half=(5e-2, 2e-3),
    why="a mean of differences of logarithms: it keeps the rounding of both models, and may be near zero",
)
_AGREEMENT = Tolerance(
    same=(0.0, 1e-3), single=(0.0, 5e-3), half=(0.0, 2e-2), why="near ties change sides with the rounding"
)
TOLERANCES: dict[str, Tolerance] = {
    "perplexity": Tolerance(
        same=(1e-4, 0.0),
        single=(1e-3, 0.0),
        half=(1e-2, 0.0),
        why="the same machine repeats the same sums, but for the order of its threads; others round elsewhere: "
        "float32 by some 1e-7 an operation, bfloat16 by 4e-3, of which most averages out over tokens",
    ),
    "bits per byte": Tolerance(
        same=(1e-4, 0.0), single=(1e-3, 0.0), half=(1e-2, 0.0), why="the loss of the perplexity, in other units"
    ),
    "KL": _KL,
    "KL, likeliest tokens": _KL,
    "same first choice": _AGREEMENT,
    "shared of first five": _AGREEMENT,
    "task": Tolerance(
        same=(0.0, 5e-3),
        single=(0.0, 5e-3),
        half=(0.0, 5e-3),
        why="near ties change sides with the rounding; where the harness gives a larger standard error, that one",
    ),
}


def place_of(claimed: Environment, here: Environment) -> Place:
    """How alike the two places are in which figures were measured."""
    versions = all(claimed.versions.get(name) == here.versions.get(name) for name in ("torch", "transformers"))
    if versions and (claimed.hardware, claimed.device, claimed.dtype) == (here.hardware, here.device, here.dtype):
        return "same"
    whole = all("float32" in place.dtype.split(",")[0] for place in (claimed, here))
    return "single" if whole else "half"


def check_figures(claimed: Evaluation, measured: Evaluation, *, sample: bool = False) -> list[Check]:
    """Hold every figure of every model that was measured here against the claimed one.

    Args:
        claimed: what the records say.
        measured: here, on the same text; on a part of it where `sample`.
        sample: whether figures need only lie within `SIGMAS` combined standard errors.
    """
    place = place_of(claimed.environment, measured.environment)
    here = {model.label: model for model in measured.models}
    checks: list[Check] = []
    for model in claimed.models:
        found = here.get(model.label)
        if found is None:
            reason = "merging the adapter has taken these weights" if model.label == "pruned" else "not measured here"
            checks.append(Check(f"{model.label}: all figures", "skipped", reason=reason))
            continue
        checks += [
            *_sizes(model, found),
            *_texts(model, found, place, sample),
            *_fidelity(model.label, model.fidelity, found.fidelity, place, sample),
            *_tasks(model, found, place, sample),
            *_shown(model, found),
        ]
    return checks


def _sizes(claimed: ModelEvaluation, found: ModelEvaluation) -> list[Check]:
    pairs = [("layers", claimed.layers, found.layers), ("parameters", claimed.parameters, found.parameters)]
    if claimed.dtype == found.dtype:
        pairs.append(("bytes of weights", claimed.bytes, found.bytes))
    return [
        Check(f"{claimed.label}: {name}", "pass" if a == b else "fail", f"{a:,}", f"{b:,}", "exact")
        for name, a, b in pairs
    ]


def _texts(claimed: ModelEvaluation, found: ModelEvaluation, place: Place, sample: bool) -> list[Check]:
    checks = []
    measured = {text.name: text for text in found.perplexity}
    for text in claimed.perplexity:
        other = measured.get(text.name)
        if other is None:
            checks.append(Check(f"{claimed.label}: perplexity, {text.name}", "skipped", reason="not measured here"))
            continue
        checks.append(_perplexity(claimed.label, text, other, place, sample))
        if not sample:
            name = f"{claimed.label}: bits per byte"
            checks.append(_judged(name, "bits per byte", text.bits_per_byte, other.bits_per_byte, place))
    return checks


def _perplexity(label: str, claimed: Perplexity, found: Perplexity, place: Place, sample: bool) -> Check:
    name = f"{label}: perplexity"
    if not sample:
        return _judged(name, "perplexity", claimed.perplexity, found.perplexity, place)
    errors = math.hypot(claimed.standard_error, found.standard_error)
    return _within(
        f"{label}: loss, nats per token", claimed.nll, found.nll, errors, TOLERANCES["perplexity"].of(1, place)
    )


def _fidelity(label: str, claimed: Fidelity | None, found: Fidelity | None, place: Place, sample: bool) -> list[Check]:
    if claimed is None:
        return []
    if found is None:
        return [Check(f"{label}: KL from original", "skipped", reason="not measured here")]
    if sample:
        errors = math.hypot(claimed.kl_standard_error, found.kl_standard_error)
        return [_within(f"{label}: KL from original", claimed.kl, found.kl, errors, _KL.of(claimed.kl, place))]
    checks = [_judged(f"{label}: KL from original", "KL", claimed.kl, found.kl, place)]
    if claimed.kl_top_k is not None and found.kl_top_k is not None:
        name = f"{label}: KL, likeliest tokens"
        checks.append(_judged(name, "KL, likeliest tokens", claimed.kl_top_k, found.kl_top_k, place))
    checks.append(
        _judged(
            f"{label}: same first choice", "same first choice", claimed.top1_agreement, found.top1_agreement, place
        )
    )
    if claimed.top5_agreement is not None and found.top5_agreement is not None:
        name = f"{label}: shared of first five"
        checks.append(_judged(name, "shared of first five", claimed.top5_agreement, found.top5_agreement, place))
    return checks


def _tasks(claimed: ModelEvaluation, found: ModelEvaluation, place: Place, sample: bool) -> list[Check]:
    measured = {(t.task, t.metric, t.filter): t for t in found.tasks}
    checks = []
    for task in claimed.tasks:
        name = f"{claimed.label}: {task.task} {task.metric}"
        other = measured.get((task.task, task.metric, task.filter))
        if other is None:
            checks.append(Check(name, "skipped", _figure(task.value), reason="not measured here"))
        elif sample:
            checks.append(_sampled_task(name, task, other))
        elif (task.samples, task.version) != (other.samples, other.version):
            asked = (
                f"{other.samples} questions of version {other.version} here, {task.samples} of {task.version} there"
            )
            checks.append(
                Check(name, "fail", _figure(task.value), _figure(other.value), reason=f"other questions: {asked}")
            )
        else:
            checks.append(_judged(name, "task", task.value, other.value, place, task.standard_error or 0.0))
    return checks


def _sampled_task(name: str, claimed: TaskResult, found: TaskResult) -> Check:
    if claimed.standard_error is None or found.standard_error is None:
        reason = "the harness gives no standard error, without which a sample cannot be judged"
        return Check(name, "shown", _figure(claimed.value), _figure(found.value), reason=reason)
    errors = math.hypot(claimed.standard_error, found.standard_error)
    return _within(name, claimed.value, found.value, errors, 0.0)


def _shown(claimed: ModelEvaluation, found: ModelEvaluation) -> list[Check]:
    """What depends on the machine and what else it does, and what one rounding changes: never judged."""
    label = claimed.label
    checks = [Check(f"{label}: peak memory, bytes", "shown", f"{claimed.peak_memory:,}", f"{found.peak_memory:,}")]
    if claimed.speed is not None and found.speed is not None:
        for name in ("prefill", "decode"):
            rates: tuple[Rate, Rate] = (getattr(claimed.speed, name), getattr(found.speed, name))
            checks.append(Check(f"{label}: {name}, tokens/s", "shown", *(_figure(r.median) for r in rates)))
    alike, all_ = _same_texts(claimed.completions, found.completions)
    if all_:
        checks.append(Check(f"{label}: greedy completions", "shown", f"{all_}", f"{alike} the same"))
    return checks


def _same_texts(claimed: Sequence[Completion], found: Sequence[Completion]) -> tuple[int, int]:
    known = {c.prompt: c.tokens for c in found if c.kind == "greedy"}
    ours = [c for c in claimed if c.kind == "greedy" and c.tokens and c.prompt in known]
    return sum(known[c.prompt] == c.tokens for c in ours), len(ours)


def _judged(name: str, metric: str, claimed: float, found: float, place: Place, least: float = 0.0) -> Check:
    allowed = max(TOLERANCES[metric].of(claimed, place), least)
    close = abs(claimed - found) <= allowed
    return Check(name, "pass" if close else "fail", _figure(claimed), _figure(found), f"± {allowed:.2g}")


def _within(name: str, claimed: float, found: float, error: float, least: float) -> Check:
    """A figure of a sample; its standard error may be zero where the sample is tiny, so that rounding counts too."""
    allowed = max(SIGMAS * error, least)
    close = abs(claimed - found) <= allowed
    tolerance = f"± {allowed:.2g} ({SIGMAS} se)"
    return Check(name, "pass" if close else "fail", _figure(claimed), _figure(found), tolerance)


def _figure(value: float) -> str:
    return f"{value:.6g}"
