"""Speed of several models that take turns, so that whatever the machine does meanwhile falls on all of them.

In every round each model is loaded, timed and dropped, in the same order, in one process. A change of speed is only
told of models that were timed so.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from hf_prune.architecture.decoder import first_device
from hf_prune.config import EvaluationConfig
from hf_prune.evaluation.flops import flops_per_token
from hf_prune.evaluation.speed import Run, fit_lengths, now, rate, speed_of, timed
from hf_prune.memory import give_back
from hf_prune.progress import tqdm
from hf_prune.records import ModelEvaluation, Rate, Speed

_CHUNK = 2**24


@dataclass(frozen=True)
class Contestant:
    """A model that takes its turns.

    Attributes:
        label: what it is called.
        get: loads it, or hands out the one in memory.
        files: weight files that `get` loads; empty for a model in memory, whose loading is not timed.
    """

    label: str
    get: Callable[[], Any]
    files: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Timing:
    """What the turns of one model gave; see the fields of the same names in `ModelEvaluation`.

    Attributes:
        speed: of all rounds together.
        load: seconds from folder to a model ready to run.
        disk_bytes: of its weight files.
        flops_per_token: counted in the first round.
    """

    speed: Speed
    load: Rate | None
    disk_bytes: int | None
    flops_per_token: float | None

    def added_to(self, figures: ModelEvaluation) -> ModelEvaluation:
        """The figures of the same model with these beside them."""
        return replace(
            figures,
            speed=self.speed,
            load=self.load,
            disk_bytes=self.disk_bytes,
            flops_per_token=self.flops_per_token,
        )


def take_turns(
    contestants: Sequence[Contestant], config: EvaluationConfig, *, progress: bool = False
) -> tuple[Timing, ...]:
    """Time models in turns: `config.speed_rounds` rounds of all of them.

    A turn is: read the weight files once, uncounted, so that the system has them in its cache as far as memory goes;
    load the model; one run to warm up and five that count, each of prefill and decode. Then the model is dropped,
    before the next one is loaded: as long as nobody else holds on to it, no two are in memory.

    Args:
        contestants: in the order of their turns.
        config: rounds, batch and lengths (`max_length` tokens are read, `new_tokens` written; clipped to the model).
        progress: whether to show a bar.

    Returns:
        One timing a model, in their order.
    """
    runs: list[list[Run]] = [[] for _ in contestants]
    loads: list[list[float]] = [[] for _ in contestants]
    flops: list[float | None] = [None] * len(contestants)
    lengths: list[tuple[int, int]] = [(0, 0)] * len(contestants)
    turns = [(round_, number) for round_ in range(config.speed_rounds) for number in range(len(contestants))]
    for round_, number in tqdm(turns, desc="timing", unit="turn", leave=False, disable=not progress):
        one = contestants[number]
        for path in one.files:
            _read(path)
        start = now(torch.device("cpu"))
        model = one.get()
        loads[number].append(now(first_device(model)) - start)
        lengths[number] = reads, writes = fit_lengths(model, config.max_length, config.new_tokens)
        if round_ == 0:
            flops[number] = flops_per_token(model, reads)
        runs[number] += timed(
            model, prompt_tokens=reads, new_tokens=writes, batch=config.speed_batch, seed=config.seed
        )
        del model
        give_back()
    return tuple(
        Timing(
            speed=speed_of(
                runs[number],
                prompt_tokens=lengths[number][0],
                new_tokens=lengths[number][1],
                batch=config.speed_batch,
                rounds=config.speed_rounds,
            ),
            load=rate(loads[number]) if one.files else None,
            disk_bytes=sum(path.stat().st_size for path in one.files) if one.files else None,
            flops_per_token=flops[number],
        )
        for number, one in enumerate(contestants)
    )


def _read(path: Path) -> None:
    with path.open("rb") as file:
        while file.read(_CHUNK):
            pass
