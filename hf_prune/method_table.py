"""What the recipes and their parts are, for people who choose: the rows of every table of methods."""

from typing import Any

from hf_prune.config import PrunerConfig
from hf_prune.method import Method
from hf_prune.methods import METHODS
from hf_prune.registry import Entry, Registry, fitted, measure, planner, surgery, surgery_named
from hf_prune.units import WORDS

METHOD_HEADER = ("method", "what goes", "measure + planner + surgery", "cost", "needs", "gives", "paper")
ENTRY_HEADER = ("name", "title", "needs", "options", "source")


def goes(method: Method) -> str:
    """What a method removes: "layers", "attentions", "width", ..."""
    return {"width": "width", "weights": "single weights"}.get(method.cuts) or WORDS[method.unit]


def needs(method: Method) -> str:
    """What choosing and removing take besides the model: "nothing", "text", "text, gradients", "text, judge", ...

    A judge is a search that runs cut models.
    """
    found = ["text"] if PrunerConfig(method=method.name).calibrates else []
    if method.measure is not None:
        kind = measure.get(method.measure).needs
        found += [kind] if kind not in ("pass", "outputs", "weights") else []
    if planner.get(method.planner).needs == "judge":
        found.append("judge")
    return ", ".join(found) or "nothing"


def gives(method: Method) -> str:
    """What kind of model comes out."""
    if not method.plain:
        return "needs shipped code"
    return "stock model, no smaller" if method.unit != "block" or method.cuts == "weights" else "stock model"


def combined(method: Method) -> str:
    """Measure, planner and surgery in one: "loss + greedy + drop"."""
    return " + ".join(part for part in (method.measure, method.planner, _surgery(method)) if part is not None)


def _surgery(method: Method) -> str:
    """What is done in the end: parts of blocks that are dropped fall silent."""
    return "silence" if method.unit != "block" and method.surgery == "drop" else method.surgery


def method_rows() -> list[tuple[str, ...]]:
    """A row for each recipe, under `METHOD_HEADER`."""
    return [(m.name, goes(m), combined(m), m.cost, needs(m), gives(m), m.paper) for m in METHODS.values()]


def parts(method: Method) -> dict[str, tuple[Entry, dict[str, Any]]]:
    """The measure, planner and surgery of a recipe, each with its options as the recipe has them.

    Args:
        method: the recipe.

    Returns:
        By "measure" (where there is one), "planner" and "surgery": its entry; options by name, the recipe's own values
        over the defaults.
    """
    found = {} if method.measure is None else {"measure": measure.get(method.measure)}
    found |= {"planner": planner.get(method.planner), "surgery": _named(_surgery(method))}
    own = {kind: getattr(method, f"{kind}_kwargs") for kind in found}
    return {kind: (entry, {**entry.options(), **own[kind]}) for kind, entry in found.items()}


def _named(name: str) -> Entry:
    return surgery.get(name) if name in surgery else surgery_named(name)


def described(method: Method) -> dict[str, Any]:
    """All there is to tell of a recipe, as JSON types but for tuples."""
    return vars(method) | {
        "goes": goes(method),
        "needs": needs(method),
        "gives": gives(method),
        "options": {kind: options for kind, (_, options) in parts(method).items()},
    }


def entries(kind: str) -> list[Entry]:
    """What a recipe may name.

    Args:
        kind: "measures", "planners" or "surgeries".
    """
    registries: dict[str, tuple[Registry, ...]] = {
        "measures": (measure,),
        "planners": (planner,),
        "surgeries": (surgery, fitted),
    }
    return [entry for registry in registries[kind] for entry in registry if entry.cuts != "nothing"]


def entry_rows(kind: str) -> list[tuple[str, ...]]:
    """A row for each of them, under `ENTRY_HEADER`; see `entries`."""
    return [(e.name, e.title, wants(e), in_words(e.options()), e.url) for e in entries(kind)]


def wants(entry: Entry) -> str:
    """What a measure, planner or surgery needs, for people."""
    words = {"pass": "one pass", "outputs": "outputs of cut models", "weights": "weights alone", "": "nothing"}
    return words.get(entry.needs, entry.needs)


def in_words(options: dict[str, Any]) -> str:
    """Options for people: "generations=50, seed=None"."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "none"
