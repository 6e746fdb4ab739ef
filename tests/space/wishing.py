"""What tests about making models share."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from hf_prune.space import disk
from hf_prune.space.pair import Visitor
from hf_prune.space.wishes import Wish
from tests.hub.fixtures import ALICE

VISITOR = Visitor(ALICE)
"""Alice, as she is known before the Hub was asked for her name."""


def wish(source: str, **fields) -> Wish:
    return Wish(source, **{"layers": 2, "repo": f"{source}-pruned"} | fields)


@contextmanager
def held() -> Iterator[None]:
    """Jobs get no further than to the room for their download."""
    with disk._lock:
        yield


def until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "this did not happen"
        time.sleep(0.02)
