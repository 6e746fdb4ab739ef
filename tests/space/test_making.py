"""What a visitor wishes for is planned before anything is downloaded, or refused with the reason.

The Hub is the loopback Hub, the models are real and tiny. What this machine can't have is OAuth of the real Hub: a
visitor is what `visitor.visitor` makes of a sign-in, a name and a token.
"""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import try_to_load_from_cache

from hf_prune.errors import ArchitectureError, CheckpointError, ConfigError, HubError, OutputError
from hf_prune.space import bases, effort, settings
from hf_prune.space.making import estimate
from hf_prune.space.pair import Visitor
from hf_prune.space.settings import Settings
from hf_prune.space.wishes import CHOICES, Wish, default_repo, recipe
from tests.hub.fixtures import ALICE, BOB, READER
from tests.space.wishing import VISITOR, wish

pytestmark = pytest.mark.usefixtures("small_jobs")


def test_an_offer_tells_what_would_be_done_and_downloads_no_weights(hub, source: str, unpruned: Path) -> None:
    offer = estimate(wish(source, heal_tokens=1000), VISITOR)
    assert (offer.owner, offer.model, offer.repo, offer.layers) == ("alice", source, f"{source}-pruned", 8)
    stages = dict(offer.steps)
    assert list(stages) == ["measure", "plan", "prune", "heal", "evaluate", "push"]
    assert "sampled from the model itself" in stages["measure"] and "144 tokens in about 3 steps" in stages["heal"]
    assert stages["push"] == offer.repo and "/tmp" not in str(offer)
    size = (unpruned / "model.safetensors").stat().st_size
    assert offer.needs.download == size and offer.needs.memory > 2 * size * 0.9
    assert 0 < offer.needs.seconds[0] < offer.needs.seconds[1] and " to " in offer.needs.time
    assert any("Built with Llama" in flag for flag in offer.flags) and not offer.private
    assert try_to_load_from_cache(source, "model.safetensors", revision=offer.commit) is None
    assert not hub.exists(offer.repo) and not hub.asked("POST", "repos/create")
    assert ALICE not in repr(offer)


def test_without_healing_that_is_told(source: str) -> None:
    offer = estimate(wish(source), VISITOR)
    assert "heal" not in dict(offer.steps) and not offer.heal
    assert any("Without healing" in note for note in offer.notes)
    assert any("More than 30 %" in note for note in estimate(wish(source, layers=4), VISITOR).notes)


@pytest.mark.parametrize(
    ("fields", "error", "said"),
    [
        ({"model": "no-id"}, ConfigError, "'no-id' is no Hub id; expected owner/name"),
        ({"model": "../../etc/passwd"}, ConfigError, "is no Hub id"),
        ({"model": "alice/none-there"}, HubError, "there is no such model on the Hub"),
        ({"model": "tests/space"}, ConfigError, "also a folder where this page runs"),
        ({"method": "rm -rf"}, ConfigError, "method='rm -rf' cannot be chosen here; expected one of: uidl"),
        ({"layers": None}, ConfigError, "give one of them"),
        ({"share": 0.5}, ConfigError, "give one of them"),
        ({"layers": 8}, ConfigError, "leaves 0 of 8 layers.* at most 7 can go"),
        ({"layers": 0}, ConfigError, "drop_layers=0; expected a whole number of at least 1"),
        ({"layers": None, "share": 1.5}, ConfigError, "sparsity=1.5; expected a number above 0 and below 1"),
        ({"method": "slicegpt"}, ConfigError, "method 'slicegpt' narrows all layers and drops none"),
        ({"heal_tokens": 10**9}, ConfigError, "healing on 1,000,000,000 tokens; expected 0 to 100,000 here"),
        ({"heal_tokens": -1}, ConfigError, "expected 0 to 100,000"),
        ({"repo": "bob/mine"}, HubError, "'bob/mine' is not yours: you are signed in as 'alice'"),
        ({"repo": "acme/mine"}, HubError, "'acme/mine' is not yours"),
        ({"repo": "a b"}, ConfigError, "'alice/?.*' is no name for a repo|'a b' is no name for a repo"),
        ({"repo": "<script>"}, ConfigError, "is no name for a repo"),
    ],
)
def test_what_cannot_be_done_is_refused_when_planning(hub, source: str, fields, error, said: str) -> None:
    with pytest.raises(error, match=said):
        estimate(replace(wish(source), **fields), VISITOR)
    assert not hub.exists(f"{source}-pruned")


