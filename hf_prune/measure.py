"""The measuring stage as a plain function: one pass of text through the blocks, scores out."""

import dataclasses
import time
from pathlib import Path
from typing import Any

from hf_prune import environment
from hf_prune.architecture import Decoder
from hf_prune.block_weights import BlockWeights
from hf_prune.distributed import ALONE, Group
from hf_prune.errors import ConfigError
from hf_prune.records import Environment, ModelRef, Scores
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import Batch, Samples, batches, by_length


def measure_model(
    decoder: Decoder,
    samples: Samples,
    *,
    model: ModelRef,
    name: str = "angular",
    options: dict[str, Any] | None = None,
    batch_size: int = 8,
    progress: bool = False,
    group: Group = ALONE,
    weights: BlockWeights | None = None,
    scratch: Path | None = None,
) -> Scores:
    """Measure a model that is in memory, or one whose blocks are read one after the other.

    Args:
        decoder: the model, or its skeleton.
        samples: calibration text.
        model: what the record calls the model.
        name: of the measure.
        options: of the measure.
        batch_size: sequences at once.
        progress: whether to show a bar.
        group: the processes that share the batches; each has a decoder of its own, and all get the scores.
        weights: where the weights of the blocks are; in memory when None.
        scratch: folder for hidden states that memory has no room for; the system's for temporary files when None.

    Raises:
        ConfigError: there are more processes than samples.
        MeasureError: NaN or infinite hidden states; names the block.
        ArchitectureError: the model does more between two blocks than hand the hidden states on.
        CheckpointError: the checkpoint changed while it was read.
        OutputError: the disk has no room for hidden states.
    """
    options = options or {}
    observer = measure.get(name).function(**options)
    started = time.perf_counter()
    work = _share(samples, batch_size, group)
    Walker(decoder, weights, scratch).walk(work, [observer], len(work) if progress else None)
    group.add(observer.sums())
    seconds = time.perf_counter() - started
    found = observer.result()
    return Scores(
        model=model,
        measure=name,
        options=options,
        distances=found.get("distances", ()),
        standard_errors=found.get("standard_errors", ()),
        data=samples.use,
        environment=_place(environment.describe(decoder.model, None if weights is None else weights.device), group),
        seconds=seconds,
        layers=found.get("layers", ()),
        layer_standard_errors=found.get("layer_standard_errors", ()),
    )


def _share(samples: Samples, batch_size: int, group: Group) -> list[Batch]:
    """The batches of one process. They are those of a single process, so that the same numbers are added up."""
    if len(samples.sequences) < group.size:
        raise ConfigError(
            f"{group.size} processes share {len(samples.sequences)} calibration samples; expected a sample at least "
            "for each. Start fewer processes, or take more --samples"
        )
    batch_size = min(batch_size, len(samples.sequences) // group.size)
    return group.part(batches(by_length(samples.sequences), batch_size))


def _place(here: Environment, group: Group) -> Environment:
    if group.size == 1:
        return here
    return dataclasses.replace(here, hardware=f"{group.size} processes, process 0 on {here.hardware}")
