"""Healing: LoRA or QLoRA on the pruned weights, merged in float32, with the loss measured at every station."""

import gc
import hashlib
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedModel

from hf_prune import environment, extras, serial
from hf_prune.architecture import decoder_of
from hf_prune.config import HealingConfig
from hf_prune.healing import checkpoint
from hf_prune.healing.adapter import save_adapter
from hf_prune.healing.budget import Throughput, eta, in_words, probe
from hf_prune.healing.held_out import held_out_loss, predicted_tokens
from hf_prune.healing.nf4 import nf4_config
from hf_prune.healing.origin import Origin
from hf_prune.healing.registries import trainable
from hf_prune.healing.rows import Rows
from hf_prune.healing.step import Step, compared_positions, parse_losses
from hf_prune.healing.trained import Trainable
from hf_prune.records import Healing, HeldOutLoss
from hf_prune.samples import Samples
from hf_prune.samples import digest as samples_digest

if TYPE_CHECKING:
    from peft import PeftModel

    from hf_prune.healing.trainer import Trained

log = logging.getLogger(__name__)

MERGE_LOSS_LIMIT = 0.05
"""Part of the gain that merging may lose without a warning."""

_RECOMPUTE_FROM = 1_000_000_000
_STATE, _CHECKPOINTS, _ADAPTER = "inputs.json", "checkpoints", "adapter"


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
        run_folder: for working state (inputs.json, checkpoints/, adapter/).
        base_model: Hub id or name that the adapter's config calls its base.
        device: where to heal; the GPU if there is one, else the CPU.
        resume: whether to go on from checkpoints.
        original_loss: held-out loss of the model before pruning, for the record.
        progress: whether to show a bar.
        trust_remote_code: whether to run code from `pruned_folder`.
        origin: which blocks of the original are left, and how to get at it; a model of which nothing is known when
            None.

    Raises:
        ConfigError: settings are not resolved.
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
    quantized = _quantize(config, notes)
    device = _device(device)
    work = Path(run_folder)
    parameters = checkpoint.count_parameters(pruned_folder)
    digest = _digest(pruned_folder, samples, held_out, config, quantized, device)
    speed = _open_work(work, digest, resume, device, parameters)
    micro = config.micro_batch_size or 1

    loaded = _load_for_training(pruned_folder, device, quantized, speed, trust_remote_code)
    decoder = decoder_of(loaded, pruned_folder.name)
    origin = origin or Origin(tuple(range(decoder.num_layers)), decoder.num_layers)
    terms = parse_losses(config)
    assert config.target
    chosen: Trainable = trainable.get(config.target).function(decoder, config, origin)
    rows = Rows.of(samples)
    step = Step(decoder, terms, positions=compared_positions(terms, origin))
    from transformers import set_seed  # here, because it brings peft and bitsandbytes along

    set_seed(config.seed)
    trainee = chosen.begin(loaded, config)
    loss_quantized = loss_adapter_quantized = None
    if quantized:
        loss_quantized = held_out_loss(trainee, held_out, batch_size=micro)
    done = _train(trainee, chosen, step, rows, samples, config, speed, parameters, work, device, progress)
    if quantized:
        loss_adapter_quantized = held_out_loss(trainee, held_out, batch_size=micro)
    state = chosen.state(trainee)
    trained = sum(p.numel() for p in trainee.parameters() if p.requires_grad)
    del loaded, trainee, decoder, step
    _free(device)

    plain = checkpoint.load(pruned_folder, device, trust_remote_code=trust_remote_code)
    loss_pruned = held_out_loss(plain, held_out, batch_size=micro)
    attached = chosen.attach(plain, config, state, base_model)
    loss_attached = held_out_loss(attached, held_out, batch_size=micro)
    adapter = None
    if chosen.kind == "adapters":
        adapter = work / _ADAPTER
        save_adapter(attached, state, adapter)
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
    notes += _notes(chosen, done, samples, config, losses)
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


def planned_steps(config: HealingConfig, samples: Samples) -> int:
    """Optimizer steps of a run: at most `config.steps`, and as many as `config.tokens` pays for, at least one."""
    assert config.steps and config.tokens
    return max(1, min(config.steps, int(config.tokens / _tokens_per_step(config, samples))))


def merge_loss_share(losses: HeldOutLoss) -> float | None:
    """(merged - adapter) / (pruned - adapter), the part of the gain that merging lost; None without a gain."""
    gain = losses.pruned - losses.adapter
    return (losses.merged - losses.adapter) / gain if gain > 0 else None


def _tokens_per_step(config: HealingConfig, samples: Samples) -> float:
    assert config.batch_size
    return min(config.batch_size, len(samples.sequences)) * samples.tokens / len(samples.sequences)


