"""Progress bars that somebody else may listen to: in a shell they are tqdm's own, in a job of the Space they are told.

A listener belongs to the context (so, to the thread) that set it, and each bar to the context that made it: two jobs
never hear of each other's bars.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from tqdm import auto

_DOWNLOAD = "downloading"


@dataclass(frozen=True)
class Step:
    """How far one bar is.

    Attributes:
        doing: what the bar is about.
        done: units done.
        total: units in all; None where that is not known.
        unit: what is counted.
    """

    doing: str
    done: float
    total: float | None
    unit: str


Listener = Callable[[Step], None]
"""Told of every step, by whichever thread makes it. What it raises stops the work that the bar counts."""

_listener: ContextVar[Listener | None] = ContextVar("hf_prune_progress", default=None)


@contextmanager
def listening(listener: Listener) -> Iterator[None]:
    """Tell `listener` of all bars that are made in this context meanwhile; they are drawn nowhere.

    Args:
        listener: see `Listener`.
    """
    before = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(before)


class tqdm(auto.tqdm):
    """A bar as tqdm draws it; where somebody listens, it is told and not drawn.

    Args:
        iterable: what is walked through.
        desc: what the bar is about.
        total: units in all.
        options: as in tqdm.
    """

    def __init__(
        self,
        iterable: Iterable[Any] | None = None,
        desc: str | None = None,
        total: float | None = None,
        **options: Any,
    ) -> None:
        self._listener = None if options.get("disable") else _listener.get()
        self._doing, self._unit = desc or "", options.get("unit", "it")
        if self._listener is not None:
            options["disable"] = True
        super().__init__(iterable, desc, total, **options)
        self._tell()

    def __iter__(self) -> Iterator[Any]:
        if self._listener is None:
            yield from super().__iter__()
            return
        for item in self.iterable:
            yield item
            self.update()

    def update(self, n: float | None = 1) -> bool | None:
        """Count on, as in tqdm."""
        if self._listener is None:
            return super().update(n)
        self.n += n or 0
        self._tell()
        return None

    def _tell(self) -> None:
        if self._listener is not None:
            self._listener(Step(self._doing, self.n, self.total, self._unit))


class _Download(tqdm):
    """The Hub client's bars in plain words; the one that counts files says nothing that the bytes don't."""

    def __init__(self, *given: Any, **options: Any) -> None:
        silent = options.get("unit") != "B"
        super().__init__(*given, **options | ({"disable": True} if silent else {"desc": _DOWNLOAD}))


def hub_bars() -> type[tqdm] | None:
    """`tqdm_class` for the Hub client: None, which are its own bars, where nobody listens."""
    return None if _listener.get() is None else _Download


@contextmanager
def no_loading_bar() -> Iterator[None]:
    """Hide transformers' own bar: where only headers are read, it would say that weights are loaded."""
    from transformers.utils.logging import EmptyTqdm, set_tqdm_hook

    before = set_tqdm_hook(lambda factory, args, kwargs: EmptyTqdm(*args, **kwargs))
    try:
        yield
    finally:
        set_tqdm_hook(before)
