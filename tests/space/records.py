"""Pairs with real records, without a Hub: of the demo, and of the models behind the rendered cards."""

import dataclasses
from pathlib import Path

from hf_prune.output import Finished
from hf_prune.space import pairs
from hf_prune.space.pair import DEMO, Half, Pair, Visitor

CARDS = Path(__file__).parents[2] / "model_cards"


def demo_pair() -> Pair:
    """The embedded pair."""
    return pairs.find(DEMO, Visitor())


def card_pair(name: str) -> Pair:
    """A model of `model_cards/` as if it lay on the Hub: "uidl-pruned", "uidl-healed" or "sliced"."""
    records = Finished.load(CARDS / name)
    assert records.evaluation is not None
    before, after = records.evaluation.models[0], records.evaluation.models[-1]
    return Pair(
        f"org/{name}",
        Half("org/base", "a" * 40, before.layers, before.parameters, before.bytes),
        Half(f"org/{name}", "b" * 40, after.layers, after.parameters, after.bytes),
        records,
    )


def with_records(pair: Pair, commit: str = "c" * 40, **changes: object) -> Pair:
    """The pair at another commit, with other records."""
    records = dataclasses.replace(pair.records, **changes)
    return dataclasses.replace(pair, pruned=dataclasses.replace(pair.pruned, commit=commit), records=records)


def deeper(pair: Pair, depth: int) -> Pair:
    """The pair with a plan and scores of as many layers, and no evaluation."""
    plan, scores = pair.records.plan, pair.records.scores
    assert scores is not None
    model = dataclasses.replace(plan.model, num_layers=depth)
    places = [0.01 * i + 0.0001 * (7 * i % 13) for i in range(depth + 1)]
    table = tuple(tuple(abs(a - b) for b in places) for a in places)
    changed = with_records(
        pair,
        f"{depth:040}",
        plan=dataclasses.replace(plan, model=model),
        scores=dataclasses.replace(scores, model=model, distances=table, standard_errors=table),
        evaluation=None,
    )
    return dataclasses.replace(changed, original=dataclasses.replace(pair.original, layers=depth))
