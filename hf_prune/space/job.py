"""One job of "Make one": how it stands, and what it says."""

import logging
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Literal

from hf_prune.space import ids
from hf_prune.space.making import Offer
from hf_prune.space.pair import Visitor

State = Literal["waiting", "running", "pushing", "done", "failed", "cancelled"]

_LINES, _LINE = 200, 400


class Cancelled(BaseException):
    """The visitor has cancelled. No `Exception`, so that nothing on the way takes it for a failure to work around."""


@dataclass(frozen=True)
class Status:
    """How a job stands.

    Attributes:
        state: what has become of it.
        model: Hub id of the base.
        repo: where it is, or will be, pushed to.
        ahead: jobs before it, while it waits.
        doing: what is being done, in words.
        share: of that, from 0 to 1; None where it is not known.
        log: what was said so far, one line each; untrusted text.
        message: why it failed, or was cancelled; untrusted text.
        url: page of the finished model.
        cancelling: whether it stops as soon as it can.
        since: time at which it began to run.
        seconds: that it ran, once it has ended.
    """

    state: State
    model: str
    repo: str
    ahead: int = 0
    doing: str = ""
    share: float | None = None
    log: tuple[str, ...] = ()
    message: str = ""
    url: str | None = None
    cancelling: bool = False
    since: float | None = None
    seconds: float | None = None

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self.state in ("done", "failed", "cancelled")


@dataclass
class Job:
    """A job; the token in its visitor is dropped when it ends."""

    offer: Offer
    visitor: Visitor | None
    status: Status
    hidden: dict[str, str] = field(default_factory=dict, repr=False)
    log: deque[str] = field(default_factory=lambda: deque(maxlen=_LINES))
    cancelled: threading.Event = field(default_factory=threading.Event)

    def clean(self, text: str) -> str:
        """Text on one line, without the token and without folders of this machine."""
        for secret, shown in self.hidden.items():
            text = text.replace(secret, shown)
        return ids.shown(text, _LINE)

    def note(self, text: str) -> None:
        """Add a line to the log."""
        minutes, seconds = divmod(int(time.time() - (self.status.since or time.time())), 60)
        self.log.append(f"{minutes:02d}:{seconds:02d} {self.clean(text)}")


class _Log(logging.Handler):
    """What the package says while a job runs goes to the job that it says it for."""

    def emit(self, record: logging.LogRecord) -> None:
        """Note one record."""
        job = _current.get()
        if job is not None:
            kind = "" if record.levelno < logging.WARNING else f"{record.levelname.capitalize()}: "
            job.note(kind + record.getMessage())


@contextmanager
def heard(job: Job) -> Iterator[None]:
    """What the package says in this context meanwhile goes to the job's log."""
    package, log = logging.getLogger("hf_prune"), _Log(logging.INFO)
    level, before = package.level, _current.set(job)
    package.setLevel(min(package.getEffectiveLevel(), logging.INFO))
    package.addHandler(log)
    try:
        yield
    finally:
        package.removeHandler(log)
        package.setLevel(level)
        _current.reset(before)


def trace(job: Job, error: BaseException) -> str:
    """The traceback, for the server's log, without the token."""
    text = "".join(traceback.format_exception(error))
    for secret, shown in job.hidden.items():
        text = text.replace(secret, shown)
    return text


_current: ContextVar[Job | None] = ContextVar("hf_prune_job", default=None)
