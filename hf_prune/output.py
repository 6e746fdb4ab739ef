"""The finished folder: weights, recipe, records and card, checked by loading it again, there whole or not at all."""

import dataclasses
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hf_prune import serial
from hf_prune.card_metadata import read_base_card
from hf_prune.card_tasks import asked_alike, key
from hf_prune.cards import generate, shipped_model
from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError, HubError
from hf_prune.eval_results import EVAL_RESULTS_FILE, benchmark_entries, benchmark_yaml
from hf_prune.healing.adapter import set_adapter_base
from hf_prune.hub import PushResult, check_push, is_restricted, push_folder
from hf_prune.licences import flags
from hf_prune.pictures import pictures
from hf_prune.records import Evaluation, Healing, ModelEvaluation, ModelRef, Plan, Record, Scores
from hf_prune.saving import RECORDS, licence_files, staged
from hf_prune.soundness import check_plan
from hf_prune.writers import Writer, Written

logger = logging.getLogger(__name__)

ADAPTER = "adapter"
"""Sub-folder of a shipped adapter: beside the weights it would make transformers look for another base."""


OUTPUT_FILE = "output.json"
_FACTS = ("base_card", "base_files", "reload_level", "inputs", "fetched")


@dataclasses.dataclass(frozen=True)
class _Facts:
    """What `OUTPUT_FILE` holds; see `Finished`."""

    base_card: str | None
    base_files: tuple[str, ...]
    reload_level: str
    inputs: str | None = None
    fetched: str = "whole"


@dataclasses.dataclass(frozen=True)
class Finished:
    """All records of a run.

    Attributes:
        config: the recipe, resolved.
        plan: what was cut.
        scores: what was measured.
        healing: how it was healed.
        evaluation: original, pruned, healed.
        base_card: the base's README.md.
        base_files: licence files that were carried over.
        reload_level: how the folder was checked.
        inputs: digest of everything that the folder was made from, where one call made it from end to end.
        fetched: how the base's weights came: "whole" files, whole ones whose hashes were "verified", or "ranges".
    """

    config: PrunerConfig
    plan: Plan
    scores: Scores | None
    healing: Healing | None
    evaluation: Evaluation | None
    base_card: str | None
    base_files: tuple[str, ...]
    reload_level: str
    inputs: str | None = None
    fetched: str = "whole"

    def save(self, folder: Path) -> None:
        """Write recipe and records."""
        self.config.save_pretrained(folder)
        records: tuple[Record | None, ...] = (self.plan, self.scores, self.healing, self.evaluation)
        for record in records:
            if record is not None:
                record.save(folder / RECORDS)
        facts = {name: getattr(self, name) for name in _FACTS}
        serial.write_text(folder / RECORDS / OUTPUT_FILE, serial.dumps(facts))

    @classmethod
    def load(cls, folder: Path) -> "Finished":
        """Read recipe and records back.

        Raises:
            ConfigError: no recipe or no plan there, files that cannot be read, or a plan that nobody can carry out.
        """
        records = folder / RECORDS
        if not (records / OUTPUT_FILE).is_file():
            lacks = f"it has no {RECORDS}/{OUTPUT_FILE}" if folder.is_dir() else "it is not there"
            raise ConfigError(
                f"'{folder}' is no folder that hf-prune has finished ({lacks}); expected an --output of it"
            )
        facts = serial.from_dict(_Facts, serial.read_json(records / OUTPUT_FILE), OUTPUT_FILE)
        plan = Plan.load(records)
        check_plan(plan)
        return cls(
            config=PrunerConfig.from_pretrained(folder),
            plan=plan,
            scores=Scores.load(records) if (records / Scores.FILE).is_file() else None,
            healing=Healing.load(records) if (records / Healing.FILE).is_file() else None,
            evaluation=Evaluation.load(records) if (records / Evaluation.FILE).is_file() else None,
            **{name: getattr(facts, name) for name in _FACTS},
        )


