"""Checkpoints that a killed run can trust: marked when whole, with the seconds so far; Ctrl-C makes one."""

import json
import logging
import math
import shutil
import signal
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from hf_prune import serial
from hf_prune.distributed import ALONE, Group
from hf_prune.errors import MeasureError
from hf_prune.healing.curve import exploded

log = logging.getLogger(__name__)

TRAINED = "trained.safetensors"
"""What is trained, alone; the rest of the model is where it came from."""

_COMPLETE = "complete.json"
"""Written into a checkpoint after everything else: a checkpoint without it was cut off and is not used."""

_STATE = "trainer_state.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{_COMPLETE}")]
    return max(whole, key=_step, default=None)


def checkpoint_at(folder: Path, step: int) -> Path:
    """Where the checkpoint of an optimizer step lies."""
    return folder / f"checkpoint-{step}"


def remove_cut_off(folder: Path) -> None:
    """Remove checkpoints that were not written to their end."""
    for path in folder.glob("checkpoint-*"):
        if not (path / _COMPLETE).is_file():
            shutil.rmtree(path)


def seconds_of(checkpoint: Path) -> float:
    """Seconds of training, over all sessions, until a checkpoint was written."""
    return float(serial.read_json(checkpoint / _COMPLETE)["seconds"])


def state_of(checkpoint: Path) -> dict[str, Any]:
    """Trainer's state as a checkpoint has it."""
    return dict(serial.read_json(checkpoint / _STATE))


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class Keeper(TrainerCallback):
    """Marks whole checkpoints, counts seconds over sessions, stops where the loss means nothing, hears Ctrl-C.

    Args:
        seconds_before: of earlier sessions.
        group: the processes that train together.
    """

    def __init__(self, seconds_before: float = 0.0, group: Group = ALONE) -> None:
        self._group = group
        self.seconds_before = seconds_before
        self.seconds_saved = 0.0
        self.interrupted = False
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stop with a checkpoint where Ctrl-C was heard."""
        self.interrupted = self._group.any(self.interrupted)  # Ctrl-C may reach them in different steps
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        # A log before each checkpoint and each measurement: the mean of a continued run then starts where the
        # checkpoint ends, and a held-out loss always has the training loss of the same step beside it.
        control.should_log = control.should_log or control.should_save or control.should_evaluate

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Refuse a training loss that is not finite.

        Raises:
            MeasureError: see above.
        """
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise MeasureError(f"the training loss is {loss}; expected a finite number")

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Refuse to go on where training has come off its way; see `curve.exploded`.

        Raises:
            MeasureError: see above.
        """
        reason = exploded(state.log_history)
        if reason:
            raise MeasureError(reason)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Mark the checkpoint as whole, once all have written their part."""
        self._group.any(False)
        self.seconds_saved = self.seconds_before + time.perf_counter() - self._started
        mark = checkpoint_at(Path(args.output_dir), state.global_step) / _COMPLETE
        if self._group.leads:
            serial.write_text(mark, json.dumps({"seconds": self.seconds_saved}))

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Catch the first Ctrl-C (signals reach Python's main thread only; elsewhere nothing changes)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def stop(number: int, frame: types.FrameType | None) -> None:
            if self.interrupted:
                raise KeyboardInterrupt
            self.interrupted = True
            log.warning("stopping after this step, with a checkpoint; press Ctrl-C again to stop at once")

        before = signal.signal(signal.SIGINT, stop)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)
