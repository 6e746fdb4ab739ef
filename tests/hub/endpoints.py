"""What each endpoint of the loopback Hub answers: plain functions from a `Call` to an `Answer`."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from .faults import Faults
from .store import Commit, Entry, Repo, Store, StoreError, is_large


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


def whoami(call: Call) -> Answer:
    """Who the token belongs to."""
    if call.user.name is None:
        raise StoreError(401, "Invalid username or password.")
    token = {"displayName": "loopback", "role": "read" if call.user.read_only else "write"}
    orgs = [{"type": "org", "name": org, "fullname": org, "roleInOrg": "write"} for org in call.user.orgs]
    auth = {"type": "access_token", "accessToken": token}
    return Answer({"type": "user", "name": call.user.name, "fullname": call.user.name, "orgs": orgs, "auth": auth})


def create_repo(call: Call) -> Answer:
    """Create a repo; one that exists is a 409 whose body still holds the URL."""
    asked = call.json()
    namespace = asked.get("organization") or call.user.name or ""
    call.require_write(namespace)
    repo_type = asked.get("type") or "model"
    repo_id = f"{namespace}/{asked['name']}"
    private = asked.get("visibility") == "private" or bool(asked.get("private"))
    known = call.store.repos.get((repo_type, repo_id))
    if known is not None:
        error = "You already created this model repo"
        return Answer({"error": error, "url": f"{call.endpoint}/{known.path}"}, 409, {"X-Error-Message": error})
    repo = call.store.create(repo_type, repo_id, private, call.user.name or "")
    return Answer({"url": f"{call.endpoint}/{repo.path}", "name": repo.id, "id": repo.id})


def delete_repo(call: Call) -> Answer:
    """Delete a repo."""
    asked = call.json()
    namespace = asked.get("organization") or call.user.name or ""
    call.require_write(namespace)
    call.store.delete(call.store.get(asked.get("type") or "model", f"{namespace}/{asked['name']}"))
    return Answer({})


def settings(call: Call) -> Answer:
    """Change who may see a repo."""
    repo, asked = call.writable(), call.json()
    if "visibility" in asked or "private" in asked:
        repo.private = asked.get("visibility") == "private" or bool(asked.get("private"))
    if "gated" in asked:
        repo.gated = bool(asked["gated"])
    call.store.save(repo)
    return Answer({"private": repo.private, "gated": repo.gated})


def validate_yaml(call: Call) -> Answer:
    """Check a card's front matter; one that does not parse is a 400."""
    errors, warnings = [], []
    try:
        metadata = front_matter(call.json()["content"])
    except yaml.YAMLError as error:
        errors.append({"message": f"YAML does not parse: {error}"})
    else:
        if not metadata:
            warnings.append({"message": "empty or missing yaml metadata in repo card"})
    return Answer({"errors": errors, "warnings": warnings}, 400 if errors else 200)


def repo_info(call: Call) -> Answer:
    """A repo at a revision."""
    repo = call.repo()
    return Answer(describe(call.store, repo, call.commit(repo), blobs=call.flag("blobs")))


def list_repos(call: Call) -> Answer:
    """The repos that a user may see, by author, search text and tags."""
    author = call.query.get("author", [""])[0]
    search = call.query.get("search", [""])[0].lower()
    tags = [tag for value in call.query.get("filter", []) for tag in value.split(",")]
    tags += call.query.get("pipeline_tag", [])
    found = []
    for (repo_type, _), repo in sorted(call.store.repos.items()):
        if repo_type != call.parts["type"] or (repo.private and not call.user.owns(repo.namespace)):
            continue
        if author in ("", repo.namespace) and search in repo.id.lower():
            found.append(describe(call.store, repo, repo.resolve("main")))
    found = [info for info in found if set(tags) <= set(info["tags"])]
    limit = call.query.get("limit")
    return Answer(found[: int(limit[0])] if limit else found)


def auth_check(call: Call) -> Answer:
    """Whether the user may read (or write) a repo's files."""
    if call.parts.get("write"):
        call.writable()
    call.repo(content=True)
    return Answer({})


