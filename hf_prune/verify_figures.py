"""Figures that records claim, held against figures measured here."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_prune.record_base import Environment
from hf_prune.records import Completion, Evaluation, Fidelity, ModelEvaluation, Perplexity, Rate, TaskResult
from hf_prune.verify_checks import Check, Status, outcome

Place = Literal["same", "single", "half"]
"""Where is measured: the same hardware and versions; elsewhere in float32; elsewhere in 16 bits."""

SIGMAS = 3
"""Combined standard errors by which a sample may be off: 3 lets one figure in some 370 fail by chance."""

_ENOUGH_WINDOWS = 8
"""From here on a standard error of a sample is no tenth of the true one by chance."""

_UNKNOWN = "the recipe, run again, gives no such figure"


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
    "standard error": Tolerance(
        same=(1e-3, 1e-5), single=(1e-2, 1e-4), half=(1e-1, 2e-3), why="of the same windows, it keeps their rounding"
    ),
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


def check_figures(
    claimed: Evaluation, measured: Evaluation, *, sample: bool = False, without_tasks: bool = False
) -> list[Check]:
    """Hold every figure of every model that was measured here against the claimed one.

    Args:
        claimed: what the records say.
        measured: here, on the same text; on a part of it where `sample`.
        sample: whether figures need only lie within `SIGMAS` combined standard errors.
        without_tasks: whether tasks could not be run here; claims of them are skipped then, and fail otherwise where
            the recipe gives no such figure.
    """
    place = place_of(claimed.environment, measured.environment)
    here = {model.label: model for model in measured.models}
    checks: list[Check] = []
    for model in claimed.models:
        found = here.get(model.label)
        checks += _consistent(model)
        if found is None:
            gone = model.label == "pruned" and "healed" in here
            reason = "merging the adapter has taken these weights" if gone else _UNKNOWN
            checks.append(Check(f"{model.label}: all figures", "skipped" if gone else "fail", reason=reason))
            continue
        checks += [
            *_sizes(model, found),
            *_texts(model, found, place, sample),
            *_fidelity(model.label, model.fidelity, found.fidelity, place, sample),
            *_tasks(model, found, place, sample, without_tasks),
            *_shown(model, found),
        ]
    return checks


def _consistent(model: ModelEvaluation) -> list[Check]:
    """Figures that follow from one another: one of them is measured again, and the rest has to agree with it."""
    problems = []
    for text in model.perplexity:
        if not _equal(math.log(text.perplexity) if text.perplexity > 0 else math.inf, text.nll):
            problems.append(f"perplexity {_figure(text.perplexity)} of a loss of {_figure(text.nll)}")
        if not _equal(text.bits_per_byte * math.log(2) * text.bytes, text.nll * text.tokens):
            problems.append(f"{_figure(text.bits_per_byte)} bits per byte of a loss of {_figure(text.nll)}")
        if text.standard_error < 0:
            problems.append(f"a standard error of {_figure(text.standard_error)}")
    errors = [task.standard_error or 0.0 for task in model.tasks]
    errors += [model.fidelity.kl_standard_error] if model.fidelity is not None else []
    problems += [f"a standard error of {_figure(error)}" for error in errors if error < 0]
    return [outcome(f"{model.label}: figures agree", problems, "of each other")] if problems else []


def _equal(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=1e-6, abs_tol=1e-9)


def _sizes(claimed: ModelEvaluation, found: ModelEvaluation) -> list[Check]:
    pairs = [("layers", claimed.layers, found.layers), ("parameters", claimed.parameters, found.parameters)]
    if claimed.dtype == found.dtype:
        pairs.append(("bytes of weights", claimed.bytes, found.bytes))
    checks = [_exact(f"{claimed.label}: {name}", f"{a:,}", f"{b:,}") for name, a, b in pairs]
    if claimed.dtype != found.dtype:
        checks.append(_exact(f"{claimed.label}: dtype", claimed.dtype, found.dtype))
    return checks


def _texts(claimed: ModelEvaluation, found: ModelEvaluation, place: Place, sample: bool) -> list[Check]:
    checks = []
    measured = {text.name: text for text in found.perplexity}
    for text in claimed.perplexity:
        other = measured.get(text.name)
        if other is None:
            checks.append(Check(f"{claimed.label}: perplexity, {text.name}", "fail", reason=_UNKNOWN))
            continue
        checks.append(_perplexity(claimed.label, text, other, place, sample))
        if not sample:
            name = f"{claimed.label}: bits per byte"
            checks.append(_judged(name, "bits per byte", text.bits_per_byte, other.bits_per_byte, place))
            checks.append(_error(claimed.label, text.standard_error, other.standard_error, place))
            counts = [f"{t.tokens:,} tokens, {t.bytes:,} bytes, {t.window}/{t.stride}" for t in (text, other)]
            checks.append(_exact(f"{claimed.label}: text and windows", *counts))
        elif text.standard_error > 10 * other.standard_error and other.tokens // other.stride >= _ENOUGH_WINDOWS:
            reason = "ten times that of the sample, so that it would excuse any figure"
            stated, here = _figure(text.standard_error), _figure(other.standard_error)
            checks.append(Check(f"{claimed.label}: standard error of the loss", "fail", stated, here, reason=reason))
    return checks


def _error(label: str, claimed: float, found: float, place: Place) -> Check:
    return _judged(f"{label}: standard error of the loss", "standard error", claimed, found, place)


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
        return [Check(f"{label}: KL from original", "fail", reason=_UNKNOWN)]
    if sample:
        errors = math.hypot(claimed.kl_standard_error, found.kl_standard_error)
        return [_within(f"{label}: KL from original", claimed.kl, found.kl, errors, _KL.of(claimed.kl, place))]
    checks = [_judged(f"{label}: KL from original", "KL", claimed.kl, found.kl, place)]
    name = f"{label}: standard error of the KL"
    checks.append(_judged(name, "standard error", claimed.kl_standard_error, found.kl_standard_error, place))
    if (claimed.tokens, claimed.top_k, claimed.top_k_tokens) != (found.tokens, found.top_k, found.top_k_tokens):
        ours, theirs = (f"{f.tokens:,}, {f.top_k_tokens} of {f.top_k}" for f in (claimed, found))
        differ = claimed.top_k is not None  # older versions compared other positions
        checks.append(Check(f"{label}: compared tokens", "fail" if differ else "shown", ours, theirs, "exact"))
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


def _tasks(claimed: ModelEvaluation, found: ModelEvaluation, place: Place, sample: bool, without: bool) -> list[Check]:
    measured = {(t.task, t.metric, t.filter): t for t in found.tasks}
    checks = []
    for task in claimed.tasks:
        name = f"{claimed.label}: {task.task} {task.metric}"
        other = measured.get((task.task, task.metric, task.filter))
        if other is None:
            status: Status = "skipped" if without else "fail"
            reason = "not measured here" if without else _UNKNOWN
            checks.append(Check(name, status, _figure(task.value), reason=reason))
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
            # The error measured here: the claimed one could excuse any value.
            checks.append(_judged(name, "task", task.value, other.value, place, other.standard_error or 0.0))
            if task.standard_error is not None and other.standard_error is not None:
                pair = task.standard_error, other.standard_error
                checks.append(_judged(f"{name}, standard error", "task", *pair, place))
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
    for title, value, here in (
        ("bytes on disk", claimed.disk_bytes, found.disk_bytes),
        ("operations per token", claimed.flops_per_token, found.flops_per_token),
    ):
        if value is not None:
            checks.append(
                Check(f"{label}: {title}", "shown", _figure(value), "not measured" if here is None else _figure(here))
            )
    alike, all_, forged = _same_texts(claimed.completions, found.completions)
    if all_:
        reason = "these tokens are another text" if forged else ""
        status: Status = "fail" if forged else "shown"
        checks.append(Check(f"{label}: greedy completions", status, f"{all_}", f"{alike} the same", reason=reason))
    return checks


def _same_texts(claimed: Sequence[Completion], found: Sequence[Completion]) -> tuple[int, int, bool]:
    """Completions of the same tokens, all of them, and whether one gives another text for the same tokens."""
    known = {c.prompt: c for c in found if c.kind == "greedy"}
    ours = [c for c in claimed if c.kind == "greedy" and c.tokens and c.prompt in known]
    same = [c for c in ours if known[c.prompt].tokens == c.tokens]
    return len(same), len(ours), any(known[c.prompt].text != c.text for c in same)


def _exact(name: str, claimed: str, found: str) -> Check:
    return Check(name, "pass" if claimed == found else "fail", claimed, found, "exact")


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
