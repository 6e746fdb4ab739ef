"""The jobs of "Make one": one runs, a few wait, and each is found again by the account that it belongs to.

Jobs live in this process alone: when it ends they are gone, and what was not pushed with them.
"""

import logging
import tempfile
import threading
import time
from collections import OrderedDict, deque
from dataclasses import replace
from pathlib import Path

from huggingface_hub import constants

from hf_prune.errors import ConfigError, PruneError
from hf_prune.progress import Listener, Step, listening
from hf_prune.space import cache, costing, making
from hf_prune.space.job import Cancelled, Job, State, Status, heard, trace
from hf_prune.space.making import Offer
from hf_prune.space.pair import Visitor

logger = logging.getLogger(__name__)

WAITING = 5
"""Jobs that may wait behind the running one."""

_REMEMBERED = 256  # accounts whose last job is remembered

_SAID = {
    "downloading": "Downloading the model",
    "Sampling text": "Sampling text from the model",
    "measuring": "Measuring layers",
    "healing": "Healing",
    "writing": "Comparing what both models write",
    "timing": "Timing both models",
}


def _in_words(doing: str) -> str:
    """What a bar is about, for people who do not know this package."""
    if doing.startswith("scoring "):
        return "Comparing what both models predict"
    return _SAID.get(doing, doing[:1].upper() + doing[1:])


class Workshop:
    """Does one job after the other, in a thread of its own that ends when nothing waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: deque[Job] = deque()
        self._running: Job | None = None
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._thread: threading.Thread | None = None

    def submit(self, visitor: Visitor, offer: Offer) -> Status:
        """Put a job in the queue.

        Args:
            visitor: whom the offer was made for; the token is kept in memory until the job has ended.
            offer: what to do.

        Raises:
            HubError: the visitor is not signed in, or is somebody else.
            ConfigError: the queue is full, or the visitor has a job already.
        """
        visitor = making.account(visitor)
        owner, token = making.signed_in(visitor)
        making.check_owner(offer, owner)
        job = Job(
            offer,
            visitor,
            Status("waiting", offer.model, offer.repo),
            {token: "<token>", str(constants.HF_HUB_CACHE): "…"},
        )
        with self._lock:
            known = self._jobs.get(owner)
            if known is not None and not known.status.ended:
                raise ConfigError(
                    f"'{owner}' has a job already, for '{known.offer.model}': wait until it has ended, or cancel it"
                )
            if len(self._waiting) >= WAITING:
                raise ConfigError(f"{WAITING} jobs are waiting, and more are not taken: try again later")
            self._jobs[owner] = job
            self._jobs.move_to_end(owner)
            self._waiting.append(job)
            self._forget()
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="workshop", daemon=True)
                self._thread.start()
        return self._status(job)

    def status(self, owner: str | None) -> Status | None:
        """How the last job of an account stands; None where there was none."""
        with self._lock:
            job = self._jobs.get(owner) if owner is not None else None
            return None if job is None else self._status(job)

    def cancel(self, owner: str | None) -> Status | None:
        """Stop the job of an account: at once while it waits, at the next step of a bar while it runs.

        A job that is being pushed is not stopped any more.
        """
        with self._lock:
            job = self._jobs.get(owner) if owner is not None else None
            if job is None:
                return None
            if job in self._waiting:
                self._waiting.remove(job)
                self._end(job, "cancelled", "Cancelled before it began; nothing was done.")
            elif job.status.state == "running":
                job.cancelled.set()
                job.status = replace(job.status, cancelling=True)
            return self._status(job)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no job is left; False where that takes longer."""
        thread = self._thread
        if thread is not None:
            thread.join(timeout)
        return thread is None or not thread.is_alive()

    def _status(self, job: Job) -> Status:
        ahead = self._waiting.index(job) + (self._running is not None) if job in self._waiting else 0
        return replace(job.status, ahead=ahead, log=tuple(job.log))

    def _forget(self) -> None:
        ended = [owner for owner, job in self._jobs.items() if job.status.ended]
        for owner in ended[:-_REMEMBERED]:
            del self._jobs[owner]

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._waiting:
                    self._thread = None
                    return
                job = self._running = self._waiting.popleft()
                job.status = replace(job.status, state="running", doing="Starting", since=time.time())
            self._do(job)
            with self._lock:
                self._running = None
            cache.give_memory_back()

    def _do(self, job: Job) -> None:
        assert job.visitor is not None
        try:
            with (
                tempfile.TemporaryDirectory(prefix="hf-prune-job-") as scratch,
                heard(job),
                listening(self._teller(job)),
                costing.busy(),
            ):
                job.hidden[scratch] = "…"
                cache.models().clear()
                pushed = making.carry_out(job.offer, job.visitor, Path(scratch), lambda: self._push(job))
            self._end(job, "done", "", url=pushed.url)
        except Cancelled:
            self._end(job, "cancelled", "Cancelled; nothing was pushed.")
        except PruneError as error:
            self._end(job, "failed", str(error))
        except BaseException as error:  # whatever it is, the next job has to run
            logger.error("a job failed unexpectedly: %s", trace(job, error))
            self._end(job, "failed", f"{type(error).__name__}: this should not happen; it was noted in the log")

    def _teller(self, job: Job) -> Listener:
        def told(step: Step) -> None:
            with self._lock:
                if job.status.state != "running":
                    return
                if job.cancelled.is_set():
                    raise Cancelled
                doing = _in_words(step.doing)
                if doing != job.status.doing:
                    job.note(doing)
                job.status = replace(job.status, doing=doing, share=step.done / step.total if step.total else None)

        return told

    def _push(self, job: Job) -> None:
        """From here on a job is not cancelled any more: the commit is there whole, or not at all."""
        with self._lock:
            if job.cancelled.is_set():
                raise Cancelled
            job.status = replace(job.status, state="pushing", doing=f"Pushing to {job.offer.repo}", share=None)
            job.note(job.status.doing)

    def _end(self, job: Job, state: State, message: str, url: str | None = None) -> None:
        with self._lock:
            since, message = job.status.since, job.clean(message)
            seconds = None if since is None else time.time() - since
            job.status = replace(
                job.status,
                state=state,
                message=message,
                url=url,
                share=None,
                doing="",
                cancelling=False,
                seconds=seconds,
            )
            job.visitor = None
            job.hidden.clear()


WORKSHOP = Workshop()
"""Of this process."""
