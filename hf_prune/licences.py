"""What the base's licence asks of those who pass on a changed model, as far as this project is sure of it.

No legal advice: each sentence is a pointer to the licence's own text.
"""

import re
from dataclasses import dataclass
from typing import Any

from hf_prune.markdown import one_line


@dataclass(frozen=True)
class Duty:
    """One thing that a licence asks for.

    Attributes:
        text: a sentence, plain text.
        flag: whether to say it before a push and at the top of the card: something forbidden, or something that
            whoever pushes has to do or to read.
    """

    text: str
    flag: bool = False


_NOTICE = "Keep the base's copyright and licence notices with every copy"
_LLAMA = {
    # What must be displayed, what a name must begin with, and the name in the notice.
    "llama3": ("Built with Meta Llama 3", "Llama 3", "Meta Llama 3"),
    "llama3.1": ("Built with Llama", "Llama", "Llama 3.1"),
    "llama3.2": ("Built with Llama", "Llama", "Llama 3.2"),
    "llama3.3": ("Built with Llama", "Llama", "Llama 3.3"),
    "llama4": ("Built with Llama", "Llama", "Llama 4"),
}
_PERMISSIVE = {
    "apache-2.0": f"{_NOTICE}, the NOTICE file too where there is one, and say that files were changed (this card "
    "does).",
    **dict.fromkeys(
        ("mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear", "isc", "zlib", "ncsa", "bsl-1.0"),
        f"{_NOTICE}.",
    ),
    **dict.fromkeys(("cc0-1.0", "unlicense", "pddl", "0bsd", "wtfpl"), "It asks for nothing in return."),
}
_COPYLEFT = re.compile(r"(a|l)?gpl(-\d.*)?|(mpl|epl|eupl|osl)(-.*)?")
_RAIL = re.compile(r"(.*-)?(open)?rail(\+\+|-.*)?")


def duties(inherited: dict[str, Any], repo_id: str | None = None) -> tuple[Duty, ...]:
    """What the inherited licence asks for.

    Args:
        inherited: `license`, `license_name` and `license_link` of the base card, see `card_metadata.inherit`.
        repo_id: where the model goes, if that is known: some licences ask for a name.

    Returns:
        The duties of every licence that is named, in order; one that says to look where no licence is known.
    """
    named = inherited.get("license")
    names = [named] if isinstance(named, str) else list(named or [])
    own = inherited.get("license_name")
    if own and (not names or names == ["other"]):
        names = [own]
    if not names:
        return (Duty("The base's licence is not known: find out whether a changed copy may be passed on.", True),)
    return tuple(dict.fromkeys(duty for name in names for duty in _of(str(name), repo_id)))


def flags(inherited: dict[str, Any], repo_id: str | None = None) -> tuple[str, ...]:
    """The sentences of `duties` that are said before a push."""
    return tuple(duty.text for duty in duties(inherited, repo_id) if duty.flag)


def _of(name: str, repo_id: str | None) -> tuple[Duty, ...]:
    shown = one_line(name, 100)
    key = name.lower().strip().removesuffix("-community-license").removesuffix("-community").removesuffix("-license")
    key = re.sub(r"^(meta-)?llama[-_ ]?(\d)", r"llama\2", key)
    if key in _PERMISSIVE:
        return (Duty(f"{shown}: {_PERMISSIVE[key]}"),)
    if key.startswith("cc-by"):
        return _creative_commons(key, shown)
    if key == "llama2":
        return _llama_2(shown)
    if key in _LLAMA:
        return _llama_3(shown, *_LLAMA[key], repo_id)
    if key == "gemma":
        return (
            Duty(
                f"{shown}: whoever passes the model on must hand over the Gemma Terms of Use with their use "
                "restrictions, mark changed files as changed, and add a notice file that reads: Gemma is provided "
                "under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms",
                True,
            ),
        )
    if _RAIL.fullmatch(key):
        return (Duty(f"{shown}: its use restrictions must be passed on to everyone who gets this model.", True),)
    if _COPYLEFT.fullmatch(key):
        return (Duty(f"{shown}: {_NOTICE}, and pass changed copies on under the same licence."),)
    return (
        Duty(f"{shown}: this licence is not known to hf-prune; read it before you pass the model on or use it.", True),
    )


def _creative_commons(key: str, shown: str) -> tuple[Duty, ...]:
    parts = key.split("-")
    found = [
        Duty(f"{shown}: name the authors of the base, link the licence, and say what was changed (this card does).")
    ]
    if "nd" in parts:
        found.insert(
            0, Duty(f"{shown} FORBIDS sharing changed copies, and a pruned model is one: do not push it.", True)
        )
    if "sa" in parts:
        found.append(Duty(f"{shown}: pass this model on under the same licence."))
    if "nc" in parts:
        found.append(Duty(f"{shown}: no commercial use.", True))
    return tuple(found)


def _llama_2(shown: str) -> tuple[Duty, ...]:
    return (
        Duty(
            f"{shown}: whoever passes the model on must hand over the licence agreement and a Notice file that reads: "
            "Llama 2 is licensed under the LLAMA 2 Community License, Copyright (c) Meta Platforms, Inc. All Rights "
            "Reserved.",
            True,
        ),
        Duty(f"{shown}: its Acceptable Use Policy holds for this model too."),
    )


def _llama_3(shown: str, display: str, begins: str, notice: str, repo_id: str | None) -> tuple[Duty, ...]:
    found = [
        Duty(
            f"{shown}: whoever passes the model on must hand over the licence agreement, display '{display}', and add "
            f"a Notice file that reads: {notice} is licensed under the {notice} Community License, Copyright © Meta "
            "Platforms, Inc. All Rights Reserved.",
            True,
        ),
        Duty(f"{shown}: its Acceptable Use Policy holds for this model too."),
    ]
    name = repo_id.split("/")[-1] if repo_id else None
    if name is None or not re.match(begins.replace(" ", "[-_. ]?"), name, re.IGNORECASE):
        now = f"; '{one_line(name, 100)}' does not" if name else ""
        found.insert(
            1,
            Duty(
                f"{shown}: the name of a model that is made with it and passed on must begin with '{begins}'{now}.",
                True,
            ),
        )
    return tuple(found)
