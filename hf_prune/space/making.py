"""A pruned model for a visitor: what it would take, told before any weight is loaded, and the work itself."""

import logging
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from tempfile import gettempdir

from hf_prune.card_metadata import inherit
from hf_prune.config import PrunerConfig
from hf_prune.dry_run import preview
from hf_prune.errors import HubError
from hf_prune.hub import PushResult
from hf_prune.hub_files import matches
from hf_prune.hub_pull import is_restricted
from hf_prune.licences import flags
from hf_prune.loading import locate
from hf_prune.output import push_output
from hf_prune.run import run
from hf_prune.space import disk, settings
from hf_prune.space.asking import Repo, asking, hub, look
from hf_prune.space.effort import Needs, check_room, device, needs
from hf_prune.space.pair import Visitor
from hf_prune.space.weighing import companions, weigh
from hf_prune.space.wishes import Wish, hub_id, recipe, target

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Offer:
    """What would be done for a wish, and what it takes. Holds no token.

    Attributes:
        owner: account that it was made for, and that it is pushed to.
        model: Hub id of the base.
        commit: Hub commit of the base.
        layers: blocks of the base.
        config: the recipe.
        heal: whether it is healed.
        repo: where it is pushed to.
        private: whether that repo is private, should it be new.
        steps: (stage, what would be done).
        needs: memory, disk and time.
        flags: what the base's licence asks of who passes the result on; untrusted parts are on one line.
        notes: what else should be known before.
    """

    owner: str
    model: str
    commit: str
    layers: int
    config: PrunerConfig
    heal: bool
    repo: str
    private: bool
    steps: tuple[tuple[str, str], ...]
    needs: Needs
    flags: tuple[str, ...]
    notes: tuple[str, ...]


def estimate(wish: Wish, visitor: Visitor) -> Offer:
    """Plan a wish, and refuse what would fail: no weight is downloaded, no model loaded.

    Args:
        wish: what is asked for.
        visitor: who asks.

    Returns:
        What would be done.

    Raises:
        PruneError: see its children; whatever can be known before the work.
    """
    visitor = account(visitor)
    owner, token = signed_in(visitor)
    model, config = hub_id(wish.model), recipe(wish)
    repo = target(wish, model, owner)
    found = look(model, visitor)
    half = weigh(found, visitor).half
    settings.current().check_size(model, half.bytes)
    heal = wish.heal_tokens > 0
    restricted = is_restricted(model, token)
    private = wish.private or restricted
    with disk.room(model, found.commit, companions(found)):
        facts, steps = preview(
            model,
            config,
            Path(gettempdir()) / f"hf-prune-{uuid.uuid4().hex}",  # never made
            heal=heal,
            push=repo,
            push_kwargs={"private": private or None},
            revision=found.commit,
            token=token,
            device_map=device(),
            trust_remote_code=False,
        )
        source, _ = locate(model, revision=found.commit, token=token, trust_remote_code=False, weights=False)
        inherited = inherit(source.card)
    needed = needs(half, sum(_weights(found).values()), config, heal)
    check_room(model, needed)
    return Offer(
        owner=owner,
        model=model,
        commit=found.commit,
        layers=facts["layers"],
        config=config,
        heal=heal,
        repo=repo,
        private=private,
        steps=tuple((stage, what) for stage, what in steps if stage != "write"),
        needs=needed,
        flags=flags(inherited, repo),
        notes=_notes(model, restricted, wish, facts["layers"]),
    )


def carry_out(offer: Offer, visitor: Visitor, folder: Path, pushing: Callable[[], None]) -> PushResult:
    """Do what an offer says, and push the result.

    Args:
        offer: from `estimate`.
        visitor: who it was made for.
        folder: empty; everything that is written lies in it.
        pushing: called once the model is finished, before the first byte is sent. May raise to prevent it.

    Returns:
        What was pushed.

    Raises:
        PruneError: see its children. Nothing was pushed then, but for a `HubError` that says otherwise.
    """
    owner, token = signed_in(visitor)
    check_owner(offer, owner)
    found = look(hub_id(offer.model), visitor, offer.commit)  # asked anew: it may have been closed meanwhile
    check_room(offer.model, offer.needs)
    output = folder / offer.repo.partition("/")[2]
    logger.info("Making %s from %s at %s", offer.repo, offer.model, offer.commit[:8])
    with disk.room(offer.model, offer.commit, companions(found) | _weights(found)):
        run(
            offer.model,
            offer.config,
            output,
            heal=offer.heal,
            on_plan=lambda plan: logger.info("Plan: %s. %s", plan.describe(), plan.reason),
            revision=offer.commit,
            token=token,
            device_map=device(),
            trust_remote_code=False,
        )
    pushing()
    return push_output(output, offer.repo, private=offer.private, token=token)


def account(visitor: Visitor) -> Visitor:
    """The visitor with the name that the Hub knows them by, and a token that may write.

    Raises:
        HubError: nobody is signed in, or not in a way that can push.
    """
    if not visitor.token:
        raise HubError("nobody is signed in: the model is pushed to your own account, so sign in first")
    with asking("ask the Hub who you are", "your account", visitor):
        told = hub(visitor).whoami()
    name, role = told.get("name"), ((told.get("auth") or {}).get("accessToken") or {}).get("role")
    if not isinstance(name, str) or visitor.name not in (None, name):
        raise HubError("the Hub knows this sign-in by another name: sign out, and in again")
    if role == "read":
        raise HubError(f"the access token of '{name}' may only read; expected one that may write, to push with")
    return Visitor(visitor.token, name)


def signed_in(visitor: Visitor) -> tuple[str, str]:
    """Name and token of a visitor whom `account` has named.

    Raises:
        HubError: nobody is signed in.
    """
    if visitor.name is None or not visitor.token:
        raise HubError("nobody is signed in: the model is pushed to your own account, so sign in first")
    return visitor.name, visitor.token


def check_owner(offer: Offer, owner: str) -> None:
    """Refuse to carry out what was planned for somebody else.

    Raises:
        HubError: it was.
    """
    if owner != offer.owner:
        raise HubError(f"this plan was made for '{offer.owner}', and you are '{owner}': plan it again")


def _weights(repo: Repo) -> dict[str, int]:
    return {name: size for name, size in repo.files.items() if matches(name, ("*.safetensors",))}


def _notes(model: str, restricted: bool, wish: Wish, layers: int) -> tuple[str, ...]:
    notes = []
    if restricted:
        notes.append(f"A new repo will be private, as '{model}' is gated or private.")
    gone = wish.share if wish.share is not None else (wish.layers or 0) / layers
    if gone > 0.3:
        notes.append(
            "More than 30 % go: published results collapse around there, and what the model writes suffers first."
        )
    if not wish.heal_tokens:
        notes.append("Without healing the model keeps all the damage that the cut does.")
    notes.append("Speed is not measured here, as others may use this machine meanwhile.")
    return tuple(notes)
