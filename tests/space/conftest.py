"""What tests of the Space share: pairs on the loopback Hub, made once each, and settings that no test leaves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_prune.run import run
from hf_prune.space import settings
from hf_prune.space.cache import models
from hf_prune.space.effort import Effort
from hf_prune.space.pair import Visitor
from hf_prune.space.settings import GB, Settings
from tests.cli.support import CALIBRATION, EVALUATION, HEALING, fast, planted, recipe
from tests.hub.fixtures import ALICE, BOB, start_session_hub
from tests.space.serving import Served, browser, served

BASE = "acme/space-base"
"""A public base of six blocks; its pairs are made by `pushed`."""

SLICED = {"method": "slicegpt", "sparsity": 0.25, "planner_kwargs": {"multiple": 4}}
KINDS: dict[str, tuple[bool, dict[str, Any]]] = {
    "pruned": (False, {}),
    "healed": (True, {}),
    "adapter": (True, {"healing": {"output": "adapter"}}),
    "sliced": (False, SLICED),
}

ON_SPACE = Settings(on_space=True, hardware="a Space of tests", memory_bytes=GB, model_bytes=GB // 2)

NOBODY, AS_ALICE, AS_BOB = Visitor(), Visitor(ALICE, "alice"), Visitor(BOB, "bob")
"""Visitors of the loopback Hub. `acme` is an organisation of alice's."""


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A Space with a gigabyte for models and nobody logged in, unless a test says otherwise; nothing stays loaded."""
    monkeypatch.delenv("HF_TOKEN", raising=False)
    settings.use(ON_SPACE)
    yield
    settings.use(None)
    models().clear()


@pytest.fixture(scope="session")
def pair_folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The finished folder of a kind of pair (see `KINDS`), made of `BASE` on the Hub when it is first asked for."""
    place = tmp_path_factory.mktemp("space-pairs")

    def folder(kind: str) -> Path:
        hub = start_session_hub()
        if not hub.exists(BASE):
            hub.add_repo(BASE, planted(place / "base", depth=6))
        heal, fields = KINDS[kind]
        if not (place / kind).is_dir():
            with pytest.MonkeyPatch.context() as patch:
                fast(patch)
                run(BASE, recipe(**fields), place / kind, heal=heal, progress=False)
        return place / kind

    return folder


@pytest.fixture
def pushed(hub: Any, pair_folders: Callable[[str], Path]) -> Callable[[str], str]:
    """A function `(kind) -> Hub id` of a public pruned repo: "pruned", "healed", "adapter" or "sliced"."""

    def push(kind: str) -> str:
        name = f"acme/space-{kind}"
        if not hub.exists(name):
            hub.add_repo(name, pair_folders(kind))
        return name

    return push


@pytest.fixture
def pushed_pair(pushed: Callable[[str], str]) -> str:
    """Hub id of a tiny pruned model of which four of six blocks are left; its base is `BASE`."""
    return pushed("pruned")


@pytest.fixture(scope="session")
def unpruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base to be pruned by visitors, of eight blocks, two of them useless, under a licence that asks for a lot."""
    folder = planted(tmp_path_factory.mktemp("unpruned") / "base")
    (folder / "README.md").write_text("---\nlicense: llama3.2\nlanguage: en\n---\n# Base\n")
    return folder


@pytest.fixture
def source(hub: Any, new_repo_id: Callable[..., str], unpruned: Path) -> str:
    """Hub id of alice's own copy of it."""
    repo = new_repo_id()
    hub.add_repo(repo, unpruned)
    return repo


@pytest.fixture
def small_jobs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Visitors' recipes take a second on tiny models, and no more room than those need, on a machine of this kind."""
    monkeypatch.setattr("hf_prune.space.wishes.effort", lambda: Effort(CALIBRATION, HEALING, EVALUATION, 100_000))
    monkeypatch.setattr("hf_prune.space.effort._BESIDE", 10**6)
    settings.use(Settings(False, "a test", memory_bytes=GB, model_bytes=GB // 100))
    fast(monkeypatch)


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    """The real page, for the tests of one file."""
    with served() as found:
        yield found


@pytest.fixture
def url(server: Served) -> str:
    """Its address; its settings are in force."""
    settings.use(server.limits)
    return server.url


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A real browser, for the tests of one file."""
    with browser() as found:
        yield found
