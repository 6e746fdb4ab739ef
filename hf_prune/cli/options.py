"""The options that commands share, in groups."""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from hf_prune.cli.heal_options import HealOptions

T = TypeVar("T", bound=Callable[..., Any])


def _option(help_text: str, *names: str, panel: str, metavar: str | None = None) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, metavar=metavar)


@dataclass(frozen=True)
class LoadOptions:
    """How weights are loaded."""

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
        """Arguments of `Pruner.from_pruned`."""
        return {
            "token": self.token,
            "dtype": self.dtype,
            "device_map": self.device,
            "trust_remote_code": self.trust_remote_code,
        }


@dataclass(frozen=True)
class ModelOptions(LoadOptions):
    """Which model, and how it is loaded."""

    revision: Annotated[str | None, _option("Branch, tag or commit of the model.", panel="Model")] = None
    base_model: Annotated[
        str | None, _option("Hub id that a model folder stands for, for records and card.", panel="Model")
    ] = None

    def load_kwargs(self) -> dict[str, Any]:
        """Arguments of `Pruner.from_pretrained`."""
        return super().load_kwargs() | {"revision": self.revision}


@dataclass(frozen=True)
class MemoryOptions:
    """How much memory there is."""

    memory_budget: Annotated[
        str | None,
        _option(
            "Memory to get by with, such as 4GB: the model is read block by block. Default: whole where it has room.",
            panel="Model",
            metavar="SIZE",
        ),
    ] = None

    def memory_kwargs(self) -> dict[str, Any]:
        """Arguments of `Pruner.from_pretrained`."""
        return {"max_memory": None if self.memory_budget is None else {"cpu": self.memory_budget}}


@dataclass(frozen=True)
class FileOptions(MemoryOptions):
    """How weights come here, and in which files they are written."""

    verify_hash: Annotated[
        bool,
        _option("Download whole files and hold each against the Hub's hash.", "--verify-hash", panel="Model"),
    ] = False
    max_shard_size: Annotated[
        str, _option("Largest weight file that is written, such as 2GB.", panel="Model", metavar="SIZE")
    ] = "5GB"

    def memory_kwargs(self) -> dict[str, Any]:
        """Arguments of `Pruner.from_pretrained`."""
        return super().memory_kwargs() | {"verify_hash": self.verify_hash}


def _part_option(kind: str) -> Any:
    return _option(f"Option of the {kind}; give it once for each.", panel="Recipe", metavar="NAME=VALUE")


@dataclass(frozen=True)
class RecipeOptions:
    """What goes."""

    method: Annotated[str | None, _option("Recipe; see `hf-prune methods`. Default: uidl.", panel="Recipe")] = None
    drop_layers: Annotated[int | None, _option("How many layers go.", panel="Recipe")] = None
    layers: Annotated[str | None, _option("Exactly these layers go, from 0: 21-28 or 3,5,9.", panel="Recipe")] = None
    sparsity: Annotated[float | None, _option("Share that goes, above 0 and below 1.", panel="Recipe")] = None
    sparsity_of: Annotated[
        str | None,
        _option(
            "layers (default), parameters, bytes or flops; for slicing width (default) or parameters; weights for "
            "methods that zero single ones.",
            panel="Recipe",
        ),
    ] = None
    protect_first: Annotated[int | None, _option("Layers at the start that never go.", panel="Recipe")] = None
    protect_last: Annotated[int | None, _option("Layers at the end that never go.", panel="Recipe")] = None
    protect: Annotated[str | None, _option("Further layers that never go, from 0: 0,5 or 3-4.", panel="Recipe")] = None
    unit: Annotated[
        str | None,
        _option("block, attention, mlp, or joint (the latter two). Default: the method's.", panel="Recipe"),
    ] = None
    measure: Annotated[
        str | None, _option("Instead of the method's; see `hf-prune methods --measures`.", panel="Recipe")
    ] = None
    planner: Annotated[
        str | None, _option("Instead of the method's; see `hf-prune methods --planners`.", panel="Recipe")
    ] = None
    surgery: Annotated[
        str | None, _option("Instead of the method's; see `hf-prune methods --surgeries`.", panel="Recipe")
    ] = None
    measure_option: Annotated[list[str] | None, _part_option("measure")] = None
    planner_option: Annotated[list[str] | None, _part_option("planner")] = None
    surgery_option: Annotated[list[str] | None, _part_option("surgery")] = None
    max_forwards: Annotated[
        int | None, _option("Passes of the text that choosing may take. Default: 1000.", panel="Recipe")
    ] = None
    effort: Annotated[
        str | None,
        _option("How long method auto may choose: instant, minutes, hours. Default: by the machine.", panel="Recipe"),
    ] = None
    rounds: Annotated[
        int | None,
        _option("Prune and heal in so many rounds, each on what the one before healed. Default: 1.", panel="Recipe"),
    ] = None
    config: Annotated[
        str | None, _option("Recipe file, folder or repo; the other options override it.", panel="Recipe")
    ] = None


