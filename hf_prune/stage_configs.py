"""The parts of a recipe: what calibration, healing and evaluation take."""

import math
import numbers
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hf_prune import serial
from hf_prune.errors import ConfigError

SAME = "calibration"
"""Value of `dataset` in healing and evaluation: the calibration's dataset, other documents of it."""

PAPER = "paper"
"""Value of `dataset`: the dataset that the method's paper used."""


def options_without_paths(options: dict[str, Any]) -> dict[str, Any]:
    """Options as they may travel: folders of task files shrink to their last part.

    Args:
        options: of a measure.
    """
    path = options.get("task_path")
    return options if path is None else {**options, "task_path": Path(path).resolve().name}


def check_positive(owner: object, *names: str) -> None:
    """Refuse values that are no whole numbers of at least 1; None passes.

    Raises:
        ConfigError: names the setting and its value.
    """
    for name in names:
        value = getattr(owner, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ConfigError(f"{type(owner).__name__}.{name}={value!r}; expected a whole number of at least 1")


def check_from_zero(owner: object, *names: str) -> None:
    """Refuse values that are no whole numbers from 0; None passes.

    Raises:
        ConfigError: names the setting and its value.
    """
    for name in names:
        value = getattr(owner, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0):
            raise ConfigError(f"{type(owner).__name__}.{name}={value!r}; expected a whole number from 0")


def check_fraction(owner: object, name: str, *, zero: bool = False) -> None:
    """Refuse values that are no numbers above (or from) 0 and below 1; None passes.

    Raises:
        ConfigError: names the setting and its value.
    """
    value = getattr(owner, name)
    if value is None:
        return
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not ((value >= 0 if zero else value > 0) and value < 1):
        raise ConfigError(
            f"{type(owner).__name__}.{name}={value!r}; expected a number {'from 0' if zero else 'above 0'} and below 1"
        )


def check_above_zero(owner: object, name: str, most: float = math.inf) -> None:
    """Refuse values that are no finite numbers above 0 (and up to `most`).

    Raises:
        ConfigError: names the setting and its value.
    """
    value = getattr(owner, name)
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not (0 < value <= most and math.isfinite(value)):
        bound = "" if math.isinf(most) else f" and at most {most}"
        raise ConfigError(f"{type(owner).__name__}.{name}={value!r}; expected a number above 0{bound}")


def check_indices(layers: Any) -> tuple[int, ...]:
    """Block indices as an ascending tuple.

    Raises:
        ConfigError: not a list, empty, or an index is no whole number or named twice.
    """
    if isinstance(layers, str) or not hasattr(layers, "__iter__"):
        raise ConfigError(f"layers={layers!r}; expected a list of block indices such as [21, 22, 23]")
    layers = tuple(layers)
    for index in layers:
        if isinstance(index, bool) or not isinstance(index, numbers.Integral):
            raise ConfigError(f"layers={list(layers)!r}: {index!r} is not a whole number; indices count from 0")
    if not layers:
        raise ConfigError("layers=[] drops nothing; name at least one block")
    doubled = sorted({i for i in layers if layers.count(i) > 1})
    if doubled:
        raise ConfigError(f"layers={list(layers)}: {doubled} named twice; name each block once")
    return tuple(sorted(int(i) for i in layers))


@dataclass(frozen=True)
class CalibrationConfig:
    """The text that the model is measured on.

    Attributes:
        dataset: Hub dataset id, local file or folder (.txt, .jsonl, .json, also gzipped, .parquet); "paper" for the
            dataset of the method's paper; None samples text from the original model itself.
        dataset_config: the dataset's config name.
        split: the dataset's split; of a folder, what its file names begin with.
        text_column: column that holds the text.
        samples: sequences.
        max_length: longest sequence in tokens; clipped to the model's limit.
        batch_size: sequences at once.
        seed: of sampling or shuffling.
    """

    dataset: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    text_column: str = "text"
    samples: int = 128
    max_length: int = 512
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_positive(self, "samples", "max_length", "batch_size")
        serial.settle(self)


@dataclass(frozen=True)
class HealingConfig:
    """LoRA / QLoRA healing. None means: the recipe's value, resolved per model and recorded.

    Attributes:
        dataset: as in calibration; "calibration" takes other documents of the calibration's dataset.
        dataset_config: the dataset's config name.
        split: the dataset's split.
        text_column: column that holds the text.
        rank: LoRA rank r.
        alpha: LoRA alpha; "uidl" sets alpha = r, "slicegpt" sets 10 at any rank.
        dropout: LoRA dropout.
        target: "mlp" adapts the MLP projections, "all" every linear in the blocks (shortcuts of sliced models too).
        quantize: "nf4" trains on 4-bit weights (QLoRA), "none" on bf16; "auto" takes nf4 where bitsandbytes is there.
        learning_rate: peak.
        warmup_steps: linear warm-up to the peak.
        schedule: how the learning rate falls from there to zero.
        beta2: AdamW's second beta; the first is 0.9.
        batch_size: sequences per optimizer step.
        micro_batch_size: sequences per forward; None chooses.
        steps: optimizer steps at most.
        tokens: training tokens at most; None takes what suits the machine.
        max_length: tokens per sequence.
        held_out_samples: sequences kept for the held-out loss.
        output: "merged" ships plain weights, "adapter" ships pruned weights with the adapter beside them.
        save_steps: optimizer steps between checkpoints; None chooses ten in a run.
        seed: of data order, initialisation and dropout.
    """

    dataset: str | None = SAME
    dataset_config: str | None = None
    split: str | None = None
    text_column: str = "text"
    rank: int | None = None
    alpha: int | None = None
    dropout: float | None = None
    target: Literal["mlp", "all"] | None = None
    quantize: Literal["auto", "nf4", "none"] = "auto"
    learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: Literal["cosine", "linear"] | None = None
    beta2: float | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    steps: int | None = None
    tokens: int | None = None
    max_length: int | None = None
    held_out_samples: int = 32
    output: Literal["merged", "adapter"] = "merged"
    save_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_positive(self, "rank", "alpha", "batch_size", "micro_batch_size", "steps", "tokens", "max_length")
        check_positive(self, "held_out_samples", "save_steps")
        check_fraction(self, "dropout", zero=True)
        check_fraction(self, "beta2", zero=True)
        check_fraction(self, "learning_rate")
        check_from_zero(self, "warmup_steps")
        serial.settle(self)


@dataclass(frozen=True)
class EvaluationConfig:
    """What is measured of original, pruned and healed model.

    Attributes:
        dataset: as in calibration; "calibration" takes other documents of the calibration's dataset.
        dataset_config: the dataset's config name.
        split: the dataset's split.
        text_column: column that holds the text.
        samples: documents.
        max_length: window of the perplexity, in tokens; clipped to the model's limit.
        stride: tokens the window moves by; None takes half of the window.
        batch_size: windows, or answers to benchmark questions, at once.
        prompts: fixed prompts for the side-by-side completions.
        new_tokens: tokens written after each prompt.
        temperature: of the sampled completion of each prompt, beside the greedy one.
        top_p: of the sampled completion.
        top_k: tokens of each of the original's predictions that are kept for the KL over the whole text.
        speed: whether to time loading, prefill and decode.
        speed_batch: sequences at once while timing.
        speed_rounds: times that the models take turns.
        tasks: tasks, groups or suites of lm-evaluation-harness.
        num_fewshot: examples before each question; None takes the suite's or the task's own.
        limit: questions a task; None asks all.
        task_path: folder of further task files (YAML) of the harness.
        chat_template: whether questions go through the tokenizer's chat template.
        seed: of sampling.
    """

    dataset: str | None = SAME
    dataset_config: str | None = None
    split: str | None = None
    text_column: str = "text"
    samples: int = 64
    max_length: int = 512
    stride: int | None = None
    batch_size: int = 4
    prompts: tuple[str, ...] = (
        "The old man looked at the sea and",
        "In the year 1850, the city of London",
        "She opened the letter and read:",
    )
    new_tokens: int = 40
    temperature: float = 0.8
    top_p: float = 0.95
    top_k: int = 64
    speed: bool = True
    speed_batch: int = 1
    speed_rounds: int = 2
    tasks: tuple[str, ...] = ()
    num_fewshot: int | None = None
    limit: int | None = None
    task_path: str | None = None
    chat_template: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_positive(self, "samples", "max_length", "stride", "batch_size", "new_tokens")
        check_positive(self, "top_k", "speed_batch", "speed_rounds", "limit")
        check_from_zero(self, "num_fewshot")
        check_above_zero(self, "temperature")
        check_above_zero(self, "top_p", most=1)
        serial.settle(self)
        if self.stride is not None and self.stride > self.max_length:
            raise ConfigError(
                f"EvaluationConfig.stride={self.stride} is above max_length={self.max_length}; tokens would be skipped"
            )
