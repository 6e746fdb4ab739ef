"""What the Hub says of the files of a repo at one commit: how long they are, and the hash of what is in them."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.hf_api import RepoFile

from hf_prune.hub_client import Token, client, hub_errors, retrying


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repo at one commit, as the Hub lists it.

    Attributes:
        name: path in the repo.
        size: bytes.
        etag: what the Hub says its content is: the sha256 of a large file, git's blob id (a sha1) of another.
    """

    name: str
    size: int
    etag: str


def remote_files(repo_id: str, sha: str, token: Token = None) -> dict[str, RemoteFile]:
    """The files at the top of a repo at one commit, by name.

    Args:
        repo_id: model on the Hub.
        sha: of the commit.
        token: access token; None for the saved one.

    Raises:
        HubError: there is no such repo or commit, or the Hub is out of reach.
    """
    api = client(token)
    with hub_errors(f"list the files of '{repo_id}'", repo_id, token=token, revision=sha):
        rows = retrying(lambda: list(api.list_repo_tree(repo_id, revision=sha)))
    return {
        row.path: RemoteFile(row.path, row.size, row.lfs.sha256 if row.lfs is not None else row.blob_id)
        for row in rows
        if isinstance(row, RepoFile)
    }


def has_content(path: Path, listed: RemoteFile) -> bool:
    """Whether a local file is, by its hash, what the Hub lists.

    Args:
        path: of the local file, which is read from end to end.
        listed: from `remote_files`.
    """
    if path.stat().st_size != listed.size:
        return False
    with path.open("rb") as stream:
        if len(listed.etag) == 64:
            return hashlib.file_digest(stream, "sha256").hexdigest() == listed.etag
        return hashlib.sha1(b"blob %d\0" % listed.size + stream.read()).hexdigest() == listed.etag
