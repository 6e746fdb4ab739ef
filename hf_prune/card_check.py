"""`hf-prune card DIR --check`: does a model card hold together, and does it say what the records say?"""

import difflib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK

from hf_prune import eval_results
from hf_prune.card_choice import in_a_sentence
from hf_prune.card_metadata import Base, base_of
from hf_prune.card_tasks import quoted
from hf_prune.cards import shipped_model
from hf_prune.errors import ConfigError, PruneError
from hf_prune.output import OUTPUT_FILE, Finished, benchmark_text, card_text
from hf_prune.saving import RECORDS

CARD = "README.md"

_MOST_LINES = 8
"""Differing lines that are told; the rest is counted."""

_ROUNDING = 1e-5
"""Relative difference between a record and the card's metadata, which holds six digits."""

_FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,}).*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"(`+)(?!`).*?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"(!?)\[((?:\\.|[^\]\\])*)\]\(\s*<?([^\s)>]*)>?[^)]*\)")
_LEFT_OVER = (
    (re.compile(r"\{\{|\{%|\{#"), "a piece of the template"),
    (re.compile(r"(?<![\w-])None(?![\w-])(?! of)"), "the value None"),
    (re.compile(r"(?<![\w-])(nan|NaN)(?![\w-])"), "a figure that is not a number"),
)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{30,}\b")
_LOCAL = re.compile(
    r"(?<![\w.])(?<!:/)(/(?:home|root|Users|tmp|mnt|workspace)/[^\s`'\")]+|[A-Za-z]:\\Users\\[^\s`'\")]+)"
)
_NUMBER = re.compile(r"\d[\d,.]*")


@dataclass(frozen=True)
class Finding:
    """One thing that a card should not have.

    Attributes:
        level: "error" for what is wrong or broken, "warning" for what is missing or was changed by hand.
        text: one sentence.
    """

    level: Literal["error", "warning"]
    text: str


def check_card(folder: Path) -> list[Finding]:
    """Lint the card of a folder: one that this package wrote, or any that is laid out like a Hub repo.

    Args:
        folder: holds README.md; with records of this package the card is compared with them as well.

    Returns:
        What was found, errors first; empty for a good card.

    Raises:
        ConfigError: no README.md there, or it is no UTF-8 text.
    """
    path = folder / CARD
    if not path.is_file():
        raise ConfigError(f"'{folder}' holds no {CARD}; expected the folder of a model with its card")
    try:
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{CARD} in '{folder}' is no UTF-8 text ({error})") from error
    finished, found = _records(folder)
    found += _metadata(text, finished)
    found += _text(folder, REGEX_YAML_BLOCK.sub("", text, count=1))
    found += _secrets(text)
    if finished is not None:
        found += _against_records(folder, text, finished)
    return sorted(found, key=lambda finding: finding.level != "error")


def _records(folder: Path) -> tuple[Finished | None, list[Finding]]:
    if not (folder / RECORDS / OUTPUT_FILE).is_file():
        return None, []
    try:
        return Finished.load(folder), []
    except PruneError as error:
        return None, [Finding("error", f"The records beside the card cannot be read: {error}")]


def _metadata(text: str, finished: Finished | None) -> Iterator[Finding]:
    match = REGEX_YAML_BLOCK.search(text)
    if match is None:
        yield Finding("error", "There is no front matter (YAML between two lines of ---) at the top.")
        return
    try:
        found = yaml.safe_load(match[2])
        if not isinstance(found, dict):
            yield Finding("error", f"The front matter is a {type(found).__name__}; expected keys and values.")
            return
        ModelCard(text)
    except (yaml.YAMLError, ValueError, TypeError, KeyError, RecursionError) as error:
        yield Finding("error", f"The front matter cannot be read as a model card's: {' '.join(str(error).split())}")
        return
    for key in ("library_name", "tags"):
        if not found.get(key):
            yield Finding("error", f"The front matter has no '{key}'.")
    if not found.get("license") and not found.get("license_name"):
        yield Finding("warning", "The front matter names no licence.")
    on_hub = finished is None or _base(finished).on_hub
    for key in ("base_model", "base_model_relation"):
        if on_hub and not found.get(key):
            yield Finding("warning" if finished is None else "error", f"The front matter has no '{key}'.")
    if finished is not None:
        yield from _figures(found, finished)


def _base(finished: Finished) -> Base:
    return base_of(finished.plan, finished.config.base_model, finished.config.base_revision)