@pytest.mark.parametrize(
    ("visitor", "said"),
    [
        (Visitor(), "nobody is signed in"),
        (Visitor(False, "alice"), "nobody is signed in"),
        (Visitor(BOB, "alice"), "by another name"),
        (Visitor(READER), "the access token of 'reader' may only read"),
        (Visitor("hf_" + "nonsense" * 4), "login is not valid any more"),
    ],
)
def test_who_cannot_push_is_told_before_anything(hub, source: str, visitor: Visitor, said: str) -> None:
    with pytest.raises(HubError, match=said) as caught:
        estimate(wish(source), visitor)
    assert not visitor.token or visitor.token not in str(caught.value)


def test_the_model_itself_is_not_overwritten(source: str) -> None:
    with pytest.raises(ConfigError, match="is the model itself"):
        estimate(wish(source, repo=source), VISITOR)


def test_a_model_of_somebody_else_in_the_repo_stays(hub, source: str, new_repo_id, unpruned: Path) -> None:
    theirs = new_repo_id()
    hub.add_repo(theirs, unpruned)
    with pytest.raises(HubError, match="holds a model that hf-prune did not make"):
        estimate(wish(source, repo=theirs), VISITOR)


def test_a_model_that_cannot_be_pruned(hub, new_repo_id, unpruned: Path, tmp_path: Path) -> None:
    for name, content, said in (
        ("config.json", json.dumps({"model_type": "bert", "num_hidden_layers": 2}), "bert"),
        ("config.json", json.dumps({"model_type": "new", "auto_map": {"AutoModel": "x.Y"}}), "code from its repo"),
    ):
        folder = tmp_path / said[:4]
        folder.mkdir()
        (folder / name).write_text(content)
        (folder / "model.safetensors").write_bytes((unpruned / "model.safetensors").read_bytes())
        hub.add_repo(repo := new_repo_id(), folder)
        with pytest.raises((ArchitectureError, CheckpointError), match=said):
            estimate(wish(repo), VISITOR)


def test_a_model_that_is_too_large_names_size_and_limit(source: str) -> None:
    settings.use(Settings(False, "a small machine", memory_bytes=10**5, model_bytes=50_000))
    with pytest.raises(ConfigError, match=r"takes 0.00 GB once loaded.*at most 0.00 GB .*on a small machine"):
        estimate(wish(source), VISITOR)


def test_too_little_memory_or_disk(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "_BESIDE", 10**15)
    with pytest.raises(ConfigError, match=r"takes about 1000000.0 GB of memory and \d+.\d GB are free"):
        estimate(wish(source), VISITOR)
    needed = effort.Needs(1, 1, 1, 10**18, (1, 2))
    with pytest.raises(OutputError, match=r"takes about 1000000000.0 GB of disk"):
        effort.check_room("a/b", needed)


def test_a_gated_base(hub, new_repo_id, unpruned: Path) -> None:
    closed, opened = new_repo_id("bob"), new_repo_id("bob")
    hub.add_repo(closed, unpruned, gated=True)
    hub.add_repo(opened, unpruned, gated=True, allowed=("alice",))
    with pytest.raises(HubError, match="it is gated, and this account was not let in"):
        estimate(wish(closed, repo="mine"), VISITOR)
    offer = estimate(wish(opened, repo="mine-2"), VISITOR)
    assert offer.private and any("will be private" in note for note in offer.notes)


def test_recipes_are_safe_choices() -> None:
    for method in CHOICES:
        found = recipe(Wish("a/b", method, share=0.25))
        assert found.calibration.dataset is None and found.healing.dataset == found.evaluation.dataset == "calibration"
        assert not found.searches


@pytest.mark.parametrize(
    ("model", "owner", "repo"),
    [
        ("org/Model-1.5", "me", "me/Model-1.5-pruned"),
        ("org/Model", None, ""),
        ("", "me", ""),
        ("x/" + "y" * 200, "me", "me/" + "y" * 86 + "-pruned"),
        ("a/<b>&c", "me", "me/b-c-pruned"),
    ],
)
def test_the_name_that_is_proposed(model: str, owner: str | None, repo: str) -> None:
    assert default_repo(model, owner) == repo


def test_models_are_found_and_described(hub, source: str, unpruned: Path, new_repo_id) -> None:
    half = bases.describe(source, VISITOR)
    assert (half.name, half.layers) == (source, 8)
    assert bases.search("", VISITOR) == list(bases.SUGGESTED) == bases.search("zzzz-no-such", VISITOR)
    hub.faults.fail("GET", "/api/models", 500, times=100)
    assert bases.search("model", VISITOR) == list(bases.SUGGESTED), "the Hub fails, the box still offers something"
    assert len(hub.asked("GET", "/api/models\\?.*search=model")) == 1, "by one request: nobody waits for a search"
