"""The records of a pruned repo: small files of strangers, held to what records can be before they count."""

import glob
import re
from pathlib import Path

from huggingface_hub import HfApi

from hf_prune import serial
from hf_prune.errors import ConfigError, PruneError
from hf_prune.hub_files import RECIPE
from hf_prune.output import OUTPUT_FILE, Finished
from hf_prune.records import Evaluation, Healing, Plan, Scores
from hf_prune.saving import RECORDS
from hf_prune.soundness import check_importances
from hf_prune.space.asking import Repo, asking, hub
from hf_prune.space.ids import shown, without_paths
from hf_prune.space.pair import Visitor

MOST_LAYERS = 1024
_COMMIT = re.compile("[0-9a-f]{40}")
MOST_WIDTH = 1 << 20
MOST_TRIALS = 10_000
_MOST_NAME, _MOST_FIGURE = 300, 1e12

_NEEDED = (RECIPE, f"{RECORDS}/{OUTPUT_FILE}", f"{RECORDS}/{Plan.FILE}")
_OTHERS = tuple(f"{RECORDS}/{record.FILE}" for record in (Scores, Healing, Evaluation))
_MOST_BYTES = 2 * 10**6
"""Of one file. Scores of 128 layers take 0.7 MB."""


def read_records(repo: Repo, visitor: Visitor) -> Finished:
    """Download the records of a repo, and read them.

    Args:
        repo: of the pruned model.
        visitor: who asks.

    Raises:
        ConfigError: there are none, or they are no records.
        HubError: they cannot be downloaded.
    """
    missing = [name for name in _NEEDED if name not in repo.files]
    if missing:
        raise ConfigError(
            f"'{repo.name}' has no records of hf-prune ('{missing[0]}' is missing); expected a model that hf-prune "
            "made and pushed, such as those that the search box finds"
        )
    folder = small_files(repo, [*_NEEDED, *(name for name in _OTHERS if name in repo.files)], visitor)
    try:
        finished = Finished.load(folder)
        _check(finished)
    except PruneError as error:
        raise ConfigError(_told(repo.name, str(error))) from None
    except Exception as error:  # whatever a stranger's file makes a parser raise
        raise ConfigError(_told(repo.name, f"{type(error).__name__}: {error}")) from None
    return finished


def small_files(repo: Repo, names: list[str], visitor: Visitor, most: int = _MOST_BYTES) -> Path:
    """Download a few small files of a repo.

    Args:
        repo: where they are.
        names: their paths.
        visitor: who asks.
        most: bytes of one of them.

    Returns:
        The folder of the snapshot.

    Raises:
        ConfigError: one of them is too large; nothing was downloaded.
        HubError: they cannot be downloaded.
    """
    large = [name for name in names if repo.files[name] > most]
    if large:
        raise ConfigError(
            f"'{shown(large[0])}' of '{repo.name}' is {repo.files[large[0]] / 1e6:.1f} MB; expected at most "
            f"{most / 1e6:.0f} MB: it is not what its name says"
        )
    api: HfApi = hub(visitor)
    with asking(f"open '{repo.name}'", repo.name, visitor, repo.commit):
        return Path(
            api.snapshot_download(
                repo.name,
                revision=repo.commit,
                allow_patterns=[glob.escape(name) for name in names],
                token=visitor.token,
            )
        )


def _told(name: str, message: str) -> str:
    said = shown(without_paths(message, name), 300)
    return f"the records of '{name}' cannot be read: {said}. Ask its owner to push it anew with hf-prune"


def _check(finished: Finished) -> None:
    """What is read of records later on is there, and of a size that a model can have.

    Raises:
        ConfigError: names what is not.
    """
    plan, depth = finished.plan, finished.plan.model.num_layers
    _expect(1 <= depth <= MOST_LAYERS, f"the plan speaks of {shown(depth, 24)} layers; expected 1 to {MOST_LAYERS}")
    commit = plan.model.revision
    _expect(commit is None or bool(_COMMIT.fullmatch(commit)), "the plan names a commit of its original that is none")
    models = [record.model for record in (plan, finished.scores) if record is not None]
    names = [plan.method, *(name for model in models for name in (model.id, model.model_type))]
    _expect(max(map(len, names)) <= _MOST_NAME, f"they name a method or a model in more than {_MOST_NAME} characters")
    for step in plan.operations:
        inside = all(0 <= layer < depth for layer in step.layers)
        _expect(inside, f"the plan acts on layers that the {depth} of the model don't have")
    _expect(bool(plan.kept), "the plan keeps no layer")
    _expect(
        len(plan.trials) <= MOST_TRIALS, f"the plan holds {len(plan.trials)} trials; expected {MOST_TRIALS} at most"
    )
    cut = plan.slicing
    if cut is not None:
        widths = (cut.hidden_size, cut.embed, *cut.attn_out, *cut.mlp_out)
        fits = len(cut.mlp_out) == depth and len(cut.attn_out) in (0, depth)
        _expect(fits, f"the plan slices {len(cut.mlp_out)} layers; expected {depth}")
        _expect(all(0 < width <= MOST_WIDTH for width in widths), "the plan has widths that no model has")
        _expect(cut.parameters > 0 and cut.original_parameters > 0, "the plan counts no parameters")
    scores = finished.scores
    if scores is not None:
        _expect(
            scores.model.num_layers == depth, f"the scores speak of another model than the plan, of {depth} layers"
        )
        for table in (scores.distances, scores.standard_errors):
            square = {len(table), *map(len, table)} in ({0}, {depth + 1})
            whole = square and len(table) == len(scores.distances)
            _expect(whole, f"the scores are no table of {depth + 1} × {depth + 1} distances")
        for row in (scores.layers, scores.layer_standard_errors):
            _expect(len(row) in (0, depth), f"the scores speak of {len(row)} layers; expected {depth}")
        check_importances(scores)
        told, spread = (
            [value for row in rows.values() for value in row if value is not None]
            for rows in (scores.importances, scores.importance_errors)
        )
        figures = [abs(figure) for row in (*scores.distances, scores.layers, told) for figure in row]
        errors = [error for row in (*scores.standard_errors, scores.layer_standard_errors, spread) for error in row]
        possible = all(0 <= figure <= _MOST_FIGURE for figure in (*figures, *errors))
        _expect(possible, "the scores hold figures that no measurement gives")
    for record in (plan, scores, finished.healing, finished.evaluation):
        if record is not None:
            serial.dumps(record.to_dict()).encode()  # refuses halves of characters, which could not be sent to a page
    if finished.evaluation is not None:
        labels = [model.label for model in finished.evaluation.models]
        _expect(len(set(labels)) == len(labels), "the evaluation measures one model twice")


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ConfigError(otherwise)
