"""The evaluation as plain text for a terminal: original, pruned and healed side by side."""

import textwrap
from collections.abc import Callable, Sequence
from itertools import zip_longest

from hf_prune.evaluation.task_rows import task_rows
from hf_prune.records import Evaluation, ModelEvaluation, Perplexity, Rate
from hf_prune.writing import REPEATED, collapse, departures, distinct, repetition

_GAP = "   "


def table(evaluation: Evaluation, width: int = 110, base: str = "original", same_tokens: bool = True) -> str:
    """Lay figures and completions out side by side.

    A figure of a pruned or healed model is followed by its relative change from the original's, where the original was
    measured. What models wrote loses its control characters and line breaks.

    Args:
        evaluation: at least one model.
        width: columns that the completions may take; the figures take what they need.
        base: label of the model that the others are compared with.
        same_tokens: whether the models read the same tokens; perplexities of other tokens are not compared.

    Returns:
        Lines, without a newline at the end.
    """
    models = evaluation.models
    figures = _figures(models, base, same_tokens)
    return "\n".join([*_align(figures), "", *_notes(evaluation, base), "", *_completions(models, width)]).rstrip()


def _figures(models: Sequence[ModelEvaluation], base: str, same_tokens: bool) -> list[list[str]]:
    rows = [
        ["", *(m.label for m in models)],
        _row("layers", models, lambda m: m.layers, str, base),
        _row("parameters", models, lambda m: m.parameters, _scaled, base),
        _row("weights, bytes", models, lambda m: m.bytes, _scaled, base),
        _row("peak memory, bytes", models, lambda m: m.peak_memory, _scaled, base),
    ]
    for title, sizes in (
        ("on disk, bytes", [m.disk_bytes for m in models]),
        ("FLOPs per token", [m.flops_per_token for m in models]),
    ):
        if any(sizes):
            rows.append([title, *_cells(models, sizes, float, _scaled, base)])
    for name in dict.fromkeys(p.name for m in models for p in m.perplexity):
        for title, value, show, than in (
            (
                "perplexity",
                lambda p: p.perplexity,
                lambda p: f"{_short(p.perplexity)} ± {_short(_error(p))}",
                base if same_tokens else None,
            ),
            ("bits per byte", lambda p: p.bits_per_byte, lambda p: f"{p.bits_per_byte:.4f}", base),
        ):
            cells = [next((p for p in m.perplexity if p.name == name), None) for m in models]
            rows.append([f"{title}, {_clean(name)}", *_cells(models, cells, value, show, than)])
    if any(m.fidelity for m in models):
        found = [m.fidelity for m in models]
        rows.append(
            [f"KL from {base}, nats", *(f"{f.kl:.4f} ± {f.kl_standard_error:.4f}" if f else "" for f in found)]
        )
        if (count := next((f.top_k for f in found if f and f.kl_top_k is not None), None)) is not None:
            near = [None if f is None else f.kl_top_k for f in found]
            rows.append([f"KL of the {count} likeliest", *("" if kl is None else f"{kl:.4f}" for kl in near)])
        rows.append(["same first choice", *(f"{f.top1_agreement:.1%}" if f else "" for f in found)])
        five = [None if f is None else f.top5_agreement for f in found]
        if any(share is not None for share in five):
            rows.append(["shared of first five", *("" if share is None else f"{share:.1%}" for share in five)])
    rows += _writing(models, base if same_tokens else None)
    for title, results, value_of, shown in task_rows(models):
        rows.append([_clean(title), *_cells(models, results, value_of, shown, base)])
    return rows + _speed(models, base)


def _speed(models: Sequence[ModelEvaluation], base: str) -> list[list[str]]:
    """Load time and rates; changes only where all models that were timed took turns."""
    timed = [m.speed for m in models if m.speed]
    than = base if all(timed[0].in_turns_with(speed) for speed in timed) else None
    rows = []
    for title, rates in (
        ("load, s", [m.load for m in models]),
        ("prefill, tokens/s", [m.speed.prefill if m.speed else None for m in models]),
        ("decode, tokens/s", [m.speed.decode if m.speed else None for m in models]),
    ):
        if any(rates):
            rows.append([title, *_cells(models, rates, lambda r: r.median, _rate, than)])
    return rows


def _writing(models: Sequence[ModelEvaluation], base: str | None) -> list[list[str]]:
    """How much the completions repeat themselves, and where they leave the base's; nothing without token ids."""
    if not any(c.tokens for m in models for c in m.completions):
        return []
    repeated = [repetition(m.completions) for m in models]
    rows = [[f"repeated {REPEATED}-grams", *("" if r is None else f"{r:.1%}" for r in repeated)]]
    drawn = [repetition(m.completions, kind="sampled") for m in models]
    if any(r is not None for r in drawn):
        rows.append([f"repeated {REPEATED}-grams, sampled", *("" if r is None else f"{r:.1%}" for r in drawn)])
    for size in (1, 2):
        found = [distinct(m.completions, size) for m in models]
        rows.append([f"distinct-{size}", *("" if d is None else f"{d:.3f}" for d in found)])
    original = next((m for m in models if m.label == base), None)
    if original is not None and len(models) > 1:
        parted = [() if m is original else departures(original, m) for m in models]
        name = "the original" if base == "original" else base
        shown = (", ".join("never" if i is None else str(i) for i in p) for p in parted)
        rows.append([f"leaves {name} at token", *shown])
    return rows


