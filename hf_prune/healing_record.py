"""How a pruned model was healed, and what that won back."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_prune.record_base import Environment, Record, TextUse


@dataclass(frozen=True)
class HeldOutLoss:
    """Mean next-token loss on text that was not trained on, nats per token, at each station of healing.

    Attributes:
        pruned: before healing, in the dtype that is shipped.
        quantized: pruned and quantized, before training; None without quantization.
        adapter_quantized: trained adapter on the quantized weights; None without quantization.
        adapter: trained adapter on the unquantized pruned weights.
        merged: adapter merged, in the dtype that is shipped.
        original: the model before pruning, where it was measured.
        tokens: predicted tokens behind each figure.
    """

    pruned: float
    quantized: float | None
    adapter_quantized: float | None
    adapter: float
    merged: float
    original: float | None
    tokens: int


@dataclass(frozen=True)
class CurvePoint:
    """The model on its way.

    Attributes:
        step: optimizer steps done.
        tokens: training tokens seen by then.
        flops: floating point operations spent by then, the original's among them.
        loss: held-out next-token loss, nats per token, of the model as it is trained (quantized, uncast).
        kl: mean divergence of its predictions from the original's on the held-out text, nats; None where no original
            was at hand.
    """

    step: int
    tokens: int
    flops: float
    loss: float
    kl: float | None = None


@dataclass(frozen=True)
class Healing(Record):
    """How the damage was healed.

    Attributes:
        settings: the resolved healing settings (every value that was used).
        quantization: "nf4 (double quantized)" or None.
        trained_parameters: parameters that were trained.
        target_modules: module name endings that carry adapters; where weights were trained themselves, the names of
            their tensors.
        steps: optimizer steps done.
        tokens: training tokens seen (pads not counted).
        seconds: of training.
        train_loss: mean of the last logged training loss, nats per token.
        held_out: losses at each station.
        merge_loss_share: part of the healing gain that merging lost (0.02 = 2 %); negative when merging helped.
        output: what is shipped: "merged" or "adapter".
        data: training text.
        held_out_data: held-out text.
        environment: where it ran.
        warnings: sentences for report and card.
        kind: whether "adapters" were trained beside the weights, or "weights" themselves.
        curve: the held-out figures on the way, the untrained model first.
        best_step: optimizer steps behind the weights that were taken; None where the last ones were.
        stopped: why training ended before its time, one sentence; None where it did not.
        reused: what was computed once for all and how much that saved, one sentence; None where nothing was.
    """

    FILE: ClassVar[str] = "healing.json"

    settings: dict[str, Any]
    quantization: str | None
    trained_parameters: int
    target_modules: tuple[str, ...]
    steps: int
    tokens: int
    seconds: float
    train_loss: float
    held_out: HeldOutLoss
    merge_loss_share: float | None
    output: Literal["merged", "adapter"]
    data: TextUse
    held_out_data: TextUse
    environment: Environment
    warnings: tuple[str, ...] = ()
    kind: Literal["adapters", "weights"] = "adapters"
    curve: tuple[CurvePoint, ...] = ()
    best_step: int | None = None
    stopped: str | None = None
    reused: str | None = None
