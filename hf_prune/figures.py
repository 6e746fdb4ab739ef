"""The figures of an evaluation: original, pruned and healed model, side by side."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from hf_prune.record_base import Environment, Record, TextUse


@dataclass(frozen=True)
class Perplexity:
    """Loss on one text.

    Attributes:
        name: of the text, for tables.
        nll: total negative log-likelihood / predicted tokens, nats per token.
        standard_error: of nll over windows.
        perplexity: exp(nll).
        bits_per_byte: total nll / ln 2 / UTF-8 bytes of the predicted text.
        tokens: predicted tokens.
        bytes: UTF-8 bytes of the predicted text; special tokens have none, and the first token of a sequence is not
            predicted.
        window: tokens a window sees.
        stride: tokens the window moves by.
        data: which text.
        bos_sequences: sequences that begin with the tokenizer's BOS token, which is context and never predicted; None
            in records of older versions.
    """

    name: str
    nll: float
    standard_error: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int
    stride: int
    data: TextUse
    bos_sequences: int | None = None


@dataclass(frozen=True)
class Fidelity:
    """How far the model's predictions are from the original's, on the same tokens.

    Attributes:
        kl: mean KL(original || model) per token, nats, full vocabulary, at `tokens` positions.
        kl_standard_error: over windows.
        top1_agreement: share of tokens where both rank the same token first, at `agreement_tokens` positions, as is
            the next.
        tokens: positions of the first text at which the full predictions were compared, spread evenly over it where
            not all fit the budget.
        top5_agreement: share of the original's five likeliest tokens that are among the model's five, mean over
            tokens; None in records of older versions.
        kl_top_k: mean KL over the original's `top_k` likeliest tokens and one bin for all others, nats: at most `kl`
            at the same tokens, and measured at more of them; None in records of older versions.
        top_k: tokens kept of each prediction.
        top_k_tokens: compared positions behind `kl_top_k`.
        sequence_kl: `kl_top_k` of each sequence of the text, in its order; None where none was compared.
    """

    kl: float
    kl_standard_error: float
    top1_agreement: float
    tokens: int
    top5_agreement: float | None = None
    kl_top_k: float | None = None
    top_k: int | None = None
    top_k_tokens: int | None = None
    sequence_kl: tuple[float | None, ...] = ()

    @property
    def agreement_tokens(self) -> int:
        """Compared positions behind both agreements: those of `kl_top_k` where it has the five likeliest tokens."""
        likeliest = self.top_k_tokens if self.top_k is not None and self.top_k >= 5 else None
        return self.tokens if likeliest is None else likeliest


@dataclass(frozen=True)
class Completion:
    """A fixed prompt and what the model wrote.

    Attributes:
        prompt: what it was given.
        text: what it wrote, without special tokens.
        tokens: ids of the new tokens, the one that ends the text included; empty in records of older versions.
        kind: "greedy" takes the likeliest token at each step, "sampled" draws it.
        seed: of the draws; None for greedy.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...] = ()
    kind: Literal["greedy", "sampled"] = "greedy"
    seed: int | None = None


@dataclass(frozen=True)
class Rate:
    """A measured rate: median of runs with the extremes."""

    median: float
    minimum: float
    maximum: float


@dataclass(frozen=True)
class Speed:
    """Measured speed.

    Attributes:
        prefill: prompt tokens per second.
        decode: new tokens per second, cached.
        batch: sequences at once.
        prompt_tokens: length of each prompt.
        new_tokens: generated per sequence.
        runs: counted runs after warm-up, of all rounds together.
        rounds: times that the models took turns; 1 where they did not.
    """

    prefill: Rate
    decode: Rate
    batch: int
    prompt_tokens: int
    new_tokens: int
    runs: int
    rounds: int = 1

    def in_turns_with(self, other: "Speed") -> bool:
        """Whether two models took turns, more than once, over the same work: only then is one called faster."""
        same = ("batch", "prompt_tokens", "new_tokens", "runs", "rounds")
        return self.rounds > 1 and all(getattr(self, name) == getattr(other, name) for name in same)


@dataclass(frozen=True)
class TaskResult:
    """One metric of one benchmark task, as lm-evaluation-harness gives it.

    Attributes:
        task: the harness's name.
        metric: such as "acc".
        filter: of the harness; "none" where there is none.
        value: as the harness gives it.
        standard_error: as the harness gives it; None where it gives none.
        higher_is_better: whether more is better.
        main: whether this is the metric that the task is quoted by.
        num_fewshot: examples before each question.
        samples: questions asked.
        limit: most questions a task that were asked for; None takes all.
        version: of the task.
        group: whether this is the mean over the tasks of a group.
        dataset: Hub id or local format of the questions; None for groups.
        dataset_config: its config.
        split: its split.
        stability: share of the questions that this model and the original answer alike (both right or both wrong),
            weighted as LLM-Streamline does; None where it was not or can't be had.
        truncated: questions whose beginning was cut off, because they are longer than the model with their examples.
        parent: the group whose mean this is a part of; None for what was asked for.
    """

    task: str
    metric: str
    filter: str
    value: float
    standard_error: float | None
    higher_is_better: bool
    main: bool
    num_fewshot: int | None
    samples: int
    limit: int | None
    version: str
    group: bool = False
    dataset: str | None = None
    dataset_config: str | None = None
    split: str | None = None
    stability: float | None = None
    truncated: int = 0
    parent: str | None = None


@dataclass(frozen=True)
class ModelEvaluation:
    """One model's figures.

    Attributes:
        label: "original", "pruned" or "healed"; what a comparison of any models calls them there.
        layers: decoder blocks.
        parameters: counted once where tied.
        bytes: of all weights in the dtype measured, tied ones once.
        peak_memory: bytes of the weights plus the most in use beside them during one prefill and decode of the
            lengths of `speed` (batch 1): on GPUs by torch's allocator, elsewhere the growth of the process's resident
            set, sampled every millisecond.
        dtype: of the weights.
        perplexity: one entry a text.
        fidelity: against the original; None for the original itself.
        completions: fixed prompts.
        speed: None when not measured.
        tasks: benchmark tasks, in the order asked for.
        load: seconds from folder to a model ready to run, with the files in the system's cache; None when not
            measured.
        disk_bytes: of the weight files; None when the model lies in no folder.
        flops_per_token: of one forward pass over a prompt of the length of `speed`, divided by its tokens, counted
            by torch; None when not counted.
    """

    label: str
    layers: int
    parameters: int
    bytes: int
    peak_memory: int
    dtype: str
    perplexity: tuple[Perplexity, ...]
    fidelity: Fidelity | None
    completions: tuple[Completion, ...]
    speed: Speed | None
    tasks: tuple[TaskResult, ...] = ()
    load: Rate | None = None
    disk_bytes: int | None = None
    flops_per_token: float | None = None


@dataclass(frozen=True)
class Evaluation(Record):
    """Original, pruned and healed side by side.

    Attributes:
        models: in the order original, pruned, healed, as far as measured.
        environment: where.
    """

    FILE: ClassVar[str] = "evaluation.json"

    models: tuple[ModelEvaluation, ...]
    environment: Environment

    @property
    def recovered(self) -> float | None:
        """(pruned - healed) / (pruned - original) of the first text's nll; None unless all three are there."""
        by_label = {m.label: m.perplexity[0].nll for m in self.models if m.perplexity}
        if len(by_label) < 3 or by_label["pruned"] == by_label["original"]:
            return None
        return (by_label["pruned"] - by_label["healed"]) / (by_label["pruned"] - by_label["original"])
