"""Numbers on what a model wrote: how much it repeats itself, and where it leaves the original's path.

Greedy and sampled completions are never counted together: greedy text repeats itself more, at any model.
"""

from collections.abc import Sequence
from typing import Literal

from hf_prune.records import Completion, ModelEvaluation

Kind = Literal["greedy", "sampled"]

REPEATED = 4
"""Length of the n-grams whose return counts as repetition, in tokens."""

COLLAPSE = 0.25
"""A model has collapsed where its repetition is this much above the original's (a rule of this project)."""


def _ngrams(tokens: Sequence[int], size: int) -> list[tuple[int, ...]]:
    return [tuple(tokens[i : i + size]) for i in range(len(tokens) - size + 1)]


def repetition(completions: Sequence[Completion], size: int = REPEATED, kind: Kind = "greedy") -> float | None:
    """Share of n-grams that stood in the same completion before: 1 - distinct / all, over all completions of a kind.

    Args:
        completions: with their token ids.
        size: n, in tokens.
        kind: which of them count.

    Returns:
        0 (nothing comes twice) to nearly 1 (one phrase over and over); None where no completion is long enough.
    """
    grams = [_ngrams(c.tokens, size) for c in completions if c.kind == kind]
    total = sum(map(len, grams))
    return 1 - sum(len(set(g)) for g in grams) / total if total else None


def distinct(completions: Sequence[Completion], size: int, kind: Kind = "greedy") -> float | None:
    """Distinct n-grams / n-grams of all completions of a kind (distinct-n); None where none is long enough."""
    grams = [gram for c in completions if c.kind == kind for gram in _ngrams(c.tokens, size)]
    return len(set(grams)) / len(grams) if grams else None


def departure(original: Completion, other: Completion) -> int | None:
    """Index of the first new token in which two completions of a prompt differ; None where all agree.

    Where one is the beginning of the other, they part behind its end.
    """
    if original.tokens == other.tokens:
        return None
    pairs = zip(original.tokens, other.tokens, strict=False)
    shorter = min(len(original.tokens), len(other.tokens))
    return next((i for i, (a, b) in enumerate(pairs) if a != b), shorter)


def departures(original: ModelEvaluation, other: ModelEvaluation) -> tuple[int | None, ...]:
    """`departure` of the greedy completions of each prompt that both were given and whose tokens are on record."""
    known = {c.prompt: c for c in original.completions if c.tokens and c.kind == "greedy"}
    return tuple(
        departure(known[c.prompt], c)
        for c in other.completions
        if c.prompt in known and c.tokens and c.kind == "greedy"
    )


def collapse(original: ModelEvaluation, other: ModelEvaluation, kind: Kind = "greedy") -> tuple[float, float] | None:
    """The repetition of the original and of the other model, where the other's is at least `COLLAPSE` higher."""
    before, after = (repetition(m.completions, kind=kind) for m in (original, other))
    return (before, after) if before is not None and after is not None and after - before >= COLLAPSE else None
