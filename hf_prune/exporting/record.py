"""What an export was made of, and how it was held against it."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from hf_prune.record_base import Environment, ModelRef, Record, TextUse
from hf_prune.saving import RECORDS


@dataclass(frozen=True)
class Export(Record):
    """How one form of a model was made of another.

    Attributes:
        form: "base-adapter" or "nf4".
        model: the model that was pruned.
        bytes: of the weight files that were written.
        source_bytes: of the weight files that they stand for, an adapter's included.
        environment: where the two were compared.
        difference: largest absolute difference of the logits for fixed inputs, between what was written, loaded again,
            and what it stands for: the pruned model with its adapter, or the 4-bit model in memory.
        tolerance: the difference allowed, of the same kind.
        loss_before: of the unquantized weights, nats per token; None where no text of the model's own evaluation was
            at hand.
        loss_after: of the 4-bit ones.
        loss_tokens: predicted tokens behind both.
        loss_data: which text.
        base_card: README.md of the model that was pruned (untrusted); licence and language are read from it.
    """

    FILE: ClassVar[str] = "export.json"

    form: Literal["base-adapter", "nf4"]
    model: ModelRef
    bytes: int
    source_bytes: int
    environment: Environment
    difference: float
    tolerance: float
    loss_before: float | None = None
    loss_after: float | None = None
    loss_tokens: int | None = None
    loss_data: TextUse | None = None
    base_card: str | None = None


def is_export(folder: Path) -> bool:
    """Whether a folder is an export, and no finished folder."""
    return (folder / RECORDS / Export.FILE).is_file()
