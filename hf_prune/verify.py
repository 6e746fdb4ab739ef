"""A pruned model against its claims: files, config, weights, plan and figures. No code of its repo runs."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from hf_prune import __version__, hub_pull
from hf_prune.card_check import check_card
from hf_prune.checkpoint import folder_digest
from hf_prune.errors import ConfigError, PruneError
from hf_prune.healing.adapter import WEIGHTS
from hf_prune.hub_client import client, hub_errors
from hf_prune.loading import bare_name, read_config
from hf_prune.models import LABELS
from hf_prune.output import ADAPTER, Finished
from hf_prune.records import ModelRef
from hf_prune.saving import RECORDS
from hf_prune.verify_checks import Check, Verification, outcome
from hf_prune.verify_files import check_files
from hf_prune.verify_runs import Rerun, check_evaluations, check_plan
from hf_prune.verify_weights import check_model

Evaluations = Literal["all", "sample", "none"]

# Of a repo, beside what every model is made of: records, adapter, what the card shows, and code, which is read alone.
_READ = (f"{RECORDS}/*", f"{ADAPTER}/*", "*.png", "*.svg", ".eval_results/*", "*.py")


@dataclass(frozen=True)
class Fetched:
    """A model that was downloaded, or lies in a folder.

    Attributes:
        folder: its files.
        names: paths of all files of the repo, downloaded or not.
        revision: commit; None for a folder.
    """

    folder: Path
    names: tuple[str, ...]
    revision: str | None


def verify(
    model: str | Path,
    *,
    original: str | Path | None = None,
    revision: str | None = None,
    replan: bool = False,
    evaluations: Evaluations = "all",
    samples: int = 8,
    dataset: str | None = None,
    task_path: str | None = None,
    token: str | bool | None = None,
    device_map: Any = None,
    progress: bool = False,
) -> Verification:
    """Hold a model that hf-prune made against its records, its base and its card.

    Args:
        model: Hub id, or folder of a finished model.
        original: folder or Hub id of the base model; the commit that the plan names when None.
        revision: branch, tag or commit of the model; resolved to a commit once.
        replan: whether to measure the base again and choose anew by the recipe.
        evaluations: "all" re-runs every evaluation on its whole text, "sample" on a part of it, "none" runs no model.
        samples: documents of a sample, and most questions of a task.
        dataset: file or folder of the text, where the records name one that was local.
        task_path: folder of task files, where the records name one.
        token: of the Hub.
        device_map: as in transformers; "auto" where a GPU is there and None is given.
        progress: whether to show bars.

    Returns:
        One check a claim; nothing is raised where a check fails.

    Raises:
        ConfigError: hf-prune has not made this model, its base is not known, or the text is.
        HubError: model or base cannot be had.
        CheckpointError: the weights are pickles, or broken.
        DataError: the text cannot be had.
    """
    start = time.perf_counter()
    fetched = fetch(model, revision, token)
    folder = fetched.folder
    finished = Finished.load(folder)
    base, base_revision = find_base(finished.plan.model, original, token)
    same_base = _check_base(finished.plan.model, base, base_revision)
    checks = [
        same_base,
        _check_records(finished, folder),
        _check_card(folder, finished),
        *check_files(fetched.names, folder, base, same_base.status == "pass"),
        *check_model(folder, base, finished),
    ]
    # Weights that are not those of the records would make every figure of theirs differ as well, hours later; and an
    # adapter is loaded by PEFT, which takes pickles too.
    loaded = {"weights fit the config", "dtype"} | (
        {"files", "records agree", "healing record"} if (folder / ADAPTER).is_dir() else set()
    )
    broken = [check.name for check in checks if check.status == "fail" and check.name in loaded]
    rerun = Rerun(folder, base, finished, dataset, task_path, token, device_map, progress)
    if replan:
        checks += check_plan(rerun)
    if evaluations != "none" and broken:
        reason = f"nothing is loaded, for what failed above: {', '.join(broken)}"
        checks.append(Check("evaluations", "skipped", reason=reason))
    elif evaluations != "none":
        checks += _evaluate(rerun, samples if evaluations == "sample" else None)
    name = bare_name(str(model)) if fetched.revision is None else str(model)
    return Verification(
        name, fetched.revision, finished.plan.model, tuple(checks), round(time.perf_counter() - start, 2)
    )


def fetch(model: str | Path, revision: str | None = None, token: str | bool | None = None) -> Fetched:
    """Download a model with its records at one commit; code comes to be read, and is never run.

    Args:
        model: Hub id or folder.
        revision: branch, tag or commit.
        token: of the Hub.

    Raises:
        HubError: it cannot be had.
        CheckpointError: it has no config, or no safetensors weights.
    """
    resolved = hub_pull.resolve(str(model), revision, token)
    if resolved.folder is not None:
        return Fetched(resolved.folder, tuple(_names(resolved.folder)), None)
    assert resolved.commit is not None
    with hub_errors(f"list '{resolved.id}'", resolved.id, token=token, revision=resolved.commit):
        names = client(token).list_repo_files(resolved.id, revision=resolved.commit)
    folder = hub_pull.pull(resolved.id, resolved.commit, token, allow_patterns=_READ)
    return Fetched(folder, tuple(names), resolved.commit)


def find_base(ref: ModelRef, original: str | Path | None, token: str | bool | None = None) -> tuple[Path, str | None]:
    """The files of the model that was pruned, and their commit; a folder has none.

    Args:
        ref: what the plan says of it.
        original: folder or Hub id; the plan's when None.
        token: of the Hub.

    Raises:
        ConfigError: the plan names a folder that nobody can look up and none is given, or it is another model.
        HubError: it cannot be had.
    """
    if original is None and ref.revision is None:
        raise ConfigError(
            f"the records name the base model '{ref.id}' without a commit: it was a folder, which cannot be fetched. "
            "Name it (original=..., --original)"
        )
    name = str(ref.id if original is None else original)
    local = Path(name).is_dir() and original is not None
    same = original is None or (not local and name == ref.id)
    resolved = hub_pull.resolve(name, ref.revision if same else None, token)
    folder = resolved.folder
    if folder is None:
        assert resolved.commit is not None
        folder = hub_pull.pull(resolved.id, resolved.commit, token, allow_patterns=("*.py",))
    text = read_config(folder, bare_name(name)).get_text_config(decoder=True)
    found = (text.model_type, getattr(text, "num_hidden_layers", None))
    if found != (ref.model_type, ref.num_layers):
        raise ConfigError(
            f"'{name}' is {found[0]} with {found[1]} blocks; the records speak of '{ref.id}', {ref.model_type} with "
            f"{ref.num_layers}. Name the model that was pruned (original=..., --original)"
        )
    return folder, resolved.commit


def _check_base(ref: ModelRef, base: Path, revision: str | None) -> Check:
    claimed, name = (ref.revision or ref.digest)[:12], "base model"
    if ref.revision is not None and revision is not None:
        return Check(name, "pass" if ref.revision == revision else "fail", claimed, revision[:12])
    measured = folder_digest(base) if revision is None else revision
    if measured == ref.digest:
        return Check(name, "pass", claimed, measured[:12])
    reason = "a folder stands for it, whose digest depends on the times of its files; the kept tensors tell"
    return Check(name, "shown", claimed, measured[:12], reason=reason)


def _check_records(finished: Finished, folder: Path) -> Check:
    """Recipe, plan and the other records speak of one and the same."""
    plan, config, healing = finished.plan, finished.config, finished.healing
    adapter = (folder / ADAPTER / WEIGHTS).is_file()
    label = "pruned" if healing is None else "healed"
    models = () if finished.evaluation is None else tuple(m.label for m in finished.evaluation.models)
    pairs: Iterator[tuple[str, Any, Any]] = iter(
        (
            ("base model", plan.model.id, config.base_model),
            ("base commit", plan.model.revision, config.base_revision),
            ("method", plan.method, config.method),
            ("scored model", plan.model, plan.model if finished.scores is None else finished.scores.model),
            ("adapter", healing is not None and healing.output == "adapter", adapter),
            ("shipped model is evaluated", True, not models or label in models),
            ("evaluated models", models, tuple(name for name in LABELS if name in models)),
            (
                "layers of the plan",
                tuple(sorted(i for op in plan.operations if op.kind == "drop" for i in op.layers)),
                plan.dropped,
            ),
            ("layers left", len(plan.kept), plan.model.num_layers - len(plan.dropped)),
        )
    )
    problems = [f"{what}: {one} and {other}" for what, one, other in pairs if one != other]
    return outcome("records agree", problems, "plan, recipe, scores, healing, evaluation")


def _check_card(folder: Path, finished: Finished) -> Check:
    """The card says what the records say; only the metadata is held to it where another version wrote the card."""
    try:
        findings = check_card(folder)
    except ConfigError as error:
        return Check("card", "fail", reason=str(error))
    errors = [finding.text.rstrip(".") for finding in findings if finding.level == "error"]
    counts, claimed = f"{len(errors)} errors, {len(findings) - len(errors)} warnings", "as the records"
    writer = finished.config.hf_prune_version
    judged = errors if writer == __version__ else [text for text in errors if text.startswith("The model-index")]
    if errors and not judged:
        reason = f"hf_prune {writer} wrote it, this is {__version__}, which words cards in other ways: {errors[0]}"
        return Check("card", "shown", claimed, counts, reason=reason)
    return outcome("card", judged, counts, claimed)


def _evaluate(rerun: Rerun, samples: int | None) -> list[Check]:
    try:
        return check_evaluations(rerun, samples)
    except (PruneError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # an adapter's config can make PEFT raise anything, and records the measuring
        reason = f"the model cannot be measured: {type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return [Check("evaluations", "fail", reason=reason)]


def _names(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*"):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() and path.is_dir():
            yield f"{name}/"  # what is behind it is not looked at
        elif path.is_file() and "__pycache__" not in path.parts:
            yield name
