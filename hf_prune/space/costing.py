"""What each of two models takes: counted, and timed in turns, never together, while nothing else runs here."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace

import torch
from transformers import PreTrainedModel

from hf_prune.architecture import layer_count
from hf_prune.architecture.decoder import first_device, parameter_bytes
from hf_prune.evaluation.speed import Run, fit_lengths, growth, speed_of, timed
from hf_prune.records import Speed
from hf_prune.space import leaving
from hf_prune.space.frames import Cost
from hf_prune.space.pair import Half, Loaded, Pair

FRESH = 600.0
"""Seconds that figures of a pair are shown again instead of measured again."""

_KEPT = 64
_ROUNDS, _LEAST = 5, 2
_BUDGET = 1.5  # seconds of rounds, beyond the least of them
_LENGTHS, _SHORT = (128, 8), (64, 8)  # tokens read and written
_LARGE = 400_000_000  # parameters from which a processor takes long for the first


@dataclass(frozen=True)
class Costs:
    """Of both models.

    Attributes:
        original: of the original.
        pruned: of the pruned model.
        notes: what the visitor should know about the figures.
    """

    original: Cost
    pruned: Cost
    notes: tuple[str, ...] = ()


class _Busy:
    """Counts the jobs that run on this machine beside the page."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._running = self._begun = 0

    @contextmanager
    def job(self) -> Iterator[None]:
        with self._lock:
            self._running += 1
            self._begun += 1
        try:
            yield
        finally:
            with self._lock:
                self._running -= 1

    def state(self) -> tuple[int, int]:
        """Jobs that run now, and jobs that were ever begun."""
        with self._lock:
            return self._running, self._begun


_jobs = _Busy()
_measuring = threading.Lock()
_known: OrderedDict[tuple[Half, Half], tuple[float, Costs]] = OrderedDict()
_known_lock = threading.Lock()


def busy() -> AbstractContextManager[None]:
    """A context in which something else keeps this machine busy, so that no speed measured meanwhile counts."""
    return _jobs.job()


def known(pair: Pair) -> Costs | None:
    """What was measured of a pair in the last `FRESH` seconds."""
    with _known_lock:
        measured, costs = _known.get((pair.original, pair.pruned), (0.0, None))
    if costs is None or time.monotonic() - measured > FRESH:
        return None
    minutes = int((time.monotonic() - measured) / 60)
    ago = f"{minutes} minute{'' if minutes == 1 else 's'} ago" if minutes else "less than a minute ago"
    return Costs(costs.original, costs.pruned, (*costs.notes, f"Speed and memory were measured {ago}."))


def cost(loaded: Loaded, pair: Pair) -> Costs:
    """What both models of a pair take; they take turns, so that what the machine does meanwhile falls on both.

    No two models run at a time, and no two pairs are measured at a time.

    Args:
        loaded: the models.
        pair: which they are, so that figures are found again.

    Returns:
        Speed and memory are None where another job ran on this machine meanwhile.
    """
    with _measuring:
        found = known(pair)  # by the visitor before, while this one waited
        if found is not None:
            return found
        before = _jobs.state()
        quiet = before[0] == 0
        models = loaded.original, loaded.pruned
        one, other = (_counted(model) for model in models)
        memory, speed = _measured(models) if quiet else ((None, None), (None, None))
        if quiet and _jobs.state() == before:
            made = Costs(
                replace(one, memory=memory[0], speed=speed[0]), replace(other, memory=memory[1], speed=speed[1])
            )
            with _known_lock:
                _known[pair.original, pair.pruned] = (time.monotonic(), made)
                while len(_known) > _KEPT:
                    _known.popitem(last=False)
            return made
    note = "Speed and memory were not measured: another job runs on this machine. Try again when it has ended."
    return Costs(one, other, (note,))


def forget() -> None:
    """Measure everything again."""
    with _known_lock:
        _known.clear()


def _counted(model: PreTrainedModel) -> Cost:
    layers = layer_count(model.config.get_text_config(decoder=True))
    return Cost(layers, sum(p.numel() for p in model.parameters()), parameter_bytes(model), None, None)


@torch.inference_mode()
def _measured(models: tuple[PreTrainedModel, PreTrainedModel]) -> tuple[list[int], list[Speed]]:
    """Most bytes that each takes, and how fast each is, over rounds in which both have one run."""
    turns = [_Turn(model) for model in models]
    memory = [turn.memory() for turn in turns]  # warms up, too
    runs: tuple[list[Run], ...] = tuple([] for _ in turns)
    started, rounds = time.perf_counter(), 0
    while rounds < _LEAST or (rounds < _ROUNDS and time.perf_counter() - started < _BUDGET):
        rounds += 1
        for turn, found in zip(turns, runs, strict=True):
            found += turn.run()
    return memory, [turn.speed(found, rounds) for turn, found in zip(turns, runs, strict=True)]


class _Turn:
    """A model that is run now and then, always over the same work."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model, device = model, first_device(model)
        large = device.type == "cpu" and sum(p.numel() for p in model.parameters()) > _LARGE
        reads, writes = fit_lengths(model, *(_SHORT if large else _LENGTHS))
        self._lengths = {"prompt_tokens": reads, "new_tokens": writes, "batch": 1}

    def run(self) -> list[Run]:
        """Once, and counted."""
        with leaving.computing():
            return timed(self._model, **self._lengths, runs=1, warm_up=0)

    def memory(self) -> int:
        gpus = {p.device for p in self._model.parameters() if p.device.type == "cuda"}
        return parameter_bytes(self._model) + growth(self.run, gpus)

    def speed(self, runs: list[Run], rounds: int) -> Speed:
        return speed_of(runs, **self._lengths, rounds=rounds)
