"""The measuring stage as a plain function: one pass of text through the blocks, scores out."""

from typing import Any

from hf_prune import environment
from hf_prune.architecture import Decoder
from hf_prune.records import ModelRef, Scores
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import Samples, batches


def measure_model(
    decoder: Decoder,
    samples: Samples,
    *,
    model: ModelRef,
    name: str = "angular",
    options: dict[str, Any] | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Scores:
    """Measure a model that is in memory.

    Args:
        decoder: the model.
        samples: calibration text.
        model: what the record calls the model.
        name: of the measure.
        options: of the measure.
        batch_size: sequences at once.
        progress: whether to show a bar.

    Raises:
        MeasureError: NaN or infinite hidden states; names the block.
        ArchitectureError: the model does more between two blocks than hand the hidden states on.
    """
    options = options or {}
    observer = measure.get(name).function(**options)
    number = -(-len(samples.sequences) // batch_size) if progress else None
    seconds = Walker(decoder).walk(batches(samples.sequences, batch_size), [observer], number)
    found = observer.result()
    return Scores(
        model=model,
        measure=name,
        options=options,
        distances=found.get("distances", ()),
        standard_errors=found.get("standard_errors", ()),
        data=samples.use,
        environment=environment.describe(decoder.model),
        seconds=seconds,
        layers=found.get("layers", ()),
        layer_standard_errors=found.get("layer_standard_errors", ()),
    )
