"""What the tabs share: the pair that was picked, the queue for models, and how a failure is told."""

import logging
import os
from dataclasses import dataclass
from typing import TypeAlias

import gradio as gr
from gradio.utils import get_space

from hf_prune.errors import PruneError
from hf_prune.space import origins
from hf_prune.space import visitor as visitors
from hf_prune.space.pair import Visitor

logger = logging.getLogger(__name__)

Profile: TypeAlias = gr.OAuthProfile | None
Token: TypeAlias = gr.OAuthToken | None

COMPUTE = "compute"
"""`concurrency_id` of every event that runs a model, with `concurrency_limit=1`: one at a time, so that no speed is
measured beside other work. Events that run none take `concurrency_limit=None` and don't wait behind it."""

TYPED = "() => document.querySelector('#{} input').value"
"""JavaScript for what stands in a dropdown while somebody types. Where a key comes while the search for the one before
goes on, Gradio searches again afterwards, but tells of the old key and its text."""

UNEXPECTED = "Something went wrong here, and it is not your fault. It was noted in the server's log; please try again."


@dataclass(frozen=True)
class Shared:
    """What the page hands to each tab's `build(page)`. The button to sign in is in the page's header.

    Attributes:
        pair: name of the picked pair, `DEMO` at first: one that `pairs.find` has found; `pair.change` tells of others.
        picker: the box above the tabs; what stands in it may be any text.
    """

    pair: gr.State
    picker: gr.Dropdown


def visitor(profile: Profile, token: Token, request: gr.Request | None) -> Visitor:
    """Who asks; nobody, where the page of another site does. Gradio gives all three, by a function's annotations."""
    return visitors.visitor(profile, token) if request is not None and origins.own(request.headers) else Visitor()


def has_login() -> bool:
    """Whether visitors can sign in: on a Space that was set up for it.

    Where Gradio itself sees no Space, its button would sign anybody in as this machine's own login.
    """
    return get_space() is not None and bool(os.environ.get("OAUTH_CLIENT_ID"))


def told(error: Exception) -> str:
    """What a visitor is told of a failure: our own errors as they are, of others nothing but that they happened."""
    if isinstance(error, PruneError):
        return str(error)
    logger.error("unexpected %s while serving a visitor", type(error).__name__, exc_info=error)
    return UNEXPECTED
