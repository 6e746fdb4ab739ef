"""Links that restore what stands on the page: the pair, the prompt, the settings. What comes in one is untrusted."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from hf_prune.markdown import one_line
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import DEMO

NAMES = ("pair", "prompt", "temperature", "top_p", "max_tokens", "seed", "same_seed", "chat")
"""Query parameters, in the order of the page's widgets."""

MAX_SEED = 2**32 - 1


@dataclass(frozen=True)
class Restored:
    """What a link says.

    Attributes:
        pair: name of the pair; `DEMO` where none is given or the name cannot be one.
        prompt: untrusted text.
        sampling: settings, each at its default where the link has none or a wrong one.
        problems: one sentence for each value that was not taken.
    """

    pair: str
    prompt: str
    sampling: Sampling
    problems: tuple[str, ...]


def read(query: Mapping[str, str], *, prompt_chars: int, new_tokens: int) -> Restored:
    """Read a link's query; whatever is wrong in it falls back and is told.

    Args:
        query: the parameters, decoded; unknown ones are passed by.
        prompt_chars: longest prompt.
        new_tokens: most tokens of an answer.
    """
    reader = _Reader(query)
    default = Sampling(max_new_tokens=min(Sampling.max_new_tokens, new_tokens))
    sampling = Sampling(
        temperature=reader.number("temperature", default.temperature, 0, 2),
        top_p=reader.number("top_p", default.top_p, 0.05, 1),
        max_new_tokens=reader.whole("max_tokens", default.max_new_tokens, 1, new_tokens),
        seed=reader.whole("seed", default.seed, 0, MAX_SEED),
        same_seed=reader.flag("same_seed", default.same_seed),
        chat=reader.flag("chat", default.chat),
    )
    return Restored(reader.pair(), reader.prompt(prompt_chars), sampling, tuple(reader.problems))


def link_script() -> str:
    """JavaScript for a button: takes the widgets' values in the order of `NAMES`, copies the link, returns it shown.

    The address is the browser's own, so that the link works wherever the page is served from.
    """
    return f"""async (...values) => {{
        const link = new URL(window.location.origin + window.location.pathname);
        {json.dumps(NAMES)}.forEach((name, i) => link.searchParams.set(name, String(values[i] ?? "")));
        let info = "Copied. It restores the pair, the prompt and the settings.";
        try {{ await navigator.clipboard.writeText(link.href); }}
        catch {{ info = "The browser did not allow copying; copy it by hand."; }}
        return {{ __type__: "update", value: link.href, info, visible: true }};
    }}"""


class _Reader:
    """Takes values out of a query and notes what is wrong with them."""

    def __init__(self, query: Mapping[str, str]) -> None:
        self.query = query
        self.problems: list[str] = []

    def pair(self) -> str:
        name = self.query.get("pair", DEMO)
        if name == DEMO:
            return DEMO
        try:
            validate_repo_id(name)
        except HFValidationError:
            self._refuse("pair", name, "the Hub id of a model, such as 'org/name'", "the demo is shown")
            return DEMO
        return name

    def prompt(self, limit: int) -> str:
        prompt = self.query.get("prompt", "")
        if len(prompt) > limit:
            self.problems.append(f"The link's prompt has {len(prompt):,} characters; it was cut to {limit:,}.")
        return prompt[:limit]

    def number(self, name: str, default: float, low: float, high: float) -> float:
        text = self.query.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low <= value <= high:
            self._refuse(name, text, f"a number from {low:g} to {high:g}", f"{default:g} is used")
            return default
        return value

    def whole(self, name: str, default: int, low: int, high: int) -> int:
        text = self.query.get(name)
        if text is None:
            return default
        if not (text.isascii() and text.isdigit() and len(text) <= 10 and low <= int(text) <= high):
            self._refuse(name, text, f"a whole number from {low} to {high}", f"{default} is used")
            return default
        return int(text)

    def flag(self, name: str, default: bool) -> bool:
        text = self.query.get(name)
        if text not in (None, "true", "false"):
            self._refuse(name, str(text), "true or false", f"{str(default).lower()} is used")
            return default
        return default if text is None else text == "true"

    def _refuse(self, name: str, value: str, expected: str, instead: str) -> None:
        shown = one_line(value, 40)
        self.problems.append(f"The link's {name}='{shown}' was not taken: expected {expected}; {instead}.")
