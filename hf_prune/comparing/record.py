"""What a comparison of methods found: one attempt a method and seed, each with its figures and what it took."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_prune.figures import ModelEvaluation
from hf_prune.record_base import Environment, ModelRef, Record, TextUse
from hf_prune.sweeping.record import Picture, Stage
from hf_prune.units import Unit

AmountOf = Literal["blocks", "attentions", "MLPs", "parts", "width", "weights", "parameters", "bytes", "flops"]
"""What an amount is counted in; "parts" are attentions and MLPs in one list, "weights" those of all linear maps."""


@dataclass(frozen=True)
class Effort:
    """What a piece of work took.

    Attributes:
        seconds: of wall clock.
        memory: bytes in use at the peak, beside the model and what else was there before: on GPUs by torch's
            allocator, elsewhere the growth of the process's resident set, sampled every millisecond.
        forwards: passes of the calibration text through the whole model; None where nobody counted.
    """

    seconds: float
    memory: int
    forwards: float | None = None


@dataclass(frozen=True)
class Contender:
    """One of the methods, as it was when it was compared.

    Attributes:
        name: of the recipe.
        title: in one line.
        paper: URL.
        measure: registry name; None where nothing is measured.
        planner: registry name.
        surgery: registry name.
    """

    name: str
    title: str
    paper: str
    measure: str | None
    planner: str
    surgery: str


@dataclass(frozen=True)
class Attempt:
    """One method with one seed.

    Attributes:
        name: of its folder below `points/`, such as "uidl-4-s0".
        method: recipe name.
        seed: which calibration and healing sequences are drawn and in which order, what the planner and the fit draw,
            and how healing starts. The text that models are judged on is that of all seeds.
        amount: what was asked for: a number of units, or a share.
        amount_of: what the amount counts; a share where it is below 1.
        status: "done"; "failed" where it could not be made or measured; "skipped" where this model cannot have it.
        message: why, where it is not done.
        removed: what went or was silenced, in the original's numbers.
        widths: in which each layer reads the residual stream, where it was sliced.
        reason: the plan's, why this goes.
        fits: the plan's sentences on what was fitted.
        parameters: of the pruned model as it is shipped, tied ones once; 0 where it is not done.
        bytes: of its weights, likewise.
        share_removed: of the original's parameters, those that the pruned model lacks; negative where it grew.
        share_silent: of the original's parameters, those of silenced parts that are still in the pruned model.
        choosing: measuring, searching and fitting, together.
        cutting: surgery on the model in memory; of slicing this finds the rotations.
        pruned: figures before healing.
        healed: figures after healing, where that was asked for.
        healing_tokens: training tokens seen, where it was healed.
        healing_seconds: of training.
        seconds: of the call that finished it, all in all.
    """

    name: str
    method: str
    seed: int
    amount: float
    amount_of: AmountOf
    status: Literal["done", "failed", "skipped"]
    message: str | None = None
    removed: tuple[Unit, ...] = ()
    widths: tuple[int, ...] = ()
    reason: str = ""
    fits: tuple[str, ...] = ()
    parameters: int = 0
    bytes: int = 0
    share_removed: float = 0.0
    share_silent: float = 0.0
    choosing: Effort | None = None
    cutting: Effort | None = None
    pruned: ModelEvaluation | None = None
    healed: ModelEvaluation | None = None
    healing_tokens: int | None = None
    healing_seconds: float | None = None
    seconds: float = 0.0

    def figures(self, stage: Stage) -> ModelEvaluation | None:
        """Figures before or after healing, as far as they are there."""
        return self.pruned if stage == "pruned" else self.healed


@dataclass(frozen=True)
class Comparison(Record):
    """Methods side by side.

    Attributes:
        model: the base model.
        config: the recipe that all share, as JSON types; paths are shortened to names.
        contenders: in the order asked for.
        seeds: the first is that of all methods.
        best: how many of the methods were tried with the other seeds; None tries all.
        heal: whether models were healed.
        healing: resolved settings of the first seed, the same for all methods; None where nothing was healed.
        texts: by what they are for, of each seed: "calibration, seed 0". Those that models were judged on are in the
            figures.
        original: figures of the base model.
        attempts: in the order in which they were made.
        pictures: drawings beside the record.
        environment: where the original was measured.
    """

    FILE: ClassVar[str] = "comparison.json"

    model: ModelRef
    config: dict[str, Any]
    contenders: tuple[Contender, ...]
    seeds: tuple[int, ...]
    best: int | None
    heal: bool
    healing: dict[str, Any] | None
    texts: dict[str, TextUse]
    original: ModelEvaluation
    attempts: tuple[Attempt, ...]
    pictures: tuple[Picture, ...]
    environment: Environment

    @property
    def last_stage(self) -> Stage:
        """The stage that methods are ranked by: healed where models were healed."""
        return "healed" if self.heal else "pruned"

    @property
    def failed(self) -> int:
        """Attempts that could not be made or measured."""
        return sum(attempt.status == "failed" for attempt in self.attempts)
