"""What is left when training is over: the loss at each station, and the model that is shipped."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from hf_prune.healing import checkpoint
from hf_prune.healing.adapter import save_adapter
from hf_prune.healing.held_out import held_out_loss, predicted_tokens
from hf_prune.healing.job import Job
from hf_prune.healing.training import Outcome
from hf_prune.healing.work import ADAPTER
from hf_prune.memory import give_back
from hf_prune.records import HeldOutLoss

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class Shipped:
    """The healed model.

    Attributes:
        model: plain, or with adapters on the pruned model.
        adapter: folder with the adapter alone; None where weights were trained themselves.
        losses: at each station.
    """

    model: "PreTrainedModel | PeftModel"
    adapter: Path | None
    losses: HeldOutLoss


def finish(job: Job, outcome: Outcome, base_model: str, original_loss: float | None) -> Shipped:
    """Put the trained tensors on the pruned weights, make them one, and measure each on the held-out text.

    Args:
        job: what was to be done.
        outcome: of its training.
        base_model: what the adapter's config calls its base.
        original_loss: held-out loss of the model before pruning, nats per token, where it is known.
    """
    plain = _plain(job)
    pruned = _loss(job, plain)
    attached = job.chosen.attach(plain, job.config, outcome.state, base_model)
    uncast = _loss(job, attached)
    adapter = None
    if job.chosen.kind == "adapters":
        adapter = job.work / ADAPTER
        if job.group.leads:
            save_adapter(attached, outcome.state, adapter)
        job.group.any(False)  # all of them may read it
    del plain, attached
    give_back()
    merged = _plain(job)
    job.chosen.merge(merged, job.config, outcome.state)
    losses = HeldOutLoss(
        pruned=pruned,
        quantized=outcome.quantized,
        adapter_quantized=outcome.trained_quantized,
        adapter=uncast,
        merged=_loss(job, merged),
        original=original_loss,
        tokens=predicted_tokens(job.held_out),
    )
    model: PreTrainedModel | PeftModel = merged
    if job.config.output == "adapter":
        del merged, model
        give_back()
        model = job.chosen.attach(_plain(job), job.config, outcome.state, base_model)
    return Shipped(model, adapter, losses)


def _plain(job: Job) -> PreTrainedModel:
    return checkpoint.load(job.folder, job.device, trust_remote_code=job.trust_remote_code)


def _loss(job: Job, model: "PreTrainedModel | PeftModel") -> float:
    return held_out_loss(model, job.held_out, batch_size=job.micro_batch_size)
