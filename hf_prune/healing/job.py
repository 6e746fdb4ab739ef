"""One healing run, settled before any weights are loaded: what is trained, on what, against what, and where."""

import logging
import math
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_prune import extras
from hf_prune.architecture import Decoder, decoder_of
from hf_prune.config import HealingConfig
from hf_prune.distributed import Group
from hf_prune.errors import ConfigError
from hf_prune.healing import checkpoint
from hf_prune.healing.budget import Throughput, probe
from hf_prune.healing.choice import choose
from hf_prune.healing.nf4 import leaves_some
from hf_prune.healing.optimizer import check_optimizer
from hf_prune.healing.origin import Origin
from hf_prune.healing.original import Computing
from hf_prune.healing.reporting import check_reporting
from hf_prune.healing.rows import Rows
from hf_prune.healing.step import WeightedLoss, compared_positions, parse_losses
from hf_prune.healing.teaching import Asked, asked, check_losses, check_teacher
from hf_prune.healing.together import check_shared
from hf_prune.healing.trained import Trainable
from hf_prune.healing.work import open_work
from hf_prune.samples import Samples
from hf_prune.samples import digest as samples_digest

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """What is to be done.

    Attributes:
        folder: the pruned checkpoint.
        work: folder of the working state.
        config: resolved.
        samples: training text.
        rows: the same as rows of a batch.
        held_out: disjoint text to measure on.
        blank: the pruned model without weights.
        origin: where it comes from.
        chosen: what is trained.
        terms: of the loss.
        positions: where hidden states of both models are compared.
        wanted: what the original is asked for; None where nothing is.
        quantized: whether frozen weights are kept in 4 bits.
        parameters: of the pruned model.
        speed: of this machine.
        device: where to heal.
        group: the processes that train together.
        trust_remote_code: whether to run code from `folder`.
        notes: sentences for the record.
    """

    folder: Path
    work: Path
    config: HealingConfig
    samples: Samples
    rows: Rows
    held_out: Samples
    blank: Decoder
    origin: Origin
    chosen: Trainable
    terms: tuple[WeightedLoss, ...]
    positions: tuple[int, ...]
    wanted: Asked | None
    quantized: bool
    parameters: int
    speed: Throughput
    device: torch.device
    group: Group
    trust_remote_code: bool
    notes: tuple[str, ...]

    @property
    def micro_batch_size(self) -> int:
        """Sequences at once."""
        return self.config.micro_batch_size or 1

    @property
    def autocast(self) -> bool:
        """Whether matrix products run in bfloat16."""
        return self.speed.dtype == "bfloat16"

    @property
    def computing(self) -> Computing:
        """How the original computes beside the pruned model."""
        dtype = self.blank.model.dtype if self.autocast and not self.quantized else getattr(torch, self.speed.dtype)
        return Computing(
            self.device, dtype, self.autocast, quantized=self.quantized, trust_remote_code=self.trust_remote_code
        )


def prepare(
    folder: Path,
    samples: Samples,
    held_out: Samples,
    config: HealingConfig,
    *,
    work: Path,
    device: torch.device | str | None,
    resume: bool,
    trust_remote_code: bool,
    origin: Origin | None,
    group: Group,
) -> Job:
    """Settle a run, and open the folder of its working state; see `pipeline.heal` for arguments and errors."""
    checkpoint.check_config(config)
    shape = checkpoint.read_config(folder, trust_remote_code=trust_remote_code)
    checkpoint.check_samples(samples, held_out, config, shape.vocab_size)
    require(config.quantize)
    # Before any weights are there: what is trained must be loaded whole.
    blank = decoder_of(checkpoint.blank(folder, trust_remote_code=trust_remote_code), folder.name)
    origin = origin or Origin(tuple(range(blank.num_layers)), blank.num_layers)
    chosen = choose(blank, config, origin)
    notes: list[str] = []
    quantized = _quantize(blank, chosen, config, notes)
    place = _device(device)
    check_optimizer(config.optimizer, place)
    check_reporting(config.report_to)
    terms = parse_losses(config)
    positions = compared_positions(terms, origin)
    check_losses(terms, positions, chosen.lowest, origin)
    wanted = asked(config, terms, positions)
    facts = _facts(folder, samples, held_out, quantized, place)
    if wanted is not None:
        check_teacher(wanted, origin)
        facts["original"] = origin.key
    if group.size > 1:
        check_shared(config, wanted, group)
    parameters = checkpoint.count_parameters(folder)
    speed = group.share(
        lambda: open_work(work, config, facts, resume=resume, measure=lambda: probe(place, parameters))
    )
    return Job(
        folder, work, config, samples, _rows(samples, config), held_out, blank, origin, chosen, terms, positions,
        wanted, quantized, parameters, speed, place, group, trust_remote_code, tuple(notes),
    )  # fmt: skip


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
    return max(1, min(config.steps, int(config.tokens / tokens_per_step(config, rows))))


def passes(config: HealingConfig, rows: Rows) -> float:
    """How often a run reads its text."""
    return planned_steps(config, rows) * tokens_per_step(config, rows) / rows.tokens


def _rows(samples: Samples, config: HealingConfig) -> Rows:
    assert config.max_length
    if config.packing:
        return Rows.packed(samples, config.max_length, micro_batch_size=config.micro_batch_size or 1)
    return Rows.of(samples)


def tokens_per_step(config: HealingConfig, rows: Rows) -> float:
    """Tokens that one optimizer step reads, on average.

    A pass over the text leaves an incomplete last forward out, and its last step has the forwards that are left.
    """
    assert config.batch_size
    micro = config.micro_batch_size or 1
    size = min(micro, len(rows))
    forwards = len(rows) // size
    steps = math.ceil(forwards / (config.batch_size // micro))
    return forwards * size / steps * rows.tokens / len(rows)


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


def _facts(folder: Path, samples: Samples, held_out: Samples, quantized: bool, device: torch.device) -> dict[str, str]:
    """What decides the result beside the settings; see `work.open_work`."""
    return {
        "pruned checkpoint": checkpoint.fingerprint(folder),
        "healing text": samples_digest(samples.sequences, samples.learned),
        "held-out text": samples_digest(held_out.sequences, held_out.learned),
        "choice between 4-bit and whole weights": str(quantized),
        "kind of device": device.type,
    }
