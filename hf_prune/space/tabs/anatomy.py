"""Anatomy: what was removed and why, what was measured, and what came of it, all from the records of the pair."""

import gradio as gr

from hf_prune.space import anatomy, anatomy_page, pairs
from hf_prune.space.render import problem
from hf_prune.space.tabs.shared import Profile, Shared, Token, told, visitor


def build(page: Shared) -> None:
    """Draw the tab and wire it.

    Args:
        page: what all tabs share.
    """
    body = gr.HTML("", elem_id="hp-anatomy")
    gr.on(
        None,  # once the page is there, and for every other pair
        _shown,
        page.pair,
        body,
        queue=False,
        show_progress="hidden",
        api_visibility="private",
    )


def _shown(name: str, profile: Profile, token: Token, request: gr.Request) -> str:
    try:
        return anatomy_page.page(anatomy.anatomy(pairs.find(name, visitor(profile, token, request))))
    except Exception as error:
        return problem(told(error))
