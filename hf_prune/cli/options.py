"""The options that commands share, in groups, and how they make a recipe."""

import dataclasses
import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

import typer

from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError

T = TypeVar("T", bound=Callable[..., Any])


def _option(help_text: str, *names: str, panel: str) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel)


@dataclass(frozen=True)
class ModelOptions:
    """How the model is loaded."""

    revision: Annotated[str | None, _option("Branch, tag or commit of the model.", panel="Model")] = None
    base_model: Annotated[
        str | None, _option("Hub id that a model folder stands for, for records and card.", panel="Model")
    ] = None
    dtype: Annotated[str, _option("auto (the checkpoint's), float32, bfloat16 or float16.", panel="Model")] = "auto"
    device: Annotated[
        str | None,
        _option("cpu, cuda, cuda:1, auto (spread over GPUs). Default: a GPU if there is one.", panel="Model"),
    ] = None
    token: Annotated[
        str | None, _option("Hub token. Better: `hf auth login`, which keeps it out of your history.", panel="Model")
    ] = None
    trust_remote_code: Annotated[bool, _option("Run code from the model's repo.", panel="Model")] = False

    def load_kwargs(self) -> dict[str, Any]:
        """Arguments of `Pruner.from_pretrained`."""
        return {
            "revision": self.revision,
            "token": self.token,
            "dtype": self.dtype,
            "device_map": self.device,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass(frozen=True)
class RecipeOptions:
    """What goes."""

    method: Annotated[str | None, _option("Recipe; see `hf-prune methods`. Default: uidl.", panel="Recipe")] = None
    drop_layers: Annotated[int | None, _option("How many layers go.", panel="Recipe")] = None
    layers: Annotated[str | None, _option("Exactly these layers go, from 0: 21-28 or 3,5,9.", panel="Recipe")] = None
    sparsity: Annotated[float | None, _option("Share that goes, above 0 and below 1.", panel="Recipe")] = None
    sparsity_of: Annotated[str | None, _option("layers, parameters or bytes.", panel="Recipe")] = None
    protect_first: Annotated[int | None, _option("Layers at the start that never go.", panel="Recipe")] = None
    protect_last: Annotated[int | None, _option("Layers at the end that never go.", panel="Recipe")] = None
    config: Annotated[
        str | None, _option("Recipe file, folder or repo; the other options override it.", panel="Recipe")
    ] = None


@dataclass(frozen=True)
class DataOptions:
    """Which text is used."""

    dataset: Annotated[
        str | None,
        _option(
            "Hub dataset, text file or folder for calibration, healing and evaluation (disjoint parts); `paper` for "
            "the dataset of the method's paper. Default: text sampled from the model itself.",
            panel="Text",
        ),
    ] = None
    dataset_config: Annotated[str | None, _option("The dataset's config.", panel="Text")] = None
    split: Annotated[str | None, _option("The dataset's split.", panel="Text")] = None
    text_column: Annotated[str | None, _option("Column that holds the text. Default: text.", panel="Text")] = None
    samples: Annotated[int | None, _option("Calibration sequences. Default: 128.", panel="Text")] = None
    max_length: Annotated[
        int | None, _option("Longest sequence in tokens, for calibration and evaluation. Default: 512.", panel="Text")
    ] = None
    batch_size: Annotated[int | None, _option("Calibration sequences at once. Default: 8.", panel="Text")] = None
    seed: Annotated[int | None, _option("Of sampling, shuffling and training. Default: 0.", panel="Text")] = None
    eval_samples: Annotated[int | None, _option("Documents to evaluate on. Default: 64.", panel="Text")] = None


@dataclass(frozen=True)
class HealOptions:
    """How the damage is healed."""

    heal_tokens: Annotated[
        int | None,
        _option("Training tokens. Default: the recipe's on a GPU, half an hour's worth on a CPU.", panel="Healing"),
    ] = None
    heal_steps: Annotated[int | None, _option("Optimizer steps at most. Default: 5000.", panel="Healing")] = None
    heal_rank: Annotated[int | None, _option("LoRA rank. Default: the paper's for the model.", panel="Healing")] = None
    heal_target: Annotated[str | None, _option("mlp or all. Default: mlp.", panel="Healing")] = None
    heal_quantize: Annotated[
        str | None, _option("nf4 (QLoRA), none, or auto: nf4 where bitsandbytes is there.", panel="Healing")
    ] = None
    heal_learning_rate: Annotated[
        float | None, _option("Peak. Default: the paper's for the model.", panel="Healing")
    ] = None
    heal_batch_size: Annotated[int | None, _option("Sequences a step. Default: 16.", panel="Healing")] = None
    heal_max_length: Annotated[int | None, _option("Tokens a training sequence.", panel="Healing")] = None
    heal_output: Annotated[
        str | None, _option("merged (plain weights) or adapter (beside the pruned weights).", panel="Healing")
    ] = None


@dataclass(frozen=True)
class ConsoleOptions:
    """How the command talks."""

    quiet: Annotated[bool, _option("Only warnings and errors.", "--quiet", "-q", panel="Console")] = False
    json: Annotated[bool, _option("The result as JSON on standard output.", "--json", panel="Console")] = False


@dataclass(frozen=True)
class PushOptions:
    """How the result is pushed."""

    private: Annotated[
        bool | None,
        _option("Default: private where the base is gated or private.", "--private/--public", panel="Push"),
    ] = None
    push_revision: Annotated[str | None, _option("Branch to push to, made where missing.", panel="Push")] = None
    create_pr: Annotated[bool, _option("Open a pull request instead.", panel="Push")] = False
    overwrite: Annotated[bool, _option("Replace a model that hf-prune did not make.", panel="Push")] = False
    commit_message: Annotated[str | None, _option("First line of the commit.", panel="Push")] = None

    def push_kwargs(self) -> dict[str, Any]:
        """Arguments of a push."""
        return {
            "private": self.private,
            "revision": self.push_revision,
            "create_pr": self.create_pr,
            "overwrite": self.overwrite,
            "commit_message": self.commit_message,
        }


_GROUPS = (ModelOptions, RecipeOptions, DataOptions, HealOptions, ConsoleOptions, PushOptions)


def grouped(command: T) -> T:
    """Give a command the options of every group that its parameters are annotated with.

    Typer reads the widened signature; the command itself gets each group as one object.
    """
    hints = get_type_hints(command, include_extras=True)
    plain, groups = [], {}
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if hint in _GROUPS:
            groups[parameter.name] = hint
        else:
            plain.append(parameter.replace(annotation=hint))
    for group in groups.values():
        kinds = get_type_hints(group, include_extras=True)
        plain += [
            inspect.Parameter(f.name, inspect.Parameter.KEYWORD_ONLY, default=f.default, annotation=kinds[f.name])
            for f in dataclasses.fields(group)
        ]

    @functools.wraps(command)
    def call(**given: Any) -> Any:
        for name, group in groups.items():
            given[name] = group(**{f.name: given.pop(f.name) for f in dataclasses.fields(group)})
        return command(**given)

    call.__signature__ = inspect.Signature(plain)  # type: ignore[attr-defined]
    call.__annotations__ = {p.name: p.annotation for p in plain}
    return call  # type: ignore[return-value]


def parse_layers(text: str) -> tuple[int, ...]:
    """Layer indices from "21-28", "3,5,9" or a mixture; both ends of a range are included.

    Raises:
        ConfigError: the text is something else.
    """
    layers: list[int] = []
    for part in text.replace("–", "-").split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if found is None or (found[2] and int(found[2]) < int(found[1])):
            raise ConfigError(f"--layers {text!r}: {part!r} is no layer or range; expected such as 21-28 or 3,5,9")
        layers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(layers)


def make_config(
    recipe: RecipeOptions,
    data: DataOptions,
    heal: HealOptions | None = None,
    base_model: str | None = None,
    token: str | None = None,
) -> PrunerConfig:
    """The recipe of a command: the file it names, and what its options change.

    The dataset is the calibration's: healing and evaluation take other documents of it unless the recipe names theirs.

    Raises:
        ConfigError: options that contradict each other or mean nothing.
        HubError: the recipe lies in a repo that cannot be read.
    """
    base = PrunerConfig() if recipe.config is None else PrunerConfig.from_pretrained(recipe.config, token=token)
    layers = None if recipe.layers is None else parse_layers(recipe.layers)
    amount = {"drop_layers": recipe.drop_layers, "layers": layers, "sparsity": recipe.sparsity}
    changes: dict[str, Any] = amount if any(v is not None for v in amount.values()) else {}
    for name in ("method", "sparsity_of", "protect_first", "protect_last"):
        if getattr(recipe, name) is not None:
            changes[name] = getattr(recipe, name)
    if base_model is not None:
        changes["base_model"] = base_model
    calibration = _given(data, *_SOURCE, "samples", "max_length", "batch_size")
    return dataclasses.replace(
        base,
        **changes,
        calibration=dataclasses.replace(base.calibration, **calibration),
        healing=dataclasses.replace(base.healing, **_given(data, "seed"), **_healing(heal)),
        evaluation=dataclasses.replace(base.evaluation, **_given(data, "seed"), **_evaluation(data)),
    )


def continued(
    folder: Path, stage: Literal["healing", "evaluation"], data: DataOptions, heal: HealOptions | None = None
) -> PrunerConfig:
    """The recipe of a finished folder with the options of one later stage: what was done before stays as it was done.

    Raises:
        ConfigError: no recipe there, or options that mean nothing.
    """
    base = PrunerConfig.from_pretrained(folder)
    changes = _given(data, *_SOURCE) | (_healing(heal) if stage == "healing" else _evaluation(data))
    return dataclasses.replace(base, **{stage: dataclasses.replace(getattr(base, stage), **changes)})


_SOURCE = ("dataset", "dataset_config", "split", "text_column", "seed")


def _healing(heal: HealOptions | None) -> dict[str, Any]:
    given = {} if heal is None else {f.name: getattr(heal, f.name) for f in dataclasses.fields(heal)}
    return {name.removeprefix("heal_"): value for name, value in given.items() if value is not None}


def _evaluation(data: DataOptions) -> dict[str, Any]:
    samples = {} if data.eval_samples is None else {"samples": data.eval_samples}
    return _given(data, "max_length") | samples


def _given(options: DataOptions, *names: str) -> dict[str, Any]:
    return {name: getattr(options, name) for name in names if getattr(options, name) is not None}


def default_output(model: str) -> Path:
    """The output folder where none is named: the model's own name with `-pruned`, in the current folder."""
    return Path(f"{Path(model).name}-pruned")
