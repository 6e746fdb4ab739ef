"""What healing recipes, targets and losses are, for people who choose: the rows of every table of them."""

from typing import Any

from hf_prune.healing.recipes import AUTO, RECIPES
from hf_prune.healing.registries import kind_of, loss, trainable
from hf_prune.method_table import in_words, source_id
from hf_prune.registry import Entry, Registry

RECIPE_HEADER = ("recipe", "target", "loss", "steps", "rate", "paper", "what it is")
TARGET_HEADER = ("target", "trains", "source", "what it is")
LOSS_HEADER = ("loss", "compares", "source", "what it is; its options")

AUTO_TITLE = "seam where whole blocks went and the original is at hand, else uidl"


def recipe_rows() -> list[tuple[str, ...]]:
    """A row for each recipe, under `RECIPE_HEADER`; rates are those for models that a paper does not name."""
    found = [
        (
            name,
            recipe.target,
            recipe.loss,
            f"{recipe.steps:,} x {recipe.batch_size} x {recipe.other.max_length:,}",
            f"{recipe.other.learning_rate:g}",
            source_id(recipe.paper),
            recipe.title,
        )
        for name, recipe in RECIPES.items()
    ]
    return [*found, (AUTO, "", "", "", "", "", AUTO_TITLE)]


def target_rows() -> list[tuple[str, ...]]:
    """A row for each target, under `TARGET_HEADER`."""
    return [(entry.name, kind_of(entry.name), source_id(entry.url), entry.title) for entry in _sorted(trainable)]


def loss_rows() -> list[tuple[str, ...]]:
    """A row for each loss, under `LOSS_HEADER`."""
    return [
        (entry.name, compares(entry), source_id(entry.url), f"{entry.title}; {in_words(entry.options())}")
        for entry in _sorted(loss)
    ]


def compares(entry: Entry) -> str:
    """What a loss compares with the original's, for people."""
    words = {"predictions": "predictions", "seams": "states at seams", "behind": "states behind"}
    return words.get(entry.needs, "nothing")


def described() -> dict[str, Any]:
    """All there is to tell, as JSON types."""
    recipes: dict[str, Any] = {
        name: {key: value for key, value in vars(recipe).items() if key not in ("models", "other")}
        | {"settings": vars(recipe.other), "models": {model: vars(row) for model, row in recipe.models.items()}}
        for name, recipe in RECIPES.items()
    }
    targets = {e.name: {"title": e.title, "trains": kind_of(e.name), "url": e.url} for e in _sorted(trainable)}
    losses = {
        e.name: {"title": e.title, "needs": e.needs, "options": e.options(), "url": e.url} for e in _sorted(loss)
    }
    return {"recipes": recipes | {AUTO: {"title": AUTO_TITLE}}, "targets": targets, "losses": losses}


def _sorted(registry: Registry) -> list[Entry]:
    """By name: which file registers first depends on who imported it first."""
    return sorted(registry, key=lambda entry: entry.name)
