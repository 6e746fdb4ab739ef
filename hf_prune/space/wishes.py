"""What a visitor asks for when making a model, checked before the Hub is asked anything."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from hf_prune.config import PrunerConfig
from hf_prune.errors import ConfigError, HubError
from hf_prune.methods import METHODS
from hf_prune.space import ids
from hf_prune.space.effort import effort

CHOICES = {
    "uidl": "Drops the run of neighbouring layers that changes its input least. A good first choice.",
    "simple": "Drops the deepest layers but the very last, without measuring. Quick; needs healing.",
    "slicegpt": "Keeps every layer and makes all of them narrower by the same share.",
    "dynamic-slicing": "Keeps every layer and narrows those most that matter least. Takes longest.",
}
"""Methods that a visitor may choose, in plain words: the few that need no explanation, of the many there are."""

_ID_LIMIT = 96  # characters of a Hub id, see `ids`


@dataclass(frozen=True)
class Wish:
    """What a visitor asks for; nothing of it is checked yet.

    Attributes:
        model: Hub id of the model to prune.
        method: one of `CHOICES`.
        layers: how many go; None where a share is given.
        share: of layers, or of the width for methods that slice; None where layers are given.
        heal_tokens: to heal on; 0 for no healing.
        repo: Hub id to push to; without a namespace in the visitor's own.
        private: whether a new repo is private in any case.
    """

    model: str
    method: str = "uidl"
    layers: int | None = None
    share: float | None = None
    heal_tokens: int = 0
    repo: str = ""
    private: bool = False


def hub_id(name: str) -> str:
    """A model's Hub id, as a visitor typed it. It is never a folder of this machine.

    Raises:
        ConfigError: it is none, or a folder of the same name would be taken for it.
    """
    name = ids.hub_id(name)
    if Path(name).exists():
        raise ConfigError(f"'{name}' is also a folder where this page runs, and would be taken for it; choose another")
    return name


def recipe(wish: Wish) -> PrunerConfig:
    """The recipe of a wish: text sampled from the model itself, and as much of it as this machine can take.

    Raises:
        ConfigError: no such method, not one amount, or a healing budget that is too large.
    """
    if wish.method not in CHOICES:
        known = ", ".join(CHOICES)
        raise ConfigError(f"method='{ids.shown(wish.method)}' cannot be chosen here; expected one of: {known}")
    if (wish.layers is None) == (wish.share is None):
        raise ConfigError(f"layers={wish.layers}, share={wish.share}: give one of them, how much of the model goes")
    parts = effort()
    if wish.heal_tokens and not parts.most_tokens:
        raise ConfigError(
            "nothing can be healed on this Space, which borrows a GPU for moments only: go on without healing, and "
            "heal the result elsewhere with hf-prune heal"
        )
    if not 0 <= wish.heal_tokens <= parts.most_tokens:
        raise ConfigError(f"healing on {wish.heal_tokens:,} tokens; expected 0 to {parts.most_tokens:,} here")
    healing = replace(parts.healing, tokens=wish.heal_tokens) if wish.heal_tokens else parts.healing
    slices = METHODS[wish.method].planner == "dynamic_width"
    return PrunerConfig(
        method=wish.method,
        drop_layers=wish.layers,
        sparsity=wish.share,
        # A search would slice the model several times over.
        planner_kwargs={"slice_base": round(wish.share / 2, 4)} if slices and wish.share else {},
        calibration=parts.calibration,
        healing=healing,
        evaluation=parts.evaluation,
    )


def default_repo(model: str, owner: str | None) -> str:
    """The name that a pruned model gets where its owner gives none, such as `me/SmolLM2-135M-pruned`."""
    name = re.sub(r"[^\w.-]+", "-", model.strip().rpartition("/")[2], flags=re.ASCII).strip("-.")
    return f"{owner}/{name[: _ID_LIMIT - len(owner) - 8]}-pruned" if owner and name else ""


def target(wish: Wish, model: str, owner: str) -> str:
    """Where the result goes: always into the visitor's own namespace.

    Args:
        wish: what is asked for.
        model: Hub id of the base.
        owner: the visitor's account.

    Raises:
        ConfigError: that is no name, or the base's own.
        HubError: it is in another namespace.
    """
    given = wish.repo.strip() or default_repo(model, owner)
    repo = given if "/" in given else f"{owner}/{given}"
    if not ids.is_hub_id(repo):
        raise ConfigError(f"'{ids.shown(given)}' is no name for a repo; expected one such as {owner}/my-model-pruned")
    if repo.partition("/")[0] != owner:
        raise HubError(f"'{repo}' is not yours: you are signed in as '{owner}'; expected one such as {owner}/my-model")
    if repo == model:
        raise ConfigError(f"'{repo}' is the model itself; the pruned one needs another name")
    return repo
