"""The whole job: measure, plan, prune, heal, evaluate, card, push. Killed anywhere, the same call goes on."""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_prune import healing
from hf_prune.config import PrunerConfig
from hf_prune.hub import PushResult, check_push
from hf_prune.output import OUTPUT_FILE, Finished, push_output
from hf_prune.plan import check_amount
from hf_prune.pruner import Pruner
from hf_prune.records import Evaluation, Plan
from hf_prune.run_folder import digest
from hf_prune.saving import RECORDS, check_output

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """What a run made.

    Attributes:
        folder: the finished model.
        finished: its records.
        push: what was pushed, if anything.
        repeated: whether the folder was there already, made by the same call.
    """

    folder: Path
    finished: Finished
    push: PushResult | None
    repeated: bool

    @property
    def evaluation(self) -> Evaluation | None:
        """Original, pruned and healed side by side."""
        return self.finished.evaluation


def run(
    model_id: str | Path,
    config: PrunerConfig,
    output: str | Path,
    *,
    heal: bool = False,
    evaluate: bool = True,
    push: str | None = None,
    push_kwargs: dict[str, Any] | None = None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    progress: bool = True,
    **load_kwargs: Any,
) -> RunResult:
    """Prune a model from end to end.

    Working state lies in `OUTPUT.run`; it goes away when the output is complete.

    Args:
        model_id: Hub id or folder.
        config: the recipe with its amount.
        output: new or empty folder, or the one that this very call has made before.
        heal: whether to heal.
        evaluate: whether to measure original, pruned and healed model.
        push: repo to push to.
        push_kwargs: see `hf_prune.hub.push_folder`.
        on_plan: told the plan before it is carried out.
        progress: whether to show bars.
        load_kwargs: see `Pruner.from_pretrained`.

    Raises:
        PruneError: see its children; whatever can be known early is raised before any work.
    """
    folder = Path(output)
    run_folder = folder.absolute().parent / f"{folder.name}.run"
    if heal:
        healing.require_packages()
    pruner = Pruner.from_pretrained(model_id, config, run_folder=run_folder, progress=progress, **load_kwargs)
    check_amount(pruner.config, pruner.source.ref.num_layers, pruner.source.ref.id)
    inputs = digest({"model": pruner.source.ref, "config": pruner.config, "heal": heal, "evaluate": evaluate})
    if push is not None:
        check_push(
            push, token=load_kwargs.get("token"), **{k: v for k, v in (push_kwargs or {}).items() if k in _CHECKED}
        )
    repeated = _made_by(folder, inputs)
    if not repeated:
        check_output(folder)
        on_plan(pruner.plan())
        _work(pruner, heal, evaluate)
        pruner.save_pretrained(folder, repo_id=push, inputs=inputs)
    shutil.rmtree(run_folder)
    pushed = None
    if push is not None:
        pushed = push_output(folder, push, token=load_kwargs.get("token"), **(push_kwargs or {}))
    return RunResult(folder, Finished.load(folder), pushed, repeated)


_CHECKED = ("private", "revision", "create_pr", "overwrite")


def _work(pruner: Pruner, heal: bool, evaluate: bool) -> None:
    """What needs the original comes first, while it is in memory."""
    if evaluate:
        pruner.evaluate_as("original")
    if heal and pruner.texts.samples_itself("healing"):
        pruner.prepare_healing()
    pruner.prune()
    if evaluate:
        pruner.evaluate_as("pruned")
    if heal:
        pruner.heal()
        if evaluate:
            pruner.evaluate_as("healed")


def _made_by(folder: Path, inputs: str) -> bool:
    made = (folder / RECORDS / OUTPUT_FILE).is_file() and Finished.load(folder).inputs == inputs
    if made:
        logger.info("'%s' was made by this very command; nothing to do again", folder)
    return made
