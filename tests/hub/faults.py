"""Faults on demand: what the loopback Hub does wrong when a test asks it to."""

import re
import threading
from dataclasses import dataclass, field

# What the Hub itself sends with a status when nothing else is asked for.
ERROR_CODES = {401: "RepoNotFound", 404: "RepoNotFound"}


@dataclass
class Fault:
    """One fault and how many more times it strikes."""

    kind: str
    method: str
    path: re.Pattern[str]
    times: int
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    message: str = ""
    after_bytes: int = 0


class Faults:
    """The faults that wait for a matching request."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: list[Fault] = []

    def fail(
        self,
        method: str,
        path_regex: str,
        status: int,
        times: int = 1,
        headers: dict[str, str] | None = None,
        message: str = "a fault asked for by a test",
        done: bool = False,
    ) -> None:
        """Answer matching requests with an error status.

        Args:
            method: the HTTP method, or "*" for any.
            path_regex: searched in the request's path and query.
            status: the HTTP status to answer.
            times: how many requests to spoil.
            headers: sent along (`Retry-After`, `X-Error-Code` ...).
            message: the text of the error.
            done: do what the request asks before answering that it failed.
        """
        sent = {"X-Error-Code": ERROR_CODES[status]} if status in ERROR_CODES else {}
        kind = "fail after" if done else "fail"
        self._add(Fault(kind, method, re.compile(path_regex), times, status, sent | (headers or {}), message))

    def truncate(self, path_regex: str, after_bytes: int, times: int = 1) -> None:
        """Drop the connection in the middle of a download, `after_bytes` bytes into its body."""
        self._add(Fault("truncate", "GET", re.compile(path_regex), times, after_bytes=after_bytes))

    def corrupt(self, path_regex: str, times: int = 1) -> None:
        """Store another content than the one sent, for committed files whose path in the repo matches."""
        self._add(Fault("corrupt", "*", re.compile(path_regex), times))

    def ignore_range(self, path_regex: str, times: int = 1) -> None:
        """Answer requests for a part of a file with the whole of it, as servers do that know no ranges."""
        self._add(Fault("ignore range", "GET", re.compile(path_regex), times))

    def short_range(self, path_regex: str, missing: int = 1, times: int = 1) -> None:
        """Send a part that ends `missing` bytes early, and say so in its headers."""
        self._add(Fault("short range", "GET", re.compile(path_regex), times, after_bytes=missing))

    def wrong_range(self, path_regex: str, by: int, times: int = 1, *, honest: bool = False) -> None:
        """Send the bytes that lie `by` bytes before those asked for; the headers tell only when it is honest."""
        kind = "other range" if honest else "wrong range"
        self._add(Fault(kind, "GET", re.compile(path_regex), times, after_bytes=by))

    def change_etag(self, path_regex: str, times: int = 1) -> None:
        """Answer as if the file had another content by now."""
        self._add(Fault("change etag", "GET", re.compile(path_regex), times))

    def redirect(self, path_regex: str, times: int = 1) -> None:
        """Send the client to another host for the content, as the Hub does for large files."""
        self._add(Fault("redirect", "GET", re.compile(path_regex), times))

    def reset(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._waiting.clear()

    def take(self, kind: str, method: str, path: str) -> Fault | None:
        """The first waiting fault of this kind that matches, counted as having struck."""
        with self._lock:
            for fault in self._waiting:
                if (
                    fault.kind == kind
                    and fault.times > 0
                    and fault.method in ("*", method)
                    and fault.path.search(path)
                ):
                    fault.times -= 1
                    return fault
        return None

    def _add(self, fault: Fault) -> None:
        with self._lock:
            self._waiting.append(fault)
