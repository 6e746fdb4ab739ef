"""What of a folder of files is written already: a killed run goes on where it stopped."""

import json
import os
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType

from hf_prune import serial
from hf_prune.moving import Span

_BATCH, _SECONDS = 2**30, 5.0
"""Bytes, or seconds, after which what was written is synced: less at once makes the disk wait for its own journal."""


class Journal:
    """Finished spans of target files, kept in a file of JSON lines.

    A span is entered once its bytes are safe on the disk: one thread syncs what was written meanwhile, while the next
    spans are moved, and then enters it. So the disk sets the pace, and what is entered survives a power cut.

    Used as a context: at the end everything that was added is on the disk and entered.

    Args:
        path: the journal file, made when the first spans are entered; None keeps none, and only syncs.
        folder: of the target files.
        key: stands for what is written: entries of another key count for nothing.
    """

    def __init__(self, path: Path | None, folder: Path, key: str) -> None:
        self._path, self._folder, self._key = path, folder, key
        self._finished = _read(path, key)
        self._written = False
        self._pending: list[Span] = []
        self._bytes, self._began = 0, time.monotonic()
        self._worker = ThreadPoolExecutor(1, "journal")
        self._running: Future[None] | None = None

    def __enter__(self) -> "Journal":
        """Start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Enter what is left, after an error too: what was moved before it need not be moved again."""
        try:
            if self._running is not None:
                self._running.result()
            self._enter(self._pending)
        except OSError:
            if error is None:
                raise
        finally:
            self._worker.shutdown()

    @property
    def begun(self) -> bool:
        """Whether something is entered."""
        return bool(self._finished)

    def forget(self) -> None:
        """Take nothing as finished: the files are made anew."""
        self._finished.clear()
        if self._path is not None:
            self._path.unlink(missing_ok=True)

    def __contains__(self, span: Span) -> bool:
        """Whether the span is finished."""
        return (span.target, span.at, span.size) in self._finished

    def add(self, span: Span) -> None:
        """Enter a span, soon.

        Raises:
            OSError: what was written before could not be kept, as the disk is full or broken.
        """
        self._pending.append(span)
        self._bytes += span.size
        if self._bytes < _BATCH and time.monotonic() < self._began + _SECONDS:
            return
        if self._running is not None:
            if not self._running.done():
                return
            self._running.result()
        spans, self._pending = self._pending, []
        self._bytes, self._began = 0, time.monotonic()
        self._running = self._worker.submit(self._enter, spans)

    def _enter(self, spans: Iterable[Span]) -> None:
        entries = [(span.target, span.at, span.size) for span in spans]
        for target in {target for target, _, _ in entries}:
            _sync(self._folder / target)
        if self._path is None or not entries:
            return
        self._finished.update(entries)
        if not self._written:  # what a killed run has left may end in the middle of a line
            serial.write_text(self._path, f"{self._key}\n{json.dumps(sorted(self._finished))}\n")
            self._written = True
            return
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entries) + "\n")
            file.flush()
            os.fsync(file.fileno())


def _read(path: Path | None, key: str) -> set[tuple[str, int, int]]:
    if path is None or not path.is_file():
        return set()
    first, *lines = path.read_text(encoding="utf-8").split("\n")
    if first != key:
        return set()
    # The last line ends with a line break, unless the power failed while it was written.
    return {(target, at, size) for line in lines[:-1] for target, at, size in json.loads(line)}


def _sync(path: Path) -> None:
    with path.open("r+b") as file:
        os.fsync(file.fileno())
