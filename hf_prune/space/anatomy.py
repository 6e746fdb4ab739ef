"""What the records of a pair say, for people: plain text, rows and drawings; no model is loaded.

Records come with a stranger's repo: what contradicts itself or can't be is refused, and text stays text.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from hf_prune import card_healing, card_tasks, card_warnings, card_worse
from hf_prune import card_tables as tables
from hf_prune.card_choice import runner_up
from hf_prune.card_metadata import SELF_GENERATED, base_of, dataset_name
from hf_prune.cards import shipped_model
from hf_prune.errors import ConfigError, PruneError
from hf_prune.layer_states import State, layer_states
from hf_prune.markdown import one_line
from hf_prune.methods import get_method
from hf_prune.output import Finished
from hf_prune.pictures import LAYERS_FILE, WIDTHS_FILE, pictures
from hf_prune.plotting.figures import per_layer
from hf_prune.records import Evaluation, Plan, Scores, Slicing, TextUse
from hf_prune.space.drawings import Drawing, drawn
from hf_prune.space.ids import shown
from hf_prune.space.layer_map import Cell
from hf_prune.space.layer_map import State as CellState
from hf_prune.space.pair import Pair
from hf_prune.space.record_checks import check_records

Rows = tuple[tuple[str, ...], ...]

_CELLS: dict[State, CellState] = {
    "kept": "kept",
    "weights changed": "changed",
    "attention silenced": "attention",
    "MLP silenced": "mlp",
    "attention and MLP silenced": "silenced",
    "without attention": "no-attention",
    "without MLP": "no-mlp",
    "without attention and MLP": "no-parts",
    "removed": "removed",
}


@dataclass(frozen=True)
class Table:
    """Figures side by side; all cells are untrusted text.

    Attributes:
        head: of the columns.
        rows: the first cell names the figure.
    """

    head: tuple[str, ...]
    rows: Rows


@dataclass(frozen=True)
class Anatomy:
    """Everything that the tab shows; every text is untrusted.

    Attributes:
        method: title of the recipe.
        method_name: what users type.
        paper: its address.
        described: what was done, in a phrase.
        reason: why these layers or widths, in a sentence.
        runner_up: how close the choice was; empty where nothing was held against it.
        fits: what was found when something was fitted to the model, a sentence each.
        cells: the layer map.
        alt: the map in words.
        calibration: the text that was measured, in words; None where nothing was.
        slicing: of a sliced model, what was asked for and what came of it.
        healing: how it was healed, by name; empty where it was not.
        stations: held-out loss at each station of healing.
        warnings: what to know first.
        worse: what got worse: figure, before, after, share; None where it can't be told.
        drawings: by the file that a card calls them.
        figures: of the evaluation.
        tasks: benchmarks.
        notes: where the figures come from.
    """

    method: str
    method_name: str
    paper: str
    described: str
    reason: str
    runner_up: str
    fits: tuple[str, ...]
    cells: tuple[Cell, ...]
    alt: str
    calibration: str | None
    slicing: Rows
    healing: Rows
    stations: Rows
    warnings: tuple[str, ...]
    worse: Rows | None
    drawings: dict[str, Drawing]
    figures: Table | None
    tasks: Table | None
    notes: tuple[str, ...]


def anatomy(pair: Pair) -> Anatomy:
    """All that the records of a pair say.

    Raises:
        PruneError: records that contradict each other, or hold what can't be.
    """
    try:
        check_records(pair.records)
        return _anatomy(pair)
    except PruneError as error:  # in which a record may be quoted
        raise type(error)(shown(error, 500)) from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the records of '{one_line(pair.name, 120)}' can't be shown: they hold figures that no measurement gives "
            f"({type(error).__name__}). Its author would have to make them again"
        ) from error


def distance_words(plan: Plan, scores: Scores | None) -> str | None:
    """The distance across the removed layers; None where none was measured."""
    return None if plan.distance is None else tables.number(plan.distance, distance_error(plan, scores))


def distance_error(plan: Plan, scores: Scores | None) -> float | None:
    """Standard error of the distance that the plan names; None where there is none."""
    gone = plan.dropped
    if plan.distance is None or scores is None or not scores.distances or not gone:
        return None
    if len(gone) != gone[-1] - gone[0] + 1:
        return None
    return scores.standard_errors[gone[0]][gone[-1] + 1]


def drop_cells(plan: Plan, scores: Scores | None, healed: bool) -> tuple[Cell, ...]:
    """The layer map of a model that lost layers, or parts of them.

    Args:
        plan: which ones.
        scores: what was measured of each layer alone is told with it.
        healed: whether those that stayed were trained after the cut.
    """
    details = _details(scores, plan.model.num_layers)
    return tuple(
        Cell(i, "healed" if state == "kept" and healed else _CELLS[state], detail=details[i])
        for i, state in enumerate(layer_states(plan))
    )


def text_words(data: TextUse | None) -> str:
    """Which text was used, in words."""
    if data is None:
        return "the model alone, without calibration text"
    if data.dataset is None:
        name = SELF_GENERATED
    else:
        name = ", ".join([dataset_name(data), *(one_line(part, 100) for part in (data.config, data.split) if part)])
    return (
        f"{name}: {data.samples:,} samples of at most {data.max_length:,} tokens, {data.tokens:,} in all, "
        f"seed {data.seed}"
    )


def _anatomy(pair: Pair) -> Anatomy:
    records = pair.records
    plan, scores, healing, evaluation = records.plan, records.scores, records.healing, records.evaluation
    method = get_method(plan.method)
    shipped = shipped_model(healing, evaluation)
    base = base_of(plan, records.config.base_model, records.config.base_revision)
    drawings = drawn(pair)
    map_file = LAYERS_FILE if plan.slicing is None else WIDTHS_FILE
    tasks, _ = card_tasks.quoted(evaluation) if evaluation is not None else ([], [])
    return Anatomy(
        method=method.title,
        method_name=plan.method,
        paper=method.paper,
        described=plan.describe(),
        reason=one_line(plan.reason, 600),
        runner_up=runner_up(plan),
        fits=tuple(one_line(sentence, 600) for sentence in plan.fits),
        cells=(
            drop_cells(plan, scores, healing is not None)
            if plan.slicing is None
            else _width_cells(plan.slicing, scores)
        ),
        alt=pictures(plan, scores, healing, None)[map_file].alt,
        calibration=_calibration(scores, plan),
        slicing=_slicing(plan.slicing) if plan.slicing is not None else (),
        healing=_healing(records),
        stations=_rows(card_healing.held_out_rows(healing)) if healing is not None else (),
        warnings=tuple(card_warnings.warnings(plan, base, scores, healing, evaluation, shipped)),
        worse=_worse(records, tasks),
        drawings=drawings,
        figures=_figures(evaluation),
        tasks=_tasks(evaluation, tasks),
        notes=_notes(evaluation) if evaluation is not None else (),
    )


def _details(scores: Scores | None, layers: int) -> list[str]:
    """What was measured of each layer alone, in words."""
    told: list[list[str]] = [[] for _ in range(layers)]
    for row in per_layer(scores) if scores is not None else ():
        for layer, value in row.known.items():
            told[layer].append(f"{one_line(row.name, 80)} {tables.number(value, row.error(layer))}")
    return ["; ".join(parts) for parts in told]


def _width_cells(slicing: Slicing, scores: Scores | None) -> tuple[Cell, ...]:
    details = _details(scores, len(slicing.widths))
    return tuple(
        Cell(
            i,
            "narrowed" if width < slicing.hidden_size else "kept",
            str(width),
            f"width {width} of {slicing.hidden_size}" + (f"; {details[i]}" if details[i] else ""),
        )
        for i, width in enumerate(slicing.widths)
    )


def _calibration(scores: Scores | None, plan: Plan) -> str | None:
    if scores is not None:
        return f"Measured in {tables.duration(scores.seconds)} on {text_words(scores.data)}."
    if plan.data is not None:
        return f"{'Chosen' if plan.forwards is not None else 'Fitted'} on {text_words(plan.data)}."
    if plan.slicing is not None and plan.slicing.calibration is not None:
        return f"Calibrated on {text_words(plan.slicing.calibration)}."
    return None


def _slicing(slicing: Slicing) -> Rows:
    grown = "more" if slicing.parameters > slicing.original_parameters else "fewer"
    rows = [
        ("Asked to cut", f"{tables.percent(slicing.requested)} of the {slicing.requested_of}"),
        ("Mean width kept", f"{tables.percent(slicing.mean_width)} of {slicing.hidden_size}"),
        ("Parameters", f"{slicing.parameters:,}, {tables.percent(abs(slicing.saved))} {grown} than before"),
        ("In shortcuts between layers", tables.percent(slicing.shortcut_share)),
    ]
    return tuple(rows)


def _healing(records: Finished) -> Rows:
    healing = records.healing
    if healing is None:
        return ()
    facts = card_healing.facts(healing, healing.output)
    folded = card_healing.folded(healing.target_modules)
    kind = "parameters" if healing.kind == "weights" else "adapter parameters"
    rows = [
        ("How", f"{facts['name']}, {one_line(facts['quantization'], 60)}"),
        ("Trained", f"{facts['parameters']} {kind} in {one_line(', '.join(folded), 300)}"),
        ("For", f"{facts['steps']} steps, {facts['tokens']} tokens, {facts['duration']}"),
        ("On", f"{one_line(facts['hardware'], 100)}; {text_words(healing.data)}"),
        ("Shipped as", "merged weights" if healing.output == "merged" else "an adapter beside the pruned weights"),
    ]
    recovered = records.evaluation.recovered if records.evaluation is not None else None
    if recovered is not None:
        rows.append(("Won back", f"{tables.percent(recovered)} of the loss that pruning had added"))
    if facts["merge"]:
        rows.append(("Merging", facts["merge"]))
    return tuple(rows)


def _worse(records: Finished, tasks: Sequence[card_tasks.Key]) -> Rows | None:
    shipped = shipped_model(records.healing, records.evaluation)
    if records.evaluation is None or shipped is None:
        return None
    original = next((m for m in records.evaluation.models if m.label == "original"), None)
    if original is None:
        return None
    return tuple(
        (loss.name, loss.before, loss.after, tables.percent(loss.relative))
        for loss in card_worse.losses(original, shipped, tasks)[: card_worse.MOST]
    )


def _figures(evaluation: Evaluation | None) -> Table | None:
    if evaluation is None or not evaluation.models:
        return None
    return Table(_head(evaluation), _rows(tables.results_rows(evaluation)))


def _tasks(evaluation: Evaluation | None, tasks: Sequence[card_tasks.Key]) -> Table | None:
    if evaluation is None or not tasks:
        return None
    return Table(_head(evaluation), _rows(card_tasks.tasks_rows(evaluation, tasks, tables.number)))


def _notes(evaluation: Evaluation) -> tuple[str, ...]:
    where = evaluation.environment
    notes = [f"Measured on {one_line(where.hardware, 200)} ({one_line(where.dtype, 40)})."]
    texts = {text.name: text for model in evaluation.models for text in model.perplexity}
    for text in texts.values():
        notes.append(
            f"{one_line(text.name, 100)}: {text_words(text.data)}; windows of {text.window} tokens moved by "
            f"{text.stride}, {text.tokens:,} predicted tokens."
        )
    if texts:
        notes.append("± is one standard error over windows.")
    speed = next((m.speed for m in evaluation.models if m.speed is not None), None)
    if speed is not None:
        turns = f"; the models took turns {speed.rounds} times" if speed.rounds > 1 else ""
        notes.append(
            f"Speed: median of {speed.runs} runs (slowest to fastest in brackets), batch {speed.batch}, prompts of "
            f"{speed.prompt_tokens} tokens, {speed.new_tokens} new tokens{turns}."
        )
    return tuple(notes)


def _head(evaluation: Evaluation) -> tuple[str, ...]:
    return ("", *(model.label for model in evaluation.models))


def _rows(rows: Sequence[Sequence[str]]) -> Rows:
    return tuple(tuple(row) for row in rows)
