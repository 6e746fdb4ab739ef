"""One commit to a repo of any type, on a known parent, and the hashes of every file compared afterwards."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationCopy, CommitOperationDelete, HfApi
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
from huggingface_hub.hf_api import RepoFile

from hf_prune.errors import HubError
from hf_prune.hub_client import retrying, status_of
from hf_prune.hub_files import LocalFile


@dataclass(frozen=True)
class Remote:
    """A repo before a push: its head, its files there, and whether the branch to push to exists."""

    exists: bool = False
    private: bool | None = None
    head: str | None = None
    has_branch: bool = True
    files: dict[str, RepoFile] = field(default_factory=dict)


@dataclass(frozen=True)
class Change:
    """A push: what the repo is to hold, and what has to be added and deleted for that."""

    local: tuple[LocalFile, ...]
    additions: tuple[LocalFile, ...]
    deletions: tuple[str, ...]


def look(api: HfApi, repo_id: str, revision: str | None = None, repo_type: str = "model") -> Remote:
    """See what a repo holds where a push will land; a branch that is missing will start from main.

    Args:
        api: client of the Hub.
        repo_id: the repo, with its namespace.
        revision: the branch; `main` when None.
        repo_type: "model" or "space".

    Returns:
        What is there; nothing where there is no such repo that this account may see.
    """
    try:
        info = retrying(lambda: api.repo_info(repo_id, repo_type=repo_type))
    except RepositoryNotFoundError:
        return Remote()
    head, has_branch = info.sha, True
    if revision is not None:
        refs = retrying(lambda: api.list_repo_refs(repo_id, repo_type=repo_type, include_pull_requests=True))
        heads = {ref.name: ref.target_commit for ref in (*refs.branches, *(refs.pull_requests or ()))}
        heads |= {ref.ref: ref.target_commit for ref in (refs.pull_requests or ())}
        has_branch = revision in heads
        head = heads.get(revision, head)
    return Remote(True, info.private, head, has_branch, _tree(api, repo_id, head, repo_type))


def needed(local: Sequence[LocalFile], remote: Remote, stale: Iterable[str]) -> Change:
    """What a push has to do: add the files that differ, delete the stale ones.

    Args:
        local: all that the repo is to hold.
        remote: what it holds.
        stale: paths that have to go.

    Returns:
        The change.
    """
    return Change(
        local=tuple(local),
        additions=tuple(file for file in local if not _same(file, remote.files.get(file.path))),
        deletions=tuple(stale),
    )


def commit(
    api: HfApi,
    repo_id: str,
    change: Change,
    remote: Remote,
    message: str,
    *,
    revision: str | None = None,
    create_pr: bool = False,
    repo_type: str = "model",
) -> tuple[str, str | None]:
    """Send the one commit.

    The client does not retry this request, since it may have been done although the answer was lost. The known parent
    makes a retry safe: where the first one was done, the second is refused, and the head holds what was sent. A pull
    request has no such guard and is sent once.

    Args:
        api: client of the Hub.
        repo_id: the repo, with its namespace.
        change: what to add and delete.
        remote: the repo before.
        message: first line of the commit.
        revision: the branch; `main` when None.
        create_pr: open a pull request instead.
        repo_type: "model" or "space".

    Returns:
        The commit's sha, and the page of the pull request if it is one.

    Raises:
        HubError: somebody pushed meanwhile.
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
            repo_type=repo_type,
            revision=revision,
            create_pr=create_pr,
            parent_commit=remote.head,
        )

    try:
        info = send() if create_pr else retrying(send)
    except HfHubHTTPError as error:
        if status_of(error) != 412:
            raise
        head = retrying(lambda: api.repo_info(repo_id, revision=revision, repo_type=repo_type)).sha
        if head == remote.head or _differences(api, repo_id, head, change, repo_type):
            raise HubError(
                f"somebody pushed to '{repo_id}' meanwhile: it was at {remote.head} and is at {head}; nothing was "
                "changed: look at what they pushed, then push again"
            ) from error
        return str(head), None
    return info.oid, info.pr_url


def require_held(
    api: HfApi, repo_id: str, sha: str | None, change: Change, remote: Remote, repo_type: str = "model"
) -> None:
    """Compare what a commit holds with what was sent, by hash.

    Args:
        api: client of the Hub.
        repo_id: the repo, with its namespace.
        sha: the commit.
        change: what it should hold.
        remote: the repo before.
        repo_type: "model" or "space".

    Raises:
        HubError: a file is missing, has another hash, or should be gone.
    """
    if wrong := _differences(api, repo_id, sha, change, repo_type):
        raise HubError(
            f"commit {sha} of '{repo_id}' does not hold what was sent ({'; '.join(wrong[:5])}): do not use "
            f"it; go back to {remote.head} and push again"
        )


def _tree(api: HfApi, repo_id: str, sha: str | None, repo_type: str) -> dict[str, RepoFile]:
    rows = retrying(lambda: list(api.list_repo_tree(repo_id, recursive=True, revision=sha, repo_type=repo_type)))
    return {row.path: row for row in rows if isinstance(row, RepoFile)}


def _differences(api: HfApi, repo_id: str, sha: str | None, change: Change, repo_type: str) -> list[str]:
    """What a commit holds otherwise than the folder, one line each; empty when all hashes agree."""
    held = _tree(api, repo_id, sha, repo_type)
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
