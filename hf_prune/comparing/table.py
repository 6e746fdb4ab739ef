"""A comparison as Markdown for people and as CSV for programs, both from the record alone."""

import csv
import io
from collections.abc import Callable, Sequence
from typing import Any

from hf_prune.comparing.record import Attempt, Comparison
from hf_prune.comparing.standings import (
    EFFORTS,
    Mean,
    Standing,
    agreement,
    kl,
    mean_accuracy,
    perplexity,
    standings,
    text_names,
)
from hf_prune.comparing.words import contents, share_in_words
from hf_prune.markdown import code, escape, link
from hf_prune.records import TextUse
from hf_prune.sweeping.record import STAGES, Stage, counted
from hf_prune.sweeping.table import figure_cells, task_columns

TABLE_FILE, CSV_FILE = "comparison.md", "comparison.csv"

_COLUMNS = (
    "attempt", "method", "seed", "stage", "status", "message", "amount", "amount_of", "removed", "mean_width",
    "parameters", "bytes", "share_removed", "share_silent", "choosing_seconds", "choosing_forwards", "choosing_memory",
    "cutting_seconds", "cutting_memory", "nll", "nll_standard_error", "perplexity", "perplexity_ratio",
    "bits_per_byte", "kl", "kl_standard_error", "top1_agreement", "accuracy", "accuracy_standard_error",
    "healing_tokens", "healing_seconds", "seconds",
)  # fmt: skip


def as_csv(found: Comparison) -> str:
    """The original first, then each attempt as pruned and, where it was, as healed; floats as exact as they are.

    Columns are those of the record, on the first text; further ones hold the perplexity on each further text, and the
    main result of each benchmark task. What was not measured is empty.
    """
    tasks, further = task_columns(found.original), text_names(found)[1:]
    columns = [*_COLUMNS, *(f"perplexity:{name}" for name in further), *(f"task:{name}" for name in tasks)]
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, lineterminator="\n")
    writer.writeheader()

    def figures(model: Any) -> dict[str, Any]:
        others = {f"perplexity:{text.name}": text.perplexity for text in model.perplexity[1:]}
        return figure_cells(model, found.original, tasks) | others

    size = {"parameters": found.original.parameters, "bytes": found.original.bytes, "share_removed": 0.0}
    writer.writerow({"attempt": "original", "stage": "original", "status": "done"} | size | figures(found.original))
    for attempt in found.attempts:
        row = _row(attempt)
        if attempt.status != "done":
            writer.writerow(row)
        for stage in STAGES:
            model = attempt.figures(stage)
            if model is not None:
                healed = {"healing_tokens": attempt.healing_tokens, "healing_seconds": attempt.healing_seconds}
                writer.writerow(row | {"stage": stage} | figures(model) | (healed if stage == "healed" else {}))
    return out.getvalue()


def _row(attempt: Attempt) -> dict[str, Any]:
    row: dict[str, Any] = {
        "attempt": attempt.name,
        "method": attempt.method,
        "seed": attempt.seed,
        "status": attempt.status,
        "message": attempt.message,
        "amount": attempt.amount,
        "amount_of": attempt.amount_of,
    }
    if attempt.status != "done":
        return row
    row |= {
        "removed": "; ".join(map(str, attempt.removed)),
        "mean_width": sum(attempt.widths) / len(attempt.widths) if attempt.widths else None,
        "parameters": attempt.parameters,
        "bytes": attempt.bytes,
        "share_removed": attempt.share_removed,
        "share_silent": attempt.share_silent,
        "seconds": attempt.seconds,
    }
    for name, effort in (("choosing", attempt.choosing), ("cutting", attempt.cutting)):
        if effort is not None:
            row |= {f"{name}_seconds": effort.seconds, f"{name}_memory": effort.memory}
    return row | {"choosing_forwards": None if attempt.choosing is None else attempt.choosing.forwards}


def as_markdown(found: Comparison) -> str:
    """Two tables, the figures and what they took, with what one has to know to read them."""
    order = standings(found)
    parts = [
        f"# Methods compared on {escape(found.model.id)}",
        _setting(found),
        "## Figures",
        _figures(found, order),
        _how_to_read(found),
        "## What went, and what it took",
        _effort(found, order),
        _how_it_was_measured(found),
    ]
    if missing := _missing(found):
        parts += ["## Not done", missing]
    parts += ["## Texts", _texts(found)]
    parts += [f"![{escape(p.alt, 4000)}](./{p.file})" for p in found.pictures if p.file.endswith(".png")]
    return "\n\n".join(parts) + "\n"


def _setting(found: Comparison) -> str:
    original, env = found.original, found.environment
    seeds = ", ".join(map(str, found.seeds))
    told = [
        f"{escape(found.model.id)}: {original.layers} layers, {original.parameters:,} parameters in {original.dtype}."
    ]
    told.append(f"Seed {seeds}." if len(found.seeds) == 1 else f"Seeds {seeds}{_best(found)}.")
    if found.healing is not None:
        told.append(
            f"All healed alike: LoRA of rank {found.healing['rank']} on {found.healing['target']}, learning rate "
            f"{found.healing['learning_rate']:g}, at most {found.healing['tokens']:,} tokens."
        )
    versions = ", ".join(f"{name} {version}" for name, version in env.versions.items())
    told.append(f"On {escape(env.hardware)}, {env.device}; {escape(versions)}.")
    return " ".join(told)


