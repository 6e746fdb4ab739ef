"""The page as a Space of the Hub: made where it is missing, filled by one commit, compared by hash afterwards.

A Space imports what its `requirements.txt` names, and this project is on no index; so its wheel lies in the Space
itself. Believed, and not tried against the real Hub: the build sees `requirements.txt` and no other file of the repo,
so that a relative path to the wheel would not be found, and it has no token, so that the Space has to be public. The
requirement is therefore the wheel's address with its hash, which pip checks, and which builds anew when it changes.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote

from huggingface_hub import HfApi, SpaceCard, SpaceHardware
from huggingface_hub.utils import validate_repo_id

from hf_prune.errors import HubError
from hf_prune.hub_client import Token, client, hub_errors, retrying
from hf_prune.hub_commit import Change, Remote, commit, look, needed, require_held
from hf_prune.hub_files import LocalFile, matches
from hf_prune.space.ids import is_hub_id
from hf_prune.space_wheel import Wheel, own_wheel

logger = logging.getLogger(__name__)

FEATURED = "HF_PRUNE_SPACE_FEATURED"
"""The variable by which a Space knows the pairs that it shows first; see `hf_prune.space.settings`."""

_APP, _CARD, _REQUIREMENTS = "app.py", "README.md", "requirements.txt"
_PLACEHOLDER, _REQUIREMENT = "me/my-space", "hf-prune[space]"
_BORN_WITH = {".gitattributes", _CARD}
_WHEELS = ("hf_prune-*.whl",)
_TAG = "hf-prune"


@dataclass(frozen=True)
class Deployment:
    """What a deployment did, or would do.

    Attributes:
        repo_id: the Space, with its namespace.
        url: its page.
        commit: sha of the commit that holds the files; None for a dry run.
        additions: paths added or changed.
        deletions: stale wheels removed.
        unchanged: paths that the Space held already.
        bytes: size of the additions.
        created: whether the Space is new.
        hardware: what was asked for; None leaves it as it is.
        models: what the Space's card names: the pairs shown first, and what they were made from.
    """

    repo_id: str
    url: str
    commit: str | None
    additions: tuple[str, ...]
    deletions: tuple[str, ...]
    unchanged: tuple[str, ...]
    bytes: int
    created: bool
    hardware: str | None
    models: tuple[str, ...]


def deploy(
    repo_id: str,
    *,
    hardware: str | None = None,
    pairs: Sequence[str] = (),
    wheel: Path | None = None,
    overwrite: bool = False,
    token: Token = None,
    dry_run: bool = False,
) -> Deployment:
    """Make a Space hold the page and the wheel that runs it.

    Whatever can be found out is found out before anything is built or written.

    Args:
        repo_id: `namespace/name`, or `name` in the namespace of the token's user; made public where it is missing.
        hardware: such as `zero-a10g`; None leaves it as it is, for a new Space the Hub's default.
        pairs: pruned repos that the page shows first; none leaves those of an earlier deployment.
        wheel: of this project; None builds it.
        overwrite: whether to replace a Space that holds something else.
        token: access token; None for the saved one.
        dry_run: only tell what would happen; the Hub is read, never written.

    Returns:
        What was (or would be) done.

    Raises:
        OutputError: there is no wheel.
        HubError: the Hub refused, the Space is private or holds something else, a pair is none, somebody pushed
            meanwhile, or the Hub holds something else than was sent.
    """
    _require_known(hardware)
    api = client(token)
    with hub_errors(f"deploy to '{repo_id}'", repo_id, token=token), TemporaryDirectory() as scratch:
        repo_id = _require_writable(api, repo_id)
        remote = look(api, repo_id, repo_type="space")
        _require_welcome(repo_id, remote, overwrite)
        earlier = _earlier_pairs(api, repo_id) if remote.exists else ()
        pairs = tuple(dict.fromkeys(pairs)) or earlier
        models = _models(api, pairs)
        files = _files(api, repo_id, own_wheel(Path(scratch), wheel), models, Path(scratch) / "files")
        names = {file.path for file in files}
        change = needed(files, remote, sorted(path for path in remote.files if _is_stale(path, names)))
        sha = None
        if not dry_run:
            remote = _prepare(api, repo_id, remote, hardware)
            if pairs != earlier:
                retrying(lambda: api.add_space_variable(repo_id, FEATURED, ",".join(pairs)))
            sha = _send(api, repo_id, change, remote)
    return Deployment(
        repo_id=repo_id,
        url=f"{api.endpoint}/spaces/{repo_id}",
        commit=sha,
        additions=tuple(file.path for file in change.additions),
        deletions=change.deletions,
        unchanged=tuple(file.path for file in files if file not in change.additions),
        bytes=sum(file.size for file in change.additions),
        created=not remote.exists,
        hardware=hardware,
        models=models,
    )


def _require_known(hardware: str | None) -> None:
    known = [flavor.value for flavor in SpaceHardware]
    if hardware is not None and hardware not in known:
        raise HubError(f"unknown hardware '{hardware}'; expected one of: {', '.join(known)}")


def _require_writable(api: HfApi, repo_id: str) -> str:
    """The Space's id with its namespace, which has to be one that this account may write to."""
    validate_repo_id(repo_id)
    account = retrying(lambda: api.whoami())
    repo_id = repo_id if "/" in repo_id else f"{account['name']}/{repo_id}"
    namespaces = [account["name"], *(org["name"] for org in account.get("orgs") or ())]
    if repo_id.partition("/")[0] not in namespaces:
        raise HubError(
            f"cannot deploy to '{repo_id}': this account may write to {', '.join(namespaces)}; take a Space there, or "
            "log in with another account"
        )
    if account.get("auth", {}).get("accessToken", {}).get("role") == "read":
        raise HubError(
            f"cannot deploy to '{repo_id}': this access token may only read; make one that may write at "
            f"{api.endpoint}/settings/tokens"
        )
    return repo_id


