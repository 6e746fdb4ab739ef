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