def tree(call: Call) -> Answer:
    """The files and folders of a commit, below a path."""
    repo = call.repo()
    commit = call.commit(repo)
    below = unquote(call.parts.get("path") or "").strip("/")
    prefix = f"{below}/" if below else ""
    rows = [row for row in tree_rows(commit) if row["path"].startswith(prefix)]
    if prefix and not rows:
        message = f"{below} does not exist on {call.parts['revision']}"
        raise StoreError(404, message, "EntryNotFound")
    if not call.flag("recursive"):
        rows = [row for row in rows if "/" not in row["path"][len(prefix) :]]
    if call.flag("expand"):
        last = {"id": commit.sha, "title": commit.title, "date": commit.date}
        rows = [row | {"lastCommit": last} for row in rows]
    return Answer(rows)


def paths_info(call: Call) -> Answer:
    """The rows of some paths; those that do not exist are left out."""
    repo = call.repo()
    body = call.body.read_text(encoding="utf-8")
    as_json = call.headers.get("content-type", "").startswith("application/json")
    paths = json.loads(body)["paths"] if as_json else parse_qs(body).get("paths", [])
    return Answer([row for row in tree_rows(call.commit(repo)) if row["path"] in paths])


def refs(call: Call) -> Answer:
    """Branches, tags and pull requests."""
    repo = call.repo()

    def rows(names: dict[str, str], prefix: str) -> list[dict[str, str]]:
        return [{"name": name, "ref": f"{prefix}{name}", "targetCommit": sha} for name, sha in sorted(names.items())]

    branches = {name: sha for name, sha in repo.refs.items() if not name.startswith("refs/pr/")}
    pulls = {name: sha for name, sha in repo.refs.items() if name.startswith("refs/pr/")}
    value = {"branches": rows(branches, "refs/heads/"), "tags": rows(repo.tags, "refs/tags/"), "converts": []}
    if call.flag("include_prs"):
        value["pullRequests"] = rows(pulls, "")
    return Answer(value)


def commits(call: Call) -> Answer:
    """The history of a revision, newest first."""
    repo = call.repo()
    history = repo.history(unquote(call.parts["revision"]))
    return Answer([asdict(commit) | {"id": commit.sha, "authors": [{"user": commit.author}]} for commit in history])


def create_branch(call: Call) -> Answer:
    """Create a branch."""
    repo, name = call.writable(), unquote(call.parts["revision"])
    if name in repo.refs:
        raise StoreError(409, f"Reference {name} already exists")
    repo.refs[name] = repo.resolve(call.json().get("startingPoint") or "main").sha
    call.store.save(repo)
    return Answer({})


def delete_branch(call: Call) -> Answer:
    """Delete a branch."""
    repo, name = call.writable(), unquote(call.parts["revision"])
    if repo.refs.pop(name, None) is None:
        raise StoreError(404, f"Invalid rev id: {name}", "RevisionNotFound")
    call.store.save(repo)
    return Answer({})


def create_tag(call: Call) -> Answer:
    """Create a tag."""
    repo, name = call.writable(), call.json()["tag"]
    if name in repo.tags:
        raise StoreError(409, f"Tag {name} already exists")
    repo.tags[name] = call.commit(repo).sha
    call.store.save(repo)
    return Answer({})


def delete_tag(call: Call) -> Answer:
    """Delete a tag."""
    repo = call.writable()
    if repo.tags.pop(unquote(call.parts["revision"]), None) is None:
        raise StoreError(404, "Tag not found", "RevisionNotFound")
    call.store.save(repo)
    return Answer({})


def preupload(call: Call) -> Answer:
    """Say for each file whether it is to come as a large or a regular one, and what the Hub holds now."""
    repo = call.writable(pull_request=call.flag("create_pr"))
    held = call.commit(repo).files
    rows = []
    for file in call.json()["files"]:
        large = is_large(file["path"], file["size"], base64.b64decode(file["sample"]))
        row = {"path": file["path"], "uploadMode": "lfs" if large else "regular", "shouldIgnore": False}
        if file["path"] in held:
            row["oid"] = held[file["path"]].etag
        rows.append(row)
    return Answer({"files": rows})


