"""What the recipes and their parts are, for people who choose: the rows of every table of methods."""

from typing import Any

from hf_prune.config import PrunerConfig
from hf_prune.method import Method
from hf_prune.methods import METHODS
from hf_prune.registry import Entry, Registry, fitted, measure, planner, surgery, surgery_named
from hf_prune.units import WORDS

METHOD_HEADER = ("method", "goes", "measure + planner + surgery", "forwards", "needs", "paper")
ENTRY_HEADER = ("name", "needs", "source", "what it is; its options")
_FORWARDS = 18
"""Letters for the forwards of a method in a table."""


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
    """A row for each recipe, under `METHOD_HEADER`: shortened, so that a row has at most 120 letters."""
    short = {"attentions and MLPs": "parts", "single weights": "weights"}
    return [
        (m.name, short.get(goes(m), goes(m)), combined(m), forwards(m), _needs_most(m), source_id(m.paper))
        for m in METHODS.values()
    ]


def forwards(method: Method) -> str:
    """Passes of the calibration text that choosing takes, shortened: "1", "≤ n (L + 1)/2", "none"."""
    if ":" in method.cost:
        told = method.cost.partition(":")[0]
    else:
        told = method.cost.partition(" forward")[0].partition(",")[0]
    for words, sign in (("at most ", "≤ "), ("up to ", "≤ "), ("about ", "≈ "), (" / ", "/")):
        told = told.replace(words, sign)
    return told if len(told) <= _FORWARDS else f"{told[: _FORWARDS - 1]}…"


def _needs_most(method: Method) -> str:
    """The most demanding of what it needs: each takes all that those before it take."""
    return needs(method).rpartition(", ")[2]


def source_id(url: str) -> str:
    """A paper in short: its number on arXiv, or the URL where it is not there."""
    return url.removeprefix("https://arxiv.org/abs/")


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
    return [(e.name, wants(e), source_id(e.url), f"{e.title}; {in_words(e.options())}") for e in entries(kind)]


def wants(entry: Entry) -> str:
    """What a measure, planner or surgery needs, for people."""
    words = {"pass": "one pass", "outputs": "cut models", "weights": "weights alone", "": "nothing"}
    needed = entry.needs or ("scores" if entry.scores else "")
    return words.get(needed, needed)


def in_words(options: dict[str, Any]) -> str:
    """Options for people: "generations=50, seed=None"."""
    return ", ".join(f"{name}={value!r}" for name, value in options.items()) or "none"
