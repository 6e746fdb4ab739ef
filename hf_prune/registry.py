"""Named functions: measures, planners and surgeries register themselves under the name users type."""

import difflib
import importlib
import inspect
import pkgutil
import typing
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hf_prune.errors import ConfigError


def did_you_mean(value: str, known: list[str]) -> str:
    """A hint for a mistyped name: " Did you mean 'x'?" or an empty string."""
    close = difflib.get_close_matches(value, known, n=1)
    return f" Did you mean '{close[0]}'?" if close else ""


WITHOUT_TEXT = ("weights", "tasks")
"""What measures need (`Entry.needs`) that look at no calibration text."""


@dataclass(frozen=True)
class Entry:
    """One registered function.

    Attributes:
        name: what users type.
        title: one line for tables, help and cards.
        url: the paper or page that defines it.
        function: what is called.
        cuts: what it chooses or removes: whole "layers", the "width" of the residual stream, or "nothing".
        streamed: of a surgery: the same on a model without weights, `(decoder, layers, edits, **options)`; it changes
            the structure, and enters in `edits` what happens to the numbers. None where it needs the model in memory.
        needs: of a measure: one "pass" through the blocks, the "outputs" of cut models, "gradients", the "weights"
            alone, or cut models that answer "tasks". Of a planner: "judge" where it asks for the damage of cuts while
            it chooses, else "scores" or "nothing". Of a fitted surgery: "text" where it looks at hidden states, else
            "weights".
        scores: of a measure: what it scores; "pairs" of layers (and by "cosines"), "layers" (by their cosine), and the
            parts of blocks whose importance it tells ("block", "attention", "mlp"). One of outputs or tasks scores all
            that can go, and need not say so. Of a planner: what it chooses by; "pairs", "cosines", "layers", "units"
            (the parts that may go) or whole "cuts". Empty where that is not told: then it shows only once all is
            measured.
        unit: of a fitted surgery: what it stands in for, a "block" or the "attention" of one.
    """

    name: str
    title: str
    url: str
    function: Callable[..., Any]
    cuts: str = "layers"
    streamed: Callable[..., Any] | None = None
    needs: str = ""
    scores: tuple[str, ...] = ()
    unit: str = "block"

    def options(self) -> dict[str, Any]:
        """The keyword-only parameters of the function, which users may set, with their defaults."""
        parameters = inspect.signature(self.function).parameters.values()
        return {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is not p.empty}

    def check_options(self, given: dict[str, Any], kind: str) -> None:
        """Refuse options that the function does not have, and values of another type.

        Raises:
            ConfigError: an option is unknown, or has a wrong type.
        """
        from hf_prune.serial import check_type

        known, hints = list(self.options()), typing.get_type_hints(self.function)
        for key in given:
            if key not in known:
                raise ConfigError(
                    f"{kind} '{self.name}' has no option '{key}' (value {given[key]!r}); "
                    f"it has: {', '.join(known) or 'none'}.{did_you_mean(key, known)}"
                )
            if self.cuts != "width":  # slicing says itself what it expects of each value
                check_type(hints.get(key, Any), given[key], f"{kind} '{self.name}': {key}")


class Registry:
    """A table of named functions of one kind ("measure", "planner", "surgery").

    Every module of `package` is imported at the first look-up, so that a new file registers itself and importing
    hf_prune stays cheap.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self.package = package
        self._entries: dict[str, Entry] = {}
        self._loaded = False

    def _load(self) -> dict[str, Entry]:
        if not self._loaded:
            package = importlib.import_module(self.package)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{self.package}.{module.name}")
            self._loaded = True
        return self._entries

    def __call__(
        self,
        name: str,
        *,
        title: str,
        url: str,
        cuts: str = "layers",
        streamed: Callable[..., Any] | None = None,
        needs: str = "",
        scores: tuple[str, ...] = (),
        unit: str = "block",
    ) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator that registers a function under `name`."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            if name in self._entries:
                raise ConfigError(f"{self.kind} '{name}' is registered twice")
            self._entries[name] = Entry(name, title, url, function, cuts, streamed, needs, scores, unit)
            return function

        return register

    def __iter__(self) -> Iterator[Entry]:
        """All entries, in order of registration."""
        return iter(self._load().values())

    def __contains__(self, name: str) -> bool:
        """Whether something is registered under a name."""
        return name in self._load()

    def get(self, name: str) -> Entry:
        """Look up a name.

        Raises:
            ConfigError: nothing is registered under it.
        """
        entries = self._load()
        if name not in entries:
            known = list(entries)
            raise ConfigError(
                f"unknown {self.kind} '{name}'; expected one of: {', '.join(known)}.{did_you_mean(name, known)}"
            )
        return entries[name]


measure = Registry("measure", "hf_prune.measures")
planner = Registry("planner", "hf_prune.planners")
surgery = Registry("surgery", "hf_prune.surgery")
fitted = Registry("surgery", "hf_prune.fitting")


def surgery_named(name: str) -> Entry:
    """Look up a surgery: one that a plan names as it is, or one that has to be fitted to the model first.

    Raises:
        ConfigError: nothing is registered under the name.
    """
    known = [entry.name for registry in (surgery, fitted) for entry in registry if entry.cuts != "nothing"]
    if name not in known:
        raise ConfigError(f"unknown surgery '{name}'; expected one of: {', '.join(known)}.{did_you_mean(name, known)}")
    return fitted.get(name) if name in fitted else surgery.get(name)
