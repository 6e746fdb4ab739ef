"""The loopback Hub itself: an HTTP server on 127.0.0.1 that real Hub clients take for the Hub."""

import json
import re
import socket
import threading
import traceback
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .calls import Answer, Call, User
from .endpoints import ROUTES
from .faults import Fault, Faults
from .store import Commit, Store, StoreError, folder_files

CHUNK = 1 << 16


@dataclass
class Logged:
    """A request that came in, without its token: `user` is who that belongs to, `sent` the bytes of the answer."""

    method: str
    path: str
    headers: dict[str, str]
    user: str | None
    sent: int = 0


class LoopbackHub:
    """A Hub on a free port of 127.0.0.1, its data in one folder. Use it as a context manager.

    Args:
        root: folder for repos and contents; what it holds already is served.
        tokens: access token → user name.
        orgs: organisation → its members.
        read_only: tokens that may only read.
        port: 0 picks a free one.
    """

    def __init__(
        self,
        root: Path,
        tokens: dict[str, str],
        orgs: Mapping[str, tuple[str, ...]] | None = None,
        read_only: tuple[str, ...] = (),
        port: int = 0,
    ) -> None:
        self.store = Store(Path(root))
        self.faults = Faults()
        self.requests: list[Logged] = []
        self._users = {
            token: User(
                name, tuple(org for org, members in (orgs or {}).items() if name in members), token in read_only
            )
            for token, name in tokens.items()
        }
        self._server = _Server(("127.0.0.1", port), _Handler)
        self._server.hub = self
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.fail = self.faults.fail
        self.truncate = self.faults.truncate
        self.corrupt = self.faults.corrupt
        self.ignore_range = self.faults.ignore_range
        self.short_range = self.faults.short_range
        self.wrong_range = self.faults.wrong_range
        self.change_etag = self.faults.change_etag
        self.redirect = self.faults.redirect
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> "LoopbackHub":
        """Start to serve."""
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop to serve."""
        self._server.shutdown()
        self._server.server_close()

    def reset(self) -> None:
        """Forget faults and logged requests; repos stay."""
        self.faults.reset()
        self.requests.clear()

    def user(self, token: str | None) -> User | None:
        """Who a token belongs to: None for a token that nobody has."""
        return User(None) if token is None else self._users.get(token)

    def add_repo(
        self,
        repo_id: str,
        content: Path | Mapping[str, bytes | str | Path] = (),  # type: ignore[assignment]
        *,
        private: bool = False,
        gated: bool = False,
        repo_type: str = "model",
        allowed: tuple[str, ...] = (),
    ) -> str:
        """Put files into a repo (created where there is none) as one commit.

        Args:
            repo_id: `user/name`, or `name` alone as the old ones have.
            content: a folder, or path → content (bytes, text, or a file to copy).
            private: whether only its owner sees it.
            gated: whether its files need an invitation.
            repo_type: `model`, `dataset` or `space`.
            allowed: users that were invited.

        Returns:
            The commit's sha.
        """
        files = dict(folder_files(content)) if isinstance(content, Path) else dict(content)
        with self.store.lock:
            repo = self.store.repos.get((repo_type, repo_id))
            repo = repo or self.store.create(repo_type, repo_id, private, author="system")
            repo.private, repo.gated, repo.allowed = private, gated, list(allowed)
            parent = repo.resolve("main")
            added = {
                path: self.store.entry(path, body.encode() if isinstance(body, str) else body)
                for path, body in files.items()
            }
            return self.store.commit(
                repo, "main", parent.files | added, parent=parent, title="Add files", author="system"
            ).sha

    def files(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> dict[str, bytes]:
        """The content of every file at a revision (.gitattributes, which the Hub writes, is left out)."""
        commit = self.store.get(repo_type, repo_id).resolve(revision)
        return {
            path: self.store.blob(entry.sha256).read_bytes()
            for path, entry in commit.files.items()
            if path != ".gitattributes"
        }

    def commits(self, repo_id: str, revision: str = "main", repo_type: str = "model") -> list[Commit]:
        """The commits of a revision, newest first; the last one is the Hub's own, at the repo's creation."""
        return self.store.get(repo_type, repo_id).history(revision)

    def exists(self, repo_id: str, repo_type: str = "model") -> bool:
        """Whether there is such a repo."""
        return (repo_type, repo_id) in self.store.repos

    def asked(self, method: str, path_regex: str) -> list[Logged]:
        """The logged requests with this method (`*` for any) and a matching path."""
        return [
            request
            for request in list(self.requests)
            if method in ("*", request.method) and re.search(path_regex, request.path)
        ]

    def sent(self, path_regex: str) -> int:
        """Bytes of all bodies that answered requests with a matching path, as far as they were sent."""
        return sum(request.sent for request in self.asked("*", path_regex))


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64
    hub: LoopbackHub

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are no news; anything else is."""
        trace = traceback.format_exc()
        if "ConnectionResetError" not in trace and "BrokenPipeError" not in trace:
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server
    logged: Logged

    def log_message(self, format: str, *args: object) -> None:
        """Stay quiet; `LoopbackHub.requests` is the log."""

    def handle_any(self) -> None:
        """Take one request: log it, strike it with its fault, or answer it."""
        hub = self.server.hub
        scratch = hub.store.root / f"body-{uuid.uuid4().hex}"
        try:
            self._read_body(scratch)
            scheme, _, token = self.headers.get("Authorization", "").partition(" ")
            user = hub.user(token if scheme == "Bearer" else None)
            headers = {name.lower(): value for name, value in self.headers.items() if name.lower() != "authorization"}
            self.logged = Logged(self.command, self.path, headers, user.name if user else None)
            hub.requests.append(self.logged)
            self._send(self._answer(hub, user, headers, scratch))
        finally:
            scratch.unlink(missing_ok=True)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any

    def _answer(self, hub: LoopbackHub, user: User | None, headers: dict[str, str], body: Path) -> Answer:
        fault = hub.faults.take("fail", self.command, self.path)
        if fault:
            return _error(fault.status, fault.message, fault.headers)
        try:
            if user is None:
                raise StoreError(401, "Invalid credentials in Authorization header")
            answer = self._route(hub, user, headers, body)
        except StoreError as error:
            answer = _error(error.status, str(error), {"X-Error-Code": error.code} if error.code else {})
        late = hub.faults.take("fail after", self.command, self.path)
        return _error(late.status, late.message, late.headers) if late else answer

    def _route(self, hub: LoopbackHub, user: User, headers: dict[str, str], body: Path) -> Answer:
        url = urlsplit(self.path)
        for methods, pattern, endpoint in ROUTES:
            match = pattern.fullmatch(url.path)
            if match and self.command in methods.split():
                query = parse_qs(url.query, keep_blank_values=True)
                parts = {name: value for name, value in match.groupdict().items() if value is not None}
                return endpoint(Call(hub.store, hub.faults, hub.endpoint, user, headers, query, parts, body))
        raise StoreError(404, f"no such page: {unquote(url.path)}")

    def _read_body(self, target: Path) -> None:
        with target.open("wb") as stream:
            if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
                while size := int(self.rfile.readline().split(b";")[0], 16):
                    stream.write(self.rfile.read(size))
                    self.rfile.readline()
                while self.rfile.readline().strip():
                    pass
            else:
                left = int(self.headers.get("Content-Length") or 0)
                while left > 0:
                    chunk = self.rfile.read(min(left, CHUNK))
                    if not chunk:
                        raise ConnectionResetError("the client hung up in the middle of its body")
                    stream.write(chunk)
                    left -= len(chunk)

    def _send(self, answer: Answer) -> None:
        if answer.file is not None:
            self._send_file(answer.file, answer.headers)
            return
        body = json.dumps(answer.value).encode()
        headers = {"Content-Type": "application/json; charset=utf-8"} | answer.headers
        self._send_head(answer.status, headers | {"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self._write(body)

    def _write(self, body: bytes) -> None:
        self.wfile.write(body)
        self.logged.sent += len(body)

    def _send_file(self, file: Path, headers: dict[str, str]) -> None:
        size = file.stat().st_size
        headers = headers | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        if headers["ETag"] in self.headers.get("If-None-Match", ""):
            self._send_head(304, headers)
            return
        if self._struck("redirect"):
            headers["Location"] = f"{self.server.hub.endpoint.replace('127.0.0.1', 'localhost')}/storage/{file.name}"
            self._send_head(302, headers | {"Content-Length": "0"})
            return
        if self._struck("change etag"):
            headers |= {name: f'"{"0" * 64}"' for name in ("ETag", "X-Linked-ETag") if name in headers}
        start, end = 0, size - 1
        asked = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if asked and any(asked.groups()) and not self._struck("ignore range"):
            start = int(asked[1]) if asked[1] else max(size - int(asked[2]), 0)
            end = min(int(asked[2]), size - 1) if asked[1] and asked[2] else size - 1
            if start > end:
                self._send_head(416, headers | {"Content-Range": f"bytes */{size}", "Content-Length": "0"})
                return
            if fault := self._struck("short range"):
                end -= fault.after_bytes
            if fault := self._struck("other range"):
                start, end = start - fault.after_bytes, end - fault.after_bytes
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
            if fault := self._struck("wrong range"):
                start, end = start - fault.after_bytes, end - fault.after_bytes
        length = end - start + 1
        self._send_head(206 if "Content-Range" in headers else 200, headers | {"Content-Length": str(length)})
        if self.command == "HEAD":
            return
        fault = self._struck("truncate")
        left = min(length, fault.after_bytes) if fault else length
        with file.open("rb") as stream:
            stream.seek(start)
            while left > 0 and (chunk := stream.read(min(left, CHUNK))):
                self._write(chunk)
                left -= len(chunk)
        if fault:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def _struck(self, kind: str) -> Fault | None:
        """The fault of this kind that waits for this request, if one does."""
        return self.server.hub.faults.take(kind, self.command, self.path)

    def _send_head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("X-Request-Id", uuid.uuid4().hex)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()


def _error(status: int, message: str, headers: dict[str, str]) -> Answer:
    return Answer({"error": message}, status, {"X-Error-Message": message} | headers)