def card_text(folder: Path, finished: Finished, repo_id: str | None = None) -> str:
    """README.md as the records make it, with the pictures that they make beside it."""
    card = generate(
        finished.config,
        finished.plan,
        repo_id=repo_id,
        scores=finished.scores,
        healing=finished.healing,
        evaluation=finished.evaluation,
        base_card=finished.base_card,
        base_files=finished.base_files,
        output="adapter" if (folder / ADAPTER).is_dir() else "merged",
        reload_level=finished.reload_level,
        fetched=finished.fetched,
        pictures=True,
    )
    return str(card)


def write_card(folder: Path, finished: Finished, repo_id: str | None = None) -> Path:
    """Write README.md, its pictures beside it, and results for the Hub's benchmarks where there are some."""
    text = card_text(folder, finished, repo_id)
    records = (finished.plan, finished.scores, finished.healing, finished.evaluation)
    for picture in pictures(*records).values():
        (folder / picture.file).write_bytes(picture.draw())
    _write_benchmarks(folder, finished)
    serial.write_text(folder / "README.md", text)
    return folder / "README.md"


def benchmark_text(finished: Finished) -> str | None:
    """`EVAL_RESULTS_FILE` as the records make it; None where they hold no result for a benchmark."""
    shipped = shipped_model(finished.healing, finished.evaluation)
    template = finished.config.evaluation.chat_template
    entries = benchmark_entries(shipped, finished.plan, finished.healing, template) if shipped is not None else []
    return benchmark_yaml(entries) if entries else None


def _write_benchmarks(folder: Path, finished: Finished) -> None:
    path, text = folder / EVAL_RESULTS_FILE, benchmark_text(finished)
    if text is not None:
        serial.write_text(path, text)
    else:  # an older evaluation's would speak of figures that the records don't hold
        path.unlink(missing_ok=True)


def write_output(
    folder: Path,
    write: Writer,
    finished: Finished,
    *,
    repo_id: str | None = None,
    adapter: Path | None = None,
    tokens: tuple[Path, ...] = (),
) -> Written:
    """Write the finished folder.

    Args:
        folder: wanted; appears whole or not at all.
        write: puts weights, config and tokenizer there (the pruned model's where an adapter is shipped beside it).
        finished: all records; what `write` tells is filled in here.
        repo_id: where the folder will be pushed, for the card.
        adapter: adapter folder to ship beside the weights.
        tokens: token files, so that figures can be recomputed.

    Returns:
        What `write` told.

    Raises:
        OutputError: the folder is not empty, or the disk is full.
        ReloadError: what was saved does not load back.
    """
    with staged(folder) as stage:
        written = write(stage)
        if adapter is not None:
            shutil.copytree(adapter, stage / ADAPTER, ignore=shutil.ignore_patterns("README.md"))
            if repo_id is not None:
                set_adapter_base(stage / ADAPTER, repo_id)
        files = licence_files(stage)
        finished = dataclasses.replace(finished, reload_level=written.level, fetched=written.fetched, base_files=files)
        finished.save(stage)
        for path in tokens:
            shutil.copyfile(path, stage / RECORDS / path.name)
        write_card(stage, finished, repo_id)
    return written


def update_evaluation(
    folder: Path, config: PrunerConfig, evaluation: Evaluation, tokens: tuple[Path, ...] = ()
) -> Evaluation:
    """Put a new evaluation in a finished folder and write its card anew.

    The pruned model's figures, which cannot be measured again once healing has been merged, are kept where they were
    measured on the same text and the same questions.

    Args:
        folder: what `write_output` wrote.
        config: the recipe with the settings of this evaluation; the rest of the folder's own recipe stays.
        evaluation: the new figures.
        tokens: token files of text that was sampled for them.

    Returns:
        What the folder holds now.
    """
    finished = Finished.load(folder)
    models = list(evaluation.models)
    text = models[0].perplexity[0].data.sha256
    old = finished.evaluation.models if finished.evaluation is not None else ()
    for model in old:
        same_text = model.label == "pruned" and model.perplexity[0].data.sha256 == text
        if same_text and [m.label for m in models] == ["original", "healed"]:
            models.insert(1, _comparable(model, models[0]))
    evaluation = Evaluation(tuple(models), evaluation.environment)
    recipe = dataclasses.replace(finished.config, evaluation=config.without_paths().evaluation)
    finished = dataclasses.replace(finished, config=recipe, evaluation=evaluation)
    finished.save(folder)
    for path in tokens:
        shutil.copyfile(path, folder / RECORDS / path.name)
    write_card(folder, finished)
    return evaluation


