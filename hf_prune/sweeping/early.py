"""What is known of a sweep before any work: every refusal, and the points to come."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hf_prune import loading
from hf_prune.config import PrunerConfig
from hf_prune.errors import CheckpointError, OutputError
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.healing.early import check_settings
from hf_prune.models import name_given
from hf_prune.placement import load_kwargs
from hf_prune.records import ModelRef
from hf_prune.run_folder import RunFolder
from hf_prune.saving import no_room
from hf_prune.sweeping.amounts import Wanted, wanted_points
from hf_prune.sweeping.target import Target, check_target

KINDS = ("sweep", "comparison")
"""What an output folder can hold; each marks it with a file `KIND.inputs`."""


@dataclass(frozen=True)
class Prepared:
    """A sweep that may begin.

    Attributes:
        source: the base model, pinned; without weights where they were not asked for.
        model_config: its config.
        kwargs: of `loading.load_model`.
        wanted: the points, those among them that will be skipped.
    """

    source: loading.Source
    model_config: PretrainedConfig
    kwargs: dict[str, Any]
    wanted: tuple[Wanted, ...]


def prepare(
    model_id: str | Path,
    config: PrunerConfig,
    output: Path,
    *,
    methods: Sequence[str] | None,
    min_drop: int | None,
    max_drop: int | None,
    step: int,
    shares: Sequence[float] | None = None,
    heal: bool,
    target: Target | None,
    weights: bool = True,
    revision: str | None = None,
    token: str | bool | None = None,
    dtype: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> Prepared:
    """Check everything that can be checked, and list the points. Nothing is written.

    Args:
        weights: whether to download the weights; a dry run does without.

    See `sweep` for the others.

    Raises:
        PruneError: whatever a sweep refuses before work.
    """
    check_target(target, config)
    source, model_config, kwargs = find(
        model_id,
        config,
        heal=heal,
        weights=weights,
        revision=revision,
        token=token,
        dtype=dtype,
        device_map=device_map,
        trust_remote_code=trust_remote_code,
    )
    wanted = wanted_points(
        config,
        source.ref,
        model_config.get_text_config(decoder=True),
        methods=methods,
        min_drop=min_drop,
        max_drop=max_drop,
        step=step,
        shares=shares,
    )
    check_folder(output, source.ref, "sweep")
    return Prepared(source, model_config, kwargs, wanted)


def find(
    model_id: str | Path,
    config: PrunerConfig,
    *,
    heal: bool,
    weights: bool,
    revision: str | None,
    token: str | bool | None,
    dtype: str,
    device_map: Any,
    trust_remote_code: bool,
) -> tuple[loading.Source, PretrainedConfig, dict[str, Any]]:
    """Find the model, and refuse what cannot be asked of it whatever is cut. See `prepare` for the arguments.

    Returns:
        The model, pinned; its config; arguments of `loading.load_model`.

    Raises:
        PruneError: tasks or healing cannot be had, or there is no such model.
    """
    kwargs = load_kwargs(dtype, device_map, trust_remote_code)
    check_tasks(config.evaluation)
    if heal:
        check_settings(config.healing, config.recipe().healing)
    source, model_config = loading.locate(
        model_id,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        base_model=name_given(config, model_id),
        weights=weights,
    )
    if heal:
        _check_unquantized(source.ref, model_config)
    return source, model_config, kwargs


def _check_unquantized(ref: ModelRef, model_config: PretrainedConfig) -> None:
    """Refuse to heal a model of quantized weights.

    Raises:
        CheckpointError: the weights are quantized.
    """
    if getattr(model_config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"'{ref.id}' holds quantized weights, into which no healing can be merged; take the unquantized "
            "model it was made from, or do not heal"
        )


def check_folder(folder: Path, ref: ModelRef, kind: str) -> None:
    """Refuse a folder that is not for this model.

    Args:
        folder: the output.
        ref: the model.
        kind: what it will hold, of `KINDS`.

    Raises:
        OutputError: it holds something else, or the same of another model.
    """
    run = RunFolder(folder)
    for other in KINDS:
        if (folder / f"{other}.inputs").is_file() and (other != kind or not run.has(kind, {"model": ref})):
            model = f" of another model than '{ref.id}' (or of other weights)" if other == kind else ""
            raise OutputError(
                f"'{folder}' holds a {other}{model}; expected a new or empty folder, or one of a {kind} of this "
                "model. Choose another, or remove it"
            )


def claim(folder: Path, ref: ModelRef, kind: str) -> Path:
    """Take a folder for a model.

    Args:
        folder: the output, made where it is missing.
        ref: the model.
        kind: what it will hold, of `KINDS`.

    Raises:
        OutputError: it cannot be made.
    """
    try:
        RunFolder(folder).finish(kind, {"model": ref})
    except OSError as error:
        if no_room(error) is not None:
            raise
        raise OutputError(f"the output folder '{folder}' cannot be made: {error}") from error
    return folder
