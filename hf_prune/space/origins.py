"""Whether a request was sent by this page, and not by the page of another site in a visitor's name."""

import os
from collections.abc import Mapping
from urllib.parse import urlsplit

from hf_prune.space import settings
from hf_prune.space.settings import is_loopback

_FORWARDED = ("forwarded", "x-forwarded-for", "x-forwarded-host")


def own(headers: Mapping[str, str]) -> bool:
    """Whether a visitor's sign-in counts for a request.

    Browsers send cookies, and reach this machine, for any site that asks; they tell its origin. Programs tell none,
    and have no cookies either.

    Args:
        headers: of the request.
    """
    origin, host = headers.get("origin"), headers.get("host", "")
    here = settings.current()
    if here.local_login and not is_loopback(urlsplit(f"//{host}").hostname or ""):
        return False  # a name of another site that leads to this machine
    if here.local_login and any(headers.get(name) for name in _FORWARDED):
        return False  # others reach this machine through a proxy or a tunnel, which may say that it is asked by itself
    if origin is None:
        return True
    return urlsplit(origin).netloc in {host, os.environ.get("SPACE_HOST", host)} - {""}