@dataclass(frozen=True)
class SliceOptions:
    """How a residual stream is narrowed."""

    slice_base: Annotated[
        str | None,
        _option("Share that every layer loses at least, or search: the best of several (default).", panel="Slicing"),
    ] = None
    round_to: Annotated[int | None, _option("Widths are multiples of this. Default: 8.", panel="Slicing")] = None
    basis: Annotated[
        str | None,
        _option("per_block (default), or global: one rotation, and a stock model where possible.", panel="Slicing"),
    ] = None
    untie: Annotated[
        bool, _option("Give a tied model a head of its own, which costs parameters.", "--untie", panel="Slicing")
    ] = False


@dataclass(frozen=True)
class TextOptions:
    """Which text is used."""

    dataset: Annotated[
        str | None,
        _option(
            "Hub dataset, text file or folder (each stage takes a part of its own); `paper` for the dataset of the "
            "method's paper. Default: text sampled from the model itself.",
            panel="Text",
        ),
    ] = None
    dataset_config: Annotated[str | None, _option("The dataset's config.", panel="Text")] = None
    split: Annotated[str | None, _option("The dataset's split.", panel="Text")] = None
    text_column: Annotated[str | None, _option("Column that holds the text. Default: text.", panel="Text")] = None
    seed: Annotated[int | None, _option("Of sampling, shuffling and training. Default: 0.", panel="Text")] = None


@dataclass(frozen=True)
class CalibrationOptions(TextOptions):
    """How much of it is measured on."""

    samples: Annotated[int | None, _option("Calibration sequences. Default: 128.", panel="Text")] = None
    max_length: Annotated[int | None, _option("Longest sequence in tokens. Default: 512.", panel="Text")] = None
    batch_size: Annotated[int | None, _option("Calibration sequences at once. Default: 8.", panel="Text")] = None


_EVAL_SAMPLES = Annotated[int | None, _option("Documents to evaluate on. Default: 64.", panel="Text")]


@dataclass(frozen=True)
class EvaluationOptions(TextOptions):
    """How much of it is evaluated on."""

    max_length: Annotated[int | None, _option("Window in tokens. Default: 512.", panel="Text")] = None
    eval_samples: _EVAL_SAMPLES = None


@dataclass(frozen=True)
class DataOptions(CalibrationOptions):
    """How much of it is measured and evaluated on."""

    eval_samples: _EVAL_SAMPLES = None


@dataclass(frozen=True)
class TaskOptions:
    """Which benchmark tasks are run."""

    tasks: Annotated[
        str | None,
        _option(
            "Tasks, groups or suites of lm-evaluation-harness, with commas between: mmlu,boolq. Suites: uidl, "
            "slicegpt, quick. Default: none.",
            panel="Tasks",
        ),
    ] = None
    num_fewshot: Annotated[
        int | None, _option("Examples before each question. Default: the suite's or the task's.", panel="Tasks")
    ] = None
    limit: Annotated[int | None, _option("First questions of each task. Default: all.", panel="Tasks")] = None
    task_path: Annotated[
        str | None, _option("Folder of further task files (YAML) of the harness.", panel="Tasks", metavar="DIR")
    ] = None
    chat_template: Annotated[
        bool, _option("Put questions through the tokenizer's chat template.", "--chat-template", panel="Tasks")
    ] = False


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


_GROUPS = (
    LoadOptions,
    ModelOptions,
    MemoryOptions,
    FileOptions,
    RecipeOptions,
    SliceOptions,
    TextOptions,
    CalibrationOptions,
    EvaluationOptions,
    DataOptions,
    TaskOptions,
    HealOptions,
    ConsoleOptions,
    PushOptions,
)


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
