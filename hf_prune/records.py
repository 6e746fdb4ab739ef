"""What travels between the stages: frozen records that are also JSON files in the run folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from hf_prune import serial
from hf_prune.errors import ConfigError


class Record:
    """JSON both ways, with a schema version; subclasses are frozen dataclasses."""

    FILE: ClassVar[str]
    SCHEMA: ClassVar[int] = 1

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON types, with its schema version."""
        return {"schema": self.SCHEMA, **serial.to_dict(self)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build the record from JSON types.

        Raises:
            ConfigError: the schema version is not this one, or keys or types do not fit.
        """
        if not isinstance(data, dict) or data.get("schema") != cls.SCHEMA:
            found = data.get("schema") if isinstance(data, dict) else type(data).__name__
            raise ConfigError(f"{cls.__name__} has schema {found!r}; this version of hf_prune reads {cls.SCHEMA}")
        return serial.from_dict(cls, {k: v for k, v in data.items() if k != "schema"})

    def save(self, folder: Path) -> Path:
        """Write the record under its own file name into `folder`; the file appears whole or not at all."""
        path = Path(folder) / self.FILE
        serial.write_text(path, serial.dumps(self.to_dict()))
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read the record from a file, or from the folder that holds it.

        Raises:
            ConfigError: missing, no JSON, or not this record.
        """
        path = Path(path)
        return cls.from_dict(serial.read_json(path / cls.FILE if path.is_dir() else path))


@dataclass(frozen=True)
class ModelRef:
    """Which model a record speaks of.

    Attributes:
        id: Hub id, or the bare folder name of a local model (never a path).
        revision: Hub commit, or None for a local model.
        model_type: `config.model_type` of the decoder.
        num_layers: decoder blocks before pruning.
        digest: sha256 that stands for the weights (Hub commit, or header hashes of a local checkpoint); "" in memory.
    """

    id: str
    revision: str | None
    model_type: str
    num_layers: int
    digest: str = ""


@dataclass(frozen=True)
class Environment:
    """Where a figure was measured.

    Attributes:
        hardware: processor or GPU, in words.
        versions: package name to version.
        dtype: of the weights while measuring.
        device: "cpu", "cuda", ...
    """

    hardware: str
    versions: dict[str, str]
    dtype: str
    device: str


@dataclass(frozen=True)
class TextUse:
    """Which text was used.

    Attributes:
        dataset: Hub id or bare file name; None means text sampled from the original model itself.
        config: dataset config name.
        split: dataset split.
        revision: Hub commit of the dataset, where there is one.
        samples: sequences used.
        tokens: tokens in them (pads not counted).
        max_length: longest sequence allowed, in tokens.
        seed: of sampling or shuffling.
        sha256: of the token ids, so that another run can tell it saw the same text.
    """

    dataset: str | None
    config: str | None
    split: str | None
    revision: str | None
    samples: int
    tokens: int
    max_length: int
    seed: int
    sha256: str


@dataclass(frozen=True)
class Scores(Record):
    """What a measure found in one pass.

    Attributes:
        model: the model measured.
        measure: registry name.
        options: the measure's options.
        distances: (L+1) x (L+1) means over samples, row i column j the distance between h_i and h_j (symmetric,
            zero diagonal), where h_i is the residual stream entering block i and h_L leaves the last block.
        standard_errors: same shape; standard error of each mean (sample standard deviation / sqrt(samples)).
        data: the calibration text.
        environment: where it was measured.
        seconds: of the pass.
    """

    FILE: ClassVar[str] = "scores.json"

    model: ModelRef
    measure: str
    options: dict[str, Any]
    distances: tuple[tuple[float, ...], ...]
    standard_errors: tuple[tuple[float, ...], ...]
    data: TextUse
    environment: Environment
    seconds: float

    def windows(self, size: int) -> list[tuple[int, float, float]]:
        """All windows of `size` blocks as (start, distance, standard error), start = 0 … L - size."""
        last = self.model.num_layers - size
        return [(s, self.distances[s][s + size], self.standard_errors[s][s + size]) for s in range(last + 1)]


@dataclass(frozen=True)
class Operation:
    """One step of surgery.

    Attributes:
        kind: registry name of the surgery ("drop").
        layers: the blocks it acts on, 0-based indices of the ORIGINAL model, ascending.
        options: the surgery's options.
    """

    kind: str
    layers: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan(Record):
    """What will be done to which model: the contract between choosing and cutting.

    Attributes:
        model: the base model.
        method: recipe name.
        planner: registry name.
        operations: in order.
        reason: why these layers, one sentence.
        distance: of the chosen window, where there is one.
        runner_up: the next best layers, where there are some.
        gap: runner-up's distance minus the chosen one's.
        gap_standard_error: of that gap (root of the sum of squares of the two standard errors; an upper bound for
            positively correlated windows).
        scores: sha256 of the scores record, where scores were used.
    """

    FILE: ClassVar[str] = "plan.json"

    model: ModelRef
    method: str
    planner: str
    operations: tuple[Operation, ...]
    reason: str
    distance: float | None = None
    runner_up: tuple[int, ...] | None = None
    gap: float | None = None
    gap_standard_error: float | None = None
    scores: str | None = None

    @property
    def dropped(self) -> tuple[int, ...]:
        """Original indices of all blocks that go, ascending."""
        return tuple(sorted({i for op in self.operations if op.kind == "drop" for i in op.layers}))

    @property
    def kept(self) -> tuple[int, ...]:
        """Original indices of all blocks that stay, ascending."""
        gone = set(self.dropped)
        return tuple(i for i in range(self.model.num_layers) if i not in gone)

    def describe(self) -> str:
        """For people: "drop layers 21–28 (8 of 32, counted from 0)"."""
        return f"drop layers {ranges(self.dropped)} ({len(self.dropped)} of {self.model.num_layers}, counted from 0)"


def ranges(layers: tuple[int, ...]) -> str:
    """Ascending indices as ranges: (1, 2, 3, 7) -> "1–3, 7"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean next-token loss on text that was not trained on, nats per token, at each station of healing.

    Attributes:
        pruned: before healing, in the dtype that is shipped.
        quantized: pruned and quantized, before training; None without quantization.
        adapter_quantized: trained adapter on the quantized weights; None without quantization.
        adapter: trained adapter on the unquantized pruned weights.
        merged: adapter merged, in the dtype that is shipped.
        original: the model before pruning, where it was measured.
        tokens: predicted tokens behind each figure.
    """

    pruned: float
    quantized: float | None
    adapter_quantized: float | None
    adapter: float
    merged: float
    original: float | None
    tokens: int


@dataclass(frozen=True)
class Healing(Record):
    """How the damage was healed.

    Attributes:
        settings: the resolved healing settings (every value that was used).
        quantization: "nf4 (double quantized)" or None.
        trained_parameters: adapter parameters.
        target_modules: module name endings that carry adapters.
        steps: optimizer steps done.
        tokens: training tokens seen (pads not counted).
        seconds: of training.
        train_loss: mean of the last logged training loss, nats per token.
        held_out: losses at each station.
        merge_loss_share: part of the healing gain that merging lost (0.02 = 2 %); negative when merging helped.
        output: what is shipped: "merged" or "adapter".
        data: training text.
        held_out_data: held-out text.
        environment: where it ran.
        warnings: sentences for report and card.
    """

    FILE: ClassVar[str] = "healing.json"

    settings: dict[str, Any]
    quantization: str | None
    trained_parameters: int
    target_modules: tuple[str, ...]
    steps: int
    tokens: int
    seconds: float
    train_loss: float
    held_out: HeldOutLoss
    merge_loss_share: float | None
    output: Literal["merged", "adapter"]
    data: TextUse
    held_out_data: TextUse
    environment: Environment
    warnings: tuple[str, ...] = ()


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
    """

    kl: float
    kl_standard_error: float
    top1_agreement: float
    tokens: int


@dataclass(frozen=True)
class Completion:
    """A fixed prompt and what the model wrote (greedy)."""

    prompt: str
    text: str


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