def _require_welcome(repo_id: str, remote: Remote, overwrite: bool) -> None:
    """Refuse to replace something else, or to fill a Space that could not be built."""
    if remote.private:
        raise HubError(
            f"'{repo_id}' is a private Space, whose build could not fetch the wheel that lies in it: make it public "
            "in its settings on the Hub, or deploy to another one"
        )
    others = sorted(remote.files.keys() - _BORN_WITH)
    if others and not any(matches(path, _WHEELS) for path in others) and not overwrite:
        raise HubError(
            f"'{repo_id}' is a Space that hf-prune did not deploy (it holds {', '.join(others[:3])} and no wheel of "
            "hf-prune): deploy to another one, or pass overwrite=True (`--overwrite`) to replace it"
        )


def _earlier_pairs(api: HfApi, repo_id: str) -> tuple[str, ...]:
    """The pairs that a Space shows first by now."""
    known = retrying(lambda: api.get_space_variables(repo_id)).get(FEATURED)
    names = (known.value or "").split(",") if known is not None else ()
    return tuple(name for name in map(str.strip, names) if is_hub_id(name))  # a person may have written it


def _models(api: HfApi, pairs: Sequence[str]) -> tuple[str, ...]:
    """The pairs and what they were made from, each of which every visitor has to be able to find."""
    found: list[str] = []
    for pair in pairs:
        with hub_errors(f"show '{pair}' in the Space", pair):
            info = retrying(partial(api.model_info, pair))
        if _TAG not in (info.tags or ()):
            raise HubError(f"'{pair}' was not made by hf-prune (no tag '{_TAG}'); expected a pruned model")
        if info.private:
            raise HubError(f"'{pair}' is private: visitors of a public Space could not open it; make it public first")
        named = info.card_data.base_model if info.card_data is not None else None
        bases = named if isinstance(named, list) else [named]
        # A card may hold anything; what is no Hub id, such as a folder, nobody could find.
        found += [info.id, *(str(base) for base in bases if is_hub_id(base, bare=True))]
    return tuple(dict.fromkeys(found))


def _files(api: HfApi, repo_id: str, wheel: Wheel, models: tuple[str, ...], folder: Path) -> list[LocalFile]:
    """What the Space is to hold, on disk."""
    address = f"{api.endpoint}/spaces/{repo_id}/resolve/main/{quote(wheel.file.name)}#sha256={wheel.sha256}"
    lines = wheel.page(_REQUIREMENTS).splitlines()
    filled = [f"{line} @ {address}" if line == _REQUIREMENT else line for line in lines]
    card = SpaceCard(wheel.page(_CARD).replace(_PLACEHOLDER, repo_id))
    if models:
        card.data["models"] = list(models)
    texts = {_APP: wheel.page(_APP), _CARD: str(card), _REQUIREMENTS: "\n".join(filled) + "\n"}
    folder.mkdir()
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode("utf-8"))
    sources = {name: folder / name for name in texts} | {wheel.file.name: wheel.file}
    return [LocalFile(name, source, source.stat().st_size) for name, source in sources.items()]


def _is_stale(path: str, names: set[str]) -> bool:
    return path not in names and matches(path, _WHEELS)


def _prepare(api: HfApi, repo_id: str, remote: Remote, hardware: str | None) -> Remote:
    """Make the Space where it is missing, and give it its hardware."""
    flavor, on = (SpaceHardware(hardware), f" on '{hardware}'") if hardware else (None, "")
    if not remote.exists:
        with hub_errors(f"make the Space '{repo_id}'{on}", repo_id, token=api.token):
            retrying(
                lambda: api.create_repo(
                    repo_id,
                    repo_type="space",
                    space_sdk="gradio",
                    private=False,
                    space_hardware=flavor,
                    exist_ok=True,
                )
            )
        found = look(api, repo_id, repo_type="space")
        if not found.exists or found.files.keys() - _BORN_WITH:
            raise HubError(f"'{repo_id}' exists, and this account could not see it before: deploy to another Space")
        return replace(found, exists=False)
    if flavor is not None:
        runtime = retrying(lambda: api.get_space_runtime(repo_id))
        if flavor != (runtime.requested_hardware or runtime.hardware):
            with hub_errors(f"let '{repo_id}' run{on}", repo_id, token=api.token):
                retrying(lambda: api.request_space_hardware(repo_id, flavor))
    return remote


def _send(api: HfApi, repo_id: str, change: Change, remote: Remote) -> str | None:
    """The one commit, if there is anything to do, and its comparison by hash."""
    sha = remote.head
    if change.additions or change.deletions:
        sha, _ = commit(api, repo_id, change, remote, "Deploy with hf-prune", repo_type="space")
    require_held(api, repo_id, sha, change, remote, repo_type="space")
    logger.info("Deployed %d files to %s; all hashes agree", len(change.additions), repo_id)
    return sha


__all__ = ["Deployment", "deploy"]
