"""Models in memory, shared by all visitors, with a bound on their bytes.

Whoever uses models holds them: nothing that is held is thrown out. What nobody holds goes when room is needed, least
recently used first. Each model is loaded once, however many wait for it; all that one user needs gets its room at
once, so that no two of them each hold what the other one waits for.
"""

import ctypes
import itertools
import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from hf_prune.errors import ConfigError, PruneError
from hf_prune.space import settings

PATIENCE = 120.0
"""Seconds that somebody waits until others give models back."""

LOADING = 1800.0
"""Seconds that somebody waits for a model that another one is loading."""


class Busy(PruneError):
    """All memory is held by others."""


@dataclass(frozen=True)
class Want:
    """A model that somebody needs.

    Attributes:
        key: what tells it from all others.
        bytes: of its weights; the room that it gets.
        load: loads it; never run by two threads at once for one key.
    """

    key: Hashable
    bytes: int
    load: Callable[[], Any]


@dataclass
class _Entry:
    bytes: int
    holders: int = 0
    used: int = 0
    value: Any = None
    state: str = "loading"  # then "ready" or "failed"


class ModelCache:
    """Values that take much memory, by their keys.

    Args:
        limit: most bytes of all values together; may be changed, and counts from the next use on.
        patience: seconds to wait for room that others hold.
    """

    def __init__(self, limit: int, patience: float = PATIENCE) -> None:
        self.limit, self.patience = limit, patience
        self._entries: dict[Hashable, _Entry] = {}
        self._changed = threading.Condition()
        self._clock = itertools.count(1)

    @property
    def bytes(self) -> int:
        """Bytes of all that is there or being loaded."""
        with self._changed:
            return sum(entry.bytes for entry in self._entries.values())

    @contextmanager
    def use(self, key: Hashable, bytes: int, load: Callable[[], Any]) -> Iterator[Any]:
        """One value; see `use_all`."""
        with self.use_all([Want(key, bytes, load)]) as (value,):
            yield value

    @contextmanager
    def use_all(self, wants: Sequence[Want]) -> Iterator[tuple[Any, ...]]:
        """Several values, loaded where they are not there, and held for as long as the block runs.

        Args:
            wants: in the order of the values.

        Raises:
            ConfigError: they are larger than the limit.
            Busy: others held the room for too long.
            Exception: what a `load` raised; nothing of it stays.
        """
        held = self._take({want.key: want for want in wants})
        try:
            yield tuple(held[want.key].value for want in wants)
        finally:
            self._release(held)

    def clear(self) -> None:
        """Throw out all that nobody holds."""
        with self._changed:
            for key in [key for key, entry in self._entries.items() if not entry.holders]:
                del self._entries[key]
            self._changed.notify_all()
        give_memory_back()

    def _take(self, wants: dict[Hashable, Want]) -> dict[Hashable, _Entry]:
        """Hold an entry for each key, all of them ready."""
        deadline = time.monotonic() + self.patience
        while True:
            held, mine = self._reserve(wants, deadline)
            try:
                # All of one's own first: others may wait for them, and nobody waits while others wait for him.
                for key in mine:
                    self._fill(held[key], wants[key].load())
                if self._all_ready(held):
                    return held
            except BaseException:
                self._forget(held, mine)
                self._release(held)
                raise
            self._release(held)  # another one's load failed: try it anew, with what it is loaded by here

    def _reserve(self, wants: dict[Hashable, Want], deadline: float) -> tuple[dict[Hashable, _Entry], list[Hashable]]:
        """Hold what is there and make room for the rest, all or nothing; also tells which ones are to be loaded."""
        total = sum(want.bytes for want in wants.values())
        if total > self.limit:
            raise ConfigError(
                f"these models take {total / 1e9:.2f} GB together; at most {self.limit / 1e9:.2f} GB of models can be "
                "in memory here. Pick smaller ones, or run the page on a larger machine: hf-prune space"
            )
        with self._changed:
            while (idle := self._to_evict(wants)) is None:
                if not self._changed.wait(deadline - time.monotonic()):
                    raise Busy(
                        f"all memory for models is in use by other visitors, for more than {self.patience:.0f} s now; "
                        "try again in a minute"
                    )
            for key in idle:
                del self._entries[key]
            mine = [key for key in wants if key not in self._entries]
            self._entries |= {key: _Entry(wants[key].bytes) for key in mine}
            held = {key: self._entries[key] for key in wants}
            for entry in held.values():
                entry.holders += 1
        if idle:
            give_memory_back()
        return held, mine

    def _to_evict(self, wants: dict[Hashable, Want]) -> list[Hashable] | None:
        """Keys that have to go, least recently used first; None where not enough can."""
        needed = sum(want.bytes for key, want in wants.items() if key not in self._entries)
        needed -= self.limit - sum(entry.bytes for entry in self._entries.values())
        idle = [key for key, entry in self._entries.items() if not entry.holders and key not in wants]
        gone: list[Hashable] = []
        for key in sorted(idle, key=lambda key: self._entries[key].used):
            if needed <= 0:
                break
            needed -= self._entries[key].bytes
            gone.append(key)
        return gone if needed <= 0 else None

    def _fill(self, entry: _Entry, value: Any) -> None:
        with self._changed:
            entry.value, entry.state = value, "ready"
            self._changed.notify_all()

    def _all_ready(self, held: dict[Hashable, _Entry]) -> bool:
        """Wait for what others load; False where that failed."""
        with self._changed:
            done = self._changed.wait_for(lambda: all(e.state != "loading" for e in held.values()), LOADING)
            if not done:
                raise Busy("another visitor has been loading the same model for too long; try again later")
            return all(entry.state == "ready" for entry in held.values())

    def _forget(self, held: dict[Hashable, _Entry], mine: list[Hashable]) -> None:
        """Nothing stays of what one began to load and did not finish."""
        with self._changed:
            for key in mine:
                if held[key].state == "loading":
                    held[key].state = "failed"
                    del self._entries[key]

    def _release(self, held: dict[Hashable, _Entry]) -> None:
        with self._changed:
            for entry in held.values():
                entry.holders -= 1
                entry.used = next(self._clock)
            self._changed.notify_all()


def give_memory_back() -> None:
    """Hand what dropped models took back to the system: Python and the C library keep it otherwise."""
    from hf_prune.memory import give_back

    give_back()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
        if trim is not None:
            trim(0)


_models = ModelCache(0)


def models() -> ModelCache:
    """The cache of this process, within the settings in force."""
    _models.limit = settings.current().memory_bytes
    return _models
