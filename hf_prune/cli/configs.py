"""How the options of a command make a recipe."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any, Literal, get_args

from hf_prune.cli.options import (
    CalibrationOptions,
    HealOptions,
    RecipeOptions,
    SliceOptions,
    TaskOptions,
    TextOptions,
)
from hf_prune.config import EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError
from hf_prune.slicing.options import SEARCH


def parse_layers(text: str, option: str = "--layers") -> tuple[int, ...]:
    """Layer indices from "21-28", "3,5,9" or a mixture; both ends of a range are included.

    Args:
        text: what was typed.
        option: where, for the error.

    Raises:
        ConfigError: the text is something else.
    """
    layers: list[int] = []
    for part in text.replace("–", "-").split(","):
        found = re.fullmatch(r"\s*(\d+)(?:\s*-\s*(\d+))?\s*", part)
        if found is None or (found[2] and int(found[2]) < int(found[1])):
            raise ConfigError(f"{option} {text!r}: {part!r} is no layer or range; expected such as 21-28 or 3,5,9")
        layers += range(int(found[1]), int(found[2] or found[1]) + 1)
    return tuple(layers)


def make_config(
    recipe: RecipeOptions,
    data: CalibrationOptions,
    heal: HealOptions | None = None,
    base_model: str | None = None,
    token: str | None = None,
    slicing: SliceOptions | None = None,
    tasks: TaskOptions | None = None,
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
    if recipe.method is not None and recipe.method != base.method:
        # What the file says of its own method's parts is not said of another's.
        base = dataclasses.replace(base, **_NO_PARTS)
    changes |= _given(recipe, "method", "sparsity_of", "protect_first", "protect_last", *_PARTS)
    changes |= _given(recipe, "max_forwards", "effort", "rounds")
    if recipe.protect is not None:
        changes["protect"] = parse_layers(recipe.protect, "--protect")
    # What a finished recipe says of its own base is not true of the model at hand.
    changes |= {"base_model": base_model, "base_revision": None, "hf_prune_version": None}
    changes |= _options(recipe, _slicing(slicing), base)
    calibration = _given(data, *_SOURCE, "samples", "max_length", "batch_size")
    return dataclasses.replace(
        base,
        **changes,
        calibration=dataclasses.replace(base.calibration, **calibration),
        healing=dataclasses.replace(base.healing, **_given(data, "seed"), **_healing(heal, base)),
        evaluation=dataclasses.replace(
            base.evaluation, **_given(data, "seed"), **_evaluation(data), **task_changes(tasks, base.evaluation)
        ),
    )


def continued(
    folder: Path,
    stage: Literal["healing", "evaluation"],
    data: TextOptions,
    heal: HealOptions | None = None,
    tasks: TaskOptions | None = None,
) -> PrunerConfig:
    """The recipe of a finished folder with the options of one later stage: what was done before stays as it was done.

    Raises:
        ConfigError: hf-prune has not finished that folder, or options that mean nothing.
    """
    from hf_prune.output import Finished

    base = Finished.load(folder).config
    if stage == "healing":
        options = _healing(heal, base)
    else:
        options = _evaluation(data) | task_changes(tasks, base.evaluation)
    changes = _given(data, *_SOURCE) | options
    return dataclasses.replace(base, **{stage: dataclasses.replace(getattr(base, stage), **changes)})


_SOURCE = ("dataset", "dataset_config", "split", "text_column", "seed")


def _given(options: Any, *names: str) -> dict[str, Any]:
    """The options that a command has and was given."""
    return {name: value for name in names if (value := getattr(options, name, None)) is not None}


_Kind = Literal["measure", "planner", "surgery"]
_PARTS = (*get_args(_Kind), "unit")
_NO_PARTS: dict[str, Any] = {f"{kind}_kwargs": {} for kind in get_args(_Kind)} | dict.fromkeys(_PARTS)


def parse_options(given: list[str] | None, option: str) -> dict[str, Any]:
    """Options of a measure, planner or surgery from NAME=VALUE; a value is JSON where it can be read as such.

    Args:
        given: what was typed.
        option: where, for errors.

    Raises:
        ConfigError: there is no "=", or a name comes twice.
    """
    found: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ConfigError(f"{option} {text!r}; expected NAME=VALUE, such as layers=3")
        if name in found:
            raise ConfigError(f"{option} names '{name}' twice ({found[name]!r} and {value!r}); give it once")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value
    return found


def _options(given: RecipeOptions, slicing: dict[_Kind, dict[str, Any]], base: PrunerConfig) -> dict[str, Any]:
    """Options of measure, planner and surgery, over those of the recipe's file where these are of the same ones."""
    changes: dict[str, Any] = {}
    for kind in get_args(_Kind):
        options, named = parse_options(getattr(given, f"{kind}_option"), f"--{kind}-option"), slicing.get(kind, {})
        if twice := sorted(options.keys() & named.keys()):
            raise ConfigError(
                f"--{kind}-option {twice[0]}={options[twice[0]]} and an option of slicing say the same of the {kind}; "
                "give one of them"
            )
        other = getattr(given, kind) not in (None, getattr(base.recipe(), kind))
        if options or named or other:
            changes[f"{kind}_kwargs"] = {**({} if other else getattr(base, f"{kind}_kwargs")), **named, **options}
    return changes


