"""The measuring stage as a plain function: one pass of text through the blocks, scores out."""

import dataclasses
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import environment
from hf_prune.architecture import Decoder
from hf_prune.architecture.sublayers import has_part, why_no_part
from hf_prune.block_weights import BlockWeights
from hf_prune.distributed import ALONE, Group
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.judging import CutJudge
from hf_prune.observing import most_runs
from hf_prune.records import Environment, ModelRef, Scores
from hf_prune.registry import measure
from hf_prune.runner import Walker
from hf_prune.samples import Batch, Samples, batches, by_length
from hf_prune.stage_configs import options_without_paths
from hf_prune.task_judge import TaskJudge
from hf_prune.units import PARTS, WORDS, Part, Unit, UnitKind, parts_of


def measure_model(
    decoder: Decoder,
    samples: Samples | None,
    *,
    model: ModelRef,
    name: str = "angular",
    options: dict[str, Any] | None = None,
    batch_size: int = 8,
    progress: bool = False,
    group: Group = ALONE,
    weights: BlockWeights | None = None,
    scratch: Path | None = None,
    unit: UnitKind = "block",
    max_forwards: int | None = None,
    tokenizer: Tokenizer | None = None,
) -> Scores:
    """Measure a model that is in memory, or one whose blocks are read one after the other.

    Args:
        decoder: the model, or its skeleton.
        samples: calibration text; None for a measure that reads none.
        model: what the record calls the model.
        name: of the measure.
        options: of the measure.
        batch_size: sequences at once.
        progress: whether to show a bar.
        group: the processes that share the batches; each has a decoder of its own, and all get the scores.
        weights: where the weights of the blocks are; in memory when None.
        scratch: folder for hidden states that memory has no room for; the system's for temporary files when None.
        unit: what a measure of outputs leaves out.
        max_forwards: that a measure may take.
        tokenizer: of the model, for a measure of tasks.

    Raises:
        ConfigError: there are more processes than samples, or the measure needs the model in one process, in memory,
            or with more forwards than are allowed, or a text and there is none; or no block has such parts.
        MeasureError: NaN or infinite hidden states; names the block.
        ArchitectureError: the model does more between two blocks than hand the hidden states on.
        CheckpointError: the checkpoint changed while it was read.
        OutputError: the disk has no room for hidden states.
    """
    options, entry = options or {}, measure.get(name)
    started = time.perf_counter()
    if entry.needs == "weights":
        check_alone(name, group, weights)
        found = entry.function(**options)(decoder, ())
    elif entry.needs == "tasks":
        check_alone(name, group, weights)
        if tokenizer is None:
            raise ConfigError(f"measure '{name}' asks questions and needs the model's tokenizer; got none")
        judge = TaskJudge(decoder, tokenizer, name, options, progress=progress, limit=max_forwards)
        found = _without_each(judge, decoder, unit)
    elif samples is None:
        raise ConfigError(f"measure '{name}' needs calibration text; got none")
    elif entry.needs == "pass":
        observer = entry.function(**options)
        _check_parts(decoder, [part for part in PARTS if part in entry.scores])
        _allow(most_runs(observer), max_forwards, name, model.id)
        work = _share(samples, batch_size, group)
        Walker(decoder, weights, scratch).walk(work, [observer], len(work) if progress else None)
        group.add(observer.sums())
        found = {"forwards": 1.0, **observer.result()}
    else:
        check_alone(name, group, weights)
        if entry.needs == "outputs":
            cuts = CutJudge(
                decoder,
                samples.sequences,
                name,
                options,
                batch_size=batch_size,
                scratch=scratch,
                progress=progress,
                limit=max_forwards,
            )
            found = _without_each(cuts, decoder, unit)
        else:
            find = entry.function(**options)
            _allow(find.forwards(decoder.num_layers), max_forwards, name, model.id)
            found = find(decoder, list(batches(by_length(samples.sequences), batch_size)))
    seconds = time.perf_counter() - started
    _check_finite(found.get("importances", {}), name, model.id)
    return Scores(
        model=model,
        measure=name,
        options=options_without_paths(options),
        distances=found.get("distances", ()),
        standard_errors=found.get("standard_errors", ()),
        data=None if samples is None else samples.use,
        environment=_place(environment.describe(decoder.model, None if weights is None else weights.device), group),
        seconds=seconds,
        layers=found.get("layers", ()),
        layer_standard_errors=found.get("layer_standard_errors", ()),
        importances=found.get("importances", {}),
        importance_errors=found.get("importance_errors", {}),
        whole=found.get("whole"),
        forwards=found.get("forwards"),
    )


def check_alone(name: str, group: Group, weights: BlockWeights | None = None) -> None:
    """Refuse to share, or to stream, what needs the model whole and alone.

    Args:
        name: of the measure.
        group: the processes that share the work.
        weights: where the weights of the blocks are; in memory when None.

    Raises:
        ConfigError: there are several processes, or the weights are not in memory.
    """
    if group.size > 1:
        raise ConfigError(f"measure '{name}' runs in one process; {group.size} were started. Start one")
    if weights is not None and not weights.all_at_once:
        raise ConfigError(f"measure '{name}' needs the model in memory as a whole; take one of a single pass")


def _without_each(judge: CutJudge | TaskJudge, decoder: Decoder, unit: UnitKind) -> dict[str, Any]:
    """What a judge of cuts says of each unit, where it goes alone."""
    depth = decoder.num_layers
    units = [
        u for i in range(depth) for part in parts_of(unit) if has_part(decoder.blocks[i], (u := Unit(i, part)).part)
    ]
    _check_parts(decoder, parts_of(unit))
    judge.allow(judge.cost_of_rounds(units, 1) + judge.cost(1.0), f"measure '{judge.objective}'")
    found = judge.importances(frozenset(), units)
    importances = {part: tuple(found.get(Unit(layer, part)) for layer in range(depth)) for part in parts_of(unit)}
    return {"importances": importances, "whole": judge.whole(), "forwards": judge.forwards}


def _check_parts(decoder: Decoder, parts: Sequence[Part]) -> None:
    """Refuse to score parts of which no block has any."""
    why = {part: why_no_part(decoder, part) for part in parts if part != "block"}
    if why and len(why) == len(parts) and all(why.values()):
        names = " and ".join(WORDS[part] for part in why)
        raise ConfigError(
            f"'{decoder.name}' has no {names} that could go alone ({'; '.join(dict.fromkeys(why.values()))}); take "
            "unit='block', and a measure of whole blocks"
        )


def _allow(forwards: float, limit: int | None, name: str, model: str) -> None:
    needed = math.ceil(forwards)
    if limit is not None and needed > limit:
        raise ConfigError(
            f"measure '{name}' of '{model}' takes up to {needed} forwards of the calibration text; max_forwards "
            f"allows {limit}. Take another measure, or raise it (--max-forwards {needed})"
        )


def _check_finite(importances: dict[str, tuple[float | None, ...]], name: str, model: str) -> None:
    for part, values in importances.items():
        for layer, value in enumerate(values):
            if value is not None and not math.isfinite(value):
                raise MeasureError(
                    f"measure '{name}' of {Unit(layer, part)} of '{model}' is {value}; expected a finite number. Try "  # type: ignore[arg-type]
                    "another --dtype (float32)"
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
