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
    """How a pruned model is trained again. None means: the recipe's value, resolved per model and recorded.

    Attributes:
        method: healing recipe, see `hf-prune methods --healing`; None takes that of the pruning method. What "auto"
            becomes is written out when it is resolved.
        dataset: as in calibration; "calibration" takes other documents of the calibration's dataset.
        dataset_config: the dataset's config name.
        split: the dataset's split.
        text_column: column that holds the text.
        messages_column: column of chat messages, in place of `text_column`; only the assistant's turns are learned.
            "prompt,completion" names two columns, of messages or of plain text, of which the second is learned.
        self_distill: whether the original model answers the prompts anew, and its answers are learned; of plain text
            it writes the second half of each sequence.
        packing: whether several short texts share a row; none of them sees another. Batch sizes count rows.
        target: what is trained, a name in the registry "healing target": adapters on "mlp" or "all" linears of the
            blocks, or the weights themselves ("last", "seam", "replaced", "patch", "full"); or names of modules that
            carry adapters, with commas between.
        last_blocks: blocks that target "last" trains.
        rank: LoRA rank r.
        last_rank: rank in the last block; ranks grow evenly from `rank` in the first one (PRILoRA).
        alpha: LoRA alpha; "uidl" sets alpha = r, "slicegpt" sets 10 at any rank.
        dropout: LoRA dropout.
        use_rslora: whether adapters are scaled by alpha / sqrt(r) in place of alpha / r.
        use_dora: whether adapters learn directions and lengths apart (DoRA).
        quantize: "nf4" trains on 4-bit weights (QLoRA), "none" on bf16; "auto" takes nf4 where bitsandbytes is there.
        loss: names in the registry "healing loss" with weights, such as "kl" or "next_token=1,kl=0.5".
        temperature: of the divergence.
        top_k: tokens of each of the original's predictions that the divergence looks at; None takes all of them, or
            64 where predictions are stored.
        teacher: how the original is at hand: "resident" in memory, "nf4" in 4 bits, or "stored": its predictions are
            written to disk once.
        prefix: what is done about blocks below all that is trained: "recompute" runs them each time, "share" runs them
            once for original and pruned model, "store" keeps their hidden states on disk for later epochs.
        store_budget: most that hidden states and predictions may take on disk, such as "8GB"; None takes a tenth of
            what is free.
        optimizer: name of Transformers' optimizer, such as "adamw_torch" or "adamw_8bit".
        learning_rate: peak.
        warmup_steps: linear warm-up to the peak.
        schedule: how the learning rate falls from there to zero.
        beta2: AdamW's second beta; the first is 0.9.
        recompute: whether activations are computed again in the backward pass; None does so from 1 B parameters.
        batch_size: sequences per optimizer step.
        micro_batch_size: sequences per forward; None chooses.
        steps: optimizer steps at most.
        tokens: training tokens at most; None takes what suits the machine.
        max_length: tokens per sequence.
        held_out_samples: sequences kept for the held-out loss.
        eval_steps: optimizer steps between measurements on the held-out text; None chooses ten in a run, or fewer
            where they would take more than a tenth of its time.
        patience: such measurements without a gain after which training stops; None never stops early.
        stop_on: what the best checkpoint is told by: held-out "loss", or "kl" from the original.
        report_to: where Trainer logs to: "tensorboard", "wandb", "trackio".
        output: "merged" ships plain weights, "adapter" ships pruned weights with the adapter beside them.
        save_steps: optimizer steps between checkpoints; None chooses ten in a run.
        seed: of data order, initialisation and dropout.
    """

    method: str | None = None
    dataset: str | None = SAME
    dataset_config: str | None = None
    split: str | None = None
    text_column: str = "text"
    messages_column: str | None = None
    self_distill: bool = False
    packing: bool = False
    target: str | None = None
    last_blocks: int | None = None
    rank: int | None = None
    last_rank: int | None = None
    alpha: int | None = None
    dropout: float | None = None
    use_rslora: bool = False
    use_dora: bool = False
    quantize: Literal["auto", "nf4", "none"] = "auto"
    loss: str | None = None
    temperature: float = 1.0
    top_k: int | None = None
    teacher: Literal["resident", "nf4", "stored"] | None = None
    prefix: Literal["recompute", "share", "store"] | None = None
    store_budget: str | None = None
    optimizer: str = "adamw_torch"
    learning_rate: float | None = None
    warmup_steps: int | None = None
    schedule: Literal["cosine", "linear"] | None = None
    beta2: float | None = None
    recompute: bool | None = None
    batch_size: int | None = None
    micro_batch_size: int | None = None
    steps: int | None = None
    tokens: int | None = None
    max_length: int | None = None
    held_out_samples: int = 32
    eval_steps: int | None = None
    patience: int | None = None
    stop_on: Literal["loss", "kl"] = "loss"
    report_to: tuple[str, ...] = ()
    output: Literal["merged", "adapter"] = "merged"
    save_steps: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        check_positive(self, "rank", "alpha", "batch_size", "micro_batch_size", "steps", "tokens", "max_length")
        for name in ("method", "target", "loss"):
            if getattr(self, name) == "":
                raise ConfigError(f"HealingConfig.{name}=''; expected a name, or None for the recipe's own")
        check_positive(self, "held_out_samples", "save_steps", "eval_steps", "patience", "last_blocks", "last_rank")
        check_positive(self, "top_k")
        check_fraction(self, "dropout", zero=True)
        check_fraction(self, "beta2", zero=True)
        check_fraction(self, "learning_rate")
        check_from_zero(self, "warmup_steps")
        check_above_zero(self, "temperature")
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
