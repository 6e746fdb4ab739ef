"""What the loopback Hub remembers: blobs by content; for each repo its commits, branches, tags and pull requests."""

import hashlib
import json
import os
import shutil
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# Real repos are born with a .gitattributes that names what goes to the large file storage.
LARGE_SUFFIXES = (
    ".7z .arrow .bin .bz2 .ckpt .ftz .gguf .gz .h5 .joblib .model .msgpack .npy .npz .onnx .ot .parquet .pb .pickle "
    ".pkl .pt .pth .rar .safetensors .tar .tflite .tgz .wasm .xz .zip .zst"
).split()
LARGE_BYTES = 10 * 1024 * 1024
GITATTRIBUTES = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES).encode()


class StoreError(Exception):
    """A request that the store refuses, with the HTTP status and the Hub's error code for it."""

    def __init__(self, status: int, message: str, code: str | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


@dataclass(frozen=True)
class Entry:
    """A file in a commit: `oid` is the git blob id (of the pointer, for a large file), `sha256` the content's."""

    oid: str
    sha256: str
    size: int
    large: bool

    @property
    def etag(self) -> str:
        """What the Hub answers as ETag: the sha256 of a large file, the git blob id of a regular one."""
        return self.sha256 if self.large else self.oid


@dataclass(frozen=True)
class Commit:
    """One commit: its whole tree, so that any revision can be read without walking the history."""

    sha: str
    parent: str | None
    title: str
    message: str
    author: str
    date: str
    files: dict[str, Entry]


@dataclass
class Repo:
    """A repo: who may see it, every commit it ever had, and the refs into them."""

    id: str
    type: str = "model"
    private: bool = False
    gated: bool = False
    created: str = ""
    sdk: str = ""
    hardware: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    allowed: list[str] = field(default_factory=list)
    refs: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    commits: dict[str, Commit] = field(default_factory=dict)

    @property
    def namespace(self) -> str:
        """The user or organisation that owns the repo."""
        return self.id.split("/")[0] if "/" in self.id else ""

    @property
    def path(self) -> str:
        """The repo's place in a URL: datasets and spaces carry a prefix, models do not."""
        return self.id if self.type == "model" else f"{self.type}s/{self.id}"

    def resolve(self, revision: str) -> Commit:
        """Find a commit by branch, pull request ref, tag, or (shortened) sha."""
        revision = revision.removeprefix("refs/heads/")
        sha = self.refs.get(revision) or self.tags.get(revision.removeprefix("refs/tags/"))
        if sha is None and len(revision) >= 7:
            sha = next((known for known in self.commits if known.startswith(revision)), None)
        if sha is None:
            raise StoreError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return self.commits[sha]

    def history(self, revision: str) -> list[Commit]:
        """The commits that lead to a revision, newest first."""
        found: list[Commit] = [self.resolve(revision)]
        while (parent := found[-1].parent) is not None:
            found.append(self.commits[parent])
        return found


def git_blob_id(content: bytes) -> str:
    """The id that git gives to a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def pointer(sha256: str, size: int) -> bytes:
    """The text that git itself stores in place of a large file."""
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub would keep a file in the large file storage: by suffix, by size, or because it is binary."""
    return size > 0 and (path.endswith(tuple(LARGE_SUFFIXES)) or size > LARGE_BYTES or b"\0" in sample)


class Store:
    """Repos and blobs under one folder. Every change is on disk before the call returns."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.lock = threading.RLock()
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        (root / "repos").mkdir(exist_ok=True)
        self.repos: dict[tuple[str, str], Repo] = {}
        for file in sorted((root / "repos").glob("*.json")):
            repo = _read_repo(json.loads(file.read_text(encoding="utf-8")))
            self.repos[repo.type, repo.id] = repo

    def blob(self, sha256: str) -> Path:
        """Where a content with this sha256 lies, or would lie."""
        return self.root / "blobs" / sha256

    def keep(self, content: bytes | Path) -> str:
        """Store a content and return its sha256."""
        scratch = self.root / f"incoming-{uuid.uuid4().hex}"
        if isinstance(content, bytes):
            scratch.write_bytes(content)
        else:
            shutil.copyfile(content, scratch)
        return self.adopt(scratch)

    def adopt(self, scratch: Path, expected: str | None = None) -> str:
        """Move a file into the blobs; refuse it when its sha256 is not the expected one."""
        with scratch.open("rb") as stream:
            sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        if expected is not None and sha256 != expected:
            scratch.unlink()
            raise StoreError(400, f"content has sha256 {sha256}, the upload was announced as {expected}")
        os.replace(scratch, self.blob(sha256))
        return sha256

    def entry(self, path: str, content: bytes | Path) -> Entry:
        """Store a content and describe it as the file at `path`."""
        sha256 = self.keep(content)
        size = self.blob(sha256).stat().st_size
        with self.blob(sha256).open("rb") as stream:
            large = is_large(path, size, stream.read(512))
        return self.describe(sha256, large)

    def describe(self, sha256: str, large: bool) -> Entry:
        """Describe a stored content as a regular or a large file."""
        size = self.blob(sha256).stat().st_size
        git_content = pointer(sha256, size) if large else self.blob(sha256).read_bytes()
        return Entry(oid=git_blob_id(git_content), sha256=sha256, size=size, large=large)

    def get(self, repo_type: str, repo_id: str) -> Repo:
        """Find a repo."""
        repo = self.repos.get((repo_type, repo_id))
        if repo is None:
            raise StoreError(404, "Repository not found", "RepoNotFound")
        return repo

    def create(self, repo_type: str, repo_id: str, private: bool, author: str) -> Repo:
        """Create a repo with its first commit, which holds nothing but .gitattributes."""
        with self.lock:
            if (repo_type, repo_id) in self.repos:
                raise StoreError(409, "You already created this repo")
            repo = Repo(id=repo_id, type=repo_type, private=private, created=now())
            self.repos[repo_type, repo_id] = repo
            self.commit(repo, "main", {".gitattributes": self.entry(".gitattributes", GITATTRIBUTES)}, author=author)
            return repo

    def delete(self, repo: Repo) -> None:
        """Forget a repo (its blobs may belong to others and stay)."""
        with self.lock:
            del self.repos[repo.type, repo.id]
            self._file(repo).unlink()

    def commit(
        self,
        repo: Repo,
        ref: str,
        files: Mapping[str, Entry],
        *,
        parent: Commit | None = None,
        title: str = "initial commit",
        message: str = "",
        author: str = "system",
    ) -> Commit:
        """Add a commit with this whole tree and move a ref to it."""
        with self.lock:
            body: dict[str, Any] = {
                "parent": parent.sha if parent else None,
                "title": title,
                "message": message,
                "author": author,
                "date": now(),
            }
            tree = {path: asdict(files[path]) for path in sorted(files)}
            seed = json.dumps([repo.type, repo.id, len(repo.commits), body, tree]).encode()
            sha = hashlib.sha1(seed).hexdigest()
            commit = Commit(sha=sha, files={path: files[path] for path in tree}, **body)
            repo.commits[sha] = commit
            repo.refs[ref] = sha
            self.save(repo)
            return commit

    def save(self, repo: Repo) -> None:
        """Write a repo's record, whole or not at all."""
        scratch = self.root / f"record-{uuid.uuid4().hex}"
        scratch.write_text(json.dumps(asdict(repo)), encoding="utf-8")
        os.replace(scratch, self._file(repo))

    def _file(self, repo: Repo) -> Path:
        return self.root / "repos" / f"{repo.type}--{repo.id.replace('/', '--')}.json"


def folder_files(folder: Path) -> Iterable[tuple[str, Path]]:
    """Every file below a folder, as (path in the repo, path on disk)."""
    return ((file.relative_to(folder).as_posix(), file) for file in sorted(folder.rglob("*")) if file.is_file())


def now() -> str:
    """The time as the Hub writes it."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"


def _read_repo(record: dict) -> Repo:
    commits = {
        sha: Commit(**{**commit, "files": {path: Entry(**entry) for path, entry in commit["files"].items()}})
        for sha, commit in record.pop("commits").items()
    }
    return Repo(commits=commits, **record)
