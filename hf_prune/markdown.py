"""Untrusted text in Markdown: escaped, quoted or fenced so that it stays text.

Names, prompts, completions and base cards come from strangers. Everything that a card prints goes through this module:
the template engine escapes every plain string, and only `Markdown`, which these functions make, is printed as it is.
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import Any

from hf_prune.errors import ConfigError

_ENTITIES = {c: f"&#{ord(c)};" for c in "|\\$`{}"} | {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_BACKSLASHED = {c: f"\\{c}" for c in "*_[]~"}
_ESCAPES = str.maketrans(_ENTITIES | _BACKSLASHED)
_JOINERS = "\u200c\u200d"
"""Zero-width joiners: part of the spelling in Persian, Hindi and emoji, so they stay in quoted text."""


class Markdown(str):
    """Text that is Markdown already and is printed without escaping."""

    __slots__ = ()


def visible(text: str, keep: str = "") -> str:
    r"""Spell out the characters that cannot be seen, or that reorder what is seen.

    Control, format (zero width, right-to-left overrides, tags) and surrogate characters and the separators of lines
    and paragraphs become escapes such as `\u202e`.

    Args:
        text: any text.
        keep: characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text

    def spelled(char: str) -> str:
        if char in keep or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"):
            return char
        return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"

    return "".join(map(spelled, text))


def one_line(text: str, limit: int = 300) -> str:
    """The text on one line: white space collapsed, invisible characters spelled out, at most `limit` characters."""
    line = visible(" ".join(text[: 4 * limit].split()))
    return line if len(line) <= limit and len(text) <= 4 * limit else line[: limit - 1] + "…"


def escape(text: str, limit: int = 1000) -> Markdown:
    """Text for a sentence or a table cell: no character of it acts as Markdown, HTML or a formula.

    Args:
        text: any text; `Markdown` is returned unchanged.
        limit: longest text kept, in characters.
    """
    if isinstance(text, Markdown):
        return text
    line = one_line(text, limit).translate(_ESCAPES).replace("://", "&#58;//").replace("www.", "www&#46;")
    # What would start a list, a heading or a rule at the beginning of a line.
    line = re.sub(r"^(?:[=#]|[-+](?!\d))", lambda match: f"&#{ord(match[0])};", line)
    return Markdown(re.sub(r"^(\d+)([.)])(?=\s|$)", lambda match: f"{match[1]}&#{ord(match[2])};", line))


def code(text: str, limit: int = 300) -> Markdown:
    """Text as a code span, for names that are typed or looked up."""
    line = one_line(text, limit)
    if not line:
        return Markdown("(empty)")
    if "|" in line:  # would split a table cell even inside a code span
        return escape(line, limit)
    ticks = "`" * (_longest_run("`", line) + 1)
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return Markdown(f"{ticks}{pad}{line}{pad}{ticks}")


def fence(text: str, language: str = "text", limit: int = 4000) -> Markdown:
    """Text as a fenced block whose fence is longer than any run of backticks inside.

    Args:
        text: any text of any number of lines.
        language: info string; ours, never a stranger's.
        limit: longest text kept, in characters; what is cut is counted in the last line.
    """
    cut = len(text) - limit
    shown = text[:limit].replace("\r\n", "\n").replace("\r", "\n")
    lines = [visible(line, keep="\t" + _JOINERS) for line in shown.split("\n")]
    if cut > 0:
        lines.append(f"… ({cut:,} more characters)")
    ticks = "`" * max(3, _longest_run("`", text) + 1)
    return Markdown("\n".join([f"{ticks}{language}", *lines, ticks]))


def link(text: str, url: str) -> Markdown:
    """A link; `url` is ours, or a checked Hub id behind our prefix.

    Raises:
        ConfigError: the URL could end the link or start something else.
    """
    if not re.fullmatch(r"https://[A-Za-z0-9._~/#?=&%-]+", url):
        raise ConfigError(f"{url!r} cannot be linked; expected https:// and plain URL characters")
    return Markdown(f"[{escape(text)}]({url})")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> Markdown:
    """A table with the first column to the left and the others to the right.

    Raises:
        ConfigError: a row has another number of cells than the header.
    """
    lines = [_row(header), "|" + "|".join([":--", *["--:"] * (len(header) - 1)]) + "|"]
    for row in rows:
        if len(row) != len(header):
            raise ConfigError(f"a table row has {len(row)} cells; the header has {len(header)}: {list(row)!r}")
        lines.append(_row(row))
    return Markdown("\n".join(lines))


def bullets(items: Sequence[str], prefix: str = "- ") -> Markdown:
    """A list, one item a line."""
    return Markdown("\n".join(prefix + escape(item) for item in items))


def printable(value: Any) -> str:
    """What a template may print: Markdown as it is, other text escaped, whole numbers; nothing else.

    Raises:
        ConfigError: None, a float (format it first), or any other object: a value is missing or unformatted.
    """
    if isinstance(value, str):
        return str(escape(value))
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    missing = getattr(value, "_undefined_name", None)
    if missing is not None:
        raise ConfigError(f"the template uses '{missing}', which was not given")
    raise ConfigError(f"the template prints {value!r}, a {type(value).__name__}; expected text or a whole number")


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(escape(cell) for cell in cells) + " |"


def _longest_run(char: str, text: str) -> int:
    return max((len(run) for run in re.findall(f"{re.escape(char)}+", text)), default=0)
