"""`PrunerConfig`: the recipe, with Optimum's methods, as a plain dataclass."""

import dataclasses
import numbers
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from hf_prune import serial
from hf_prune.errors import ConfigError
from hf_prune.methods import METHODS, Method, get_method
from hf_prune.registry import measure, planner, surgery

SAME = "calibration"
"""Value of `dataset` in healing and evaluation: the calibration's dataset, other documents of it."""

PAPER = "paper"
"""Value of `dataset`: the dataset that the method's paper used."""


def _positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 1:
            raise ConfigError(f"{type(owner).__name__}.{name}={value!r}; expected a whole number of at least 1")


def _from_zero(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, numbers.Integral) or value < 0):
            raise ConfigError(f"{type(owner).__name__}.{name}={value!r}; expected a whole number from 0")


def _fraction(owner: object, name: str, *, zero: bool = False) -> None:
    value = getattr(owner, name)
    if value is None:
        return
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not ((value >= 0 if zero else value > 0) and value < 1):
        raise ConfigError(
            f"{type(owner).__name__}.{name}={value!r}; expected a number {'from 0' if zero else 'above 0'} and below 1"
        )


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
        _positive(self, "samples", "max_length", "batch_size")
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
        alpha: LoRA alpha; the recipe sets alpha = r.
        dropout: LoRA dropout.
        target: "mlp" adapts the MLP projections, "all" every linear in the blocks.
        quantize: "nf4" trains on 4-bit weights (QLoRA), "none" on bf16; "auto" takes nf4 where bitsandbytes is there.
        learning_rate: peak.
        warmup_steps: linear warm-up, then cosine to zero.
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
    dropout: float = 0.05
    target: Literal["mlp", "all"] = "mlp"
    quantize: Literal["auto", "nf4", "none"] = "auto"
    learning_rate: float | None = None
    warmup_steps: int | None = None
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
        _positive(self, "rank", "alpha", "batch_size", "micro_batch_size", "steps", "tokens", "max_length")
        _positive(self, "held_out_samples", "save_steps")
        _fraction(self, "dropout", zero=True)
        _fraction(self, "learning_rate")
        _from_zero(self, "warmup_steps")
        for name, allowed in (
            ("target", ("mlp", "all")),
            ("quantize", ("auto", "nf4", "none")),
            ("output", ("merged", "adapter")),
        ):
            if getattr(self, name) not in allowed:
                raise ConfigError(f"HealingConfig.{name}={getattr(self, name)!r}; expected one of: {allowed}")
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
        batch_size: windows at once.
        prompts: fixed prompts for the side-by-side completions.
        new_tokens: tokens written after each prompt.
        speed: whether to time prefill and decode.
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
    speed: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse values that mean nothing."""
        _positive(self, "samples", "max_length", "stride", "batch_size", "new_tokens")
        serial.settle(self)
        if self.stride is not None and self.stride > self.max_length:
            raise ConfigError(
                f"EvaluationConfig.stride={self.stride} is above max_length={self.max_length}; tokens would be skipped"
            )


@dataclass(frozen=True)
class PrunerConfig:
    """The recipe of a pruned model.

    Give one amount: `drop_layers`, `layers` or `sparsity`. What is left None is filled by the method; what depends
    on the model is resolved by `Pruner` and recorded.

    Attributes:
        method: named recipe, see `hf-prune methods`.
        drop_layers: how many decoder blocks go.
        layers: exactly these blocks go, 0-based.
        sparsity: share that goes, above 0 and below 1; rounded down to whole blocks.
        sparsity_of: what the share is of.
        measure: registry name; overrides the method's.
        planner: registry name; overrides the method's.
        surgery: registry name; overrides the method's.
        measure_kwargs: options of the measure.
        planner_kwargs: options of the planner.
        surgery_kwargs: options of the surgery.
        protect_first: blocks at the start that never go; None takes the method's.
        protect_last: blocks at the end that never go; None takes the method's.
        calibration: what to measure on.
        healing: how to heal.
        evaluation: what to prove.
        base_model: id or name of the base (filled by `Pruner`; set it for a base given as a folder).
        base_revision: Hub commit of the base (filled by `Pruner`).
        hf_prune_version: version that wrote the file.

    Example:
        ```python
        config = PrunerConfig(method="uidl", drop_layers=8)
        config.save_pretrained("recipe")
        assert PrunerConfig.from_pretrained("recipe") == config
        ```
    """

    CONFIG_NAME: ClassVar[str] = "pruner_config.json"

    method: str = "uidl"
    drop_layers: int | None = None
    layers: tuple[int, ...] | None = None
    sparsity: float | None = None
    sparsity_of: Literal["layers", "parameters", "bytes"] = "layers"
    measure: str | None = None
    planner: str | None = None
    surgery: str | None = None
    measure_kwargs: dict[str, Any] = field(default_factory=dict)
    planner_kwargs: dict[str, Any] = field(default_factory=dict)
    surgery_kwargs: dict[str, Any] = field(default_factory=dict)
    protect_first: int | None = None
    protect_last: int | None = None
    calibration: CalibrationConfig = field(default_factory=CalibrationConfig)
    healing: HealingConfig = field(default_factory=HealingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    base_model: str | None = None
    base_revision: str | None = None
    hf_prune_version: str | None = None

    def __post_init__(self) -> None:
        """Refuse values that mean nothing, before any model is touched."""
        if self.layers is not None:
            object.__setattr__(self, "layers", check_indices(self.layers))
        self._check_amount()
        _from_zero(self, "protect_first", "protect_last")
        serial.settle(self)
        recipe = self.recipe()
        if recipe.measure is not None:
            measure.get(recipe.measure).check_options(self.measure_kwargs, "measure")
        elif self.measure_kwargs:
            raise ConfigError(f"measure_kwargs={self.measure_kwargs} but method '{self.method}' measures nothing")
        planner.get(recipe.planner).check_options(self.planner_kwargs, "planner")
        surgery.get(recipe.surgery).check_options(self.surgery_kwargs, "surgery")

    def _check_amount(self) -> None:
        given = {
            k: v
            for k, v in (("drop_layers", self.drop_layers), ("layers", self.layers), ("sparsity", self.sparsity))
            if v is not None
        }
        if len(given) > 1:
            named = ", ".join(f"{k}={list(v) if isinstance(v, tuple) else v}" for k, v in given.items())
            raise ConfigError(f"{len(given)} amounts at once ({named}); give one of drop_layers, layers, sparsity")
        _positive(self, "drop_layers")
        _fraction(self, "sparsity")
        if self.sparsity_of not in ("layers", "parameters", "bytes"):
            raise ConfigError(f"sparsity_of={self.sparsity_of!r}; expected 'layers', 'parameters' or 'bytes'")

    def recipe(self) -> Method:
        """The method with this config's overrides filled in."""
        base = get_method(self.method)
        overrides = {
            name: getattr(self, name)
            for name in ("measure", "planner", "surgery", "protect_first", "protect_last")
            if getattr(self, name) is not None
        }
        return dataclasses.replace(base, **overrides)

    def without_paths(self) -> Self:
        """The recipe as it may travel: a dataset given as a path shrinks to its last part."""

        def shrunk(part: Any) -> Any:
            path = None if part.dataset is None else Path(part.dataset)
            return part if path is None or not path.exists() else dataclasses.replace(part, dataset=path.name)

        return dataclasses.replace(
            self,
            calibration=shrunk(self.calibration),
            healing=shrunk(self.healing),
            evaluation=shrunk(self.evaluation),
        )

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Build a config from JSON types.

        Raises:
            ConfigError: unknown keys ("Did you mean ...?"), wrong types, or values that mean nothing.
        """
        return serial.from_dict(cls, data)

    def to_dict(self) -> dict[str, Any]:
        """The config as JSON types."""
        return serial.to_dict(self)

    def to_json_string(self) -> str:
        """The config as JSON text, as it is saved."""
        return serial.dumps(self)

    @classmethod
    def from_pretrained(
        cls, model_id: str | Path, *, revision: str | None = None, token: str | bool | None = None
    ) -> Self:
        """Read the recipe of a pruned model.

        Args:
            model_id: Hub id, folder, or JSON file.
            revision: branch, tag or commit.
            token: of the Hub; None takes the stored one.

        Raises:
            ConfigError: no recipe there, or one that cannot be read.
            HubError: the Hub cannot be reached or refuses.
        """
        path = Path(model_id)
        if path.is_dir():
            path = path / cls.CONFIG_NAME
        elif not path.is_file():
            from hf_prune.hub import download_file

            path = download_file(str(model_id), cls.CONFIG_NAME, revision=revision, token=token)
        return cls.from_dict(serial.read_json(path))

    def save_pretrained(
        self,
        save_directory: str | Path,
        *,
        push_to_hub: bool = False,
        repo_id: str | None = None,
        **push_kwargs: Any,
    ) -> Path:
        """Write `pruner_config.json` into a folder; with `push_to_hub` also into a repo.

        Args:
            save_directory: folder; made where it is missing.
            push_to_hub: whether to push as well.
            repo_id: repo to push to; the folder's name when None.
            push_kwargs: see `push_to_hub`.

        Returns:
            The file written.
        """
        path = Path(save_directory) / self.CONFIG_NAME
        serial.write_text(path, self.to_json_string())
        if push_to_hub:
            self.push_to_hub(repo_id or Path(save_directory).name, **push_kwargs)
        return path

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str | None = None,
        create_pr: bool = False,
    ) -> str:
        """Push `pruner_config.json` alone to a repo and return the commit's URL."""
        from hf_prune.hub import push_file

        return push_file(
            self.to_json_string().encode(),
            self.CONFIG_NAME,
            repo_id,
            private=private,
            revision=revision,
            token=token,
            commit_message=commit_message or "Add the pruning recipe",
            create_pr=create_pr,
        )


__all__ = ["METHODS", "PAPER", "SAME", "CalibrationConfig", "EvaluationConfig", "HealingConfig", "PrunerConfig"]