def _device(asked: torch.device | str | None) -> torch.device:
    device = torch.device(asked or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and device.index is None:
        return torch.device("cuda", torch.cuda.current_device())  # accelerate compares indices of 4-bit models
    return device


def _quantize(config: HealingConfig, notes: list[str]) -> bool:
    if config.quantize == "none":
        return False
    if config.quantize == "nf4":
        return True
    if extras.available("bitsandbytes"):
        return True
    notes.append(
        "bitsandbytes is not installed: healing trained LoRA on the unquantized weights instead of QLoRA on 4-bit "
        "ones, which needs more memory. pip install 'hf-prune[heal]' brings it."
    )
    return False


def _digest(
    folder: Path, samples: Samples, held_out: Samples, config: HealingConfig, quantized: bool, device: torch.device
) -> str:
    parts = [checkpoint.fingerprint(folder), samples_digest(samples.sequences), samples_digest(held_out.sequences)]
    parts += [serial.dumps(config), str(quantized), device.type]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _open_work(work: Path, digest: str, resume: bool, device: torch.device, parameters: int) -> Throughput:
    """Keep the working state of the same inputs, throw away any other, and say how fast this machine was found."""
    path = work / _STATE
    if path.is_file():
        state = serial.read_json(path)
        if resume and state["digest"] == digest:
            return serial.from_dict(Throughput, state["throughput"])
        log.warning("throwing away the healing state of %s", "other inputs" if resume else "an earlier run")
    for name in (_CHECKPOINTS, _ADAPTER):
        if (work / name).exists():
            shutil.rmtree(work / name)
    speed = probe(device, parameters)
    serial.write_text(path, serial.dumps({"digest": digest, "throughput": serial.to_dict(speed)}))
    return speed


def _load_for_training(
    folder: Path, device: torch.device, quantized: bool, speed: Throughput, trust_remote_code: bool
) -> PreTrainedModel:
    compute = getattr(torch, speed.dtype)
    if not quantized:
        # Where bfloat16 is the slower one, float32 holds the same numbers.
        dtype: torch.dtype | str = "auto" if speed.dtype == "bfloat16" else compute
        return checkpoint.load(folder, device, dtype=dtype, trust_remote_code=trust_remote_code)
    from peft import prepare_model_for_kbit_training

    nf4 = nf4_config(folder, compute, trust_remote_code=trust_remote_code)
    model = checkpoint.load(folder, device, quantization=nf4, trust_remote_code=trust_remote_code)
    with checkpoint.quiet_peft():
        return prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)


def _train(
    model: torch.nn.Module,
    chosen: Trainable,
    step: Step,
    rows: Rows,
    samples: Samples,
    config: HealingConfig,
    speed: Throughput,
    parameters: int,
    work: Path,
    device: torch.device,
    progress: bool,
) -> "Trained":
    from hf_prune.healing.trainer import train

    steps = planned_steps(config, samples)
    tokens = round(steps * _tokens_per_step(config, samples))
    log.info("healing: %d steps, about %d tokens, about %s", steps, tokens, in_words(eta(tokens, parameters, speed)))
    return train(
        model,
        chosen,
        step,
        rows,
        config,
        steps=steps,
        folder=work / _CHECKPOINTS,
        device=device,
        autocast=speed.dtype == "bfloat16",
        recompute=parameters >= _RECOMPUTE_FROM,
        progress=progress,
    )


def _notes(
    chosen: Trainable, done: "Trained", samples: Samples, config: HealingConfig, losses: HeldOutLoss
) -> list[str]:
    notes = [chosen.warning] if chosen.warning else []
    if config.batch_size and len(samples.sequences) < config.batch_size:
        notes.append(
            f"The healing text holds {len(samples.sequences)} sequences, fewer than one batch of {config.batch_size}."
        )
    if done.epochs >= 2:
        notes.append(f"The healing text was too short for the token budget and was read {done.epochs:.1f} times.")
    shipped = losses.merged if config.output == "merged" else losses.adapter
    if shipped >= losses.pruned:
        notes.append(
            f"Healing did not lower the held-out loss ({losses.pruned:.4f} before, {shipped:.4f} after, nats per "
            "token): heal on more tokens, or change the learning rate or the rank."
        )
    share = merge_loss_share(losses)
    if config.output == "merged" and share is not None and share > MERGE_LOSS_LIMIT:
        notes.append(
            f"Merging lost {share:.0%} of what healing gained: the weights' dtype swallows small changes. Ship the "
            "adapter beside the pruned weights with --heal-output adapter, or prune a float32 copy of the model."
        )
    return notes


def _free(device: torch.device) -> None:
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
