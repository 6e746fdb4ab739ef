"""What each of two models takes: counted, and timed one after the other while nothing else runs here."""

import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from hf_prune.architecture import layer_count
from hf_prune.architecture.decoder import first_device, parameter_bytes
from hf_prune.evaluation.speed import RUNS, fit_lengths, growth, now, speed_of, timed
from hf_prune.space.frames import Cost
from hf_prune.space.pair import Half, Loaded, Pair

FRESH = 600.0
"""Seconds that figures of a pair are shown again instead of measured again."""

_KEPT = 64
_BUDGET = 1.5  # seconds of counted runs of a model, as far as more than one is counted
_LENGTHS, _SHORT = (128, 16), (64, 8)  # tokens read and written
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
    """What both models of a pair take; the second is timed when the first has ended, and never two pairs at once.

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
        costs = tuple(_cost(model, quiet) for model in (loaded.original, loaded.pruned))
        if quiet and _jobs.state() == before:
            made = Costs(costs[0], costs[1])
            with _known_lock:
                _known[pair.original, pair.pruned] = (time.monotonic(), made)
                while len(_known) > _KEPT:
                    _known.popitem(last=False)
            return made
    note = "Speed and memory were not measured: another job runs on this machine. Try again when it has ended."
    one, other = (Cost(c.layers, c.parameters, c.bytes, None, None) for c in costs)
    return Costs(one, other, (note,))


def forget() -> None:
    """Measure everything again."""
    with _known_lock:
        _known.clear()


@torch.inference_mode()
def _cost(model: PreTrainedModel, measure: bool) -> Cost:
    layers = layer_count(model.config.get_text_config(decoder=True))
    parameters, size = sum(p.numel() for p in model.parameters()), parameter_bytes(model)
    if not measure:
        return Cost(layers, parameters, size, None, None)
    device = first_device(model)
    reads, writes = fit_lengths(model, *(_SHORT if device.type == "cpu" and parameters > _LARGE else _LENGTHS))
    gpus = {p.device for p in model.parameters() if p.device.type == "cuda"}
    started = now(device)
    # The models have just written, so that this run meets nothing that is set up only once.
    memory = size + growth(lambda: timed(model, prompt_tokens=reads, new_tokens=writes, batch=1, runs=0), gpus)
    runs = max(1, min(RUNS, int(_BUDGET / (now(device) - started)) - 1))
    found = timed(model, prompt_tokens=reads, new_tokens=writes, batch=1, runs=runs)
    return Cost(layers, parameters, size, memory, speed_of(found, prompt_tokens=reads, new_tokens=writes, batch=1))
