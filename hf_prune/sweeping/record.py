"""What a sweep found: one point a method and amount, the knees of the curves, and the point that a target picked."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from hf_prune.figures import ModelEvaluation, TaskResult
from hf_prune.record_base import Environment, ModelRef, Record

Stage = Literal["pruned", "healed"]
STAGES: tuple[Stage, ...] = ("pruned", "healed")


@dataclass(frozen=True)
class SweepPoint:
    """One method at one amount.

    Attributes:
        name: of its folder below `points/`, such as "uidl-3".
        method: recipe name.
        amount: layers dropped, or share that was asked for.
        amount_of: what the amount counts.
        status: "done"; "failed" where it could not be made or measured; "skipped" where it cannot exist.
        message: why, where it is not done.
        dropped: original indices of the blocks that went.
        widths: in which each layer reads the residual stream, where it was sliced.
        parameters: of the pruned model, tied ones once; 0 where it is not done.
        bytes: of its weights, likewise.
        share_removed: of the original's parameters; negative where the model grew.
        pruned: figures before healing.
        healed: figures after healing, where that was asked for.
        healing_tokens: training tokens seen, where it was healed.
        seconds: of the call that finished the point; what is shared by all points is not in them.
    """

    name: str
    method: str
    amount: float
    amount_of: Literal["layers", "width", "parameters"]
    status: Literal["done", "failed", "skipped"]
    message: str | None = None
    dropped: tuple[int, ...] = ()
    widths: tuple[int, ...] = ()
    parameters: int = 0
    bytes: int = 0
    share_removed: float = 0.0
    pruned: ModelEvaluation | None = None
    healed: ModelEvaluation | None = None
    healing_tokens: int | None = None
    seconds: float = 0.0

    def figures(self, stage: Stage) -> ModelEvaluation | None:
        """Figures before or after healing, as far as they are there."""
        return self.pruned if stage == "pruned" else self.healed


@dataclass(frozen=True)
class Knee:
    """Where a curve begins to rise.

    Attributes:
        method: whose curve.
        stage: before or after healing.
        point: name of the point; None where the curve has no knee.
        share_removed: of the parameters at that point.
        distance: of the scaled curve below its chord at that point.
        reason: one sentence.
    """

    method: str
    stage: Stage
    point: str | None
    share_removed: float | None
    distance: float | None
    reason: str


@dataclass(frozen=True)
class Choice:
    """The point that a target picked.

    Attributes:
        target: what was asked for.
        value: the bound.
        stage: the stage whose figures were held against it.
        point: name of the point; None where none meets the target.
        closest: name of the point that comes closest, where none meets it.
        plan: file with the plan of the point, beside the record.
        reason: one sentence.
    """

    target: Literal["ppl-ratio", "accuracy-drop", "size"]
    value: float
    stage: Stage
    point: str | None
    closest: str | None
    plan: str | None
    reason: str


@dataclass(frozen=True)
class Picture:
    """A drawing beside the record.

    Attributes:
        file: its name.
        alt: the same in words.
    """

    file: str
    alt: str


@dataclass(frozen=True)
class Sweep(Record):
    """Quality against what is removed.

    Attributes:
        model: the base model.
        config: the recipe that all points share, as JSON types; paths are shortened to names.
        methods: in the order of the points.
        heal: whether points were healed.
        original: figures of the base model.
        points: in order of methods and amounts.
        knee_rule: how knees are found.
        knees: one a method and stage.
        choice: what the target picked, where one was given.
        pictures: drawings beside the record.
        environment: where the original was measured.
    """

    FILE: ClassVar[str] = "sweep.json"

    model: ModelRef
    config: dict[str, Any]
    methods: tuple[str, ...]
    heal: bool
    original: ModelEvaluation
    points: tuple[SweepPoint, ...]
    knee_rule: str
    knees: tuple[Knee, ...]
    choice: Choice | None
    pictures: tuple[Picture, ...]
    environment: Environment

    @property
    def last_stage(self) -> Stage:
        """The stage that is shipped: healed where points were healed."""
        return "healed" if self.heal else "pruned"

    @property
    def failed(self) -> int:
        """Points that could not be made or measured."""
        return sum(p.status == "failed" for p in self.points)

    def point(self, name: str) -> SweepPoint:
        """Look up a point by its name."""
        return next(p for p in self.points if p.name == name)

    def curve(self, method: str, stage: Stage) -> list[SweepPoint]:
        """The finished points of one method, by share removed."""
        found = [p for p in self.points if p.method == method and p.figures(stage) is not None]
        return sorted(found, key=lambda p: (p.share_removed, p.amount))


def perplexity_ratio(found: ModelEvaluation, original: ModelEvaluation) -> float:
    """Perplexity on the first text, as a multiple of the original's."""
    return math.exp(found.perplexity[0].nll - original.perplexity[0].nll)


def counted(found: ModelEvaluation) -> list[TaskResult]:
    """The results that `accuracy` is the mean of: a group counts once, its parts do not."""
    return [r for r in found.tasks if r.main and r.higher_is_better and r.parent is None]


def accuracy(found: ModelEvaluation) -> tuple[float, float | None] | None:
    """Mean of the main results of all benchmark tasks, and its standard error (tasks taken as independent).

    Results of which less is better are left out.

    Returns:
        None where no task was run; no standard error where a task has none.
    """
    kept = counted(found)
    if not kept:
        return None
    errors = [r.standard_error for r in kept if r.standard_error is not None]
    spread = math.hypot(*errors) / len(kept) if len(errors) == len(kept) else None
    return math.fsum(r.value for r in kept) / len(kept), spread
