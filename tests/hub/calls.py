"""One request to the loopback Hub: who asks, what for, whether they may, and what they get."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from .faults import Faults
from .store import Commit, Repo, Store, StoreError


@dataclass(frozen=True)
class User:
    """Who asks. `name` is None for somebody without a token."""

    name: str | None
    orgs: tuple[str, ...] = ()
    read_only: bool = False

    def owns(self, namespace: str) -> bool:
        """Whether the namespace is the user's own or that of one of their organisations."""
        return self.name is not None and namespace in (self.name, *self.orgs)


@dataclass(frozen=True)
class Answer:
    """An HTTP answer: a JSON value, or a file of the store."""

    value: Any = None
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    file: Path | None = None


@dataclass(frozen=True)
class Call:
    """One request: where it came in, who asks, the parts of the URL that the route names, and the body on disk."""

    store: Store
    faults: Faults
    endpoint: str
    user: User
    headers: dict[str, str]
    query: dict[str, list[str]]
    parts: dict[str, str]
    body: Path

    def json(self) -> dict[str, Any]:
        """The body as JSON."""
        return json.loads(self.body.read_bytes() or b"{}")

    def flag(self, name: str) -> bool:
        """Whether a query parameter is set."""
        return self.query.get(name, [""])[0].lower() in ("1", "true")

    def repo(self, *, content: bool = False) -> Repo:
        """The repo of the URL, if the user may see it (and read its files, for `content`)."""
        name = unquote(self.parts["repo"])
        anonymous = self.user.name is None
        try:
            repo = self.store.get(self.parts.get("type") or "model", name)
        except StoreError as error:
            raise StoreError(401 if anonymous else 404, str(error), error.code) from error
        invited = self.user.owns(repo.namespace) or self.user.name in repo.allowed
        if repo.private and not invited:
            raise StoreError(401 if anonymous else 404, "Repository not found", "RepoNotFound")
        if repo.gated and content and not invited:
            message = f"Access to {repo.type} {repo.id} is restricted. You must have access and be authenticated."
            raise StoreError(401 if anonymous else 403, message, "GatedRepo")
        return repo

    def writable(self, *, pull_request: bool = False) -> Repo:
        """The repo of the URL, if the user may write to it (or open a pull request on it)."""
        repo = self.repo()
        self.require_write("" if pull_request else repo.namespace)
        return repo

    def require_write(self, namespace: str) -> None:
        """Refuse users that may not write (to a namespace)."""
        if self.user.name is None:
            raise StoreError(401, "Invalid username or password.")
        if self.user.read_only or (namespace and not self.user.owns(namespace)):
            raise StoreError(403, f"You don't have the rights to write to {namespace or 'this repo'}")

    def commit(self, repo: Repo) -> Commit:
        """The commit that the URL's revision names."""
        return repo.resolve(unquote(self.parts.get("revision") or "main"))
