"""The training of one run: the pruned model loaded, the original beside it where a loss needs that, and the loop."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.errors import ConfigError
from hf_prune.healing import checkpoint
from hf_prune.healing.budget import Throughput, eta, in_words
from hf_prune.healing.held_out import held_out_loss
from hf_prune.healing.job import Job, passes, planned_steps, tokens_per_step
from hf_prune.healing.judge import Judge
from hf_prune.healing.nf4 import nf4_config
from hf_prune.healing.packing import check_packing
from hf_prune.healing.prefix import frozen_depth
from hf_prune.healing.prefix_store import Opened, Stored, disk_room, open_prefix
from hf_prune.healing.rows import Rows
from hf_prune.healing.step import Step
from hf_prune.healing.teaching import Teaching, beside, on_disk
from hf_prune.healing.trained import State
from hf_prune.healing.work import CHECKPOINTS, PREFIX, TEACHER
from hf_prune.memory import give_back

if TYPE_CHECKING:
    from hf_prune.healing.trainer import Trained

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What training gave.

    Attributes:
        state: the trained tensors.
        parameters: how many numbers they hold.
        done: what the loop did.
        quantized: held-out loss of the 4-bit model before training, nats per token; None without quantization.
        trained_quantized: the same after training.
        reused: what was computed once for all, one sentence; None where nothing was.
        notes: sentences for the record.
    """

    state: State
    parameters: int
    done: "Trained"
    quantized: float | None
    trained_quantized: float | None
    reused: str | None
    notes: tuple[str, ...]


def train_job(job: Job, *, progress: bool) -> Outcome:
    """Load, train, take the trained tensors off, and let go of everything else.

    Args:
        job: what is to be done.
        progress: whether to show bars.

    Raises:
        ConfigError: the text cannot be packed for this model, or what is frozen cannot be reused as was asked.
        MeasureError: the loss is not finite.
        KeyboardInterrupt: Ctrl-C, after a checkpoint was written.
    """
    teaching = Teaching()
    stored = job.wanted is not None and job.wanted.mode == "stored"
    if job.wanted is not None and stored:  # before the pruned model takes its room
        teaching = on_disk(
            job.wanted, job.origin, job.blank, job.config, job.rows, Rows.of(job.held_out),
            folder=job.work / TEACHER, computing=job.computing, progress=progress,
        )  # fmt: skip
    loaded = load_for_training(
        job.folder, job.device, job.quantized, job.speed, job.trust_remote_code, job.chosen.keep_whole
    )
    decoder = decoder_of(loaded, job.folder.name)
    weights = dict(loaded.named_parameters())
    if job.config.packing:
        check_packing(loaded)
    from transformers import set_seed  # here, because it brings peft and bitsandbytes along

    set_seed(job.config.seed)
    trainee = job.chosen.begin(loaded, job.config)
    frozen = frozen_depth(job.chosen.lowest, job.positions)
    if job.wanted is not None and not stored:
        teaching = beside(job.wanted, job.origin, decoder, weights, frozen=frozen, computing=job.computing)
    opened = _prefix(job, decoder, teaching, frozen)
    notes = [*teaching.notes, *opened.notes]
    if teaching.unshared is not None and opened.prefix is None:
        notes.append(f"The original and the healed model each ran the frozen first blocks: {teaching.unshared}.")
    step = Step(
        decoder, job.terms, positions=job.positions, teacher=teaching.teacher, frozen=job.chosen.lowest,
        prefix=opened.prefix, tuples=opened.tuples, seams=job.origin.seams,
    )  # fmt: skip
    before = _held_out(job, trainee)
    done = _loop(job, trainee, step, teaching, progress)
    reused = " ".join(told for told in (teaching.reused, opened.reused) if told) or None
    outcome = Outcome(
        job.chosen.state(trainee),
        sum(p.numel() for p in trainee.parameters() if p.requires_grad),
        done,
        before,
        _held_out(job, trainee),
        reused,
        tuple(notes),
    )
    del loaded, weights, trainee, decoder, step, teaching
    give_back()
    return outcome


