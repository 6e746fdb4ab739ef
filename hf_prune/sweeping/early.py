"""What is known of a sweep before any work: every refusal, and the points to come."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig

from hf_prune import healing, loading
from hf_prune.config import PrunerConfig
from hf_prune.errors import CheckpointError, OutputError
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.models import load_kwargs, name_given
from hf_prune.records import ModelRef
from hf_prune.run_folder import RunFolder
from hf_prune.sweeping.amounts import Wanted, wanted_points
from hf_prune.sweeping.target import Target, check_target


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
    kwargs = load_kwargs(dtype, device_map, trust_remote_code)
    check_target(target, config)
    check_tasks(config.evaluation)
    if heal:
        healing.require(config.healing.quantize)
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
    _check_folder(output, source.ref)
    return Prepared(source, model_config, kwargs, wanted)


def _check_unquantized(ref: ModelRef, model_config: PretrainedConfig) -> None:
    """Refuse to heal a model of quantized weights.

    Raises:
        CheckpointError: the weights are quantized.
    """
    if getattr(model_config, "quantization_config", None) is not None:
        raise CheckpointError(
            f"'{ref.id}' holds quantized weights, into which no healing can be merged; sweep the unquantized "
            "model it was made from, or do not heal"
        )


def _check_folder(folder: Path, ref: ModelRef) -> None:
    """Refuse a folder that is not for a sweep of this model.

    Raises:
        OutputError: it holds something else, or a sweep of another model.
    """
    run = RunFolder(folder)
    if (folder / "sweep.inputs").is_file() and not run.has("sweep", {"model": ref}):
        raise OutputError(
            f"'{folder}' holds a sweep of another model than '{ref.id}' (or of other weights); expected a new or "
            "empty folder, or one of a sweep of this model. Choose another, or remove it"
        )
