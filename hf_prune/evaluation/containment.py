"""Keeps what lm-evaluation-harness does to its surroundings to itself."""

import contextlib
import importlib
import logging
import os
import random
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from hf_prune import extras

_BARS = ("lm_eval.api.task", "lm_eval.api.model", "lm_eval.models.huggingface")
"""Modules of the harness whose bars cannot be turned off by an argument."""
_SET_BY_IMPORT = ("HF_XET_HIGH_PERFORMANCE", "HF_HUB_ENABLE_HF_TRANSFER")
_CHATTER = ("lm_eval.models", "lm_eval.config", "lm_eval.tasks")
"""Loggers that warn of what is meant: a model handed over in memory, a task of the user's that replaces another."""


def import_harness() -> None:
    """Import lm-evaluation-harness, without the settings of the Hub's client that its import makes.

    Raises:
        MissingExtraError: it is not installed.
    """
    with _environment(*_SET_BY_IMPORT):
        extras.require("lm_eval", "eval", "running benchmark tasks")
        importlib.import_module("lm_eval.evaluator")
        importlib.import_module("lm_eval.models.huggingface")


@contextlib.contextmanager
def contained(*, loading: bool, progress: bool = False) -> Iterator[None]:
    """The harness may work in here: random states, loggers, bars and standard output are as before afterwards.

    Args:
        loading: whether tasks are loaded, which warns of settings that stock tasks leave to their defaults.
        progress: whether to show bars.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(_environment("DISABLE_MULTIPROC"))
        os.environ["DISABLE_MULTIPROC"] = "1"  # bootstrapped errors would fork, with a model in memory
        stack.enter_context(contextlib.redirect_stdout(sys.stderr))  # results of commands go to standard output
        stack.enter_context(_seeded())
        for name in (*_CHATTER, *(("lm_eval.api",) if loading else ())):
            stack.enter_context(_level(name, logging.ERROR))
        if not progress:
            stack.enter_context(_no_bars())
        yield


@contextlib.contextmanager
def _environment(*names: str) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in names}
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def _seeded() -> Iterator[None]:
    """Seeds as the harness's own command sets them: some tasks shuffle."""
    from lm_eval.defaults import DEFAULT_OTHER_SEED, DEFAULT_RANDOM_SEED

    plain, numbers = random.getstate(), np.random.get_state()
    try:
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            random.seed(DEFAULT_RANDOM_SEED)
            np.random.seed(DEFAULT_OTHER_SEED)
            torch.manual_seed(DEFAULT_OTHER_SEED)
            yield
    finally:
        random.setstate(plain)
        np.random.set_state(numbers)


@contextlib.contextmanager
def _level(name: str, level: int) -> Iterator[None]:
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    try:
        yield
    finally:
        logger.setLevel(before)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from datasets.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
    from tqdm import tqdm

    def hidden(*given: Any, **options: Any) -> tqdm:
        return tqdm(*given, **options | {"disable": True})

    modules = [importlib.import_module(name) for name in _BARS]
    before = [module.tqdm for module in modules]
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    for module in modules:
        module.tqdm = hidden  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, bar in zip(modules, before, strict=True):
            module.tqdm = bar  # type: ignore[attr-defined]
        if shown:
            enable_progress_bars()
