"""A GPU for the length of one answer on ZeroGPU; anywhere else nothing.

Read in `spaces` 0.51 and tried with its own workers on a machine without a GPU; never run on ZeroGPU:

- The decorated function runs in a process that is forked from this one at its first call, and used again while the
  scheduler leaves it its GPU. What that process loads stays in it: this one's cache of models stays empty, and the
  memory bound holds in each of them. So the function opens its models itself; handed in, they would be pickled.
- Arguments and what it yields are pickled. Events and locks can't be; the function is found by the fork.
- Closing the generator is noticed after the worker's next yield, so a function that yields often stops soon.
- Of an exception only the name of its class comes back, unless it is Gradio's. Ours travel as values.
- In this process `torch.cuda.is_available()` says yes, and in the threads of events every use of the GPU fails. So
  whatever moves tensors is decorated, or names the CPU.
- Functions have to be decorated before the page is launched, and `spaces` imported before CUDA starts, so the page
  imports this module first.
- A visitor's token goes to the worker in the arguments, through a pipe; not by environment or file.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import wraps
from typing import Any, ParamSpec, TypeVar

from hf_prune.errors import PruneError

P = ParamSpec("P")
T = TypeVar("T")

_LONGEST = 120  # what ZeroGPU is believed to give without being asked for more
_LOADED, _WRITTEN = 250e6, 8.0  # bytes and tokens a second, as low as they may be

ZERO = os.environ.get("SPACES_ZERO_GPU", "").lower() in ("1", "t", "true")
"""Whether this is ZeroGPU."""

if ZERO:
    import spaces


def gpu(duration: Callable[P, int]) -> Callable[[Callable[P, Iterator[T]]], Callable[P, Iterator[T]]]:
    """Decorate a generator function, so that it has a GPU from its first value to its last.

    Args:
        duration: seconds that this takes at most, from the same arguments.

    Returns:
        The decorator. Off ZeroGPU it gives the function back as it is.
    """

    def decorate(task: Callable[P, Iterator[T]]) -> Callable[P, Iterator[T]]:
        if not ZERO:
            return task
        rented = spaces.GPU(_carried(task), duration=duration)

        @wraps(task)
        def call(*args: P.args, **kwargs: P.kwargs) -> Iterator[T]:
            with closing(rented(*args, **kwargs)) as values:
                for value in values:
                    if isinstance(value, PruneError):
                        raise value
                    yield value

        return call

    return decorate


def seconds(bytes: int, new_tokens: int) -> int:
    """How long two models that write take at most, guessed: a visitor's quota is asked for this much before.

    Args:
        bytes: of the weights of both, which the worker may have to download and load.
        new_tokens: of each answer.
    """
    return min(_LONGEST, round(30 + bytes / _LOADED + new_tokens / _WRITTEN))


def _carried(task: Callable[..., Iterator[Any]]) -> Callable[..., Iterator[Any]]:
    """The same function with our own errors as last values."""

    @wraps(task)
    def carried(*args: Any, **kwargs: Any) -> Iterator[Any]:
        try:
            yield from task(*args, **kwargs)
        except PruneError as error:
            yield error

    return carried
