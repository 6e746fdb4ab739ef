"""The end of the process waits for what computes: a daemon thread inside torch's code would bring it down."""

import atexit
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from hf_prune.errors import PruneError

_LONGEST = 30.0  # seconds that the end of the process is put off

_changed = threading.Condition()
_running = 0
_over = False


def over() -> bool:
    """Whether the process is ending, so that nobody should go on."""
    return _over


@contextmanager
def computing() -> Iterator[None]:
    """A context for a piece of work in torch; the process does not end within it.

    Raises:
        PruneError: the process is ending already.
    """
    global _running
    with _changed:
        if _over:
            raise PruneError("this page is being shut down; try again when it is back")
        _running += 1
    try:
        yield
    finally:
        with _changed:
            _running -= 1
            _changed.notify_all()


@atexit.register
def _wait() -> None:
    global _over
    with _changed:
        _over = True
        _changed.wait_for(lambda: not _running, _LONGEST)
