"""Healing from end to end: settle, train, make one, measure, tell."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from hf_prune import environment, serial
from hf_prune.config import HealingConfig
from hf_prune.distributed import ALONE, Group
from hf_prune.healing.job import Job, prepare
from hf_prune.healing.origin import Origin
from hf_prune.healing.stations import finish
from hf_prune.healing.training import Outcome, train_job
from hf_prune.records import Healing, HeldOutLoss
from hf_prune.samples import Samples

if TYPE_CHECKING:
    from peft import PeftModel

log = logging.getLogger(__name__)

MERGE_LOSS_LIMIT = 0.05
"""Part of the gain that merging may lose without a warning."""


@dataclass(frozen=True)
class HealResult:
    """A healed model.

    Attributes:
        model: what is shipped: a plain model in the checkpoint's dtype, or with output="adapter" a `PeftModel` whose
            base is the pruned model.
        record: what was done and measured.
        adapter: folder with the adapter alone (adapter_config.json, adapter_model.safetensors); None where weights
            were trained themselves.
    """

    model: "PreTrainedModel | PeftModel"
    record: Healing
    adapter: Path | None


def heal(
    pruned_folder: Path,
    samples: Samples,
    held_out: Samples,
    config: HealingConfig,
    *,
    run_folder: Path,
    base_model: str,
    device: torch.device | str | None = None,
    resume: bool = True,
    original_loss: float | None = None,
    progress: bool = True,
    trust_remote_code: bool = False,
    origin: Origin | None = None,
    group: Group = ALONE,
) -> HealResult:
    """Heal a pruned checkpoint.

    Trains what `config.target` names, against what `config.loss` names: LoRA adapters on 4-bit weights (QLoRA) or on
    the weights as they are, or weights themselves. Adapters are then added to the pruned weights in float32; all is
    cast once. Working state lies in `run_folder`: after a kill the same call goes on from the last
    whole checkpoint; state of other inputs there is thrown away. Seeds the global random numbers.

    Args:
        pruned_folder: complete stock checkpoint of the pruned model.
        samples: training text; seen several times where it holds fewer tokens than `config.tokens`.
        held_out: disjoint text to measure on.
        config: resolved by `recipes.resolve`.
        run_folder: for working state (inputs.json, checkpoints/, adapter/, prefix/).
        base_model: Hub id or name that the adapter's config calls its base.
        device: where to heal; the GPU if there is one, else the CPU.
        resume: whether to go on from checkpoints.
        original_loss: held-out loss of the model before pruning, for the record.
        progress: whether to show a bar.
        trust_remote_code: whether to run code from `pruned_folder`.
        origin: which blocks of the original are left, and how to get at it; a model of which nothing is known when
            None.
        group: the processes that train together, each of which calls this with the same arguments; process 0 alone
            writes.

    Raises:
        ConfigError: settings are not resolved, or cannot be shared by so many processes.
        DataError: the text is unusable.
        CheckpointError: the checkpoint is unusable.
        ArchitectureError: nothing in the blocks can carry an adapter.
        MissingExtraError: peft or accelerate is not installed, or bitsandbytes although quantize="nf4".
        MeasureError: the loss is not finite.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    job = prepare(
        Path(pruned_folder),
        samples,
        held_out,
        config,
        work=Path(run_folder),
        device=device,
        resume=resume,
        trust_remote_code=trust_remote_code,
        origin=origin,
        group=group,
    )
    outcome = train_job(job, progress=progress)
    shipped = finish(job, outcome, base_model, original_loss)
    done, losses = outcome.done, shipped.losses
    notes = (*job.notes, *outcome.notes, *_notes(job, outcome, losses))
    for note in notes:
        log.warning(note)
    record = Healing(
        settings=serial.to_dict(config) | {"epochs": done.epochs, "compute_dtype": job.speed.dtype},
        quantization="nf4 (double quantized)" if job.quantized else None,
        trained_parameters=outcome.parameters,
        target_modules=job.chosen.names,
        steps=done.steps,
        tokens=done.tokens,
        seconds=done.seconds,
        train_loss=done.loss,
        held_out=losses,
        merge_loss_share=merge_loss_share(losses),
        output=config.output,
        data=samples.use,
        held_out_data=held_out.use,
        environment=environment.describe(shipped.model),
        warnings=notes,
        kind=job.chosen.kind,
        curve=done.curve,
        best_step=done.best_step,
        stopped=done.stopped,
        reused=outcome.reused,
    )
    return HealResult(shipped.model, record, shipped.adapter)


def merge_loss_share(losses: HeldOutLoss) -> float | None:
    """(merged - adapter) / (pruned - adapter), the part of the gain that merging lost; None without a gain."""
    gain = losses.pruned - losses.adapter
    return (losses.merged - losses.adapter) / gain if gain > 0 else None


def _notes(job: Job, outcome: Outcome, losses: HeldOutLoss) -> list[str]:
    config, rows, done = job.config, job.rows, outcome.done
    adapters = job.chosen.kind == "adapters"
    notes = [job.chosen.warning] if job.chosen.warning else []
    notes += done.notes
    if config.batch_size and len(rows) < config.batch_size:
        held = f"{len(rows)} {'rows of sequences' if config.packing else 'sequences'}"
        notes.append(f"The healing text holds {held}, fewer than one batch of {config.batch_size}.")
    if done.epochs >= 2:
        notes.append(f"The healing text was too short for the token budget and was read {done.epochs:.1f} times.")
    shipped = losses.merged if config.output == "merged" else losses.adapter
    if shipped >= losses.pruned:
        notes.append(
            f"Healing did not lower the held-out loss ({losses.pruned:.4f} before, {shipped:.4f} after, nats per "
            f"token): heal on more tokens, or change the learning rate{' or the rank' * adapters}."
        )
    share = merge_loss_share(losses)
    if config.output == "merged" and share is not None and share > MERGE_LOSS_LIMIT:
        swallowed = f"{share:.0%} of what healing gained: the weights' dtype swallows small changes"
        notes.append(
            f"Merging lost {swallowed}. Ship the adapter beside the pruned weights with --heal-output adapter, or "
            "prune a float32 copy of the model."
            if adapters
            else f"Casting lost {swallowed}. Prune a float32 copy of the model, or raise the learning rate."
        )
    return notes