def _figures(found: dict[str, Any], finished: Finished) -> Iterator[Finding]:
    """The `model-index` against the records."""
    shipped = shipped_model(finished.healing, finished.evaluation)
    asked = quoted(finished.evaluation)[0] if finished.evaluation else []
    wanted = {
        (r.dataset_name, r.metric_type, str(r.metric_name)): r.metric_value
        for r in (eval_results.results(shipped, asked) if shipped is not None else [])
    }
    figures = [
        ((str(result["dataset"].get("name")), str(metric.get("type")), str(metric.get("name"))), metric.get("value"))
        for model in found.get("model-index") or []
        for result in model["results"]
        for metric in result["metrics"]
    ]
    stated = dict(figures)
    if len(stated) < len(figures):
        yield Finding("error", "The model-index holds a figure twice.")
    for name, value in wanted.items():
        said, title = stated.get(name), f"{name[2]} on {name[0]}"
        if said is None:
            yield Finding("error", f"The model-index lacks {title}, which the records put at {value}.")
        elif not _close(said, value):
            yield Finding("error", f"The model-index says {said} for {title}; the records say {value}.")
    for name in stated.keys() - wanted.keys():
        yield Finding("error", f"The model-index holds {name[2]} on {name[0]}, of which the records know nothing.")


def _close(said: Any, value: float) -> bool:
    finite = isinstance(said, int | float) and abs(said) <= sys.float_info.max  # what compares false is NaN
    return finite and abs(said - value) <= _ROUNDING * abs(value)


def _text(folder: Path, body: str) -> Iterator[Finding]:
    """Links, pictures and what a template leaves behind, outside of code."""
    prose = _CODE.sub("", _FENCE.sub("", body))
    for mark, label, target in _LINK.findall(prose):
        if mark and not label.strip():
            yield Finding("error", f"The picture {target} has no alt text.")
        if re.match(r"[a-z][a-z0-9+.-]*:|#|//", target, re.IGNORECASE) or not target:
            continue
        path = folder / unquote(target.partition("#")[0].partition("?")[0])
        if not path.exists():
            yield Finding("error", f"The {'picture' if mark else 'link'} {target} leads to no file.")
    for pattern, what in _LEFT_OVER:
        match = pattern.search(prose)
        if match is not None:
            line = prose[: match.start()].rpartition("\n")[2] + prose[match.start() :].partition("\n")[0]
            yield Finding("error", f"There is {what} in the text: {_short(line)}")


def _secrets(text: str) -> Iterator[Finding]:
    if _TOKEN.search(text):
        yield Finding("error", "There is what looks like a Hub token (hf_…) in the card. Remove it and revoke it.")
    for path in dict.fromkeys(_LOCAL.findall(text)):
        yield Finding("error", f"There is a path of some machine in the card: {_short(path)}")


def _against_records(folder: Path, text: str, finished: Finished) -> Iterator[Finding]:
    described = in_a_sentence(finished.plan)
    if finished.plan.slicing is None and described not in text:
        yield Finding("error", f"The card does not say what the plan did: {described}.")
    try:
        expected = card_text(folder, finished, _repo_of(text))
        benchmarks = benchmark_text(finished)
    except (PruneError, ValueError, TypeError, LookupError, ArithmeticError) as error:  # records may say anything
        yield Finding("error", f"No card can be made from the records: {error}")
        return
    path = folder / eval_results.EVAL_RESULTS_FILE
    if benchmarks != (path.read_text(encoding="utf-8", errors="replace") if path.is_file() else None):
        yield Finding("error", f"{eval_results.EVAL_RESULTS_FILE} is not what the records make.")
    differing = list(_differences(text.splitlines(), expected.splitlines()))
    yield from differing[:_MOST_LINES]
    rest = differing[_MOST_LINES:]
    if rest:
        level: Literal["error", "warning"] = "error" if any(f.level == "error" for f in rest) else "warning"
        yield Finding(level, f"{len(rest)} more places differ; `hf-prune card` writes the card anew from its records.")


def _differences(card: list[str], expected: list[str]) -> Iterator[Finding]:
    """Where the card is not what the records make: other figures are wrong, other words were edited by hand."""
    for kind, a, b, c, d in difflib.SequenceMatcher(None, card, expected, autojunk=False).get_opcodes():
        if kind == "equal":
            continue
        has, wants = card[a:b], expected[c:d]
        where = f"Line {a + 1}"
        if kind == "insert":
            yield Finding("warning", f"{where}: the records make a line that is not there: {_short(_first(wants))}")
        elif kind == "delete":
            yield Finding("warning", f"{where}: a line that the records don't make: {_short(_first(has))}")
        else:
            figures = [_NUMBER.findall("\n".join(lines)) for lines in (has, wants)]
            level: Literal["error", "warning"] = "warning" if figures[0] == figures[1] else "error"
            yield Finding(level, f"{where} has {_short(_first(has))}; the records make {_short(_first(wants))}")


def _first(lines: list[str]) -> str:
    return next((line for line in lines if line.strip()), "")


def _repo_of(text: str) -> str | None:
    """The repo that a card was written for, as its quick start names it."""
    match = re.search(r'^name = "([A-Za-z0-9._-]+/[A-Za-z0-9._-]+)"$', text, re.MULTILINE)
    return match[1] if match else None


def _short(line: str, limit: int = 160) -> str:
    line = " ".join(line.split())
    return repr(line if len(line) <= limit else line[: limit - 1] + "…")
