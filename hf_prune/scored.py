"""Whether a planner can choose by what a measure scores: known before any text is read."""

from collections.abc import Collection, Iterable

from hf_prune.errors import ConfigError
from hf_prune.method import Method
from hf_prune.registry import Entry, measure, planner
from hf_prune.units import PARTS, parts_of

_WORDS: dict[str, str] = {
    "pairs": "distances between all pairs of layers",
    "cosines": "cosines between all pairs of layers",
    "layers": "the cosine of each layer's input and output",
    "cuts": "the damage of whole cuts",
    **{part: f"the importance of each {part}" for part in PARTS},
}

_WHOLE = ("gradients", "weights")
"""What measures need that look at the whole model alone."""


def check_scored(recipe: Method) -> None:
    """Refuse a planner that cannot choose by the measure.

    Args:
        recipe: names both. One without a measure is left to its planner.

    Raises:
        ConfigError: the measure does not score what the planner chooses by, or cannot be asked as often.
    """
    asking = planner.get(recipe.planner)
    if recipe.unit != "block" and {"pairs", "cosines"} & set(asking.scores):
        raise ConfigError(f"planner '{asking.name}' chooses among whole blocks; take unit='block', or another planner")
    if recipe.measure is not None and asking.needs == "nothing":
        raise ConfigError(
            f"planner '{asking.name}' chooses without measuring; leave out measure '{recipe.measure}', or take a "
            "planner that looks at scores, such as 'top_k' (--planner top_k)"
        )
    if recipe.measure is None or not asking.scores:
        return
    wanted = parts_of(recipe.unit) if asking.scores == ("units",) else asking.scores
    found = measure.get(recipe.measure)
    check_tells(found, wanted, f"planner '{asking.name}'", again=asking.needs == "judge")


def check_tells(found: Entry, wanted: Iterable[str], who: str, *, again: bool) -> None:
    """Refuse a measure that says that it scores something else, or that cannot be asked as often.

    Args:
        found: the measure.
        wanted: what it has to score; see `Entry.scores`.
        who: chooses by it, for the error.
        again: whether cut models are measured, too.

    Raises:
        ConfigError: something is not among it, or it looks at the whole model alone.
    """
    if again and found.needs in _WHOLE:
        raise ConfigError(
            f"measure '{found.name}' looks at the whole model alone; a planner that measures again behind each "
            "removal needs one of the hidden states or of the outputs"
        )
    told = _told(found)
    missing = [what for what in dict.fromkeys(wanted) if what not in told]
    if told and missing:
        fit = [e.name for e in measure if set(missing) <= _told(e) and not (again and e.needs in _WHOLE)]
        raise ConfigError(
            f"{who} chooses by {_in_words(missing)}; measure '{found.name}' tells {_in_words(told)}. Take one of: "
            f"{', '.join(fit)}; or another planner or unit"
        )


def _in_words(scores: Collection[str]) -> str:
    return " and ".join(words for what, words in _WORDS.items() if what in scores)


def _told(entry: Entry) -> set[str]:
    return {"cuts", *PARTS} if entry.needs in ("outputs", "tasks") else set(entry.scores)
