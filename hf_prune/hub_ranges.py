"""Byte ranges of a model's files on the Hub, at one commit: only what is wanted, written where it belongs.

The requests are huggingface_hub's own: `http_stream_backoff`, the stream that its `HfFileSystem` reads through. The
file system's ranges hold each answer whole in memory, and don't tell whether another range came, or the whole file.
Files that xet keeps are read over plain HTTP as well; hf_xet has no part in it.

Of every answer these are checked: that it is a part, which part, of a file of which length, how many bytes, and the
hash and the commit that the Hub says it is of. A server that tells all that as expected and sends other bytes is found
out by the header that it sends at most (see `hub_headers`); only a hash of the whole file would tell for certain.
"""

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, as_completed
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Self

import httpx2
from huggingface_hub import constants, hf_hub_url
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, http_stream_backoff

from hf_prune.errors import HubError, RangeError
from hf_prune.hub_client import Token, client, hub_errors, retrying
from hf_prune.hub_listing import RemoteFile
from hf_prune.moving import Span

WORKERS = 8
"""Requests at a time."""

LARGEST_REQUEST = 128 * 2**20
SMALLEST_REQUEST = 8 * 2**20
"""Bytes after which adjacent spans go into another request: few requests, but work for all threads."""

_WHOLE = "download whole files instead (--verify-hash)"


@dataclass(frozen=True)
class HubRanges:
    """The `Mover` of files on the Hub.

    Attributes:
        repo_id: model on the Hub.
        commit: the full sha; branches move.
        files: name of each file that is read, and what the Hub lists it as.
        token: access token; None for the saved one.
    """

    repo_id: str
    commit: str
    files: Mapping[str, RemoteFile]
    token: Token = field(default=None, repr=False)

    def read(self, file: str, start: int, size: int) -> bytes:
        """A few bytes of a file.

        Args:
            file: its name.
            start: first byte.
            size: how many.

        Returns:
            Exactly as many bytes.

        Raises:
            RangeError: what came is not what was asked for.
            HubError: no access, or the file is another one by now.
        """
        found = bytearray()
        with self._body(file, start, start + size) as body:
            while len(found) < size:
                found += body.read(size - len(found))
        return bytes(found)

    def move(self, spans: Sequence[Span], folder: Path, done: Callable[[Span], None]) -> None:
        """Fetch spans, several requests at a time, and write each piece as it arrives; see `Mover`.

        Args:
            spans: what is wanted; neighbours come with one request.
            folder: holds the target files.
            done: told each span once it is written, from one thread at a time.

        Raises:
            RangeError: what came is not what was asked for.
            HubError: no access, a connection that keeps breaking, or a file that is another one by now.
            OSError: the disk is full.
        """
        stop, lock = threading.Event(), threading.Lock()

        def fetch(run: Sequence[Span]) -> None:
            first, last = run[0], run[-1]
            with self._body(first.file, first.start, last.start + last.size, stop) as body:
                for span in run:
                    with (folder / span.target).open("r+b", buffering=0) as target:
                        for at, piece in _pieces(body, span):
                            if stop.is_set():
                                return
                            _write(target.fileno(), piece, at)
                    with lock:
                        done(span)

        with ThreadPoolExecutor(WORKERS, thread_name_prefix="hub-ranges") as pool:
            try:
                for future in as_completed([pool.submit(fetch, run) for run in runs(spans)]):
                    future.result()
            except BaseException:
                stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _body(self, file: str, start: int, end: int, stop: threading.Event | None = None) -> "_Body":
        return _Body(self, self.files[file], start, end, stop or threading.Event())


