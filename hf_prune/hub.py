"""From a finished folder to the Hub: one commit, on a known parent, checked file by file afterwards."""

import logging
from dataclasses import dataclass, replace
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi

from hf_prune.errors import ConfigError, HubError
from hf_prune.hub_client import Token, client, hub_errors, retrying
from hf_prune.hub_commit import Remote, commit, look, needed, require_held
from hf_prune.hub_files import RECIPE, holds_model, outgoing, stale
from hf_prune.hub_pull import ResolvedModel, download_file, is_restricted, pull, resolve

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PushResult:
    """What a push did, or would do.

    Attributes:
        repo_id: the repo, with its namespace.
        url: page of the model, the branch, or the pull request.
        commit: sha of the commit that holds the folder; None for a dry run.
        additions: paths added or changed.
        deletions: stale paths removed.
        unchanged: paths that the Hub held already.
        skipped: paths of the folder that stay behind.
        bytes: size of the additions.
        created: whether the repo is new.
        private: whether the repo is private; None where the namespace's default decides.
    """

    repo_id: str
    url: str
    commit: str | None
    additions: tuple[str, ...]
    deletions: tuple[str, ...]
    unchanged: tuple[str, ...]
    skipped: tuple[str, ...]
    bytes: int
    created: bool
    private: bool | None


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    token: Token = None,
    commit_message: str | None = None,
    dry_run: bool = False,
) -> PushResult:
    """Make a repo on the Hub hold the model in a folder, by one commit.

    Files of the folder are added where they differ; weights, adapters and records that the repo holds and the folder
    lacks are deleted in the same commit, so that no loader meets a shard of another model. Afterwards the Hub's hashes
    of every file are compared with the folder's. A folder that holds pickles, trainer states or secrets is refused.

    Args:
        folder: a finished model.
        repo_id: `namespace/name`, or `name` in the namespace of the token's user; made where it is missing.
        private: whether a new repo is private; None for the namespace's default. True refuses a public repo.
        revision: branch to push to, started from `main` where it is missing; `main` when None.
        create_pr: open a pull request instead of pushing to `main`.
        overwrite: whether to replace a model that was not made by hf-prune.
        token: access token; None for the saved one.
        commit_message: first line of the commit.
        dry_run: only tell what would happen; the Hub is read, never written.

    Returns:
        What was (or would be) done.

    Raises:
        OutputError: the folder holds what must not be pushed, or is no finished folder.
        CheckpointError: the model in the folder is not whole.
        ConfigError: `create_pr` together with another branch than `main`.
        HubError: the Hub refused, somebody pushed meanwhile, or the Hub holds something else than was sent.
    """
    if create_pr and revision not in (None, "main"):
        raise ConfigError(f"create_pr=True with revision={revision!r}: a pull request is opened on main; drop one")
    local, skipped = outgoing(Path(folder))
    api = client(token)
    with hub_errors(f"push to '{repo_id}'", repo_id, token=token, revision=revision):
        if "/" not in repo_id:
            repo_id = f"{retrying(lambda: api.whoami())['name']}/{repo_id}"
        remote = look(api, repo_id, revision)
        _require_welcome(repo_id, remote, private=private, create_pr=create_pr, overwrite=overwrite)
        change = needed(local, remote, stale(remote.files, {file.path for file in local}))
        sha, url = None, f"{api.endpoint}/{repo_id}"
        if not dry_run:
            remote = _prepare(api, repo_id, remote, private=private, revision=revision)
            sha, pr_url = remote.head, None
            if change.additions or change.deletions:
                message = commit_message or "Upload a model pruned with hf-prune"
                sha, pr_url = commit(api, repo_id, change, remote, message, revision=revision, create_pr=create_pr)
            url = pr_url or url
            require_held(api, repo_id, sha, change, remote)
            logger.info("Pushed %d files to %s; all hashes agree", len(change.additions), repo_id)
    return PushResult(
        repo_id=repo_id,
        url=f"{url}/tree/{revision}" if revision not in (None, "main") else url,
        commit=sha,
        additions=tuple(file.path for file in change.additions),
        deletions=change.deletions,
        unchanged=tuple(file.path for file in local if file not in change.additions),
        skipped=tuple(skipped),
        bytes=sum(file.size for file in change.additions),
        created=not remote.exists,
        private=remote.private if remote.exists else private,
    )


