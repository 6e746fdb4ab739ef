"""Pruned models on the Hub, by our tag."""

from typing import NamedTuple

from huggingface_hub import get_session
from huggingface_hub.utils import build_hf_headers, hf_raise_for_status

from hf_prune import __version__
from hf_prune.errors import HubError
from hf_prune.space import settings
from hf_prune.space.asking import asking, hub
from hf_prune.space.ids import is_hub_id
from hf_prune.space.pair import DEMO, Visitor

TAG = "hf-prune"
_MOST = 20
_LONGEST = 96
_SECONDS = 10.0


class Found(NamedTuple):
    """What a search found.

    Attributes:
        names: pairs, the ones that are here already first.
        message: why the Hub could not be searched; None where it was.
    """

    names: list[str]
    message: str | None


def find(text: str, visitor: Visitor) -> Found:
    """Pairs whose name contains a text: the embedded one and the featured ones first, then those of the Hub.

    Args:
        text: what somebody typed; whatever cannot stand in a name is passed by.
        visitor: who asks, and sees private models of their own.
    """
    wanted = typed(text).lower()
    here = [DEMO, *(name for name in settings.current().featured if wanted in name.lower())]
    names: list[str] = []
    message = None
    try:
        with asking("search the Hub", "the Hub", visitor):
            names = listed(visitor, limit=_MOST, text=wanted, filter=TAG)
    except HubError as error:
        message = str(error)
    return Found(list(dict.fromkeys([*here, *names])), message)


def listed(visitor: Visitor, *, limit: int, text: str = "", **params: str) -> list[str]:
    """Ids of models on the Hub, the most used first, by one request.

    It is the one that `list_models` makes, without its retries: they would take half a minute to find nothing.

    Args:
        visitor: who asks.
        limit: ids at most.
        text: what the names hold; all names where it is empty.
        params: further ones of the Hub's list of models, such as `filter`.

    Raises:
        HTTPError: of the Hub's client; for `asking` to translate.
    """
    answer = get_session().get(
        f"{hub(visitor).endpoint}/api/models",
        params={**params, "limit": limit, "sort": "downloads", **({"search": text} if text else {})},
        headers=build_hf_headers(token=visitor.token, library_name="hf-prune", library_version=__version__),
        timeout=_SECONDS,
    )
    hf_raise_for_status(answer)
    found = answer.json()
    rows = found if isinstance(found, list) else []
    return [row["id"] for row in rows if isinstance(row, dict) and is_hub_id(row.get("id"))]


def typed(text: str) -> str:
    """What of a typed text can stand in a name."""
    return "".join(c for c in text[:_LONGEST] if c.isascii() and (c.isalnum() or c in "/._-"))