def _row(
    title: str,
    models: Sequence[ModelEvaluation],
    value: Callable[[ModelEvaluation], int],
    show: Callable[[int], str],
    base: str,
) -> list[str]:
    return [title, *_cells(models, models, value, lambda m: show(value(m)), base)]


def _cells(
    models: Sequence[ModelEvaluation],
    figures: Sequence,
    value: Callable[..., float],
    show: Callable[..., str],
    base: str | None,
) -> list[str]:
    """A cell a model, with its change from the base's, if there is one; empty where the figure is missing."""
    before = next((value(f) for m, f in zip(models, figures, strict=True) if m.label == base and f), None)
    return [
        "" if f is None else show(f) + ("" if m.label == base else _change(value(f), before))
        for m, f in zip(models, figures, strict=True)
    ]


def _change(value: float, base: float | None) -> str:
    """Relative change: " (+12.3 %)"; a factor once it is tenfold."""
    if not base:
        return ""
    ratio = value / base
    return f" (×{_short(ratio)})" if ratio >= 10 else f" ({ratio - 1:+.1%})".replace("-", "−").replace("%", " %")


def _error(figures: Perplexity) -> float:
    """Standard error of the perplexity, to first order."""
    return figures.perplexity * figures.standard_error


def _rate(rate: Rate) -> str:
    return f"{_short(rate.median)} [{_short(rate.minimum)}–{_short(rate.maximum)}]"


def _short(number: float) -> str:
    """Four digits or so, without an exponent up to a million."""
    if abs(number) >= 1e6:
        return f"{number:.3g}"
    return f"{number:,.{0 if abs(number) >= 1000 else 1 if abs(number) >= 100 else 2}f}"


def _scaled(number: float) -> str:
    """A count with a decimal prefix: 5508096 -> "5.51 M"."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.2f} {unit}"
    return f"{number:.0f}"


def _align(rows: list[list[str]]) -> list[str]:
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = [_GAP.join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [lines[0], _GAP.join("─" * w for w in widths), *lines[1:]]


def _notes(evaluation: Evaluation, base: str) -> list[str]:
    """What stands behind the figures."""
    place = evaluation.environment
    first = evaluation.models[0]
    notes = [
        f"{_clean(p.name)}: {p.tokens:,} predicted tokens ({p.bytes:,} bytes), window {p.window}, stride {p.stride}; "
        f"{_first_tokens(p)}± is one standard error over windows"
        for p in first.perplexity
    ]
    if (compared := next((m.fidelity for m in evaluation.models if m.fidelity), None)) is not None:
        notes.append(f"KL: {compared.tokens:,} of those tokens; first choices: {compared.agreement_tokens:,}")
        if compared.kl_top_k is not None:
            notes[-1] += (
                f"; KL of the {compared.top_k} likeliest, with one bin for all others, which is never above KL at the "
                f"same tokens: {compared.top_k_tokens:,}"
            )
    if (timed := first.speed) is not None:
        notes.append(
            f"speed: batch {timed.batch}, {timed.prompt_tokens} tokens read and {timed.new_tokens} written, median of "
            f"{timed.runs} runs [lowest–highest]"
            + (f" in {timed.rounds} rounds, in which the models took turns" if timed.rounds > 1 else "")
        )
    if first.flops_per_token is not None:
        notes.append("FLOPs: matrix products, convolutions and attention of one pass over a prompt of that length")
    notes.append(f"{_clean(place.hardware)}, {place.dtype}, torch {place.versions.get('torch', 'unknown')}")
    original = next((m for m in evaluation.models if m.label == base), None)
    for model in evaluation.models:
        if original is not None and collapse(original, model) is not None:
            notes.append(f"WARNING: free generation of the {model.label} model has collapsed into repetition")
        elif original is not None and collapse(original, model, "sampled") is not None:
            notes.append(f"WARNING: sampled text of the {model.label} model has collapsed into repetition")
    if (recovered := evaluation.recovered) is not None:
        notes.append(f"healing won back {recovered:.1%} of the loss".replace("%", " %"))
    return notes


def _first_tokens(text: Perplexity) -> str:
    """How the first token of a sequence was treated; nothing in older records."""
    if text.bos_sequences is None:
        return ""
    if not text.bos_sequences:
        return "no sequence begins with BOS, the first token of each is context only; "
    return f"{text.bos_sequences:,} of {text.data.samples:,} sequences begin with BOS, which is context only; "


def _completions(models: Sequence[ModelEvaluation], width: int) -> list[str]:
    """Every prompt, and below it what each model wrote, in columns: greedily, then sampled."""
    column = max(16, (width - len(_GAP) * (len(models) - 1)) // len(models))
    lines: list[str] = []
    for prompt in dict.fromkeys(c.prompt for m in models for c in m.completions):
        lines += textwrap.wrap(f"» {_clean(prompt)}", width, subsequent_indent="  ")
        for kind in ("greedy", "sampled"):
            found = [next((c for c in m.completions if (c.prompt, c.kind) == (prompt, kind)), None) for m in models]
            seed = next((c.seed for c in found if c is not None), None)
            if any(found) and kind == "sampled":
                lines += ["", f"  sampled with seed {seed}:"]
            wrapped = [
                [m.label, *textwrap.wrap(_clean("" if c is None else c.text), column)]
                for m, c in zip(models, found, strict=True)
            ]
            if any(found):
                lines += [
                    _GAP.join(c.ljust(column) for c in row).rstrip() for row in zip_longest(*wrapped, fillvalue="")
                ]
        lines.append("")
    return lines


def _clean(text: str) -> str:
    """Text on one line, without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
