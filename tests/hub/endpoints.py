"""What each endpoint of the loopback Hub answers: plain functions from a `Call` to an `Answer`."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from typing import Any
from urllib.parse import parse_qs, unquote

import yaml

from .calls import Answer, Call
from .listing import SDKS, describe, front_matter, runtime, space_errors, tree_rows
from .store import Entry, StoreError, is_large


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
    if repo_type == "space" and asked.get("sdk") not in SDKS:
        raise StoreError(400, f'"sdk" must be one of [{", ".join(SDKS)}]')
    known = call.store.repos.get((repo_type, repo_id))
    if known is not None:
        error = "You already created this model repo"
        return Answer({"error": error, "url": f"{call.endpoint}/{known.path}"}, 409, {"X-Error-Message": error})
    repo = call.store.create(repo_type, repo_id, private, call.user.name or "")
    if repo_type == "space":
        repo.sdk, repo.hardware = asked["sdk"], asked.get("hardware") or "cpu-basic"
        repo.variables = {variable["key"]: variable["value"] for variable in asked.get("variables") or ()}
        call.store.save(repo)
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


def space_runtime(call: Call) -> Answer:
    """What a Space runs on; here none is ever built."""
    repo = call.repo()
    return Answer(runtime(repo))


def space_hardware(call: Call) -> Answer:
    """Ask for other hardware."""
    repo = call.writable()
    repo.hardware = call.json()["flavor"]
    call.store.save(repo)
    return Answer(runtime(repo))


def space_variables(call: Call) -> Answer:
    """A Space's variables, after one was set where the request does so."""
    repo = call.writable()
    if asked := call.json():
        repo.variables[asked["key"]] = asked["value"]
        call.store.save(repo)
    return Answer({key: {"value": value} for key, value in repo.variables.items()})


def validate_yaml(call: Call) -> Answer:
    """Check a card's front matter; one that does not parse, or is none of a Space, is a 400."""
    errors, warnings = [], []
    asked = call.json()
    try:
        metadata = front_matter(asked["content"])
    except yaml.YAMLError as error:
        errors.append({"message": f"YAML does not parse: {error}"})
    else:
        if asked.get("repoType") == "space":
            errors += [{"message": message} for message in space_errors(metadata)]
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


def storage(call: Call) -> Answer:
    """The content of a large file, as the storage behind the Hub sends it: it knows neither repos nor commits."""
    return Answer(file=call.store.blob(call.parts["oid"]), headers={"ETag": f'"{call.parts["oid"][:32]}-7"'})


# A repo id is one or two path segments; the two-segment reading wins unless its second word is an endpoint's.
_ENDPOINTS = (
    "auth-check|branch|commit|commits|hardware|paths-info|preupload|refs|revision|runtime|settings|tag|tree|variables"
)
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
        ("GET", _API + r"/runtime", space_runtime),
        ("POST", _API + r"/hardware", space_hardware),
        ("GET POST", _API + r"/variables", space_variables),
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
        ("GET", r"/storage/(?P<oid>[0-9a-f]{64})", storage),
        ("GET HEAD", _FILE + r"/resolve" + _REVISION + r"/(?P<path>.+)", download),
    ]
]
