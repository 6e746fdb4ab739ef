"""What travels between the stages: frozen records that are also JSON files in the run folder."""

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from hf_prune.figures import Completion, Evaluation, Fidelity, ModelEvaluation, Perplexity, Rate, Speed, TaskResult
from hf_prune.healing_record import CurvePoint, Healing, HeldOutLoss
from hf_prune.record_base import Environment, ModelRef, Record, TextUse
from hf_prune.units import Part, Unit

__all__ = [
    "Completion",
    "CurvePoint",
    "Environment",
    "Evaluation",
    "Fidelity",
    "Healing",
    "HeldOutLoss",
    "ModelEvaluation",
    "ModelRef",
    "Operation",
    "Perplexity",
    "Plan",
    "Rate",
    "Record",
    "Schedule",
    "Scores",
    "Slicing",
    "Speed",
    "TaskResult",
    "TextUse",
    "Trial",
    "ranges",
]


@dataclass(frozen=True)
class Scores(Record):
    """What a measure found in one pass.

    Attributes:
        model: the model measured.
        measure: registry name.
        options: the measure's options.
        distances: (L+1) x (L+1) means over samples, row i column j the distance between h_i and h_j (symmetric,
            zero diagonal), where h_i is the residual stream entering block i and h_L leaves the last block; empty
            where the measure speaks of single layers.
        standard_errors: same shape; standard error of each mean (sample standard deviation / sqrt(samples)).
        data: the calibration text; None where none was read.
        environment: where it was measured.
        seconds: of the pass.
        layers: one score a layer, where the measure speaks of single layers ("redundancy": the mean cosine between
            a layer's input and output, in [-1, 1]).
        layer_standard_errors: of each of them, over samples.
        importances: by part of a block ("block", "attention", "mlp"), how much that of each layer matters, where the
            measure says so: what has the lowest goes first. None where a layer has no such part.
        importance_errors: standard error of each of them, where the measure knows it.
        whole: what the measure finds of the whole model, where it judges outputs (its loss, say).
        forwards: passes of the text through the whole model that measuring took; a part of a pass counts as such.
    """

    FILE: ClassVar[str] = "scores.json"

    model: ModelRef
    measure: str
    options: dict[str, Any]
    distances: tuple[tuple[float, ...], ...]
    standard_errors: tuple[tuple[float, ...], ...]
    data: TextUse | None
    environment: Environment
    seconds: float
    layers: tuple[float, ...] = ()
    layer_standard_errors: tuple[float, ...] = ()
    importances: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    importance_errors: dict[str, tuple[float | None, ...]] = field(default_factory=dict)
    whole: float | None = None
    forwards: float | None = None

    def windows(self, size: int) -> list[tuple[int, float, float]]:
        """All windows of `size` blocks as (start, distance, standard error), start = 0 … L - size."""
        last = self.model.num_layers - size
        return [(s, self.distances[s][s + size], self.standard_errors[s][s + size]) for s in range(last + 1)]


