"""What the tabs share: the pair that was picked, the queue for models, and how a failure is told."""

import logging
from dataclasses import dataclass

import gradio as gr

from hf_prune.errors import PruneError
from hf_prune.space import visitor as visitors
from hf_prune.space.pair import Visitor

logger = logging.getLogger(__name__)

COMPUTE = "compute"
"""`concurrency_id` of every event that runs a model, with `concurrency_limit=1`: one at a time, so that no speed is
measured beside other work. Events that run none take `concurrency_limit=None` and don't wait behind it."""

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


def visitor(profile: gr.OAuthProfile | None, token: gr.OAuthToken | None) -> Visitor:
    """Who sits in front of the page; both arguments come from Gradio, by the annotations of an event's function."""
    return visitors.visitor(profile, token)


def told(error: Exception) -> str:
    """What a visitor is told of a failure: our own errors as they are, of others nothing but that they happened."""
    if isinstance(error, PruneError):
        return str(error)
    logger.error("unexpected %s while serving a visitor", type(error).__name__, exc_info=error)
    return UNEXPECTED
