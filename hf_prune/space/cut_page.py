"""A cut as HTML in which nothing of a stranger's is HTML."""

from collections.abc import Sequence

from hf_prune.card_choice import runner_up
from hf_prune.records import ranges
from hf_prune.space import render
from hf_prune.space.anatomy import distance_words, drop_cells
from hf_prune.space.anatomy_page import facts, sentences, warnings
from hf_prune.space.cutting import Cut, Offer, as_half
from hf_prune.space.layer_map import layer_map
from hf_prune.space.pair import Half, Pair
from hf_prune.space.render import inert, scaled


def page(pair: Pair, cut: Cut) -> str:
    """Which layers would go, and what would be left.

    Args:
        pair: its original is what would be cut.
        cut: the choice.
    """
    plan = cut.plan
    alt = (
        f"Map of the original's {plan.model.num_layers} layers, counted from 0: kept {ranges(cut.kept)}; "
        f"removed {ranges(cut.dropped)}."
    )
    described = plan.describe()
    described = inert(described[:1].upper() + described[1:])
    # The sentence alone is announced: the map says the same again, cell by cell.
    lead = f'<p class="anatomy-lead" role="status" aria-live="polite">{described}</p>'
    return (
        '<div class="anatomy cut">'
        + lead
        + layer_map(drop_cells(plan, pair.records.scores, healed=False), alt)
        + facts((*_left(pair.original, cut), *_distance(pair, cut)))
        + sentences([plan.reason, runner_up(plan)])
        + warnings(cut.warnings)
        + (f'<p class="anatomy-small">{inert(cut.rule)}</p>' if cut.decode is not None else "")
        + "</div>"
    )


def not_offered(offers: Sequence[Offer]) -> str:
    """Why methods can't be had, one sentence each; nothing where all can."""
    said = "".join(f'<p class="anatomy-small">{inert(offer.why_not)}</p>' for offer in offers if offer.why_not)
    return f'<div class="anatomy cut">{said}</div>' if said else ""


def heading(pair: Pair, cut: Cut, role: str) -> str:
    """Above the answer of the cut model: what it is, and how large that is where it is known."""
    half = as_half(pair, cut)
    if cut.parameters is not None:
        return render.heading(role, half)
    name, layers = inert(half.name), len(cut.kept)
    return f'<h3 class="hp-role">{inert(role.capitalize())}</h3><p class="hp-name">{name}</p><p>{layers} layers</p>'


def _left(original: Half, cut: Cut) -> tuple[tuple[str, str], ...]:
    layers = ("Layers left", f"{len(cut.kept)} of {original.layers}")
    if cut.parameters is None or cut.bytes is None or cut.prefill is None or cut.decode is None:
        return (layers, ("Size and speed", "not known: the sizes of this model's single layers are not on record"))
    share = 1 - cut.parameters / original.parameters
    return (
        layers,
        ("Parameters left", f"{scaled(cut.parameters)} of {scaled(original.parameters)}, {share:.1%} fewer"),
        ("Weights left", f"{scaled(cut.bytes)}B of {scaled(original.bytes)}B"),
        ("Writing, estimate", f"{cut.decode:.2f} × as fast"),
        ("Reading the prompt, estimate", f"{cut.prefill:.2f} × as fast"),
    )


def _distance(pair: Pair, cut: Cut) -> tuple[tuple[str, str], ...]:
    words = distance_words(cut.plan, pair.records.scores)
    return () if words is None else (("Distance across them", words),)
