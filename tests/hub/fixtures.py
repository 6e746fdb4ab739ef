"""The loopback Hub for pytest: one server for the whole session, set up before any Hub client is imported."""

import itertools
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .server import LoopbackHub

# Access tokens of the session's users. `acme` is an organisation that alice belongs to; reader may only read.
ALICE = "hf_" + "LoopbackAlice" * 3  # put together here: nothing in the repository looks like a token
BOB = "hf_" + "LoopbackBob" * 3
READER = "hf_" + "LoopbackReader" * 3

_CLEARED = (
    "HF_TOKEN HUGGING_FACE_HUB_TOKEN HF_TOKEN_PATH HF_HUB_CACHE HF_XET_CACHE HF_ASSETS_CACHE HF_HUB_OFFLINE HF_DEBUG "
    "HF_DATASETS_CACHE HF_DATASETS_OFFLINE TRANSFORMERS_CACHE TRANSFORMERS_OFFLINE HTTP_PROXY HTTPS_PROXY ALL_PROXY "
    "http_proxy https_proxy all_proxy"
).split()
_session: list[LoopbackHub] = []
_numbers = itertools.count(1)


def start_session_hub() -> LoopbackHub:
    """Start the session's Hub and point every Hub client of this process and its children at it.

    The clients read their environment when they are imported, so this comes first.

    Raises:
        RuntimeError: a Hub client is imported already.
    """
    if _session:
        return _session[0]
    if "huggingface_hub" in sys.modules:
        raise RuntimeError("huggingface_hub is imported already: call start_session_hub() before anything imports it")
    scratch = Path(tempfile.mkdtemp(prefix="hf-prune-tests-"))
    for name in _CLEARED:
        os.environ.pop(name, None)
    tokens = {ALICE: "alice", BOB: "bob", READER: "reader"}
    hub = LoopbackHub(scratch / "hub", tokens, orgs={"acme": ("alice",)}, read_only=(READER,))
    hub.__enter__()
    os.environ |= {
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(scratch / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_UPDATE_CHECK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    _session.append(hub)
    return hub


def stop_session_hub() -> None:
    """Stop the session's Hub and delete its data and caches (for `pytest_unconfigure`)."""
    import shutil

    while _session:
        hub = _session.pop()
        hub.__exit__(None, None, None)
        shutil.rmtree(hub.store.root.parent, ignore_errors=True)


@pytest.fixture
def hub() -> Iterator[LoopbackHub]:
    """The session's Hub without faults and with an empty request log; repos of other tests are still there."""
    session_hub = start_session_hub()
    session_hub.reset()
    yield session_hub
    session_hub.faults.reset()


@pytest.fixture
def hub_token(monkeypatch: pytest.MonkeyPatch) -> str:
    """Log in as alice, for this test: clients that are given no token use hers."""
    monkeypatch.setenv("HF_TOKEN", ALICE)
    return ALICE


@pytest.fixture
def new_repo_id() -> Callable[..., str]:
    """A function `(namespace="alice") -> repo id` whose ids no other test has."""
    return lambda namespace="alice": f"{namespace}/model-{next(_numbers)}"