@dataclass(frozen=True)
class Operation:
    """One step of surgery.

    Attributes:
        kind: registry name of the surgery ("drop", "slice").
        layers: the blocks it acts on, 0-based indices of the ORIGINAL model, ascending.
        options: the surgery's options.
    """

    kind: str
    layers: tuple[int, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def reads_fitted(self) -> bool:
        """Whether it reads the plan's file of fitted tensors, as its option `file`."""
        return self.kind in ("replace", "mask", "linearize", "patch")


@dataclass(frozen=True)
class Trial:
    """One decision of a search over what goes.

    Attributes:
        removed: what was gone behind it, ascending.
        score: the damage by the search's measure; lower is better.
        tried: cuts that it was the best of.
    """

    removed: tuple[Unit, ...]
    score: float
    tried: int


@dataclass(frozen=True)
class Schedule:
    """One candidate of a search over slicing schedules.

    Attributes:
        base: slice base SB, the share that every layer loses at least.
        widths: one a layer.
        loss: nats per token of the sliced model on the selection text.
        standard_error: of that loss, over sequences.
    """

    base: float
    widths: tuple[int, ...]
    loss: float
    standard_error: float


@dataclass(frozen=True)
class Slicing:
    """How wide a sliced model is, and what that costs and saves.

    Attributes:
        hidden_size: width of the residual stream before slicing.
        embed: width of the embeddings.
        attn_out: width after the attention of each layer; empty for parallel blocks, which add once.
        mlp_out: width after each layer.
        basis: "per_block" (one rotation at each point, shortcuts between them) or "global" (one rotation, none).
        tied: whether head and embeddings stay one table.
        plain: whether the result is a stock model of the base's own architecture.
        requested: share that was asked for.
        requested_of: "width" or "parameters".
        original_parameters: of the base model, tied ones once.
        parameters: of the sliced model, tied ones once.
        shortcut_parameters: of these, in the shortcuts.
        base: slice base of a dynamic schedule; None for a constant one.
        redundancy: LR of each layer in [0, 1], where the schedule follows it.
        search: every schedule that was tried, where several were.
        selection: the text that chose among them.
        calibration: the text whose principal directions are kept.
    """

    hidden_size: int
    embed: int
    attn_out: tuple[int, ...]
    mlp_out: tuple[int, ...]
    basis: Literal["per_block", "global"]
    tied: bool
    plain: bool
    requested: float
    requested_of: Literal["width", "parameters"]
    original_parameters: int
    parameters: int
    shortcut_parameters: int
    base: float | None = None
    redundancy: tuple[float, ...] | None = None
    search: tuple[Schedule, ...] = ()
    selection: TextUse | None = None
    calibration: TextUse | None = None

    @property
    def widths(self) -> tuple[int, ...]:
        """Width in which each layer reads the residual stream."""
        return (self.embed, *self.mlp_out[:-1])

    @property
    def mean_width(self) -> float:
        """Mean share of the width that the layers keep."""
        return sum(self.widths) / (len(self.widths) * self.hidden_size)

    @property
    def saved(self) -> float:
        """Share of all parameters that is gone; negative where the model grew."""
        return 1 - self.parameters / self.original_parameters

    @property
    def shortcut_share(self) -> float:
        """Share of the sliced model's parameters that the shortcuts take."""
        return self.shortcut_parameters / self.parameters


@dataclass(frozen=True)
class Plan(Record):
    """What will be done to which model: the contract between choosing and cutting.

    Attributes:
        model: the base model.
        method: recipe name.
        planner: registry name.
        operations: in order.
        reason: why these layers, one sentence.
        distance: of the chosen window, where there is one.
        runner_up: the next best layers, where there are some.
        gap: runner-up's distance minus the chosen one's.
        gap_standard_error: of that gap (root of the sum of squares of the two standard errors; an upper bound for
            positively correlated windows).
        scores: sha256 of the scores record, where scores were used.
        slicing: how wide the model becomes, where it is sliced.
        sparsity: share of the weights of the blocks' linear maps that is to become zero, where single weights do.
        trials: what a search decided, step by step.
        forwards: passes of the calibration text through the whole model that the search took.
        data: the calibration text of a search, or of surgery that was fitted to the model.
        surgery: registry name of the surgery that was fitted to the model, where one was.
        surgery_options: its options.
        fits: of surgery that was fitted to the model, one sentence each on what was found.
        fitted: sha256 of the file of fitted tensors, which lies beside the plan as `fitted.safetensors`.
    """

    FILE: ClassVar[str] = "plan.json"
    FITTED: ClassVar[str] = "fitted.safetensors"

    model: ModelRef
    method: str
    planner: str
    operations: tuple[Operation, ...]
    reason: str
    distance: float | None = None
    runner_up: tuple[int, ...] | None = None
    gap: float | None = None
    gap_standard_error: float | None = None
    scores: str | None = None
    slicing: Slicing | None = None
    sparsity: float | None = None
    trials: tuple[Trial, ...] = ()
    forwards: float | None = None
    data: TextUse | None = None
    surgery: str | None = None
    surgery_options: dict[str, Any] = field(default_factory=dict)
    fits: tuple[str, ...] = ()
    fitted: str | None = None

    def at(self, folder: Path | None) -> Self:
        """The plan with its file of fitted tensors in a folder; by its bare name where None is given."""
        name = self.FITTED if folder is None else str(Path(folder).absolute() / self.FITTED)
        moved = tuple(
            dataclasses.replace(op, options={**op.options, "file": name}) if op.reads_fitted else op
            for op in self.operations
        )
        return dataclasses.replace(self, operations=moved)

    def save(self, folder: Path) -> Path:
        """See `Record.save`; the file of fitted tensors is named as one beside the record."""
        return Record.save(self.at(None), folder)

    @classmethod
    def load(cls, path: Path) -> Self:
        """See `Record.load`."""
        path = Path(path)
        return super().load(path).at(path if path.is_dir() else path.parent)

    @property
    def only_drops(self) -> bool:
        """Whether whole blocks go, and nothing else is done."""
        return all(op.kind == "drop" for op in self.operations)

    @property
    def unchanged(self) -> bool:
        """Whether what is kept stays as it was, to the bit."""
        return all(op.kind in ("drop", "remove") for op in self.operations)

    @property
    def hard(self) -> bool:
        """Whether blocks become such as no stock model has: parts are taken out, or maps of the stream put in."""
        return any(op.kind in ("remove", "linearize", "patch") for op in self.operations)

    @property
    def ships_code(self) -> bool:
        """Whether the result is no stock model, and travels with its modeling code."""
        return self.hard or (self.slicing is not None and not self.slicing.plain)

    @property
    def removed(self) -> tuple[Unit, ...]:
        """All that goes or is silenced, ascending."""
        units = [Unit(i) for i in self.dropped]
        for op in self.operations:
            if op.kind in ("silence", "remove"):
                part: Part = op.options["part"]
                units += [Unit(i, part) for i in op.layers]
            elif op.kind == "linearize":
                units += [Unit(i, "attention") for i in op.layers]
        return tuple(sorted(units))

    @property
    def silenced(self) -> tuple[Unit, ...]:
        """Parts of blocks that stay in the model and write nothing, by the blocks' positions among those that stay.

        What a linear map stands in for does write.
        """
        place = {layer: position for position, layer in enumerate(self.kept)}
        writing = {Unit(i, "attention") for op in self.operations if op.kind == "linearize" for i in op.layers}
        gone = [unit for unit in self.removed if unit.part != "block" and unit not in writing]
        return tuple(Unit(place[unit.layer], unit.part) for unit in gone if unit.layer in place)

    @property
    def dropped(self) -> tuple[int, ...]:
        """Original indices of all blocks that go, ascending."""
        return tuple(sorted({i for op in self.operations if op.kind == "drop" for i in op.layers}))

    @property
    def kept(self) -> tuple[int, ...]:
        """Original indices of all blocks that stay, ascending."""
        gone = set(self.dropped)
        return tuple(i for i in range(self.model.num_layers) if i not in gone)

    def describe(self) -> str:
        """For people: "drop layers 21–28 (8 of 32, counted from 0)"."""
        if self.slicing is not None:
            cut, narrow, wide = self.slicing, min(self.slicing.widths), max(self.slicing.widths)
            widths = f"{narrow}" if narrow == wide else f"{narrow}–{wide}"
            change = f"{abs(cut.saved):.1%} {'fewer' if cut.saved >= 0 else 'MORE'} parameters"
            return (
                f"slice the width of {self.model.num_layers} layers from {cut.hidden_size} to {widths} "
                f"({1 - cut.mean_width:.1%} narrower on average, {change})"
            )
        if self.sparsity is not None:
            return (
                f"zero {self.sparsity:.1%} of the weights of all {self.model.num_layers} layers' linear maps (size "
                "and speed stay as they are without a kernel for sparse weights)"
            )
        layers = "layer" if len(self.dropped) == 1 else "layers"
        told = [
            f"drop {layers} {ranges(self.dropped)} ({len(self.dropped)} of {self.model.num_layers}, counted from 0)"
        ]
        if not self.dropped:
            told = []
        for op in self.operations:
            if op.kind in ("silence", "remove"):
                name = {"attention": "the attention", "mlp": "the MLP"}[op.options["part"]]
                verb = "silence" if op.kind == "silence" else "take out"
                told.append(
                    f"{verb} {name} of layers {ranges(op.layers)} ({len(op.layers)} of {self.model.num_layers}, "
                    "counted from 0)"
                )
            elif op.kind == "linearize":
                told.append(
                    f"replace the attention of layers {ranges(op.layers)} by linear maps ({len(op.layers)} of "
                    f"{self.model.num_layers}, counted from 0)"
                )
            elif op.kind == "patch":
                told.append(f"put a map of the stream behind layers {ranges(op.layers)}")
        return "; ".join(told) or "drop nothing"


def ranges(layers: tuple[int, ...]) -> str:
    """Ascending indices as ranges: (1, 2, 3, 7) -> "1–3, 7"."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(str(a) if a == b else f"{a}–{b}" for a, b in runs) or "none"