def check_push(
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    token: Token = None,
) -> str:
    """Find out before hours of work whether a push will be let in, as far as the Hub tells.

    Args:
        repo_id: as in `push_folder`, like everything else.
        private: as in `push_folder`.
        revision: as in `push_folder`.
        create_pr: as in `push_folder`.
        overwrite: as in `push_folder`.
        token: as in `push_folder`.

    Returns:
        The repo's id with its namespace.

    Raises:
        ConfigError: `create_pr` together with another branch than `main`.
        HubError: nobody is logged in, or the repo holds what would not be replaced.
    """
    if create_pr and revision not in (None, "main"):
        raise ConfigError(f"create_pr=True with revision={revision!r}: a pull request is opened on main; drop one")
    api = client(token)
    with hub_errors(f"push to '{repo_id}'", repo_id, token=token, revision=revision):
        user = retrying(lambda: api.whoami())["name"]
        repo_id = repo_id if "/" in repo_id else f"{user}/{repo_id}"
        remote = look(api, repo_id, revision)
        _require_welcome(repo_id, remote, private=private, create_pr=create_pr, overwrite=overwrite)
    return repo_id


def push_file(
    content: bytes,
    path: str,
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    token: Token = None,
    commit_message: str,
) -> str:
    """Put one small file into a repo (made where it is missing), and leave all else in it alone.

    Args:
        content: the file.
        path: its path in the repo.
        repo_id: `namespace/name`, or `name` in the namespace of the token's user.
        private: whether a new repo is private; None for the namespace's default.
        revision: branch to push to; `main` when None.
        create_pr: open a pull request instead.
        token: access token; None for the saved one.
        commit_message: first line of the commit.

    Returns:
        URL of the commit, or of the pull request.

    Raises:
        HubError: the Hub refused.
    """
    api = client(token)
    with hub_errors(f"push '{path}' to '{repo_id}'", repo_id, token=token, revision=revision):
        if not create_pr:
            repo_id = retrying(lambda: api.create_repo(repo_id, private=private, exist_ok=True)).repo_id
        info = api.create_commit(
            repo_id,
            [CommitOperationAdd(path, content)],
            commit_message=commit_message,
            revision=revision,
            create_pr=create_pr,
        )
    return info.pr_url or info.commit_url


def _require_welcome(repo_id: str, remote: Remote, *, private: bool | None, create_pr: bool, overwrite: bool) -> None:
    """Refuse to replace somebody's model, or to show what should be private."""
    if not remote.exists:
        if create_pr:
            raise HubError(
                f"there is no repo '{repo_id}' (that this account may see) to open a pull request on: check the "
                "spelling, log in with `hf auth login`, or push without a pull request"
            )
        return
    if private and not remote.private:
        raise HubError(
            f"'{repo_id}' is public and private=True was asked for: make it private in its settings on the Hub, push "
            "to another repo, or pass private=False to publish"
        )
    if private is False and remote.private:
        logger.warning("'%s' is private and stays so; its settings on the Hub make it public", repo_id)
    if holds_model(remote.files) and RECIPE not in remote.files and not overwrite:
        raise HubError(
            f"'{repo_id}' holds a model that hf-prune did not make (it has no {RECIPE}): push to another repo, or "
            "pass overwrite=True (`--overwrite`) to replace it"
        )


def _prepare(api: HfApi, repo_id: str, remote: Remote, *, private: bool | None, revision: str | None) -> Remote:
    """Make the repo and the branch where they are missing; a repo or branch that is there is left as it was found."""
    if not remote.exists:
        retrying(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        found = look(api, repo_id, None)
        if not found.exists or holds_model(found.files):
            raise HubError(f"'{repo_id}' exists, and this account could not see it before: push to another repo")
        remote = replace(found, exists=False, has_branch=revision in (None, "main"))
    if not remote.has_branch:
        retrying(lambda: api.create_branch(repo_id, branch=str(revision), revision=remote.head, exist_ok=True))
    return remote


__all__ = [
    "PushResult",
    "ResolvedModel",
    "download_file",
    "is_restricted",
    "pull",
    "push_file",
    "push_folder",
    "resolve",
]
