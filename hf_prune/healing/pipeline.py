"""Healing: LoRA or QLoRA on the pruned weights, merged in float32, with the loss measured at every station."""

import gc
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from hf_prune import environment, extras, serial
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.config import HealingConfig
from hf_prune.distributed import ALONE, Group
from hf_prune.errors import ConfigError
from hf_prune.healing import checkpoint
from hf_prune.healing.adapter import save_adapter
from hf_prune.healing.budget import Throughput, eta, in_words, probe
from hf_prune.healing.choice import choose
from hf_prune.healing.held_out import held_out_loss, predicted_tokens
from hf_prune.healing.judge import Judge
from hf_prune.healing.nf4 import leaves_some, nf4_config
from hf_prune.healing.optimizer import check_optimizer
from hf_prune.healing.origin import Origin
from hf_prune.healing.original import Computing
from hf_prune.healing.packing import check_packing
from hf_prune.healing.prefix import frozen_depth
from hf_prune.healing.prefix_store import Stored, disk_room, open_prefix
from hf_prune.healing.reporting import check_reporting
from hf_prune.healing.rows import Rows
from hf_prune.healing.step import Step, compared_positions, parse_losses
from hf_prune.healing.teaching import Teaching, asked, beside, check_losses, check_teacher, on_disk
from hf_prune.healing.together import check_shared
from hf_prune.healing.trained import Trainable
from hf_prune.healing.work import ADAPTER, CHECKPOINTS, PREFIX, TEACHER, open_work
from hf_prune.records import Healing, HeldOutLoss
from hf_prune.samples import Samples
from hf_prune.samples import digest as samples_digest

