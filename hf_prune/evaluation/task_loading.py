"""Benchmark tasks of lm-evaluation-harness by name, with their questions, and what can be wrong with them."""

import functools
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from hf_prune.config import EvaluationConfig
from hf_prune.errors import ConfigError, DataError
from hf_prune.evaluation.containment import contained, import_harness
from hf_prune.evaluation.suites import SUITES, expand

logger = logging.getLogger(__name__)

_NEAR = 5
"""Names that are suggested."""
_NEW_TOKENS = 256
"""What the harness lets a model write where a task names no limit."""
_LIMITS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
"""How a task may name it, the first before the others."""


@dataclass(frozen=True)
class Loaded:
    """Tasks with their questions.

    Attributes:
        tasks: the harness's tasks by name.
        groups: the harness's groups by name.
        parents: names of groups and tasks as results are told, a group before what it is the mean of; each with the
            group that it was asked for as a part of.
    """

    tasks: dict[str, Any]
    groups: dict[str, Any]
    parents: dict[str, str | None]


def check_tasks(config: EvaluationConfig, tokenizer: Any = None, limit: int | None = None) -> None:
    """Refuse tasks that cannot be run, before any work: their questions are downloaded, or read, for that.

    What is loaded stays in memory for `load_tasks`. Nothing is done where no tasks are asked for.

    Args:
        config: what to measure.
        tokenizer: of the model; None leaves its chat template unchecked.
        limit: positions that the model can take; None leaves them unchecked.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        ConfigError: an unknown task, a task file that cannot be read, a task of pictures or of code that would be run,
            or a chat template that is not there.
        DataError: the questions of a task cannot be had, are too few, or leave no room for an answer.
    """
    if not config.tasks:
        return
    if config.chat_template and tokenizer is not None and tokenizer.chat_template is None:
        raise ConfigError(
            "chat_template=True, but the tokenizer has no chat template; leave it out, or take a model that has one"
        )
    loaded = load_tasks(config)
    for name, task in loaded.tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(f"task '{name}' runs code that the model writes, which is not done here; leave it out")
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(f"task '{name}' shows pictures or plays sounds; expected tasks of text alone")
    if limit is not None:
        check_room(loaded, limit)


def check_room(loaded: Loaded, limit: int) -> None:
    """Refuse tasks in which the model has to write more than it can take.

    Args:
        loaded: the tasks.
        limit: positions that the model can take.

    Raises:
        DataError: there is such a task.
    """
    for name, task in loaded.tasks.items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        wanted = new_tokens(task.config.generation_kwargs or {})
        if wanted >= limit:
            raise DataError(
                f"task '{name}' lets the model write {wanted} tokens, and the model takes {limit} with the question; "
                "leave the task out, or give a file of it with a smaller max_gen_toks (task_path, --task-path)"
            )


def new_tokens(options: Mapping[str, Any]) -> int:
    """Tokens that a task lets a model write, from its options of generation."""
    return int(next((options[name] for name in _LIMITS if options.get(name) is not None), _NEW_TOKENS))


def load_tasks(config: EvaluationConfig) -> Loaded:
    """Tasks with their questions; the ones asked for last are kept, so that several models are asked the same.

    Args:
        config: names at least one task, group or suite.

    Raises:
        MissingExtraError: lm-evaluation-harness is not installed.
        ConfigError: an unknown task, or a task file that cannot be read.
        DataError: the questions of a task cannot be had, or are fewer than its examples.
    """
    import_harness()
    names = tuple(expand(config.tasks, config.num_fewshot).items())
    return _load(names, config.task_path, tuple(task_files(config.task_path)))


