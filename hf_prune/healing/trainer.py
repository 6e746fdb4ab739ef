"""The training loop: Transformers' Trainer, with checkpoints that a killed run can trust."""

import json
import logging
import math
import signal
import threading
import time
import types
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback, TrainingArguments

from hf_prune import serial
from hf_prune.config import HealingConfig
from hf_prune.errors import MeasureError
from hf_prune.healing.rows import Rows, collate
from hf_prune.healing.step import Step
from hf_prune.healing.trained import Trainable
from hf_prune.progress import tqdm

log = logging.getLogger(__name__)

_COMPLETE = "complete.json"
"""Written into a checkpoint after everything else: a checkpoint without it was cut off and is not used."""

_TRAINED = "trained.safetensors"
"""What is trained, alone; the rest of the model is where it came from."""


@dataclass(frozen=True)
class Trained:
    """What a training run did, over all its sessions.

    Attributes:
        steps: optimizer steps.
        tokens: tokens seen, pads not counted.
        seconds: in the loop.
        loss: mean training loss since the last but one log, nats per token.
        epochs: passes over the text.
    """

    steps: int
    tokens: int
    seconds: float
    loss: float
    epochs: float


def train(
    model: torch.nn.Module,
    chosen: Trainable,
    step: Step,
    rows: Rows,
    config: HealingConfig,
    *,
    steps: int,
    folder: Path,
    device: torch.device,
    autocast: bool,
    recompute: bool,
    progress: bool,
) -> Trained:
    """Train `model` in place, from the last whole checkpoint in `folder` where there is one.

    AdamW without weight decay, linear warm-up, then along `config.schedule` to zero, gradients clipped at norm 1. A
    continued run ends with the same tensors, to the bit on a CPU, as one that was never stopped: order of the data,
    dropout and optimizer come from the checkpoint. Seeds Python's, NumPy's and torch's global random numbers with
    `config.seed`.

    The first Ctrl-C finishes the step, writes a checkpoint and raises; a second one raises at once.

    Args:
        model: from `chosen.begin`.
        chosen: what is trained.
        step: the loss of a micro-batch.
        rows: training text.
        config: resolved.
        steps: optimizer steps.
        folder: for checkpoints.
        device: where the model is.
        autocast: whether matrix products run in bfloat16.
        recompute: whether activations are computed again in the backward pass, to save memory.
        progress: whether to show a bar.

    Raises:
        MeasureError: the loss is not finite.
        KeyboardInterrupt: Ctrl-C.
    """
    keeper = _Keeper()
    trainer = _trainer(model, chosen, step, rows, config, steps, folder, device, autocast, recompute, keeper)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if progress:
        trainer.add_callback(_Bar())
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None:
        keeper.seconds_before = json.loads((checkpoint / _COMPLETE).read_text())["seconds"]
        log.info("continuing from %s", checkpoint.name)
    if checkpoint is not None and checkpoint.name == f"checkpoint-{steps}":
        # Trainer would do one more step on a finished run.
        chosen.restore(model, load_file(checkpoint / _TRAINED))
        return _result(json.loads((checkpoint / "trainer_state.json").read_text()), keeper.seconds_before)
    try:
        with keeper.listening():
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if keeper.interrupted:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        kept = last_checkpoint(folder)
        log.warning(
            "healing was interrupted; %s. Run the same command again to go on",
            f"{kept.name} is kept in {folder}" if kept else "no checkpoint was written yet",
        )
        raise
    return _result(vars(trainer.state), keeper.seconds_saved)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    whole = [path.parent for path in folder.glob(f"checkpoint-*/{_COMPLETE}")]
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def _trainer(
    model: torch.nn.Module,
    chosen: Trainable,
    step: Step,
    rows: Rows,
    config: HealingConfig,
    steps: int,
    folder: Path,
    device: torch.device,
    autocast: bool,
    recompute: bool,
    keeper: "_Keeper",
) -> Trainer:
    assert config.batch_size and config.micro_batch_size and config.learning_rate and config.save_steps
    assert config.warmup_steps is not None and config.schedule and config.beta2 is not None
    micro = min(config.micro_batch_size, len(rows))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=config.batch_size // config.micro_batch_size,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.schedule,
        warmup_steps=min(config.warmup_steps, steps),
        adam_beta2=config.beta2,
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=autocast,
        activation_checkpointing=recompute,
        activation_checkpointing_kwargs={"use_reentrant": False} if recompute else None,
        logging_steps=max(1, min(config.save_steps, steps // 50)),
        logging_nan_inf_filter=False,
        save_steps=config.save_steps,
        save_total_limit=2,
        include_num_input_tokens_seen="non_padding",
        seed=config.seed,
        data_seed=config.seed,
        use_cpu=device.type == "cpu",
        # An incomplete last batch of each pass is left out, so that every step has its full size.
        dataloader_drop_last=len(rows) >= micro,
        dataloader_pin_memory=device.type == "cuda",
        remove_unused_columns=False,
        disable_tqdm=True,
        report_to="none",
        push_to_hub=False,
    )
    if arguments.n_gpu > 1:
        arguments._n_gpu = 1  # the model sits on one device; without this Trainer would copy it to all of them
    return _Trainer(
        chosen, step, model=model, args=arguments, train_dataset=rows, data_collator=collate, callbacks=[keeper]
    )


def _result(state: dict[str, Any], seconds: float) -> Trained:
    losses = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    return Trained(state["global_step"], int(state["num_input_tokens_seen"]), seconds, losses[-1], state["epoch"])


class _Trainer(Trainer):
    """Trainer with the loss of `Step`, whose checkpoints hold what is trained alone.

    Args:
        chosen: what is trained.
        step: the loss of a micro-batch.
        kwargs: of Trainer.
    """

    def __init__(self, chosen: Trainable, step: Step, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._chosen, self._step, self._trainee = chosen, step, kwargs["model"]
        # Labels are told apart from ids by `Step`, which sums; Trainer is to count them as they are.
        self.model_accepts_loss_kwargs, self._loss_shifts_labels = True, False

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """The mean over the positions of a whole optimizer step, of which this micro-batch is a part."""
        total, _ = self._step(model, inputs)
        assert num_items_in_batch is not None
        loss = total / num_items_in_batch
        return loss * self.accelerator.num_processes  # the mean of all processes is taken of gradients

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self._chosen.state(self._trainee), folder / _TRAINED)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: torch.nn.Module | None = None) -> None:
        self._chosen.restore(self._trainee, load_file(Path(resume_from_checkpoint) / _TRAINED))


class _Keeper(TrainerCallback):
    """Marks whole checkpoints, counts seconds over sessions, stops on NaN, turns Ctrl-C into a checkpoint."""

    def __init__(self) -> None:
        self.seconds_before = 0.0
        self.seconds_saved = 0.0
        self.interrupted = False
        self._started = 0.0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.interrupted:
            control.should_save = control.should_training_stop = True
        # A log before each checkpoint: the mean of a continued run then starts where the checkpoint ends.
        control.should_log = control.should_log or control.should_save

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        loss = (logs or {}).get("loss", 0.0)
        if not math.isfinite(loss):
            raise MeasureError(
                f"the training loss is {loss} at step {state.global_step} (learning rate {args.learning_rate:g}); "
                "expected a finite number. Lower healing.learning_rate"
            )

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self.seconds_saved = self.seconds_before + time.perf_counter() - self._started
        serial.write_text(folder / _COMPLETE, json.dumps({"seconds": self.seconds_saved}))

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


class _Bar(TrainerCallback):
    """One line on stderr: steps, time left, loss. (Trainer's own bar writes its logs to stdout.)"""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar = tqdm(total=state.max_steps, initial=state.global_step, desc="healing", unit="step")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if logs and "loss" in logs:
            self._bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.close()