if TYPE_CHECKING:
    from peft import PeftModel

    from hf_prune.healing.trainer import Trained

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
    pruned_folder = Path(pruned_folder)
    checkpoint.check_config(config)
    shape = checkpoint.read_config(pruned_folder, trust_remote_code=trust_remote_code)
    checkpoint.check_samples(samples, held_out, config, shape.vocab_size)
    require(config.quantize)
    notes: list[str] = []
    # Before any weights are there: what is trained must be loaded whole.
    blank = decoder_of(checkpoint.blank(pruned_folder, trust_remote_code=trust_remote_code), pruned_folder.name)
    origin = origin or Origin(tuple(range(blank.num_layers)), blank.num_layers)
    chosen = choose(blank, config, origin)
    quantized = _quantize(blank, chosen, config, notes)
    device = _device(device)
    check_optimizer(config.optimizer, device)
    check_reporting(config.report_to)
    work = Path(run_folder)
    parameters = checkpoint.count_parameters(pruned_folder)
    terms = parse_losses(config)
    positions = compared_positions(terms, origin)
    check_losses(terms, positions, chosen.lowest, origin)
    wanted = asked(config, terms, positions)
    if wanted is not None:
        check_teacher(wanted, origin)
    facts = _facts(pruned_folder, samples, held_out, quantized, device)
    if wanted is not None:
        facts["original"] = origin.key
    if group.size > 1:
        check_shared(config, wanted, group)
    speed = group.share(
        lambda: open_work(work, config, facts, resume=resume, measure=lambda: probe(device, parameters))
    )
    micro = config.micro_batch_size or 1

    rows = _rows(samples, config)
    computing = _computing(blank, device, quantized, speed, trust_remote_code)
    teaching = Teaching()
    if wanted is not None and wanted.mode == "stored":  # before the pruned model takes its room
        teaching = on_disk(
            wanted, origin, blank, config, rows, Rows.of(held_out),
            folder=work / TEACHER, computing=computing, progress=progress,
        )  # fmt: skip
    loaded = _load_for_training(pruned_folder, device, quantized, speed, trust_remote_code, chosen.keep_whole)
    decoder = decoder_of(loaded, pruned_folder.name)
    weights = dict(loaded.named_parameters())
    if config.packing:
        check_packing(loaded)
    from transformers import set_seed  # here, because it brings peft and bitsandbytes along

    set_seed(config.seed)
    trainee = chosen.begin(loaded, config)
    frozen = frozen_depth(chosen.lowest, positions)
    if wanted is not None and wanted.mode != "stored":
        teaching = beside(wanted, origin, decoder, weights, frozen=frozen, computing=computing)
    if teaching.unshared is not None and config.prefix == "share":
        raise ConfigError(
            f"healing.prefix='share', but the first blocks are not the same in both models: {teaching.unshared}. Take "
            "'recompute' or 'store'"
        )
    opened = open_prefix(
        decoder,
        rows,
        config.prefix,
        frozen=frozen,
        shared=teaching.shared,
        passes=passes(config, rows),
        room=disk_room(config.store_budget, work / PREFIX, taken=teaching.disk) if group.size == 1 else 0,
        folder=work / PREFIX,
        fingerprint=checkpoint.fingerprint(pruned_folder),
        made_by=(speed.dtype, str(quantized), device.type),
        autocast=speed.dtype == "bfloat16",
    )
    if teaching.unshared is not None and opened.prefix is None:
        notes.append(f"The original and the healed model each ran the frozen first blocks: {teaching.unshared}.")
    notes += [*teaching.notes, *opened.notes]
    step = Step(
        decoder, terms, positions=positions, teacher=teaching.teacher, frozen=chosen.lowest, prefix=opened.prefix,
        tuples=opened.tuples, seams=origin.seams,
    )  # fmt: skip
    judge = Judge(held_out, teaching.judge, batch_size=micro)
    loss_quantized = loss_adapter_quantized = None
    if quantized:
        loss_quantized = held_out_loss(trainee, held_out, batch_size=micro)
    done = _train(
        trainee, chosen, step, judge, teaching, rows, config, speed, parameters, work, device, quantized, progress,
        group,
    )  # fmt: skip
    if quantized:
        loss_adapter_quantized = held_out_loss(trainee, held_out, batch_size=micro)
    state = chosen.state(trainee)
    trained = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
    reused = teaching.reused
    del loaded, weights, trainee, decoder, step, judge, teaching
    _free(device)

    plain = checkpoint.load(pruned_folder, device, trust_remote_code=trust_remote_code)
    loss_pruned = held_out_loss(plain, held_out, batch_size=micro)
    attached = chosen.attach(plain, config, state, base_model)
    loss_attached = held_out_loss(attached, held_out, batch_size=micro)
    adapter = None
    if chosen.kind == "adapters":
        adapter = work / ADAPTER
        if group.leads:
            save_adapter(attached, state, adapter)
        group.any(False)  # all of them may read it
    del plain, attached
    _free(device)
    merged = checkpoint.load(pruned_folder, device, trust_remote_code=trust_remote_code)
    chosen.merge(merged, config, state)
    losses = HeldOutLoss(
        pruned=loss_pruned,
        quantized=loss_quantized,
        adapter_quantized=loss_adapter_quantized,
        adapter=loss_attached,
        merged=held_out_loss(merged, held_out, batch_size=micro),
        original=original_loss,
        tokens=predicted_tokens(held_out),
    )
    model: PreTrainedModel | PeftModel = merged
    if config.output == "adapter":
        del merged, model
        _free(device)
        plain = checkpoint.load(pruned_folder, device, trust_remote_code=trust_remote_code)
        model = chosen.attach(plain, config, state, base_model)
    notes += _notes(chosen, done, rows, config, losses)
    for note in notes:
        log.warning(note)
    record = Healing(
        settings=serial.to_dict(config) | {"epochs": done.epochs, "compute_dtype": speed.dtype},
        quantization="nf4 (double quantized)" if quantized else None,
        trained_parameters=trained,
        target_modules=chosen.names,
        steps=done.steps,
        tokens=done.tokens,
        seconds=done.seconds,
        train_loss=done.loss,
        held_out=losses,
        merge_loss_share=merge_loss_share(losses),
        output=config.output,
        data=samples.use,
        held_out_data=held_out.use,
        environment=environment.describe(model),
        warnings=tuple(notes),
        kind=chosen.kind,
        curve=done.curve,
        best_step=done.best_step,
        stopped=done.stopped,
        reused=" ".join(told for told in (reused, opened.reused) if told) or None,
    )
    return HealResult(model, record, adapter)


def require(quantize: str = "auto") -> None:
    """Refuse where the packages that healing needs are not installed, before any work.

    Args:
        quantize: as in `HealingConfig`.

    Raises:
        MissingExtraError: peft or accelerate is missing, or bitsandbytes although quantize="nf4".
    """
    for module in ("peft", "accelerate"):
        extras.require(module, "heal", "healing")
    if quantize == "nf4":
        extras.require("bitsandbytes", "heal", "healing with quantize='nf4'")


def planned_steps(config: HealingConfig, rows: Rows) -> int:
    """Optimizer steps of a run: at most `config.steps`, and as many as `config.tokens` pays for, at least one."""
    assert config.steps and config.tokens
    return max(1, min(config.steps, int(config.tokens / _tokens_per_step(config, rows))))


def passes(config: HealingConfig, rows: Rows) -> float:
    """How often a run reads its text."""
    return planned_steps(config, rows) * _tokens_per_step(config, rows) / rows.tokens


def merge_loss_share(losses: HeldOutLoss) -> float | None:
    """(merged - adapter) / (pruned - adapter), the part of the gain that merging lost; None without a gain."""
    gain = losses.pruned - losses.adapter
    return (losses.merged - losses.adapter) / gain if gain > 0 else None