def _held_out(job: Job, trainee: torch.nn.Module) -> float | None:
    if not job.quantized:
        return None
    # Trainer lets a model that it has trained go on in this arithmetic, and no other: before training, and where a
    # finished run is taken up again, it is to be the same.
    with torch.autocast(job.device.type, torch.bfloat16, enabled=job.autocast):
        return held_out_loss(trainee, job.held_out, batch_size=job.micro_batch_size)


def _prefix(job: Job, decoder: Decoder, teaching: Teaching, frozen: int) -> Opened:
    if teaching.unshared is not None and job.config.prefix == "share":
        raise ConfigError(
            f"healing.prefix='share', but the first blocks are not the same in both models: {teaching.unshared}. Take "
            "'recompute' or 'store'"
        )
    folder = job.work / PREFIX
    alone = job.group.size == 1
    return open_prefix(
        decoder,
        job.rows,
        job.config.prefix,
        frozen=frozen,
        shared=teaching.shared,
        passes=passes(job.config, job.rows),
        room=disk_room(job.config.store_budget, folder, taken=teaching.disk) if alone else 0,
        folder=folder,
        fingerprint=checkpoint.fingerprint(job.folder),
        made_by=(job.speed.dtype, str(job.quantized), job.device.type),
        autocast=job.autocast,
    )


def _loop(job: Job, trainee: torch.nn.Module, step: Step, teaching: Teaching, progress: bool) -> "Trained":
    from hf_prune.healing.cost import training_cost
    from hf_prune.healing.trainer import train

    assert job.config.max_length
    cost = training_cost(
        step.decoder,
        trainee,
        job.chosen,
        length=job.config.max_length,
        prefix=0 if step.prefix is None else step.prefix.depth,
        recompute=bool(job.config.recompute),
        spared_from=1 if isinstance(step.prefix, Stored) else 0,
        beside=teaching.beside(job.config.max_length),
        before=teaching.spent,
    )
    steps = planned_steps(job.config, job.rows)
    tokens = round(steps * tokens_per_step(job.config, job.rows))
    log.info(
        "healing: %d steps, about %d tokens, about %s",
        steps, tokens, in_words(eta(tokens, job.parameters, job.speed)),
    )  # fmt: skip
    return train(
        trainee,
        job.chosen,
        step,
        job.rows,
        job.config,
        steps=steps,
        folder=job.work / CHECKPOINTS,
        device=job.device,
        autocast=job.autocast,
        judge=Judge(job.held_out, teaching.judge, batch_size=job.micro_batch_size),
        cost=cost,
        quantized=job.quantized,
        progress=progress,
        group=job.group,
    )


def load_for_training(
    folder: Path,
    device: torch.device,
    quantized: bool,
    speed: Throughput,
    trust_remote_code: bool,
    whole: tuple[str, ...] = (),
) -> PreTrainedModel:
    """The pruned model as it is trained on.

    Args:
        folder: complete stock checkpoint.
        device: where to.
        quantized: whether frozen linear maps go into 4 bits.
        speed: of this machine, which decides the dtype.
        trust_remote_code: whether to run code from the folder.
        whole: modules that are not quantized, as they are trained.

    Raises:
        CheckpointError: weights are missing or left over.
    """
    compute = getattr(torch, speed.dtype)
    if not quantized:
        # Where bfloat16 is the slower one, float32 holds the same numbers.
        dtype: torch.dtype | str = "auto" if speed.dtype == "bfloat16" else compute
        return checkpoint.load(folder, device, dtype=dtype, trust_remote_code=trust_remote_code)
    from peft import prepare_model_for_kbit_training

    nf4 = nf4_config(folder, compute, whole=whole, trust_remote_code=trust_remote_code)
    model = checkpoint.load(folder, device, quantization=nf4, trust_remote_code=trust_remote_code)
    with checkpoint.quiet_peft():
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
