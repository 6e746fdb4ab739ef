"""Plans and jobs of "Make one" as HTML in which nothing of a stranger's is HTML."""

import re
from html import escape
from urllib.parse import quote

from huggingface_hub import constants

from hf_prune.healing.budget import in_words
from hf_prune.space.job import Status
from hf_prune.space.making import Offer
from hf_prune.space.pair import Half, Visitor
from hf_prune.space.render import inert, scaled
from hf_prune.space.settings import Settings

NO_PLAN = '<p class="hp-note">No plan yet. Nothing is downloaded, and nothing begins, before you have seen one.</p>'

_STAGES = {
    "measure": "Measure",
    "plan": "Plan",
    "prune": "Prune",
    "heal": "Heal",
    "evaluate": "Compare with the original",
    "push": "Push",
}
_STATES = {
    "waiting": "Waiting",
    "running": "Running",
    "pushing": "Pushing",
    "done": "Done",
    "failed": "Failed",
    "cancelled": "Cancelled",
}


def who(visitor: Visitor, here: Settings, has_login: bool) -> str:
    """Who is signed in, or how to sign in.

    Args:
        visitor: with the name that the Hub gave.
        here: the settings in force.
        has_login: whether the page has a button to sign in.
    """
    if visitor.name is not None:
        return f'<p class="hp-note">Signed in as <b>{inert(visitor.name)}</b>. The model goes to this account.</p>'
    if here.on_space and has_login:
        text = "Sign in with Hugging Face, at the top of the page, to make one: it is pushed to your own account."
    elif here.on_space:
        text = (
            "Nobody can sign in here: this Space was set up without it (hf_oauth in its README). On your own machine "
            "the same is done by <code>hf-prune run MODEL --push NAME</code>."
        )
    elif here.local_login:
        text = "Log in on this machine with <code>hf auth login</code>, then load this page again."
    else:
        text = (
            "Others can open this page, so the login of this machine is not used for it. Serve it to this machine "
            "alone, or use <code>hf-prune run MODEL --push NAME</code>."
        )
    return f'<p class="mk-signin">{text}</p>'


def model(half: Half) -> str:
    """One line about a model that may be pruned."""
    return (
        f'<p class="hp-note">{inert(half.name)}: {half.layers} layers, {scaled(half.parameters)} parameters, '
        f"{_bytes(half.bytes)} once loaded.</p>"
    )


def offer(made: Offer) -> str:
    """What would be done, and what it takes."""
    steps = "".join(
        f"<li><b>{_STAGES.get(stage, inert(stage))}</b><span>{inert(_plain(what))}</span></li>"
        for stage, what in made.steps
    )
    needs = made.needs
    facts = (
        ("Download", _bytes(needs.download)),
        ("Memory", f"about {_bytes(needs.memory)}"),
        ("Disk", f"about {_bytes(needs.disk)}"),
        ("Time, a rough guess", needs.time),
        ("Visible to", "you alone (private)" if made.private else "everyone (public)"),
    )
    cost = "".join(f"<div><dt>{name}</dt><dd>{inert(value)}</dd></div>" for name, value in facts)
    warnings = "".join(f"<li>{inert(flag)}</li>" for flag in made.flags)
    licence = f'<div class="mk-flags"><b>Licence of the original</b><ul>{warnings}</ul></div>' if warnings else ""
    notes = "".join(f'<p class="hp-note">{inert(note)}</p>' for note in made.notes)
    return (
        f'<section class="mk-offer"><h3>{inert(made.model)}, {made.layers} layers</h3>'
        f'<ol class="mk-steps">{steps}</ol><dl class="mk-cost">{cost}</dl>{licence}{notes}</section>'
    )


def job(status: Status | None) -> str:
    """How a job stands."""
    if status is None:
        return ""
    name = f"{inert(status.model)} <span aria-hidden='true'>→</span> {inert(status.repo)}"
    body = {"waiting": _waiting, "running": _running, "pushing": _running, "done": _done}.get(status.state, _ended)
    return (
        f'<section class="mk-job mk-{status.state}"><h3><span class="mk-state">{_STATES[status.state]}</span> {name}'
        f'</h3><div role="status">{body(status)}</div></section>'
    )


def _waiting(status: Status) -> str:
    jobs = "1 job is" if status.ahead == 1 else f"{status.ahead} jobs are"
    return f'<p class="hp-note">{jobs} before yours. You may close this page and come back.</p>'


def _running(status: Status) -> str:
    share = "" if status.share is None else f" {min(status.share, 1):.0%}"
    value = "" if status.share is None else f' value="{min(status.share, 1):.4f}"'
    stopping = " It stops at the next step of the bar; nothing will be pushed." if status.cancelling else ""
    late = " It can't be cancelled any more." if status.state == "pushing" else ""
    return (
        f'<progress max="1"{value} aria-label="Progress"></progress>'
        f'<p class="hp-note">{inert(status.doing)}{share}.{stopping}{late}</p>'
    )


def _done(status: Status) -> str:
    address = escape(f"{constants.ENDPOINT}/{quote(status.repo)}")
    return (
        f'<p class="hp-note"><a href="{address}" target="_blank" rel="noopener noreferrer">{inert(status.repo)}</a> '
        f"is on the Hub, with its card and its records{_took(status)}.</p>"
    )


def _ended(status: Status) -> str:
    return f'<p class="{"hp-problem" if status.state == "failed" else "hp-note"}">{inert(status.message)}</p>'


def _took(status: Status) -> str:
    return "" if status.seconds is None else f"; it took {in_words(status.seconds)}"


def _plain(what: str) -> str:
    """What a stage does, without the name that the function behind it is registered by."""
    text = re.sub(r"^[a-z_]+[:;] ", "", what)
    return text if "/" in text.split(" ")[0] else text[:1].upper() + text[1:]


def _bytes(number: float) -> str:
    if number >= 1e8:
        return f"{number / 1e9:.1f} GB"
    return f"{number / 1e6:.{0 if number >= 1e7 else 1}f} MB"
