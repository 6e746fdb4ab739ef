"""Frames as HTML in which nothing of a stranger's is HTML: every text goes through `inert`."""

import html
import re
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote

from huggingface_hub import constants

from hf_prune.markdown import visible
from hf_prune.record_base import ModelRef
from hf_prune.records import Plan, Rate, ranges
from hf_prune.space.frames import Cost, Frame, Parting, Token
from hf_prune.space.pair import DEMO, Half, Pair
from hf_prune.units import layers_of

LEVELS = (0.1, 0.3, 1.0, 3.0)
"""KL in nats from which a token gets the next stronger colour."""

_KEPT = "\n\t\u200c\u200d"  # with the joiners that Persian, Hindi and emoji are spelled with


def inert(text: str) -> str:
    """Text as HTML that shows it and does nothing else: no markup, no control or reordering character acts."""
    return html.escape(visible(text.replace("\r\n", "\n").encode("utf-8", "replace").decode(), keep=_KEPT))


def problem(text: str) -> str:
    """A message about what went wrong."""
    return f'<p class="hp-problem" role="alert">{inert(text)}</p>' if text else ""


def named(half: Half | ModelRef, name: str | None = None) -> str:
    """A model's name, linked to the Hub where it comes from there."""
    commit = half.commit if isinstance(half, Half) else half.revision
    shown = inert(name or (half.name if isinstance(half, Half) else half.id))
    if commit is None:
        return f"<b>{shown}</b>"
    repo = half.name if isinstance(half, Half) else half.id
    address = f"{constants.ENDPOINT}/{quote(repo)}/tree/{quote(commit)}"
    return f'<a href="{html.escape(address)}" target="_blank" rel="noopener noreferrer">{shown}</a>'


def removed(pair: Pair) -> str:
    """What the pruned model lacks, for people: "4 of 12 layers removed, then healed; 28.6 % fewer parameters"."""
    plan = pair.records.plan
    if plan.slicing is not None:
        cut = plan.slicing
        what = (
            f"every layer narrowed, from width {cut.hidden_size} to {cut.mean_width * cut.hidden_size:.0f} on average"
        )
    else:
        what = "; ".join(_gone(plan)) or plan.describe()
    healed = ", then healed" if pair.records.healing is not None else ""
    share = 1 - pair.pruned.parameters / pair.original.parameters
    return f"{what}{healed}; {_percent(abs(share))} {'fewer' if share >= 0 else 'more'} parameters"


def _gone(plan: Plan) -> Iterator[str]:
    for part, did in (("block", "removed"), ("attention", "without their attention"), ("mlp", "without their MLP")):
        if layers := layers_of(plan.removed, part):  # type: ignore[arg-type]
            named = f"{'layer' if len(layers) == 1 else 'layers'} {ranges(layers)}, counted from 0"
            yield f"{len(layers)} of {plan.model.num_layers} layers {did} ({named})"


def picked(pair: Pair) -> str:
    """The line below the picker: which model was made from which, and how."""
    pruned, original = named(pair.pruned), named(pair.original)
    if pair.name == DEMO:
        pruned = "<b>The demo</b>"
    return f'<p class="hp-picked">{pruned} was made from {original}: {inert(removed(pair))}.</p>'


def heading(role: str, half: Half) -> str:
    """Above an answer: which model writes it, and how large that is."""
    sizes = f"{half.layers} layers · {scaled(half.parameters)} parameters · {scaled(half.bytes)}B"
    return f'<h3 class="hp-role">{inert(role.capitalize())}</h3><p class="hp-name">{named(half)}</p><p>{sizes}</p>'


def answers(frame: Frame, label: str = "pruned") -> tuple[str, str]:
    """Both answers: as they are written, and with the parting marked once that is known.

    Args:
        frame: how far it is.
        label: what the second model is called.
    """
    if frame.parting is None:
        return inert(frame.original), inert(frame.pruned)
    return parted(frame.parting, label)


def parted(parting: Parting, label: str = "pruned") -> tuple[str, str]:
    """Both answers token by token, coloured by KL; each token's title says what the colour does."""
    return (
        _tokens(parting.original, parting.at, label),
        _tokens(parting.pruned, parting.at, "original"),
    )


def verdict(parting: Parting, label: str = "pruned") -> str:
    """One sentence on where the answers part, and what the colours mean."""
    shared = len(parting.original) if parting.at is None else parting.at
    if parting.at is None:
        said = f"Both models wrote the same {shared} tokens."
    elif parting.at == 0:
        said = "The two answers differ from the first token on."
    else:
        said = f"The two answers share their first {shared} token{'' if shared == 1 else 's'}, then part at the mark."
    steps = "".join(f'<span class="hp-t hp-k{i + 1}">{level:g}+</span>' for i, level in enumerate(LEVELS))
    return (
        f'<p class="hp-verdict">{said} Point at a token, or walk with ← and →.</p>'
        '<p class="hp-detail" role="status" aria-live="polite"></p>'
        f'<p class="hp-legend">KL(original ‖ {inert(label)}) in nats: <span class="hp-steps">{steps}</span>'
        '<span class="hp-t hp-other">dotted</span>: the other model finds another token likeliest</p>'
    )


