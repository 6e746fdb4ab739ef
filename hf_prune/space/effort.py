"""How much work one pruned model may be on this machine, and what that takes: memory, disk and time."""

import functools
import shutil
import tempfile
import threading
from dataclasses import dataclass

import psutil
import torch

from hf_prune.config import CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError, OutputError
from hf_prune.healing.budget import in_words, probe
from hf_prune.methods import METHODS
from hf_prune.space.gpu import ZERO
from hf_prune.space.pair import Half

_GB = 10**9
_BESIDE = 10**9  # bytes that text, activations and the evaluation take beside the weights
_DOWNLOAD = 20e6  # bytes a second; nobody knows before
_START_SECONDS = 45.0  # loading, saving, loading back, drawing and pushing, of the smallest models
# Share of the arithmetic probe's rate that a forward over a text reaches, and that writing text token by token does.
_READING, _WRITING = 0.3, 0.06
_SOONEST, _LATEST = 0.5, 3.0  # how far off the estimate may be


@dataclass(frozen=True)
class Effort:
    """The parts of a recipe that depend on the machine.

    Attributes:
        calibration: text that is measured on, sampled from the model.
        healing: settings for few tokens; the recipe's own are made for a thousand times as many.
        evaluation: what is measured.
        most_tokens: largest budget of healing; 0 where nothing can be healed.
    """

    calibration: CalibrationConfig
    healing: HealingConfig
    evaluation: EvaluationConfig
    most_tokens: int


@dataclass(frozen=True)
class Needs:
    """What a job takes.

    Attributes:
        parameters: of the base.
        download: bytes of weights, should they not be here yet.
        memory: bytes at most: the base, what becomes of it, and its copy that is loaded back.
        disk: bytes beside the download.
        seconds: soonest and latest, by a rough guess.
    """

    parameters: int
    download: int
    memory: int
    disk: int
    seconds: tuple[float, float]

    @property
    def time(self) -> str:
        """The guess in words."""
        soonest, latest = map(in_words, self.seconds)
        return f"{soonest} to {latest}"


def effort() -> Effort:
    """What this machine is asked for: a GPU takes what the recipes say, a processor a quarter of it."""
    # No speeds: others use this machine meanwhile, and a card holds what was measured undisturbed.
    if device() is None and torch.cuda.is_available():
        return Effort(CalibrationConfig(), HealingConfig(), EvaluationConfig(speed=False), 4 << 20)
    return Effort(
        CalibrationConfig(samples=64, max_length=256),
        HealingConfig(max_length=256, batch_size=8, learning_rate=1e-3, warmup_steps=5, quantize="none"),
        EvaluationConfig(samples=24, max_length=256, speed=False),
        0 if ZERO else 512 << 10,  # Transformers' Trainer uses any GPU that PyTorch tells of
    )


def device() -> str | None:
    """Where a job runs; None for the usual place. A GPU that a Space borrows for moments is none for hours of work."""
    return "cpu" if ZERO else None


def needs(half: Half, download: int, config: PrunerConfig, heal: bool) -> Needs:
    """What a job takes.

    Args:
        half: the base.
        download: bytes of its weights on the Hub.
        config: the recipe.
        heal: whether it is healed.
    """
    slices = METHODS[config.method].cuts == "width"
    copies = 3 if slices or heal else 2
    seconds = _seconds(half.parameters, config, heal) + _START_SECONDS + download / _DOWNLOAD
    return Needs(
        parameters=half.parameters,
        download=download,
        memory=copies * half.bytes + _BESIDE,
        disk=3 * half.bytes + _BESIDE // 2,
        seconds=(_SOONEST * seconds, _LATEST * seconds),
    )


def check_room(name: str, needed: Needs) -> None:
    """Refuse a job for which memory or disk do not suffice now.

    Raises:
        ConfigError: too little memory is free.
        OutputError: too little disk is free.
    """
    free = psutil.virtual_memory().available
    if free < needed.memory:
        raise ConfigError(
            f"pruning '{name}' takes about {needed.memory / _GB:.1f} GB of memory and {free / _GB:.1f} GB are free "
            "here now: take a smaller model, or try again when less is going on"
        )
    disk = shutil.disk_usage(tempfile.gettempdir()).free
    if disk < needed.disk:
        raise OutputError(
            f"pruning '{name}' takes about {needed.disk / _GB:.1f} GB of disk beside the download and "
            f"{disk / _GB:.1f} GB are free here now: take a smaller model, or try again later"
        )


def _seconds(parameters: int, config: PrunerConfig, heal: bool) -> float:
    """Seconds of arithmetic: 2 operations a token and parameter forward, 6 in training."""
    calibration, evaluation, healing = config.calibration, config.evaluation, config.healing
    calibrated = calibration.samples * calibration.max_length if config.calibrates else 0
    judged = evaluation.samples * evaluation.max_length
    healed = (healing.tokens or 0) if heal else 0
    written = calibrated + judged + healed  # all text is sampled from the model
    passes = 4 if METHODS[config.method].cuts == "width" else 1
    models = 3 if heal else 2
    read = passes * calibrated + models * 2 * judged  # windows of perplexity overlap by half
    rate = _rate(parameters)
    return 2 * parameters * (read / _READING + written / _WRITING) / rate + 6 * parameters * healed / (_READING * rate)


_probing = threading.Lock()


def _rate(parameters: int) -> float:
    """Operations a second for a model of about this size; timed once for all models of that size."""
    with _probing:
        return _probed(round(parameters, -len(str(parameters)) + 1))


@functools.cache
def _probed(parameters: int) -> float:
    place = device() or ("cuda" if torch.cuda.is_available() else "cpu")
    return probe(place, parameters).flops
