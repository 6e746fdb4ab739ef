"""The tables of healing recipes, targets and losses that README shows; `python -m tests.healing_list` prints them."""

import sys
from collections.abc import Sequence

from hf_prune.healing.recipes import AUTO, RECIPES
from hf_prune.healing.registries import kind_of, loss, trainable
from hf_prune.healing_table import AUTO_TITLE, compares
from hf_prune.method_table import in_words, source_id

_RECIPES = ("recipe", "what it is", "target", "loss", "steps × sequences × tokens", "rate", "note", "paper")


def render() -> str:
    """A row for each recipe, target and loss, as Markdown."""
    recipes = [
        (
            f"`{name}`",
            recipe.title,
            f"`{recipe.target}`",
            f"`{recipe.loss}`",
            f"{recipe.steps:,} × {recipe.batch_size} × {recipe.other.max_length:,}",
            f"{recipe.other.learning_rate:g}, {recipe.schedule}",
            recipe.note or "–",
            _link(recipe.paper),
        )
        for name, recipe in RECIPES.items()
    ]
    recipes.append((f"`{AUTO}`", AUTO_TITLE, *["–"] * 6))
    targets = [(f"`{e.name}`", e.title, kind_of(e.name), _link(e.url)) for e in trainable]
    losses = [(f"`{e.name}`", e.title, compares(e), in_words(e.options()), _link(e.url)) for e in loss]
    return "\n\n".join(
        (
            _table(_RECIPES, recipes),
            _table(("target", "what is trained", "as", "source"), targets),
            _table(("loss", "what is brought down", "compares with the original", "options", "source"), losses),
        )
    )


def _link(url: str) -> str:
    return f"[{source_id(url)}]({url})"


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *lines))


if __name__ == "__main__":
    sys.stdout.write(render() + "\n")