def commit(call: Call) -> Answer:
    """Apply additions and deletions as one commit, on a branch or as a new pull request."""
    as_pull_request = call.flag("create_pr")
    repo = call.writable(pull_request=as_pull_request)
    revision = unquote(call.parts["revision"])
    lines = [json.loads(line) for line in call.body.read_bytes().splitlines() if line.strip()]
    header = lines[0]["value"]
    with call.store.lock:
        if revision not in repo.refs:
            raise StoreError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        parent = repo.commits[repo.refs[revision]]
        wanted = header.get("parentCommit")
        if wanted and as_pull_request:
            parent = repo.resolve(wanted)
        elif wanted and wanted != parent.sha:
            raise StoreError(412, "A commit has happened since. Please refresh and try again.")
        files = dict(parent.files)
        for line in lines[1:]:
            _apply(call, files, line["key"], line["value"])
        number = 1 + sum(name.startswith("refs/pr/") for name in repo.refs)
        ref = f"refs/pr/{number}" if as_pull_request else revision
        text = {"title": header["summary"], "message": header.get("description", ""), "author": call.user.name or ""}
        made = call.store.commit(repo, ref, files, parent=parent, **text)
    url = f"{call.endpoint}/{repo.path}"
    value = {"success": True, "commitOid": made.sha, "commitUrl": f"{url}/commit/{made.sha}", "hookOutput": ""}
    if as_pull_request:
        value["pullRequestUrl"] = f"{url}/discussions/{number}"
    return Answer(value)


def _apply(call: Call, files: dict[str, Entry], key: str, value: dict[str, Any]) -> None:
    """Apply one line of a commit to a tree."""
    path = value["path"]
    if key == "file":
        content = base64.b64decode(value["content"])
        if call.faults.take("corrupt", "*", path):
            content = content[:-1] + b"?"
        files[path] = call.store.describe(call.store.keep(content), large=False)
    elif key == "lfsFile":
        blob = call.store.blob(value["oid"])
        if not blob.exists():
            raise StoreError(400, f"{path}: no content with oid {value['oid']} was uploaded")
        sha256 = value["oid"]
        if call.faults.take("corrupt", "*", path):
            sha256 = call.store.keep(blob.read_bytes()[:-1] + b"?")
        files[path] = call.store.describe(sha256, large=True)
    elif key == "deletedFile":
        if files.pop(path, None) is None:
            raise StoreError(404, f"A file with this name doesn't exist: {path}", "EntryNotFound")
    elif key == "deletedFolder":
        below = [name for name in files if name.startswith(path.rstrip("/") + "/")]
        if not below:
            raise StoreError(404, f"A folder with this name doesn't exist: {path}", "EntryNotFound")
        for name in below:
            del files[name]
    else:
        raise StoreError(400, f"unknown operation {key}")


def lfs_batch(call: Call) -> Answer:
    """Tell where large contents go; those that are here already need no upload."""
    call.require_write("")
    call.repo()
    rows = []
    for item in call.json()["objects"]:
        row: dict[str, Any] = {"oid": item["oid"], "size": item["size"]}
        if not call.store.blob(item["oid"]).exists():
            href = f"{call.endpoint}/lfs/{item['oid']}"
            row["actions"] = {"upload": {"href": href}, "verify": {"href": f"{call.endpoint}/lfs-verify"}}
        rows.append(row)
    return Answer({"transfer": "basic", "objects": rows}, headers={"Content-Type": "application/vnd.git-lfs+json"})


def lfs_upload(call: Call) -> Answer:
    """Take a large content, if it is what its oid says."""
    call.store.adopt(call.body, expected=call.parts["oid"])
    return Answer({})


def lfs_verify(call: Call) -> Answer:
    """Confirm that a large content is here, whole."""
    asked = call.json()
    blob = call.store.blob(asked["oid"])
    if not blob.exists() or blob.stat().st_size != asked["size"]:
        raise StoreError(404, "object was not uploaded")
    return Answer({})


