"""One comparison from prompt to figures, told in frames: both write, then where they part, then what they cost."""

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from dataclasses import replace
from typing import Self

from hf_prune.errors import CheckpointError, MeasureError, PruneError
from hf_prune.space import costing, gpu, leaving, pairs, settings
from hf_prune.space.frames import Frame, Sampling
from hf_prune.space.pair import Loaded, Pair, Visitor
from hf_prune.space.parting import part
from hf_prune.space.prompts import Asked, ask, check_prompt, check_sampling
from hf_prune.space.writing import Ended, Writer, Written, write

_WAIT = 0.2
_ENDED: dict[Ended, str] = {
    "stopped": "Writing was stopped.",
    "left": "Writing was stopped.",
    "time": "The time for writing was over before the answers were.",
}


def compare(
    name: str, prompt: str, sampling: Sampling, visitor: Visitor, stop: threading.Event | None = None
) -> Iterator[Frame]:
    """Find a pair, load it, and let both models write; see `frames`.

    Args:
        name: of the pair, as a visitor types it.
        prompt: as typed; untrusted.
        sampling: how tokens are drawn.
        visitor: who asks.
        stop: ends writing when it is set; None on ZeroGPU, where closing the generator has to do.

    Raises:
        PruneError: the prompt or a setting is refused, the pair is none, or it cannot be had by this visitor.
    """
    sampling = check_sampling(sampling)  # all that needs no model comes before one is fetched
    check_prompt(prompt, settings.current().prompt_chars)
    yield Frame("loading", "Looking the models up …")
    pair = pairs.find(name, visitor)
    yield from _answered(pair, prompt, sampling, visitor, stop)


def _seconds(
    pair: Pair, prompt: str, sampling: Sampling, visitor: Visitor, stop: threading.Event | None = None
) -> int:
    return gpu.seconds(pair.original.bytes + pair.pruned.bytes, sampling.max_new_tokens)


@gpu.gpu(_seconds)
def _answered(
    pair: Pair, prompt: str, sampling: Sampling, visitor: Visitor, stop: threading.Event | None = None
) -> Iterator[Frame]:
    """All that needs the models of a pair; on ZeroGPU, in a process with a GPU."""
    yield from opened(pair, visitor, lambda loaded: frames(loaded, pair, prompt, sampling, stop))


def opened(pair: Pair, visitor: Visitor, then: Callable[[Loaded], Iterator[Frame]]) -> Iterator[Frame]:
    """Load a pair, telling how far that is, and go on with its models, which stay in memory meanwhile.

    Args:
        pair: which.
        visitor: who asks.
        then: what is done with the models.

    Raises:
        PruneError: the pair cannot be had by this visitor.
    """
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    with _Opening(lambda: pairs.opened(pair, visitor, told.put)) as opening:
        status = "Loading the models …"
        while not opening.ready(_WAIT):
            while not told.empty():
                status = told.get()
            yield Frame("loading", status)
        try:
            yield from then(opening.loaded)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust, and no Exception: nobody would be told of it
                raise
            raise CheckpointError(f"a tokenizer of '{pair.name}' fails on this text; try another one") from None


def frames(
    loaded: Loaded, pair: Pair, prompt: str, sampling: Sampling, stop: threading.Event | None = None
) -> Iterator[Frame]:
    """Let two models in memory write after a prompt at the same time, and hold their answers against each other.

    Args:
        loaded: the models.
        pair: which they are.
        prompt: as typed; untrusted.
        sampling: how tokens are drawn.
        stop: ends writing when it is set; the answers so far are compared, and nothing is timed.

    Raises:
        PruneError: the prompt or a setting is refused, or a model could not go on.
    """
    limits = settings.current()
    text, notes = check_prompt(prompt, limits.prompt_chars)
    asked = ask(loaded, text, check_sampling(sampling), new_tokens=limits.new_tokens)
    frame = Frame("writing", "Reading the prompt …", notes=(*notes, *asked.notes))
    yield frame
    writers = (
        Writer("the original", loaded.original, loaded.tokenizer, asked.original),
        Writer(f"the {pair.label} model", loaded.pruned, loaded.pruned_tokenizer, asked.pruned),
    )
    states: tuple[Written, ...] = (Written(), Written())
    for states in write(writers, asked.sampling, stop):
        frame = replace(frame, status=_progress(states), original=states[0].text, pruned=states[1].text)
        yield frame
    yield from _afterwards(frame, loaded, pair, asked, states)


def _afterwards(
    frame: Frame, loaded: Loaded, pair: Pair, asked: Asked, states: tuple[Written, ...]
) -> Iterator[Frame]:
    """What is found out once both answers are there."""
    said = dict.fromkeys(_ENDED[state.ended] for state in states if state.ended in _ENDED)
    frame = replace(frame, stage="comparing", status="Comparing the answers …", notes=(*frame.notes, *said))
    yield frame
    try:
        with leaving.computing():
            frame = replace(frame, parting=part(loaded, asked, states[0].ids, states[1].ids))
    except MeasureError as error:  # the answers stand without it
        frame = replace(frame, notes=(*frame.notes, f"The answers cannot be compared: {error}"))
    costs = costing.known(pair)
    if costs is None and not said:
        yield replace(frame, stage="timing", status="Timing the models, one after the other …")
        costs = costing.cost(loaded, pair)
    if costs is not None:
        frame = replace(frame, original_cost=costs.original, pruned_cost=costs.pruned)
        frame = replace(frame, notes=(*frame.notes, *costs.notes))
    yield replace(frame, stage="done", status="Stopped." if said else "Done.")


def _progress(states: tuple[Written, ...]) -> str:
    one, other = (len(state.ids) for state in states)
    return f"Writing: {one} and {other} tokens …"


class _Opening:
    """A context that is entered in a thread of its own, so that the visitor sees what is done, and may leave."""

    def __init__(self, make: Callable[[], AbstractContextManager[Loaded]]) -> None:
        self._make, self._stack, self._lock = make, ExitStack(), threading.Lock()
        self._done = threading.Event()
        self._left = False
        self._found: Loaded | None = None
        self._error: BaseException | None = None

    def __enter__(self) -> Self:
        threading.Thread(target=self._work, name="opening", daemon=True).start()
        return self

    def ready(self, seconds: float) -> bool:
        """Whether it is open, after waiting so long at most.

        Raises:
            PruneError: it could not be opened.
        """
        if not self._done.wait(seconds):
            return False
        if self._error is not None:
            raise self._error
        return True

    @property
    def loaded(self) -> Loaded:
        """What was opened."""
        assert self._found is not None
        return self._found

    def _work(self) -> None:
        try:
            with leaving.computing():
                self._found = self._stack.enter_context(self._make())
        except PruneError as error:
            self._error = error
        except BaseException as error:  # Rust's panics are no Exception; nobody may wait for ever
            told = " ".join(str(error).split())[:200]
            self._error = PruneError(f"the models cannot be loaded ({type(error).__name__}: {told}); try another pair")
        with self._lock:
            self._done.set()
            left = self._left
        if left:  # nobody is there to close it
            self._stack.close()

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._left = True
            done = self._done.is_set()
        if done:
            self._found = None
            self._stack.close()