def costs(frame: Frame, label: str = "pruned") -> str:
    """What the two models take, side by side, with the change in percent; empty before it was measured."""
    before, after = frame.original_cost, frame.pruned_cost
    if before is None and after is None:
        return ""
    rows = [
        _row("Layers", before, after, lambda c: c.layers, str),
        _row("Parameters", before, after, lambda c: c.parameters, scaled),
        _row("Weights", before, after, lambda c: c.bytes, _bytes),
        _row("Memory while writing", before, after, lambda c: c.memory, _bytes),
        _speeds("Reading, tokens/s", before, after, "prefill"),
        _speeds("Writing, tokens/s", before, after, "decode"),
    ]
    head = f"<th scope='col'>Original</th><th scope='col'>{inert(label.capitalize())}</th><th scope='col'>Change</th>"
    note = (
        "Speed and memory were measured one model after the other, in turns, never while both ran. Speeds are "
        "medians, with the slowest and the fastest turn; where those of both models overlap, no change is told."
    )
    return (
        '<table class="hp-costs"><caption>What it costs, what it saves</caption>'
        f"<thead><tr><td></td>{head}</tr></thead>"
        f'<tbody>{"".join(rows)}</tbody></table><p class="hp-note">{note}</p>'
    )


def notes(frame: Frame) -> str:
    """What the visitor should know beside the answers."""
    return "".join(f'<p class="hp-note">{inert(note)}</p>' for note in frame.notes)


def scaled(number: float) -> str:
    """A count with a decimal prefix: 5508096 -> "5.51 M"."""
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= factor:
            return f"{number / factor:.2f}\u00a0{unit}"
    return f"{number:.0f}\u00a0"


def _tokens(tokens: Sequence[Token], at: int | None, other: str) -> str:
    spans = []
    for index, token in enumerate(tokens):
        level = sum(token.kl >= step for step in LEVELS) if token.kl is not None else 0
        classes = ["hp-t", *([f"hp-k{level}"] if level else []), *([] if token.agrees else ["hp-other"])]
        first = index == at
        said = _title(token, first, other)
        # One stop for the Tab key in each answer; the arrow keys go on from there.
        stop = 0 if index == (at if at is not None and at < len(tokens) else 0) else -1
        spans.append(
            f'<span class="{" ".join(classes + ["hp-first"] * first)}" tabindex="{stop}" title="{said}">'
            f"{_shown(token.text)}</span>"
        )
    return "".join(spans)


def _shown(text: str) -> str:
    """A token's text; one that is only a line break would have nothing to point at."""
    return re.sub(r"\n", "↵\n", inert(text), count=1) if text.strip() == "" and "\n" in text else inert(text)


def _title(token: Token, first: bool, other: str) -> str:
    parts = ["The answers part here"] if first else []
    parts.append(f"KL {token.kl:.3f} nats" if token.kl is not None else "KL unknown")
    name = "the original" if other == "original" else f"the {other} model"
    if token.agrees:
        parts.append("both models find the same token likeliest here")
    else:
        parts.append(f"{name} finds “{token.other}” likeliest here")
    return inert("; ".join(parts)).replace("\n", "↵")


def _row(
    title: str,
    before: Cost | None,
    after: Cost | None,
    value: Callable[[Cost], float | None],
    show: Callable[[float], str],
) -> str:
    """A row; the change only where both figures are there."""
    old, new = (None if cost is None else value(cost) for cost in (before, after))
    return _cells(title, *("–" if number is None else show(number) for number in (old, new)), _change(old, new))


def _speeds(title: str, before: Cost | None, after: Cost | None, name: str) -> str:
    """A row of speeds with their spread, and a change only where it is more than that."""
    old, new = (None if cost is None or cost.speed is None else getattr(cost.speed, name) for cost in (before, after))
    change = _change(old and old.median, new and new.median)
    if old and new and old.minimum <= new.maximum and new.minimum <= old.maximum:
        change = "within the spread"
    return _cells(title, _spread(old), _spread(new), change)


def _spread(rate: Rate | None) -> str:
    if rate is None:
        return "–"
    return f"{_rate(rate.median)} <small>({_rate(rate.minimum)}–{_rate(rate.maximum)})</small>"


def _cells(title: str, *cells: str) -> str:
    return f"<tr><th scope='row'>{title}</th>{''.join(f'<td>{cell}</td>' for cell in cells)}</tr>"


def _change(old: float | None, new: float | None) -> str:
    if not old or new is None:
        return "–"
    return f"{'+' if new >= old else '−'}{_percent(abs(new / old - 1))}"


def _percent(share: float) -> str:
    return f"{share:.1%}".replace("%", "\u00a0%")


def _bytes(number: float) -> str:
    return f"{scaled(number)}B"


def _rate(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:.1f}"
