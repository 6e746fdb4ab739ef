"""Names that visitors type: always ids on the Hub, never folders of this machine."""

import re

from huggingface_hub import constants

from hf_prune.errors import ConfigError

_PART = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_ID = re.compile(rf"{_PART}/{_PART}")
_BARE = re.compile(_PART)


def hub_id(text: str) -> str:
    """A Hub id as a visitor typed it, without space around it.

    Raises:
        ConfigError: it is none.
    """
    found = text.strip() if isinstance(text, str) else ""
    if not (_ID.fullmatch(found) and _allowed(found)):
        raise ConfigError(f"'{shown(text)}' is no Hub id; expected owner/name, such as HuggingFaceTB/SmolLM2-135M")
    return found


def is_hub_id(text: object, *, bare: bool = False) -> bool:
    """Whether a text is a Hub id.

    Args:
        text: any.
        bare: whether a name without an owner is one, as the oldest models have it.
    """
    if not isinstance(text, str) or not _allowed(text):
        return False
    return bool(_ID.fullmatch(text) or (bare and _BARE.fullmatch(text)))


def shown(text: object, most: int = 80) -> str:
    """A text from outside as it may stand in a message: short, on one line, nothing in it that isn't seen."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(text)[: 2 * most]).split())
    return line if len(line) <= most else f"{line[: most - 1]}…"


def without_paths(message: str, name: str) -> str:
    """A message about a downloaded repo, in which nothing is told of where this machine keeps it.

    Args:
        message: as the loaders word it.
        name: of the repo, which takes the place of its folder.
    """
    cache = re.escape(constants.HF_HUB_CACHE)
    named = re.sub(rf"{cache}/models--[^/\s]*(?:/snapshots/[0-9a-f]*)?", name.replace("\\", ""), message)
    return named.replace(constants.HF_HUB_CACHE, "the Hub's cache")


def _allowed(text: str) -> bool:
    return len(text) <= 96 and "--" not in text and ".." not in text and not text.endswith(".git")
