"""In whose name the Hub is asked: on a Space the visitor's or nobody's, whatever the Space itself could read."""

from dataclasses import dataclass, replace

import pytest

from hf_prune.errors import HubError
from hf_prune.space import settings
from hf_prune.space.asking import look
from hf_prune.space.pair import Visitor
from hf_prune.space.visitor import visitor
from tests.hub.fixtures import ALICE, BOB

from .conftest import ON_SPACE

HERE = replace(ON_SPACE, on_space=False)


@dataclass
class Profile:
    """What Gradio gives of who signed in (its OAuth needs the real Hub)."""

    username: str = "bob"


@dataclass
class Token:
    token: str = BOB


def test_on_a_space(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)  # the Space's own
    assert visitor(None, None) == Visitor(False, None)
    assert visitor(Profile(), Token()) == Visitor(BOB, "bob")
    assert visitor(Profile(), None) == visitor(Profile(), Token("")) == Visitor(False, None)


def test_on_this_machine_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.use(replace(HERE, local_login=True))
    assert visitor(None, None) == Visitor(False, None)
    monkeypatch.setenv("HF_TOKEN", ALICE)
    assert visitor(None, None) == Visitor(ALICE, None)


def test_on_this_machine_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", ALICE)
    settings.use(HERE)
    assert visitor(None, None) == Visitor(False, None)
    # What Gradio calls a sign-in off a Space is this machine's login, which others shall not have either.
    assert visitor(Profile("alice"), Token(ALICE)) == Visitor(False, None)


def test_the_space_opens_nothing_by_its_own_token(hub, new_repo_id, monkeypatch: pytest.MonkeyPatch) -> None:
    gated, private = new_repo_id(), new_repo_id()
    hub.add_repo(gated, {"config.json": "{}"}, gated=True)
    hub.add_repo(private, {"config.json": "{}"}, private=True)
    monkeypatch.setenv("HF_TOKEN", ALICE)  # the Space's own, and alice's are both
    nobody, alice = visitor(None, None), visitor(Profile("alice"), Token(ALICE))
    hub.reset()
    with pytest.raises(HubError, match="it is gated, and you are not signed in: .*sign in with Hugging Face"):
        look(gated, nobody)
    with pytest.raises(HubError, match="no such model on the Hub, or it is private and you are not signed in"):
        look(private, nobody)
    assert hub.requests and {request.user for request in hub.requests} == {None}
    assert look(gated, alice).files and look(private, alice).files


def test_a_token_is_not_shown() -> None:
    assert BOB not in repr(visitor(Profile(), Token())) and BOB not in str(Visitor(BOB))


def test_a_login_that_is_over(hub, new_repo_id) -> None:
    name, token = new_repo_id(), "hf_" + "NobodyHasThisToken" * 2
    hub.add_repo(name, {"config.json": "{}"})
    with pytest.raises(HubError, match="your login is not valid any more; sign in with Hugging Face again") as refused:
        look(name, Visitor(token, "carol"))
    assert token not in str(refused.value) and refused.value.__cause__ is None
