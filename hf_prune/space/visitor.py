"""Who sits in front of the page, and in whose name the Hub is asked."""

from typing import Any

from huggingface_hub import get_token

from hf_prune.space import settings
from hf_prune.space.pair import Visitor


def visitor(profile: Any, token: Any) -> Visitor:
    """The visitor of one event. Nobody is ever given the Space's own token.

    Args:
        profile: Gradio's `OAuthProfile`; None where nobody has signed in.
        token: Gradio's `OAuthToken`; None likewise.

    Returns:
        On a Space, whoever signed in. Elsewhere whoever is logged in on this machine, but only where nobody else can
        open the page: what Gradio calls a sign-in there is this machine's login as well.
    """
    here = settings.current()
    if here.on_space:
        secret = getattr(token, "token", None)
        if not isinstance(secret, str) or not secret:
            return Visitor()
        name = getattr(profile, "username", None)
        return Visitor(secret, name if isinstance(name, str) else None)
    return Visitor(get_token() or False) if here.local_login else Visitor()