def _slicing(given: SliceOptions | None) -> dict[_Kind, dict[str, Any]]:
    """Options of planner and surgery that have names of their own."""
    planner = {name: value for name, value in (("multiple", getattr(given, "round_to", None)),) if value is not None}
    share = getattr(given, "slice_base", None)
    if share is not None:
        planner["slice_base"] = share if share == SEARCH else _share(share)
    surgery = _given(given, "basis")
    if getattr(given, "untie", False):
        surgery["tied"] = False
    return {"planner": planner, "surgery": surgery}


def _share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise ConfigError(f"--slice-base {text!r}; expected '{SEARCH}' or a share such as 0.2") from error


_OF_TARGET = ("rank", "last_rank", "alpha", "dropout", "use_rslora", "use_dora", "last_blocks", "learning_rate")
_OF_METHOD = (*_OF_TARGET, "target", "loss", "teacher", "top_k", "warmup_steps", "schedule", "beta2")


def _healing(heal: HealOptions | None, base: PrunerConfig) -> dict[str, Any]:
    """The settings of healing that options change; what a recipe says of another method or target goes with that."""
    names = [] if heal is None else [f.name for f in dataclasses.fields(heal)]
    given = {name.removeprefix("heal_"): value for name, value in _given(heal, *names).items()}
    if "report_to" in given:
        given["report_to"] = tuple(name.strip() for name in given["report_to"].split(",") if name.strip())
    default = HealingConfig()
    return {name: getattr(default, name) for name in _stale(given, base)} | given


def _stale(given: dict[str, Any], base: PrunerConfig) -> tuple[str, ...]:
    """Settings of a recipe that mean nothing for the healing method, or the target, that options name."""
    method = base.healing.method or base.recipe().healing
    if given.get("method", method) != method:
        return _OF_METHOD
    if "target" not in given:
        return ()
    from hf_prune.healing.recipes import RECIPES, recipe_for
    from hf_prune.healing.registries import kind_of

    targets = {given["target"], base.healing.target or RECIPES[recipe_for(method, original=True, seam=True)].target}
    return _OF_TARGET if len(targets) > 1 and {kind_of(target) for target in targets} != {"adapters"} else ()


def _evaluation(data: TextOptions) -> dict[str, Any]:
    given = _given(data, "max_length", "eval_samples")
    return {name.removeprefix("eval_"): value for name, value in given.items()}


def evaluation_config(data: TextOptions, tasks: TaskOptions | None = None) -> EvaluationConfig:
    """What to measure of models that have no recipe.

    Raises:
        ConfigError: options that mean nothing.
    """
    changes = _given(data, *_SOURCE) | _evaluation(data) | task_changes(tasks)
    return dataclasses.replace(EvaluationConfig(), **changes)


def task_changes(given: TaskOptions | None, recipe: EvaluationConfig | None = None) -> dict[str, Any]:
    """The fields of `EvaluationConfig` that the options about tasks set.

    Args:
        given: the options; None for a command that has none.
        recipe: what they change.

    Raises:
        ConfigError: `--tasks` names none, or other options speak of tasks and there are none.
    """
    changes = _given(given, "num_fewshot", "limit", "task_path")
    if given is not None and given.chat_template:
        changes["chat_template"] = True
    if given is not None and given.tasks is not None:
        changes["tasks"] = tuple(name.strip() for name in given.tasks.split(",") if name.strip())
        if not changes["tasks"]:
            raise ConfigError(f"--tasks {given.tasks!r} names no task; expected such as mmlu,boolq or uidl")
    if changes and not changes.get("tasks", recipe.tasks if recipe is not None else ()):
        named = ", ".join(f"--{name.replace('_', '-')}" for name in changes)
        raise ConfigError(f"{named} without tasks: no question is asked; name some, such as --tasks mmlu,boolq")
    return changes


def default_output(model: str, kind: str = "pruned") -> Path:
    """The output folder where none is named: `NAME-pruned` in the current folder, after the model's own name."""
    return Path(f"{Path(model).resolve().name}-{kind}")
