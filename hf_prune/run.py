"""The whole job: measure, plan, prune, heal, evaluate, card, push. Killed anywhere, the same call goes on."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hf_prune.amounts import check_amount
from hf_prune.config import PrunerConfig
from hf_prune.evaluation.task_loading import check_tasks, task_files
from hf_prune.healable import check_healing
from hf_prune.hub import PushResult, check_push
from hf_prune.output import OUTPUT_FILE, Finished, default_private, push_output
from hf_prune.pruner import Pruner
from hf_prune.records import Evaluation, Plan
from hf_prune.rounds import check_rounds, counts_of, in_rounds
from hf_prune.run_folder import beside, digest, remove, room_for
from hf_prune.samples import Samples
from hf_prune.saving import RECORDS, check_output
from hf_prune.shards import shard_limit
from hf_prune.streaming import check_room, cuts_files

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
    max_shard_size: str = "5GB",
    texts: Mapping[str, Samples] | None = None,
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
        max_shard_size: as in `save_pretrained`.
        texts: those that are there already, by name; see `Texts.take`.
        load_kwargs: see `Pruner.from_pretrained`.

    Raises:
        PruneError: see its children; whatever can be known early is raised before any work.
    """
    folder = Path(output)
    run_folder = beside(folder)
    shard_limit(max_shard_size)
    if heal:
        check_healing(config)
    check_rounds(config, heal)
    if not _finished(folder):
        check_output(folder)
        if evaluate:
            check_tasks(config.evaluation)  # before the first download
    token, push_kwargs = load_kwargs.get("token"), dict(push_kwargs or {})
    if push is not None:
        push = _check_push(push, token, push_kwargs)  # before the first download
    pruner = Pruner.from_pretrained(model_id, config, run_folder=run_folder, progress=progress, **load_kwargs)
    for name, samples in (texts or {}).items():
        samples.save(pruner.run.tokens(name))
        pruner.texts.take(name, samples)
    check_amount(pruner.config, pruner.source.ref.num_layers, pruner.source.ref.id)
    if pruner.config.rounds > 1:
        check_rounds(pruner.config, heal)
        counts_of(pruner.config, pruner.source.ref.num_layers)
    if evaluate:
        check_room(pruner.models, "evaluating", "evaluate nothing (--no-evaluate)")
    if heal:
        pruner.check_healing()
    pruner.check_cut()
    if push is not None and push_kwargs.get("private") is None:
        push_kwargs["private"] = default_private(pruner.source.ref, token)
        if push_kwargs["private"]:
            _check_push(push, token, push_kwargs)
    inputs = digest(
        {
            "model": pruner.source.ref,
            "config": pruner.config,
            "files": pruner.texts.files(),
            **({"texts": {name: samples.use for name, samples in texts.items()}} if texts else {}),
            "task files": task_files(pruner.config.evaluation.task_path) if evaluate else [],
            "dtype": str(load_kwargs.get("dtype", "auto")),
            "heal": heal,
            "evaluate": evaluate,
            "max_shard_size": max_shard_size,
            "verify_hash": load_kwargs.get("verify_hash", False),
        }
    )
    repeated = _finished(folder) and Finished.load(folder).inputs == inputs
    if repeated:
        logger.info("'%s' was made by this very command; nothing to do again", folder)
    else:
        check_output(folder)
        if evaluate:
            pruner.check_evaluation()
        with room_for(run_folder):
            if pruner.config.rounds > 1:
                _rounds(pruner, model_id, folder, inputs, evaluate, progress, max_shard_size, load_kwargs)
            else:
                on_plan(pruner.plan())
                _work(pruner, heal, evaluate)
                pruner.save_pretrained(folder, repo_id=push, inputs=inputs, max_shard_size=max_shard_size)
    remove(run_folder)
    pushed = None
    if push is not None:
        pushed = push_output(folder, push, token=token, **push_kwargs)
    return RunResult(folder, Finished.load(folder), pushed, repeated)


def _rounds(
    pruner: Pruner,
    model_id: str | Path,
    folder: Path,
    inputs: str,
    evaluate: bool,
    progress: bool,
    max_shard_size: str,
    load_kwargs: dict[str, Any],
) -> None:
    def once(model: str | Path, config: PrunerConfig, made: Path, texts: Mapping[str, Samples]) -> Finished:
        # Only the first round knows a Hub commit; what lies in a folder has none.
        kwargs = load_kwargs if model is model_id else {k: v for k, v in load_kwargs.items() if k not in _OF_THE_HUB}
        result = run(
            model,
            config,
            made,
            heal=True,
            evaluate=False,
            progress=progress,
            max_shard_size=max_shard_size,
            texts=texts,
            **kwargs,
        )
        return result.finished

    in_rounds(
        model_id,
        pruner.config,
        folder,
        pruner.run.path,
        pruner.source.ref,
        once=once,
        inputs=inputs,
        evaluate=evaluate,
        load_kwargs=load_kwargs,
        progress=progress,
    )


_OF_THE_HUB = ("revision", "verify_hash")


def _check_push(repo_id: str, token: Any, push_kwargs: dict[str, Any]) -> str:
    known = ("private", "revision", "create_pr", "overwrite")
    return check_push(repo_id, token=token, **{name: push_kwargs[name] for name in known if name in push_kwargs})


def _work(pruner: Pruner, heal: bool, evaluate: bool) -> None:
    """All text comes first, so that a missing dataset is told early; so does what needs the original."""
    if heal:
        pruner.prepare_healing()
    if evaluate:
        pruner.evaluate_as("original")
    if heal or evaluate or not cuts_files(pruner.models, pruner.plan()):
        pruner.prune()
    if evaluate:
        pruner.evaluate_as("pruned")
    if heal:
        pruner.heal()
    if evaluate:
        pruner.evaluate()  # what was measured above is taken over; speed comes last


def _finished(folder: Path) -> bool:
    return (folder / RECORDS / OUTPUT_FILE).is_file()