def runs(spans: Iterable[Span]) -> list[list[Span]]:
    """Spans that lie one behind the other in the same file, together: each run is one request.

    Args:
        spans: in any order.

    Returns:
        Runs in the order in which they lie. One ends where a gap follows, or where it is large enough for a request.
    """
    ordered = sorted(spans, key=lambda span: (span.file, span.start, span.size))
    enough = min(max(sum(span.size for span in ordered) // (2 * WORKERS), SMALLEST_REQUEST), LARGEST_REQUEST)
    found: list[list[Span]] = []
    for _, of_file in groupby(ordered, key=lambda span: span.file):
        end, size = -1, 0
        for span in of_file:
            if span.start != end or size + span.size > enough:
                found.append([])
                size = 0
            found[-1].append(span)
            end, size = span.start + span.size, size + span.size
    return found


def _pieces(body: "_Body", span: Span) -> Iterator[tuple[int, memoryview]]:
    """Where in the target each piece of a span goes, and its bytes."""
    at, end = span.at, span.at + span.size
    while at < end:
        piece = body.read(end - at)
        yield at, piece
        at += len(piece)


def _write(target: int, piece: memoryview, at: int) -> None:
    while piece:
        written = os.pwrite(target, piece, at)
        piece, at = piece[written:], at + written


class _Body:
    """Bytes `start` to `end` (excluded) of a file, in the order in which they lie.

    They come with one request; where its connection breaks, another one asks for the rest, unless `stop` is set.
    """

    def __init__(self, repo: HubRanges, file: RemoteFile, start: int, end: int, stop: threading.Event) -> None:
        self._repo, self._file, self._position, self._end, self._stop = repo, file, start, end, stop
        self._open = ExitStack()
        self._arriving: Iterator[bytes] | None = None
        self._left = memoryview(b"")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def read(self, limit: int) -> memoryview:
        """The next bytes: at least one, at most `limit` and what the network hands over at once.

        Raises:
            RangeError: what comes is not what was asked for.
            HubError: see `HubRanges.read`.
            CancelledError: `stop` was set, so that nobody waits for these bytes any more.
        """
        if not self._left:
            doing = f"fetch a part of '{self._file.name}' of '{self._repo.repo_id}'"
            with hub_errors(doing, self._repo.repo_id, token=self._repo.token, revision=self._repo.commit):
                self._left = memoryview(retrying(self._receive))
        piece, self._left = self._left[:limit], self._left[limit:]
        return piece

    def _receive(self) -> bytes:
        """What arrives next; asks for all that is missing where no connection is open."""
        try:
            if self._stop.is_set():
                raise CancelledError
            if self._arriving is None:
                self._arriving = self._ask()
            piece = next(self._arriving, b"")
            missing = self._end - self._position - len(piece)
            # The end is looked for, so that the connection may be used again, and to find what nobody asked for.
            more = b"" if missing > 0 else next(self._arriving, b"")
        except BaseException:
            self._arriving = None
            self._open.close()
            if self._stop.is_set():
                raise CancelledError from None
            raise
        if not piece or missing < 0 or more:
            self._refuse(
                "sent fewer bytes than were asked for" if not piece else "sent more bytes than were asked for"
            )
        self._position += len(piece)
        return piece

    def _ask(self) -> Iterator[bytes]:
        api = client(self._repo.token)
        headers = build_hf_headers(
            token=api.token, library_name=api.library_name, library_version=api.library_version
        ) | {"Range": f"bytes={self._position}-{self._end - 1}", "Accept-Encoding": "identity"}
        # What breaks off is taken up again by `retrying`, elsewhere; of the Hub's rate limits the library knows more.
        request = http_stream_backoff(
            "GET",
            hf_hub_url(self._repo.repo_id, self._file.name, revision=self._repo.commit),
            headers=headers,
            timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT,
            retry_on_exceptions=(),
            retry_on_status_codes=429,
        )
        response = self._open.enter_context(request)
        hf_raise_for_status(response)
        self._check(response)
        return response.iter_raw()

    def _check(self, response: httpx2.Response) -> None:
        """Refuse an answer that is not the part that was asked for, of the file that was listed."""
        size, headers = self._file.size, response.headers
        asked = f"bytes {self._position}-{self._end - 1}/{size}"
        if headers.get("Content-Encoding", "identity") != "identity":
            self._refuse(f"sent it packed ({headers['Content-Encoding'][:40]!r})")
        if response.status_code == 206:
            if headers.get("Content-Range") != asked:
                self._refuse(f"answered {headers.get('Content-Range', 'no range')[:80]!r}; asked for {asked!r}")
        elif response.status_code != 200 or (self._position, self._end) != (0, size):
            self._refuse(f"answered {response.status_code}, not the part {asked!r}")
        if headers.get("Content-Length", str(self._end - self._position)) != str(self._end - self._position):
            self._refuse(f"announced {headers['Content-Length'][:40]} bytes for {asked!r}")
        for answer in (*response.history, response):  # the Hub's own comes first; the storage behind it says less
            commit = answer.headers.get("X-Repo-Commit")
            etag = answer.headers.get("X-Linked-ETag") or (answer.headers.get("ETag") if commit else None)
            if commit not in (None, self._repo.commit) or _bare(etag) not in (None, self._file.etag):
                raise HubError(
                    f"'{self._file.name}' of '{self._repo.repo_id}' is not any more what it was when it was listed at "
                    f"commit {self._repo.commit[:8]}: expected content {self._file.etag[:12]}, the Hub answers "
                    f"{str(_bare(etag))[:12]} at commit {str(commit)[:8]}. Start again"
                )

    def _refuse(self, does: str) -> None:
        self._arriving = None
        self._open.close()
        raise RangeError(f"the server of '{self._file.name}' of '{self._repo.repo_id}' {does}; {_WHOLE}")


def _bare(etag: str | None) -> str | None:
    """An ETag without its quotes, and without the mark of a weak one."""
    return None if etag is None else etag.removeprefix("W/").strip('"')