def download(call: Call) -> Answer:
    """A file at a revision, with the headers that the client's cache lives on."""
    repo = call.repo(content=True)
    commit = call.commit(repo)
    entry = commit.files.get(unquote(call.parts["path"]))
    headers = {"X-Repo-Commit": commit.sha}
    if entry is None:
        return Answer({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
    headers["ETag"] = f'"{entry.etag}"'
    if entry.large:
        headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    return Answer(file=call.store.blob(entry.sha256), headers=headers)


def tree_rows(commit: Commit) -> list[dict[str, Any]]:
    """Every file and folder of a commit, in the order of their paths."""
    rows = []
    folders = {str(folder) for path in commit.files for folder in Path(path).parents} - {"."}
    for folder in folders:
        rows.append({"type": "directory", "path": folder, "oid": commit.sha, "size": 0})
    for path, entry in commit.files.items():
        row: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.large:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
        rows.append(row)
    return sorted(rows, key=lambda row: row["path"])


def describe(store: Store, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """A repo as the Hub's API describes it."""
    card = _card(store, commit)
    config = _config(store, commit)
    library = card.get("library_name") or ("transformers" if "model_type" in config else None)
    tags = [tag for tag in (library, card.get("pipeline_tag"), config.get("model_type")) if tag]
    tags += card.get("tags") or []
    tags += ["safetensors"] if any(path.endswith(".safetensors") for path in commit.files) else []
    bases = card.get("base_model") or []
    tags += [f"base_model:{base}" for base in ([bases] if isinstance(bases, str) else bases)]
    tags += [f"license:{card['license']}"] if card.get("license") else []
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
    if blobs:
        for row, entry in zip(siblings, commit.files.values(), strict=True):
            row |= {"size": entry.size, "blobId": entry.oid}
            row |= {"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}} if entry.large else {}
    return {
        "_id": commit.sha[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.sha,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(dict.fromkeys(tags)),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": library,
        "cardData": card,
        "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
        "createdAt": repo.created,
        "lastModified": commit.date,
        "siblings": siblings,
    }


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the top of a card."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    loaded = yaml.safe_load(match[1]) if match else None
    return loaded if isinstance(loaded, dict) else {}


def _card(store: Store, commit: Commit) -> dict[str, Any]:
    entry = commit.files.get("README.md")
    return front_matter(store.blob(entry.sha256).read_text(encoding="utf-8")) if entry else {}


def _config(store: Store, commit: Commit) -> dict[str, Any]:
    entry = commit.files.get("config.json")
    return json.loads(store.blob(entry.sha256).read_bytes()) if entry else {}


# A repo id is one or two path segments; the two-segment reading wins unless its second word is an endpoint's.
_ENDPOINTS = "auth-check|branch|commit|commits|paths-info|preupload|refs|revision|settings|tag|tree"
_API = rf"/api/(?P<type>model|dataset|space)s/(?P<repo>[^/]+(?:/(?!(?:{_ENDPOINTS})(?:/|$))[^/]+)?)"
_FILE = r"/(?:(?P<type>dataset|space)s/)?(?P<repo>[^/]+(?:/[^/]+)?)"
_REVISION = r"/(?P<revision>[^/]+)"

ROUTES: list[tuple[str, re.Pattern[str], Callable[[Call], Answer]]] = [
    (methods, re.compile(pattern), answer)
    for methods, pattern, answer in [
        ("GET", r"/api/whoami-v2", whoami),
        ("POST", r"/api/repos/create", create_repo),
        ("DELETE", r"/api/repos/delete", delete_repo),
        ("POST", r"/api/validate-yaml", validate_yaml),
        ("GET", r"/api/(?P<type>model|dataset|space)s", list_repos),
        ("GET", _API, repo_info),
        ("GET", _API + r"/revision" + _REVISION, repo_info),
        ("PUT", _API + r"/settings", settings),
        ("GET", _API + r"/auth-check(?P<write>/write)?", auth_check),
        ("GET", _API + r"/tree" + _REVISION + r"(?:/(?P<path>.*))?", tree),
        ("POST", _API + r"/paths-info" + _REVISION, paths_info),
        ("GET", _API + r"/refs", refs),
        ("GET", _API + r"/commits" + _REVISION, commits),
        ("POST", _API + r"/branch" + _REVISION, create_branch),
        ("DELETE", _API + r"/branch" + _REVISION, delete_branch),
        ("POST", _API + r"/tag" + _REVISION, create_tag),
        ("DELETE", _API + r"/tag" + _REVISION, delete_tag),
        ("POST", _API + r"/preupload" + _REVISION, preupload),
        ("POST", _API + r"/commit" + _REVISION, commit),
        ("POST", _FILE + r"\.git/info/lfs/objects/batch", lfs_batch),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", lfs_upload),
        ("POST", r"/lfs-verify", lfs_verify),
        ("GET HEAD", _FILE + r"/resolve" + _REVISION + r"/(?P<path>.+)", download),
    ]
]