def _best(found: Comparison) -> str:
    return "" if found.best is None else f"; the best {found.best} with all of them, the others with the first"


def _figures(found: Comparison, order: Sequence[Standing]) -> str:
    stages = STAGES if found.heal else STAGES[:1]
    shown, header = [], ["", "method", "seeds"]
    for stage in stages:
        word = "" if not found.heal else {"pruned": "before healing: ", "healed": "healed: "}[stage]
        columns = _columns(found, stage)
        shown += columns
        header += [f"{word}{name}" for name, _ in columns]
    lines = [["", "original", "", *_of_original(found, stages)]]
    place = 0
    for standing in order:
        name = link(standing.contender.name, standing.contender.paper)
        place += bool(standing.done)
        cells = [get(standing) for _, get in shown]
        lines.append([str(place) if standing.done else "", name, _seeds(standing), *cells])
    return _table(header, lines)


def _columns(found: Comparison, stage: Stage) -> list[tuple[str, Callable[[Standing], str]]]:
    """Name and cell of each figure of a stage."""

    def column(figure: Any, digits: str) -> Callable[[Standing], str]:
        return lambda standing: shown(standing.figure(stage, figure), digits)

    columns = [(f"perplexity, {escape(n)}", column(perplexity(i), ".2f")) for i, n in enumerate(text_names(found))]
    columns += [("KL", column(kl, ".4f")), ("top-1", column(agreement, ".4f"))]
    if mean_accuracy(found.original) is not None:
        columns.append(("accuracy", column(mean_accuracy, ".4f")))
    return columns


def _of_original(found: Comparison, stages: Sequence[Stage]) -> list[str]:
    before = [f"{text.perplexity:.2f}" for text in found.original.perplexity] + ["0", "1"]
    mean = mean_accuracy(found.original)
    before += [] if mean is None else [f"{mean:.4f}"]
    return before + [""] * (len(before) * (len(stages) - 1))


def shown(mean: Mean | None, digits: str) -> str:
    """A figure over seeds: "12.34 ± 0.05", or without a spread where there is one seed.

    Args:
        mean: None is shown as nothing.
        digits: format of a number.
    """
    if mean is None:
        return ""
    return f"{mean.value:{digits}}" + ("" if mean.spread is None else f" ± {mean.spread:{digits}}")


def _seeds(standing: Standing) -> str:
    if not standing.attempts:
        return ""
    done, tried = len(standing.done), len(standing.attempts)
    if not done:
        return standing.attempts[0].status
    return str(done) if done == tried else f"{done} of {tried}"


def _how_to_read(found: Comparison) -> str:
    first = text_names(found)[0]
    last = "healed" if found.heal else "pruned"
    told = [
        f"Ranked by the perplexity of the {last} model on {code(first)}. KL(original ‖ model) in nats per token and "
        "the share of tokens at which both rank the same token first are on the same text."
    ]
    if len(found.seeds) > 1:
        told.append("± is the sample standard deviation over seeds; a method with one seed has none.")
    if mean_accuracy(found.original) is not None:
        told.append(f"Accuracy is the mean of {_tasks(found)}.")
    return " ".join(told)


def _tasks(found: Comparison) -> str:
    return ", ".join(f"{code(r.task)} ({r.samples} questions)" for r in counted(found.original))


def _effort(found: Comparison, order: Sequence[Standing]) -> str:
    efforts = [name for name in EFFORTS if found.heal or name != "healing, s"]
    header = ["method", "what went", "parameters", "chosen by", *efforts]
    lines = []
    for standing in order:
        if not standing.done:
            continue
        first, contender = standing.done[0], standing.contender
        cells = [
            contender.name,
            escape(contents(first, found.model.num_layers)),
            share_in_words(first),
            " → ".join(code(part) for part in (contender.measure, contender.planner, contender.surgery) if part),
            *(shown(standing.over_seeds(EFFORTS[name]), ".2f") for name in efforts),
        ]
        lines.append(cells)
    return _table(header, lines)


def _how_it_was_measured(found: Comparison) -> str:
    several = " What went is that of the first seed." if len(found.seeds) > 1 else ""
    return (
        f"Amounts are in each method's own unit, and what they take of the parameters differs.{several} Choosing is "
        "measuring, searching and fitting together, with the original in memory; forwards are passes of the "
        "calibration text through the whole model that measuring and searching took (backward passes, and what "
        "fitting and slicing read, are in the seconds alone); memory is what choosing took at its peak beside the "
        "model."
    )


def _missing(found: Comparison) -> str:
    return "\n".join(
        f"- {code(a.name)} {a.status}: {escape(a.message or '')}" for a in found.attempts if a.status != "done"
    )


def _texts(found: Comparison) -> str:
    lines = [[escape(text.name), *_text(text.data)] for text in found.original.perplexity]
    lines += [[escape(name), *_text(use)] for name, use in found.texts.items()]
    return _table(["text", "dataset", "sequences", "tokens", "longest", "sha256 of the tokens"], lines)


def _text(use: TextUse) -> list[str]:
    parts = [use.dataset or "sampled from the original", use.config, use.split, use.revision]
    name = escape(", ".join(part for part in parts if part))
    return [name, f"{use.samples:,}", f"{use.tokens:,}", str(use.max_length), code(use.sha256[:12])]


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