def _comparable(kept: ModelEvaluation, original: ModelEvaluation) -> ModelEvaluation:
    """Figures of an earlier evaluation without the tasks that the new one did not ask, or asked differently."""
    asked = {key(result): asked_alike(result) for result in original.tasks}
    tasks = tuple(result for result in kept.tasks if asked.get(key(result)) == asked_alike(result))
    return dataclasses.replace(kept, tasks=tasks)


def default_private(base: ModelRef, token: str | bool | None = None) -> bool | None:
    """Whether a new repo is private where nobody says so: what is made of a gated or private base is.

    Args:
        base: the base model.
        token: of the Hub.

    Returns:
        True, or None where the namespace's own default may decide.
    """
    if "/" not in base.id:
        return None
    try:
        return is_restricted(base.id, token) or None
    except HubError as error:
        logger.warning(
            "A new repo will be private, as it is not known whether '%s' is gated or private (%s)", base.id, error
        )
        return True


def push_output(
    folder: Path,
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    dry_run: bool = False,
    **push_kwargs: Any,
) -> PushResult:
    """Push a finished folder; its card is written anew with the repo's name first.

    What the base's licence forbids or asks for is logged as warnings before anything else, in a dry run too.

    Args:
        folder: what `write_output` wrote.
        repo_id: repo to push to.
        private: None takes `default_private`.
        token: of the Hub.
        dry_run: only tell what would happen; nothing is written, the card neither.
        push_kwargs: see `hf_prune.hub.push_folder`.

    Raises:
        ConfigError: the folder holds no finished model of hf-prune.
        HubError: the Hub refused.
    """
    finished = Finished.load(folder)

    def name(checked: str) -> None:
        if (folder / ADAPTER).is_dir():
            set_adapter_base(folder / ADAPTER, checked)
        write_card(folder, finished, checked)

    told = {"private": private, "token": token, "dry_run": dry_run, **push_kwargs}
    return push_named(folder, repo_id, finished.plan.model, finished.base_card, name, **told)


def push_named(
    folder: Path,
    repo_id: str,
    model: ModelRef,
    base_card: str | None,
    name: Callable[[str], object],
    *,
    private: bool | None = None,
    token: str | bool | None = None,
    dry_run: bool = False,
    **push_kwargs: Any,
) -> PushResult:
    """Push a folder in which the repo is named first, once it is known that it may be pushed to; see `push_output`.

    Args:
        folder: to push.
        repo_id: repo to push to.
        model: the base.
        base_card: its README.md.
        name: writes the repo's id, as the Hub has it, where the folder is to name it.
        private: None takes `default_private`.
        token: of the Hub.
        dry_run: only tell what would happen; nothing is written.
        push_kwargs: see `hf_prune.hub.push_folder`.

    Raises:
        HubError: the Hub refused.
    """
    for flag in flags(read_base_card(base_card)[0], repo_id):
        logger.warning("%s", flag)
    if private is None:
        private = default_private(model, token)
    if not dry_run:
        known = ("revision", "create_pr", "overwrite")
        checked = {key: value for key, value in push_kwargs.items() if key in known}
        repo_id = check_push(repo_id, private=private, token=token, **checked)
        name(repo_id)
    return push_folder(folder, repo_id, private=private, token=token, dry_run=dry_run, **push_kwargs)