def task_files(path: str | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files below `task_path`, to tell when they have changed."""
    if path is None or not Path(path).is_dir():
        return []
    found = ((file, file.stat()) for file in sorted(Path(path).rglob("*")) if file.is_file())
    return [(str(file.relative_to(path)), stat.st_size, stat.st_mtime_ns) for file, stat in found]


@functools.lru_cache(maxsize=1)
def _load(
    names: tuple[tuple[str, int | None], ...], path: str | None, files: tuple[tuple[str, int, int], ...]
) -> Loaded:
    """`files` is there to tell changed ones."""
    manager = _manager(path)
    known = manager.task_index
    for name, _ in names:
        if name not in known:
            raise ConfigError(_unknown(name, list(known)))
    tasks: dict[str, Any] = {}
    groups: dict[str, Any] = {}
    parents: dict[str, str | None] = {}
    for name, shots in names:
        found = _get(manager, name)
        fresh = {key: task for key, task in found["tasks"].items() if key not in tasks}
        for key, task in fresh.items():
            _set_examples(key, task, shots)
        tasks |= fresh
        groups |= {key: group for key, group in found.get("groups", {}).items() if key not in groups}
        parts = _parts(groups[name], None) if name in groups else ((task, None) for task in found["tasks"])
        for part, parent in parts:
            parents.setdefault(part, parent)
    parents |= {name: None for name, _ in names if name in parents}  # asked for, if also a part of another group
    return Loaded(tasks, groups, parents)


def _parts(group: Any, parent: str | None) -> Iterator[tuple[str, str | None]]:
    """A group that gives no figure of its own is passed by: what it holds was asked for."""
    if group.has_aggregation:
        yield group.name, parent
        parent = group.name
    for child in group:
        if hasattr(child, "child_names"):
            yield from _parts(child, parent)
        else:
            yield child.task_name, parent


@functools.cache
def _stock() -> Any:
    """The harness's own tasks; reading their many files takes seconds."""
    from lm_eval.tasks import TaskManager

    with contained(loading=True):
        return TaskManager()


def _manager(path: str | None) -> Any:
    if path is None:
        return _stock()
    from lm_eval.tasks import TaskManager

    _check_files(path)
    with contained(loading=True):
        manager = TaskManager(include_path=path, include_defaults=False)
    for name, entry in _stock().task_index.items():
        manager.task_index.setdefault(name, entry)
    return manager


def _check_files(path: str) -> None:
    """The harness passes by files that it cannot read, and then knows no such task."""
    from lm_eval.tasks._yaml_loader import load_yaml

    if not Path(path).is_dir():
        raise ConfigError(
            f"task_path='{path}' is no folder; expected one with task files (YAML) of the harness. Records keep only "
            "its last part: give the whole path (--task-path)"
        )
    for file in sorted(Path(path).rglob("*.yaml")):
        try:
            load_yaml(file, resolve_func=False)
        except (yaml.YAMLError, OSError, ValueError, TypeError) as error:
            raise ConfigError(f"task file '{file}' cannot be read: {_line(error)}") from error


def _unknown(name: str, known: list[str]) -> str:
    near = get_close_matches(name, [*SUITES, *known], n=_NEAR, cutoff=0.5)
    nearest = f" The nearest: {', '.join(near)}." if near else ""
    return (
        f"there is no task, group or suite '{name}'.{nearest} Suites: {', '.join(SUITES)}; all tasks: `lm-eval ls "
        "tasks`; tasks of your own: task_path, --task-path"
    )


def _get(manager: Any, name: str) -> dict[str, Any]:
    """The task, or all of the group.

    Tasks are files and functions of others, so that anything may come out of them.
    """
    try:
        with contained(loading=True):
            return manager.load([name])
    except (OSError, ConnectionError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise DataError(
            f"the questions of task '{name}' cannot be had{offline}: {_line(error)}. Get online, log in where the "
            "dataset is gated (`hf auth login`), or give a task file that reads local data (task_path, --task-path)"
        ) from error
    except Exception as error:
        raise DataError(
            f"task '{name}' cannot be made from its file and data{_source(manager, name)}: {type(error).__name__}: "
            f"{_line(error)}; expected columns, splits and metrics that are there"
        ) from error


def _source(manager: Any, name: str) -> str:
    """Where a single task reads its questions."""
    from lm_eval.tasks._yaml_loader import load_yaml

    entry = manager.task_index[name]
    config = load_yaml(entry.yaml_path, resolve_func=False) if entry.yaml_path else {}
    places = [config.get("dataset_path"), (config.get("dataset_kwargs") or {}).get("data_files")]
    named = ", ".join(str(place) for place in places if isinstance(place, str | dict))
    return f" ({named})" if named else ""


def _line(error: BaseException) -> str:
    """What an exception says, on one line."""
    return " ".join(str(error).split()) or type(error).__name__


def _set_examples(name: str, task: Any, shots: int | None) -> None:
    """Set how many examples a task is asked with; one that fixes none keeps to that, as the harness has it."""
    own = task.get_config("num_fewshot")
    if own is None or (shots is not None and own != 0):
        task.set_config(key="num_fewshot", value=shots or 0)
    elif shots:
        logger.info("task '%s' is asked without examples, as its file says", name)
    wanted = task.get_config("num_fewshot")
    there = len(getattr(getattr(task, "sampler", None), "df", ())) if wanted else 0
    if there < wanted:
        raise DataError(
            f"task '{name}' has {there} examples and num_fewshot={wanted} asks for more; give at most {there}"
        )
