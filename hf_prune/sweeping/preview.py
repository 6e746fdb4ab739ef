"""What a sweep would do, told without a forward pass."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hf_prune import healing
from hf_prune.config import PrunerConfig
from hf_prune.evaluation.task_loading import check_tasks
from hf_prune.loading import locate
from hf_prune.models import load_kwargs, name_given
from hf_prune.records import ModelRef
from hf_prune.sweeping.amounts import Wanted, wanted_points
from hf_prune.sweeping.sweep import check_folder, check_unquantized
from hf_prune.sweeping.target import Target, check_target


def preview(
    model_id: str,
    config: PrunerConfig,
    output: Path,
    *,
    methods: Sequence[str] | None,
    min_drop: int | None,
    max_drop: int | None,
    step: int,
    heal: bool,
    target: Target | None,
    revision: str | None = None,
    token: str | None = None,
    dtype: str = "auto",
    device_map: Any = None,
    trust_remote_code: bool = False,
) -> tuple[ModelRef, tuple[Wanted, ...]]:
    """Check everything that can be checked, and list the points.

    Returns:
        The model and the points, those among them that will be skipped.

    Raises:
        PruneError: whatever `sweep` would refuse before work.
    """
    load_kwargs(dtype, device_map, trust_remote_code)
    check_target(target, config)
    check_tasks(config.evaluation)
    if heal:
        healing.require(config.healing.quantize)
    source, model_config = locate(
        model_id,
        revision=revision,
        token=token,
        trust_remote_code=trust_remote_code,
        base_model=name_given(config, model_id),
        weights=False,
    )
    if heal:
        check_unquantized(source.ref, model_config)
    text_config = model_config.get_text_config(decoder=True)
    wanted = wanted_points(
        config,
        source.ref,
        text_config,
        methods=methods,
        min_drop=min_drop,
        max_drop=max_drop,
        step=step,
        shares=None,
    )
    check_folder(output, source.ref)
    return source.ref, wanted
