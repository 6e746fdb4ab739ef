"""What a verification runs again: the evaluations of a model, and the choice of its layers or widths."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_prune import extras
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.output import Finished
from hf_prune.planners.choice import in_words
from hf_prune.pruner import Pruner
from hf_prune.records import Plan, TextUse
from hf_prune.samples import Samples, digest
from hf_prune.saving import RECORDS
from hf_prune.verify_checks import Check, Status
from hf_prune.verify_figures import check_figures

_DTYPES = ("float32", "bfloat16", "float16")
_DISTANCE = 1e-2
"""Relative distance within which a re-measured angular distance counts as the claimed one: what bfloat16 moves it by
on another machine, and far below the gaps between windows that matter."""


@dataclass(frozen=True)
class Rerun:
    """What is needed to run things again.

    Attributes:
        folder: the model.
        base: its base model's folder.
        finished: its records.
        dataset: file or folder of a text that the records name by its last part alone.
        task_path: folder of task files, likewise.
        token: of the Hub.
        device_map: as in transformers.
        progress: whether to show bars.
    """

    folder: Path
    base: Path
    finished: Finished
    dataset: str | None
    task_path: str | None
    token: str | bool | None
    device_map: Any
    progress: bool

    def kwargs(self, dtype: str) -> dict[str, Any]:
        """Arguments of `Pruner`: the dtype that figures were measured in, and never the repo's code."""
        return {
            "token": self.token,
            "dtype": dtype if dtype in _DTYPES else "auto",
            "device_map": self.device_map,
            "trust_remote_code": False,
            "progress": self.progress,
        }

    def recipe(self) -> PrunerConfig:
        """The model's recipe, with the dataset where it lies here.

        Raises:
            ConfigError: the recipe names no dataset of that name.
        """
        config = self.finished.config
        if self.dataset is None:
            return config
        name, changes = Path(self.dataset).name, {}
        for stage in ("calibration", "healing", "evaluation"):
            part = getattr(config, stage)
            if part.dataset in (name, self.dataset):
                changes[stage] = dataclasses.replace(part, dataset=self.dataset)
        if not changes:
            named = {part.dataset for part in (config.calibration, config.evaluation) if part.dataset is not None}
            raise ConfigError(
                f"dataset='{self.dataset}': the recipe names no dataset '{name}'; it names "
                f"{', '.join(map(repr, sorted(named))) or 'none'}"
            )
        return dataclasses.replace(config, **changes)

    def lacks_for_tasks(self) -> str | None:
        """What is missing to run the tasks of the recipe again; None where nothing is, or none are named."""
        settings = self.finished.config.evaluation
        if not settings.tasks:
            return None
        if not extras.available("lm_eval"):
            return "lm-evaluation-harness is not installed: pip install 'hf-prune[eval]'"
        if settings.task_path is not None and self.task_path is None and not Path(settings.task_path).is_dir():
            return f"the records name the folder of task files '{settings.task_path}' without its path: --task-path"
        return None

    def shipped(self, name: str, use: TextUse) -> Samples | None:
        """Token ids that the records ship, because the text was sampled; None where they do not."""
        path = self.folder / RECORDS / f"{name}_tokens.safetensors"
        return Samples.load(path, use) if path.is_file() else None


def check_evaluations(rerun: Rerun, samples: int | None) -> list[Check]:
    """Measure original and model again on the same text, and hold every figure against the claimed one.

    Args:
        rerun: model and records.
        samples: first documents of the text, and most questions of a task; None takes all.

    Raises:
        DataError: the text cannot be had.
        ConfigError: the records name a dataset that is not there.
    """
    claimed = rerun.finished.evaluation
    if claimed is None or not claimed.models:
        return [Check("evaluations", "skipped", reason="the records hold none")]
    if not claimed.models[0].perplexity:
        return [Check("evaluations", "fail", reason="the records hold figures, and name no text of the first model's")]
    config, checks = rerun.recipe(), []
    settings, use = config.evaluation, claimed.models[0].perplexity[0].data
    lacks = rerun.lacks_for_tasks()
    if lacks is not None:
        checks.append(Check("tasks", "skipped", ", ".join(settings.tasks), reason=lacks))
        settings = dataclasses.replace(settings, tasks=(), task_path=None)
    elif rerun.task_path is not None:
        settings = dataclasses.replace(settings, task_path=rerun.task_path)
    if samples is not None:
        limit = samples if settings.limit is None else min(samples, settings.limit)
        settings = dataclasses.replace(settings, speed=False, limit=limit if settings.tasks else None)
    pruner = Pruner.from_pruned(
        rerun.folder,
        dataclasses.replace(config, evaluation=settings),
        original=rerun.base,
        **rerun.kwargs(claimed.models[0].dtype),
    )
    text = rerun.shipped("evaluation", use) if use.dataset is None else pruner.texts.evaluation()
    if text is None:
        reason = "the text was sampled, and the records lack its token ids"
        return [*checks, Check("evaluation text", "fail", use.sha256[:12], "none", reason=reason)]
    found = digest(text.sequences)
    same = found == use.sha256
    reason = "" if same else "it is another text, so that its figures are shown, not judged"
    if same:
        counted = dataclasses.replace(text.use, samples=len(text.sequences), tokens=text.tokens, revision=use.revision)
        healing = rerun.finished.healing
        merged = healing is not None and healing.output == "merged"  # the pruned model's figures may be older then
        uses = [t.data for model in claimed.models for t in model.perplexity if model.label != "pruned" or not merged]
        reason = "" if all(u == counted for u in uses) else "the records describe it otherwise than it is"
    status: Status = "fail" if reason else "pass"
    checks.append(Check("evaluation text", status, use.sha256[:12], found[:12], "exact", reason))
    part = samples is not None and samples < len(text.sequences)
    pruner.texts.take("evaluation", text.part(0, samples) if part and samples is not None else text)
    measured = pruner.evaluate()
    figures = check_figures(claimed, measured, sample=samples is not None, without_tasks=lacks is not None)
    if part:
        reason = (
            f"figures are those of the first {samples} of {len(text.sequences)} documents: they pass within combined "
            "standard errors"
        )
        checks.append(Check("sample", "shown", f"{len(text.sequences)} documents", f"{samples}", reason=reason))
    return [*checks, *(figures if same else [dataclasses.replace(c, status="shown") for c in figures])]


