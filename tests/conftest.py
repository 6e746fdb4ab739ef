"""What all tests share: the loopback Hub, which must stand before any Hub client is imported."""

import gc
import logging
import os
from collections.abc import Iterator

import pytest

from .hub.fixtures import hub, hub_token, new_repo_id, start_session_hub, stop_session_hub

__all__ = ["hub", "hub_token", "new_repo_id"]

start_session_hub()


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all but the tests that are for them: the others compare bits with what a processor computes."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop the loopback Hub."""
    stop_session_hub()


@pytest.fixture(autouse=True, scope="session")
def _no_waiting_for_the_disk() -> Iterator[None]:
    """Only a machine that loses power could tell the difference."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda file: None)
        yield


@pytest.fixture(autouse=True, scope="module")
def _little_to_collect() -> None:
    """Dropped models are collected at once; without this, each time all that was ever imported is walked through."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _own_logging() -> Iterator[None]:
    """The command line sets up the package's logger; each test leaves it as it found it."""
    logger = logging.getLogger("hf_prune")
    kept = (list(logger.handlers), logger.propagate, logger.level)
    yield
    logger.handlers, logger.propagate = kept[0], kept[1]
    logger.setLevel(kept[2])