def _rows(samples: Samples, config: HealingConfig) -> Rows:
    assert config.max_length
    if config.packing:
        return Rows.packed(samples, config.max_length, micro_batch_size=config.micro_batch_size or 1)
    return Rows.of(samples)


def _tokens_per_step(config: HealingConfig, rows: Rows) -> float:
    assert config.batch_size
    return min(config.batch_size, len(rows)) * rows.tokens / len(rows)


def _device(asked: torch.device | str | None) -> torch.device:
    device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # accelerate compares indices of 4-bit models
    return device


def _quantize(blank: Decoder, chosen: Trainable, config: HealingConfig, notes: list[str]) -> bool:
    if config.quantize == "none":
        return False
    if not leaves_some(blank, chosen.keep_whole):
        if config.quantize == "nf4":
            raise ConfigError(
                f"healing.quantize='nf4' keeps what is frozen in 4 bits, and target '{config.target}' trains every "
                f"linear map of the {blank.num_layers} blocks. Take quantize 'none', or train less"
            )
        return False
    if config.quantize == "nf4" or extras.available("bitsandbytes"):
        return True
    trained = "LoRA on the unquantized weights instead of QLoRA on 4-bit ones"
    if chosen.kind == "weights":
        trained = "beside unquantized frozen weights instead of 4-bit ones"
    notes.append(
        f"bitsandbytes is not installed: healing trained {trained}, which needs more memory. pip install "
        "'hf-prune[heal]' brings it."
    )
    return False


def _facts(
    folder: Path, samples: Samples, held_out: Samples, quantized: bool, device: torch.device
) -> dict[str, str]:
    """What decides the result beside the settings; see `work.open_work`."""
    return {
        "pruned checkpoint": checkpoint.fingerprint(folder),
        "healing text": samples_digest(samples.sequences, samples.learned),
        "held-out text": samples_digest(held_out.sequences, held_out.learned),
        "choice between 4-bit and whole weights": str(quantized),
        "kind of device": device.type,
    }


def _computing(
    blank: Decoder, device: torch.device, quantized: bool, speed: Throughput, trust_remote_code: bool
) -> Computing:
    half = speed.dtype == "bfloat16"
    dtype = blank.model.dtype if half and not quantized else getattr(torch, speed.dtype)
    return Computing(device, dtype, autocast=half, quantized=quantized, trust_remote_code=trust_remote_code)


def _load_for_training(
    folder: Path,
    device: torch.device,
    quantized: bool,
    speed: Throughput,
    trust_remote_code: bool,
    whole: tuple[str, ...] = (),
) -> PreTrainedModel:
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


def _train(
    model: torch.nn.Module,
    chosen: Trainable,
    step: Step,
    judge: Judge,
    teaching: Teaching,
    rows: Rows,
    config: HealingConfig,
    speed: Throughput,
    parameters: int,
    work: Path,
    device: torch.device,
    quantized: bool,
    progress: bool,
    group: Group,
) -> "Trained":
    from hf_prune.healing.cost import training_cost
    from hf_prune.healing.trainer import train

    assert config.max_length and config.recompute is not None
    prefix = 0 if step.prefix is None else step.prefix.depth
    cost = training_cost(
        step.decoder,
        model,
        chosen,
        length=config.max_length,
        prefix=prefix,
        recompute=config.recompute,
        spared_from=1 if isinstance(step.prefix, Stored) else 0,
        beside=teaching.beside(config.max_length),
        before=teaching.spent,
    )
    steps = planned_steps(config, rows)
    tokens = round(steps * _tokens_per_step(config, rows))
    log.info("healing: %d steps, about %d tokens, about %s", steps, tokens, in_words(eta(tokens, parameters, speed)))
    return train(
        model,
        chosen,
        step,
        rows,
        config,
        steps=steps,
        folder=work / CHECKPOINTS,
        device=device,
        autocast=speed.dtype == "bfloat16",
        recompute=config.recompute,
        judge=judge,
        cost=cost,
        quantized=quantized,
        progress=progress,
        group=group,
    )


def _notes(
    chosen: Trainable, done: "Trained", rows: Rows, config: HealingConfig, losses: HeldOutLoss
) -> list[str]:
    notes = [chosen.warning] if chosen.warning else []
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
            f"token): heal on more tokens, or change the learning rate{' or the rank' * (chosen.kind == 'adapters')}."
        )
    share = merge_loss_share(losses)
    if config.output == "merged" and share is not None and share > MERGE_LOSS_LIMIT:
        swallowed = f"{share:.0%} of what healing gained: the weights' dtype swallows small changes"
        notes.append(
            f"Merging lost {swallowed}. Ship the adapter beside the pruned weights with --heal-output adapter, or "
            "prune a float32 copy of the model."
            if chosen.kind == "adapters"
            else f"Casting lost {swallowed}. Prune a float32 copy of the model, or raise the learning rate."
        )
    return notes


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