def check_plan(rerun: Rerun) -> list[Check]:
    """Choose anew by the recipe, on the calibration text that was used.

    Raises:
        DataError: the text cannot be had.
        ConfigError: the records name a dataset that is not there.
    """
    claimed, config = rerun.finished.plan, rerun.recipe()
    if claimed.planner == "named" and config.layers is not None:
        reason = "its layers were named by whoever made it; nothing was chosen"
        return [Check("plan from recipe", "shown", in_words(claimed.removed), reason=reason)]
    if config.layers is None and config.drop_layers is None and config.sparsity is None:
        reason = "its recipe holds no amount: the plan was made elsewhere, and given to it"
        return [Check("plan from recipe", "shown", in_words(claimed.removed), reason=reason)]
    if config.rounds > 1:
        reason = f"it was chosen in {config.rounds} rounds, all but the first on weights that were healed in between"
        return [Check("plan from recipe", "shown", in_words(claimed.removed), reason=reason)]
    scores = rerun.finished.scores
    dtype = "auto" if scores is None else scores.environment.dtype.split(",")[0]
    pruner = Pruner.from_pretrained(rerun.base, config, **rerun.kwargs(dtype))
    checks = []
    cut = claimed.slicing
    use = (None if scores is None else scores.data) or claimed.data or (None if cut is None else cut.calibration)
    if use is not None:
        # What a search held out from the text lies in the same file, behind it.
        text = rerun.shipped("calibration", use) if use.dataset is None else None
        if text is not None:
            pruner.texts.take("calibration", text)
        found = digest(pruner.texts.calibration().sequences)
        same = found == use.sha256
        checks.append(Check("calibration text", "pass" if same else "fail", use.sha256[:12], found[:12], "exact"))
    made = pruner.plan()
    checks.append(_same_choice(claimed, made))
    if claimed.distance is not None and made.distance is not None:
        allowed = _DISTANCE * abs(claimed.distance)
        close = math.isclose(claimed.distance, made.distance, abs_tol=allowed, rel_tol=0)
        pair = f"{claimed.distance:.6g}", f"{made.distance:.6g}"
        checks.append(Check("distance of the layers", "pass" if close else "fail", *pair, f"± {allowed:.2g}"))
    return [*checks, *_same_fit(claimed, made)]


def _same_choice(claimed: Plan, made: Plan) -> Check:
    name = "plan from recipe"
    if claimed.slicing is not None and made.slicing is not None:
        ours, theirs = list(claimed.slicing.widths), list(made.slicing.widths)
        return Check(name, "pass" if ours == theirs else "fail", str(ours), str(theirs), "exact")
    same = claimed.removed == made.removed
    return Check(name, "pass" if same else "fail", in_words(claimed.removed), in_words(made.removed), "exact")


def _same_fit(claimed: Plan, made: Plan) -> list[Check]:
    """What was fitted, once more: factors to within rounding; a file of tensors never comes out to the bit twice."""
    checks = []
    ours, theirs = ([op.options["factor"] for op in plan.operations if op.kind == "scale"] for plan in (claimed, made))
    if ours or theirs:
        close = len(ours) == len(theirs) and all(
            math.isclose(a, b, rel_tol=_DISTANCE) for a, b in zip(ours, theirs, strict=True)
        )
        status: Status = "pass" if close else "fail"
        checks.append(Check("fitted factors", status, _factors(ours), _factors(theirs), f"± {_DISTANCE:.0%}"))
    if claimed.fitted is not None or made.fitted is not None:
        old, new = ((plan.fitted or "none")[:12] for plan in (claimed, made))
        reason = "fitting sums in another order on other machines, so that the last bits differ"
        checks.append(Check("file of fitted tensors", "shown", old, new, reason=reason))
    return checks


def _factors(found: list[float]) -> str:
    return f"{len(found)}, {min(found):.4g} to {max(found):.4g}" if found else "none"
