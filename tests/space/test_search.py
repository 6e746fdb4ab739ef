"""The search box: what is embedded and featured, then what the Hub has under our tag; never an error."""

import dataclasses
import re
import time
from collections.abc import Callable

import pytest
from huggingface_hub import constants

from hf_prune.space import search, settings
from hf_prune.space.pair import DEMO
from tests.hub.folders import CARD
from tests.hub.server import LoopbackHub

from .conftest import AS_ALICE, AS_BOB, NOBODY, ON_SPACE


@pytest.fixture
def tagged(hub: LoopbackHub, new_repo_id: Callable[..., str]) -> Callable[..., str]:
    """A function that makes a repo with our tag."""

    def make(**access: bool) -> str:
        name = new_repo_id()
        hub.add_repo(name, {"README.md": CARD}, **access)
        return name

    return make


def test_by_tag_and_text(hub: LoopbackHub, tagged: Callable[..., str], new_repo_id: Callable[..., str]) -> None:
    mine, other = tagged(), new_repo_id()
    hub.add_repo(other, {"README.md": "# Something else"})
    found = search.find(mine.upper(), NOBODY)
    assert found.names[0] == DEMO and mine in found.names and found.message is None
    assert search.find(mine, NOBODY).names == [DEMO, mine]
    assert search.find(other, NOBODY).names == [DEMO]
    assert search.find("no such model at all", NOBODY).names == [DEMO]
    hub.reset()
    assert search.find("", NOBODY).names[0] == DEMO
    [asked] = hub.asked("GET", "/api/models")
    assert "filter=hf-prune" in asked.path and "limit=20" in asked.path and "search" not in asked.path


def test_featured_pairs_come_first(tagged: Callable[..., str]) -> None:
    mine = tagged()
    settings.use(dataclasses.replace(ON_SPACE, featured=(DEMO, "org/featured", mine)))
    assert search.find("", NOBODY).names[:3] == [DEMO, "org/featured", mine]
    assert search.find(mine, NOBODY).names == [DEMO, mine]
    assert search.find("FEATURED", NOBODY).names == [DEMO, "org/featured"]


def test_private_models_are_their_owners(tagged: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    mine = tagged(private=True)
    monkeypatch.setenv("HF_TOKEN", str(AS_ALICE.token))  # the Space's own, which is not asked with
    assert search.find(mine, AS_ALICE).names == [DEMO, mine]
    assert search.find(mine, AS_BOB).names == search.find(mine, NOBODY).names == [DEMO]


@pytest.mark.parametrize("text", ["&filter=x", "\x00\n", "<b>", "../..", "?" * 100_000, "é", "a b", "%2e%2e"])
def test_any_text(hub: LoopbackHub, text: str) -> None:
    assert search.find(text, NOBODY).message is None
    assert all(
        len(request.path) < 400 and set(re.findall("%..", request.path)) <= {"%2F"}
        for request in hub.asked("GET", "/api/models")
    )


def test_names_that_are_none(hub: LoopbackHub) -> None:
    """The real Hub has no such names; whoever answers in its place may."""
    for name in ("old-model", "a/../b", "x/<b>", "x/y z"):
        hub.add_repo(name, {"README.md": CARD})
    try:
        assert not {"old-model", "a/../b", "x/<b>", "x/y z"} & set(search.find("", NOBODY).names)
    finally:
        for name in ("old-model", "a/../b", "x/<b>", "x/y z"):
            hub.store.repos.pop(("model", name))


def test_a_hub_that_does_not_answer(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.fail("GET", "/api/models", 500, message=f"no, {AS_ALICE.token}")
    found = search.find("", AS_ALICE)
    assert found.names == [DEMO] and found.message is not None
    assert str(AS_ALICE.token) not in found.message
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    found = search.find("", NOBODY)
    assert time.perf_counter() - start < 3
    assert found.names == [DEMO] and "the Hub cannot be reached" in str(found.message)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert search.find("", NOBODY).names == [DEMO]
