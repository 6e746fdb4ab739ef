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


@dataclass(frozen=True)
class Fidelity:
    """How far the model's predictions are from the original's, on the same tokens.

    Attributes:
        kl: mean KL(original || model) per token, nats, full vocabulary.
        kl_standard_error: over windows.
        top1_agreement: share of tokens where both rank the same token first.
        tokens: compared positions of the first text, spread evenly over it where not all fit the budget.
        top5_agreement: share of the original's five likeliest tokens that are among the model's five, mean over
            tokens; None in records of older versions.
    """

    kl: float
    kl_standard_error: float
    top1_agreement: float
    tokens: int
    top5_agreement: float | None = None


@dataclass(frozen=True)
class Completion:
    """A fixed prompt and what the model wrote (greedy).

    Attributes:
        prompt: what it was given.
        text: what it wrote, without special tokens.
        tokens: ids of the new tokens, the one that ends the text included; empty in records of older versions.
    """

    prompt: str
    text: str
    tokens: tuple[int, ...] = ()


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
        runs: counted runs after warm-up.
    """

    prefill: Rate
    decode: Rate
    batch: int
    prompt_tokens: int
    new_tokens: int
    runs: int


@dataclass(frozen=True)
class ModelEvaluation:
    """One model's figures.

    Attributes:
        label: "original", "pruned" or "healed".
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
    """

    label: Literal["original", "pruned", "healed"]
    layers: int
    parameters: int
    bytes: int
    peak_memory: int
    dtype: str
    perplexity: tuple[Perplexity, ...]
    fidelity: Fidelity | None
    completions: tuple[Completion, ...]
    speed: Speed | None


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
