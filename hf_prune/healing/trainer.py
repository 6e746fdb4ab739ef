"""The training loop: what it is given, from where it goes on, when it stops, and what it tells."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import EarlyStoppingCallback, PrinterCallback, ProgressCallback, TrainerCallback

from hf_prune.config import HealingConfig
from hf_prune.distributed import ALONE, Group
from hf_prune.errors import MeasureError, PruneError
from hf_prune.healing.arguments import training_arguments
from hf_prune.healing.bar import Bar
from hf_prune.healing.cost import TrainingCost
from hf_prune.healing.curve import curve_of, overfit
from hf_prune.healing.keeper import (
    TRAINED,
    Keeper,
    checkpoint_at,
    last_checkpoint,
    remove_cut_off,
    seconds_of,
    state_of,
)
from hf_prune.healing.loop import HealingTrainer, Judge
from hf_prune.healing.out_of_memory import saying_what_to_lower
from hf_prune.healing.reporting import log_into
from hf_prune.healing.rows import Rows, collate
from hf_prune.healing.step import Step
from hf_prune.healing.trained import Trainable
from hf_prune.healing.work import LOGS
from hf_prune.records import CurvePoint

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Trained:
    """What a training run did, over all its sessions.

    Attributes:
        steps: optimizer steps.
        tokens: tokens seen, pads not counted.
        seconds: in the loop.
        loss: mean training loss since the last but one log, nats per token.
        epochs: passes over the text.
        curve: the held-out figures on the way, the untrained model first.
        best_step: steps behind the weights that were taken; None where the last ones were.
        stopped: why training ended before its time, one sentence; None where it did not.
        notes: sentences for report and card.
    """

    steps: int
    tokens: int
    seconds: float
    loss: float
    epochs: float
    curve: tuple[CurvePoint, ...] = ()
    best_step: int | None = None
    stopped: str | None = None
    notes: tuple[str, ...] = ()


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
    judge: Judge,
    cost: TrainingCost,
    progress: bool,
    quantized: bool = False,
    group: Group = ALONE,
) -> Trained:
    """Train `model` in place, from the last whole checkpoint in `folder` where there is one.

    AdamW (or `config.optimizer`) without weight decay, linear warm-up, then along `config.schedule` to zero, gradients
    clipped at norm 1. A continued run ends with the same tensors, to the bit on a CPU, as one that was never stopped:
    order of the data, dropout, optimizer and patience come from the checkpoint. Seeds Python's, NumPy's and torch's
    global random numbers with `config.seed`.

    The held-out text is measured before the first step, every `config.eval_steps` and at the end. With
    `config.patience`, a checkpoint belongs to each measurement (in place of `config.save_steps`), training stops after
    so many without a gain, and the best weights are taken. Without it the last ones are: the learning rate has fallen
    to zero on them, and the held-out figures stay those of weights that were not chosen by them.

    The first Ctrl-C finishes the step, writes a checkpoint and raises; a second one raises at once. What goes wrong
    leaves the checkpoints that there are.

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
        judge: measures on held-out text.
        cost: of the run.
        progress: whether to show a bar.
        quantized: whether the weights are in 4 bits.
        group: the processes that train together: each takes its share of every batch, process 0 measures and writes.

    Raises:
        ConfigError: stop_on="kl", and the judge knows no divergence; or a batch cannot be shared evenly.
        MeasureError: the loss, or a trained tensor, is not finite; or training diverges (see `curve.exploded`).
        PruneError: out of memory.
        KeyboardInterrupt: Ctrl-C.
    """
    if group.leads:
        remove_cut_off(folder)
    checkpoint = group.share(lambda: last_checkpoint(folder))
    keeper = Keeper(seconds_of(checkpoint) if checkpoint else 0.0, group)
    if checkpoint is not None:
        log.info("continuing from %s", checkpoint.name)
        state = state_of(checkpoint)
        if state["global_step"] >= steps or _out_of_patience(state):
            # Trainer would do one more step on a finished run.
            taken = checkpoint_at(folder, _taken(state, config))
            chosen.restore(model, load_file(taken / TRAINED))
            return _result(state, steps, keeper.seconds_before, config)
    arguments = training_arguments(rows, config, steps, folder, device, autocast, group, checkpoint is None)
    callbacks: list[TrainerCallback] = [keeper]
    if config.patience is not None:
        callbacks.append(EarlyStoppingCallback(config.patience))
    trainer = HealingTrainer(
        chosen,
        step,
        judge,
        cost,
        group,
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,
        data_collator=collate,
        callbacks=callbacks,
    )
    log_into(trainer.callback_handler.callbacks, folder.parent / LOGS)
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if progress and group.leads:
        trainer.add_callback(Bar(_next_token(step)))
    try:
        with keeper.listening(), saying_what_to_lower(config, quantized=quantized):
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        if keeper.interrupted:
            raise KeyboardInterrupt
    except KeyboardInterrupt:
        log.warning("healing was interrupted; %s. Run the same command again to go on", _kept(folder))
        raise
    except MeasureError as error:
        raise MeasureError(_what_stopped(trainer, config, steps, folder, error)) from error
    except PruneError as error:
        raise type(error)(
            f"healing stopped at step {trainer.state.global_step} of {steps}: {error}. "
            f"{_kept(folder).capitalize()}: the same settings go on from it, other settings start anew"
        ) from error
    return _result(vars(trainer.state), steps, keeper.seconds_saved, config)


def _next_token(step: Step) -> str | None:
    """The name that the log has for the training loss of the next token, where it is trained against."""
    terms = {term.name: term.weight for term in step.losses}
    if terms == {"next_token": 1.0}:
        return "loss"
    return "loss_next_token" if "next_token" in terms and len(terms) > 1 else None


def _kept(folder: Path) -> str:
    last = last_checkpoint(folder)
    return f"{last.name} is kept in {folder}" if last else "no checkpoint was written yet"


def _what_stopped(
    trainer: HealingTrainer, config: HealingConfig, steps: int, folder: Path, error: MeasureError
) -> str:
    """Where training met numbers that mean nothing, and what to do."""
    at = trainer.state.global_step
    if at == 0:
        return f"healing stopped before its first step: {error}"
    assert trainer.lr_scheduler is not None
    rate = trainer.lr_scheduler.get_last_lr()[0]
    said = (
        f"healing stopped at step {at} of {steps} (learning rate {rate:.3g}, at its peak {config.learning_rate:.3g}): "
        f"{error}. Lower healing.learning_rate, with which training starts anew; {_kept(folder)}"
    )
    if last_checkpoint(folder) is None:
        return said
    return f"{said}, but the same settings would go on from there and most likely come to the same"


def _out_of_patience(state: dict[str, Any]) -> bool:
    stopping = state["stateful_callbacks"].get(EarlyStoppingCallback.__name__)
    if stopping is None:
        return False
    counted = stopping["attributes"]["early_stopping_patience_counter"]
    return bool(counted >= stopping["args"]["early_stopping_patience"])


def _taken(state: dict[str, Any], config: HealingConfig) -> int:
    """The step whose weights are taken."""
    return int(state["global_step"] if config.patience is None else state["best_global_step"])


def _result(state: dict[str, Any], steps: int, seconds: float, config: HealingConfig) -> Trained:
    history, done, taken = state["log_history"], state["global_step"], _taken(state, config)
    notes = [overfit(history, taken)]
    if config.patience is not None:
        notes.append(
            f"The weights of step {taken} were taken as the best by the held-out {config.stop_on}: on that text they "
            "look a little better than they are."
        )
    stopped = None
    if done < steps:
        stopped = (
            f"The held-out {config.stop_on} did not fall in {config.patience} measurements in a row: training stopped "
            f"at step {done} of {steps}, and the weights of step {taken} were taken."
        )
    return Trained(
        steps=done,
        tokens=int(state["num_input_tokens_seen"]),
        seconds=seconds,
        loss=[entry["loss"] for entry in history if "loss" in entry][-1],
        epochs=state["epoch"],
        curve=curve_of(history),
        best_step=None if taken == done else taken,
        stopped=stopped,
        notes=tuple(note for note in notes if note),
    )
