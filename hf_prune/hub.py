"""From a finished folder to the Hub: one commit, on a known parent, checked file by file afterwards."""

import hashlib
import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_prune.errors import ConfigError, HubError
from hf_prune.hub_client import Token, client, hub_errors, retrying, status_of
from hf_prune.hub_files import RECIPE, LocalFile, holds_model, outgoing, stale
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


@dataclass(frozen=True)
class _Remote:
    """A repo before the push: its head, its files there, and whether the branch to push to exists."""

    exists: bool = False
    private: bool | None = None
    head: str | None = None
    has_branch: bool = True
    files: dict[str, RepoFile] = field(default_factory=dict)


@dataclass(frozen=True)
class _Change:
    """A push: what the repo is to hold, and what has to be added and deleted for that."""

    local: tuple[LocalFile, ...]
    additions: tuple[LocalFile, ...]
    deletions: tuple[str, ...]


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
        remote = _look(api, repo_id, revision)
        _require_welcome(repo_id, remote, private=private, create_pr=create_pr, overwrite=overwrite)
        change = _Change(
            local=tuple(local),
            additions=tuple(file for file in local if not _same(file, remote.files.get(file.path))),
            deletions=tuple(stale(remote.files, {file.path for file in local})),
        )
        commit, url = None, f"{api.endpoint}/{repo_id}"
        if not dry_run:
            remote = _prepare(api, repo_id, remote, private=private, revision=revision)
            commit, pr_url = remote.head, None
            if change.additions or change.deletions:
                message = commit_message or "Upload a model pruned with hf-prune"
                commit, pr_url = _commit(api, repo_id, change, remote, revision, create_pr, message)
            url = pr_url or url
            if wrong := _differences(api, repo_id, commit, change):
                raise HubError(
                    f"commit {commit} of '{repo_id}' does not hold what was sent ({'; '.join(wrong[:5])}): do not use "
                    f"it; go back to {remote.head} and push again"
                )
            logger.info("Pushed %d files to %s; all hashes agree", len(change.additions), repo_id)
    return PushResult(
        repo_id=repo_id,
        url=f"{url}/tree/{revision}" if revision not in (None, "main") else url,
        commit=commit,
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
        remote = _look(api, repo_id, revision)
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


def _look(api: HfApi, repo_id: str, revision: str | None) -> _Remote:
    """See what a repo holds where the push will land; a branch that is missing will start from main."""
    try:
        info = retrying(lambda: api.model_info(repo_id))
    except RepositoryNotFoundError:
        return _Remote()
    head, has_branch = info.sha, True
    if revision is not None:
        refs = retrying(lambda: api.list_repo_refs(repo_id, include_pull_requests=True))
        heads = {ref.name: ref.target_commit for ref in (*refs.branches, *(refs.pull_requests or ()))}
        heads |= {ref.ref: ref.target_commit for ref in (refs.pull_requests or ())}
        has_branch = revision in heads
        head = heads.get(revision, head)
    return _Remote(True, info.private, head, has_branch, _tree(api, repo_id, head))


def _require_welcome(repo_id: str, remote: _Remote, *, private: bool | None, create_pr: bool, overwrite: bool) -> None:
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


def _prepare(api: HfApi, repo_id: str, remote: _Remote, *, private: bool | None, revision: str | None) -> _Remote:
    """Make the repo and the branch where they are missing; a repo or branch that is there is left as it was found."""
    if not remote.exists:
        retrying(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
        found = _look(api, repo_id, None)
        if not found.exists or holds_model(found.files):
            raise HubError(f"'{repo_id}' exists, and this account could not see it before: push to another repo")
        remote = replace(found, exists=False, has_branch=revision in (None, "main"))
    if not remote.has_branch:
        retrying(lambda: api.create_branch(repo_id, branch=str(revision), revision=remote.head, exist_ok=True))
    return remote


def _commit(
    api: HfApi,
    repo_id: str,
    change: _Change,
    remote: _Remote,
    revision: str | None,
    create_pr: bool,
    message: str,
) -> tuple[str, str | None]:
    """Send the one commit.

    The client does not retry this request, since it may have been done although the answer was lost. The known parent
    makes a retry safe: where the first one was done, the second is refused, and the head holds what was sent. A pull
    request has no such guard and is sent once.

    Returns:
        The commit's sha, and the page of the pull request if it is one.
    """
    operations: list[CommitOperationAdd | CommitOperationCopy | CommitOperationDelete] = [
        *(CommitOperationAdd(file.path, str(file.source)) for file in change.additions),
        *(CommitOperationDelete(path, is_folder=False) for path in change.deletions),
    ]

    def send() -> CommitInfo:
        return api.create_commit(
            repo_id,
            operations,
            commit_message=message,
            revision=revision,
            create_pr=create_pr,
            parent_commit=remote.head,
        )

    try:
        info = send() if create_pr else retrying(send)
    except HfHubHTTPError as error:
        if status_of(error) != 412:
            raise
        head = retrying(lambda: api.model_info(repo_id, revision=revision)).sha
        if head == remote.head or _differences(api, repo_id, head, change):
            raise HubError(
                f"somebody pushed to '{repo_id}' meanwhile: it was at {remote.head} and is at {head}; nothing was "
                "changed: look at what they pushed, then push again"
            ) from error
        return str(head), None
    return info.oid, info.pr_url


def _tree(api: HfApi, repo_id: str, sha: str | None) -> dict[str, RepoFile]:
    rows = retrying(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=sha)))
    return {row.path: row for row in rows if isinstance(row, RepoFile)}


def _differences(api: HfApi, repo_id: str, commit: str | None, change: _Change) -> list[str]:
    """What a commit holds otherwise than the folder, one line each; empty when all hashes agree."""
    held = _tree(api, repo_id, commit)
    wrong = [f"{path} is still there" for path in change.deletions if path in held]
    for file in change.local:
        if file.path not in held:
            wrong.append(f"{file.path} is missing")
        elif not _same(file, held[file.path]):
            wrong.append(f"{file.path} has another hash")
    return wrong


def _same(file: LocalFile, held: RepoFile | None) -> bool:
    """Whether the Hub holds this content: by sha256 for a large file, by git's blob id for a regular one."""
    if held is None or held.size != file.size:
        return False
    if held.lfs is not None:
        with file.source.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == held.lfs.sha256
    content = file.source.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest() == held.blob_id


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
