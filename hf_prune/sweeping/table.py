"""A sweep as CSV: one row a point and stage, floats as exact as they are."""

import csv
import io
from typing import Any

from hf_prune.figures import ModelEvaluation
from hf_prune.sweeping.record import STAGES, Sweep, SweepPoint, accuracy, perplexity_ratio

CSV_FILE = "sweep.csv"

_COLUMNS = (
    "point", "method", "stage", "amount", "amount_of", "layers_removed", "mean_width", "parameters", "bytes",
    "share_removed", "nll", "nll_standard_error", "perplexity", "perplexity_ratio", "bits_per_byte", "kl",
    "kl_standard_error", "top1_agreement", "accuracy", "accuracy_standard_error", "healing_tokens", "seconds",
)  # fmt: skip


def as_csv(sweep: Sweep) -> str:
    """The original first, then each finished point as pruned and, where it was, as healed.

    Columns are those of the record, on the first text; one more for the main result of each benchmark task. What was
    not measured is empty.
    """
    tasks = task_columns(sweep.original)
    out = io.StringIO()
    writer = csv.DictWriter(out, [*_COLUMNS, *(f"task:{name}" for name in tasks)], lineterminator="\n")
    writer.writeheader()
    known: dict[str, Any] = {"point": "original", "stage": "original", "amount": 0, "layers_removed": 0}
    size = {"parameters": sweep.original.parameters, "bytes": sweep.original.bytes, "share_removed": 0.0}
    writer.writerow(known | size | figure_cells(sweep.original, sweep.original, tasks))
    for point in sweep.points:
        for stage in STAGES:
            found = point.figures(stage)
            if found is not None:
                row = _point(point) | {"stage": stage} | figure_cells(found, sweep.original, tasks)
                writer.writerow(row | ({"healing_tokens": point.healing_tokens} if stage == "healed" else {}))
    return out.getvalue()


def _point(point: SweepPoint) -> dict[str, Any]:
    return {
        "point": point.name,
        "method": point.method,
        "amount": point.amount,
        "amount_of": point.amount_of,
        "layers_removed": len(point.dropped),
        "mean_width": sum(point.widths) / len(point.widths) if point.widths else None,
        "parameters": point.parameters,
        "bytes": point.bytes,
        "share_removed": point.share_removed,
        "seconds": point.seconds,
    }


def figure_cells(
    found: ModelEvaluation, original: ModelEvaluation, tasks: dict[str, tuple[str, str, str]]
) -> dict[str, Any]:
    """Column name → figure of one model, as far as it was measured.

    Args:
        found: the model's figures.
        original: those of the base model.
        tasks: from `task_columns`.
    """
    text, fidelity, mean = found.perplexity[0], found.fidelity, accuracy(found)
    row: dict[str, Any] = {
        "nll": text.nll,
        "nll_standard_error": text.standard_error,
        "perplexity": text.perplexity,
        "perplexity_ratio": perplexity_ratio(found, original),
        "bits_per_byte": text.bits_per_byte,
    }
    if fidelity is not None:
        row |= {
            "kl": fidelity.kl,
            "kl_standard_error": fidelity.kl_standard_error,
            "top1_agreement": fidelity.top1_agreement,
        }
    if mean is not None:
        row |= {"accuracy": mean[0], "accuracy_standard_error": mean[1]}
    values = {(r.task, r.metric, r.filter): r.value for r in found.tasks}
    return row | {f"task:{name}": values[key] for name, key in tasks.items() if key in values}


def task_columns(original: ModelEvaluation) -> dict[str, tuple[str, str, str]]:
    """Column name → task, metric and filter of every main result of the original."""
    main = [r for r in original.tasks if r.main]
    return {f"{r.task}:{r.metric}": (r.task, r.metric, r.filter) for r in main}
