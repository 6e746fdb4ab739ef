"""One job in several processes, as `torchrun` starts them: who does what, what all must know, and who speaks.

Process 0 reads and writes files, draws bars and prints; the others compute. What adds up is added up once, at the end.
"""

import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, TypeVar, cast

from hf_prune.errors import ConfigError, PruneError

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store

T = TypeVar("T")

_TIMEOUT = timedelta(days=1)
"""Others may wait long while process 0 reads text or samples it; one that has died is noticed at once all the same."""

_VARIABLES = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_FAILURES = "hf_prune/failures"


@dataclass(frozen=True)
class Group:
    """The processes that share a job, seen from one of them.

    Attributes:
        rank: of this process, 0 … size - 1.
        size: how many they are.
    """

    rank: int = 0
    size: int = 1

    @property
    def leads(self) -> bool:
        """Whether this process reads, writes and speaks for all."""
        return self.rank == 0

    def device(self) -> str | None:
        """Where this process's copy of the model goes unless the user says: a GPU of its own, where there are any."""
        import torch

        if self.size == 1 or not torch.cuda.is_available():
            return None
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"

    def part(self, items: Iterable[T]) -> list[T]:
        """This process's share: every `size`-th item, so that items sorted by size make even shares."""
        return list(itertools.islice(items, self.rank, None, self.size))

    def share(self, make: Callable[[], T]) -> T:
        """What `make` gives in process 0, in every process; the others do not call it.

        Args:
            make: gives something that can be pickled.

        Raises:
            PruneError: another process has gone.
        """
        if self.size == 1:
            return make()
        from torch import distributed

        made = [make() if self.leads else None]
        with self._together():
            distributed.broadcast_object_list(made, 0)
        return cast(T, made[0])

    def any(self, value: bool) -> bool:
        """Whether a value is true in any process; also the point at which all wait for each other.

        Args:
            value: of this process.

        Raises:
            PruneError: another process has gone.
        """
        if self.size == 1:
            return value
        import torch

        found = torch.tensor([int(value)])
        self.add([found])
        return bool(found.item())

    def agree(self, what: str, value: object) -> None:
        """Refuse processes that are not about the same.

        Args:
            what: what the value is, in errors.
            value: something that can be pickled.

        Raises:
            ConfigError: this process has another value than process 0.
        """
        expected = self.share(lambda: value)
        if value != expected:
            raise ConfigError(
                f"the {what} is {value} here, and {expected} in process 0; expected the same in all. Give every "
                "process the same arguments (and a model on the Hub a --revision)"
            )

    def add(self, sums: Sequence["torch.Tensor"]) -> None:
        """Add up what all processes have, once; each has the total then, the same to the bit.

        Args:
            sums: tensors on the CPU, of the same dtypes and shapes in all processes; changed in place.

        Raises:
            PruneError: another process has gone.
        """
        if self.size == 1:
            return
        import torch
        from torch import distributed

        with torch.inference_mode():  # in which observers have made them
            total = torch.cat([tensor.reshape(-1) for tensor in sums])
            with self._together():
                distributed.all_reduce(total)
            for tensor, part in zip(sums, total.split([tensor.numel() for tensor in sums]), strict=True):
                tensor.copy_(part.view_as(tensor))

    @contextmanager
    def _together(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise PruneError(
                f"another of the {self.size} processes has gone ({str(error).splitlines()[0]}); all of them are "
                "needed. See what it said or who ended it (a lack of memory?), and start all again"
            ) from error


ALONE = Group()
"""One process, as without `torchrun`."""


def local_processes() -> int:
    """How many processes of the job share this machine, and its memory."""
    return int(os.environ.get("LOCAL_WORLD_SIZE") or 1)


@contextmanager
def processes() -> Iterator[Group]:
    """The group that `torchrun` has made this process a member of; without `torchrun`, a group of one.

    Only process 0 warns and logs. Where some fail, the first of them raises its error and the others leave in silence.

    Raises:
        ConfigError: the environment names several processes, and not how to meet them.
        SystemExit: another process has failed before.
    """
    if int(os.environ.get("WORLD_SIZE") or 1) == 1:
        yield ALONE
        return
    missing = [name for name in _VARIABLES if not os.environ.get(name)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} says that there are several processes, and {', '.join(missing)} "
            "is not set; expected what torchrun sets. Start it with torchrun, or unset WORLD_SIZE"
        )
    from torch import distributed

    store, rank, size = next(iter(distributed.rendezvous("env://")))
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
    group = Group(rank, size)
    try:
        with nullcontext() if group.leads else _silence():
            yield group
    except (Exception, KeyboardInterrupt) as error:
        if not _is_first_to_fail(store):
            raise SystemExit(1) from error
        if isinstance(error, PruneError) and not group.leads:
            raise type(error)(f"process {rank} of {size}: {error}") from error
        raise
    finally:
        distributed.destroy_process_group()


def _is_first_to_fail(store: "Store") -> bool:
    try:
        return store.add(_FAILURES, 1) == 1
    except RuntimeError:  # the store has gone with the process that kept it
        return True


@contextmanager
def _silence() -> Iterator[None]:
    """No warnings and no log; process 0 has the same to say."""
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
