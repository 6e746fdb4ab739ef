"""The Hub is asked in a visitor's name, and its refusals are told in words for visitors."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hf_prune.errors import HubError
from hf_prune.hub_client import client, hub_errors
from hf_prune.space import settings
from hf_prune.space.ids import shown
from hf_prune.space.pair import Visitor

_SECONDS = httpx2.Timeout(60, connect=10)


@dataclass(frozen=True)
class Repo:
    """A model repo at one commit, as the Hub lists it.

    Attributes:
        name: Hub id.
        commit: sha.
        files: path → bytes.
        base: what its card calls its base model; untrusted.
    """

    name: str
    commit: str
    files: dict[str, int]
    base: object


def look(name: str, visitor: Visitor, revision: str | None = None) -> Repo:
    """What a visitor finds in a repo whose files they may read.

    Args:
        name: Hub id.
        visitor: who asks.
        revision: branch, tag or commit; `main` when None.

    Raises:
        HubError: no such repo, it is not open to this visitor, or the Hub is out of reach.
    """
    may_read(name, visitor)
    with asking(f"open '{name}'", name, visitor, revision):
        info = hub(visitor).model_info(name, revision=revision, files_metadata=True, timeout=60, token=visitor.token)
    files = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if info.sha is None or len(files) > 10_000:
        raise HubError(f"cannot open '{name}': it holds {len(files)} files; expected the few of a model")
    return Repo(name, info.sha, files, getattr(info.card_data, "base_model", None))


def may_read(name: str, visitor: Visitor) -> None:
    """Ask the Hub, anew each time, whether a visitor may read a repo's files.

    Raises:
        HubError: no such repo, it is not open to this visitor, or the Hub is out of reach.
    """
    with asking(f"open '{name}'", name, visitor):
        hub(visitor).auth_check(name, token=visitor.token)


def hub(visitor: Visitor) -> HfApi:
    """The Hub's client in a visitor's name, who is not left waiting for ever."""
    get_session().timeout = _SECONDS
    return client(visitor.token)


@contextmanager
def asking(doing: str, name: str, visitor: Visitor, revision: str | None = None) -> Iterator[None]:
    """Turn what goes wrong into one `HubError` for this visitor; a private repo and a missing one read the same.

    Args:
        doing: as in "cannot {doing}".
        name: the repo.
        visitor: who asks.
        revision: in question.

    Raises:
        HubError: the translated error.
    """
    with hub_errors(doing, name, token=visitor.token, revision=revision):
        try:
            yield
        except GatedRepoError:
            raise HubError(
                f"cannot {doing}: it is gated, and {_who(visitor)}: ask for access on its page on the Hub, then "
                f"{_login()}"
            ) from None
        except RevisionNotFoundError:
            raise HubError(f"cannot {doing}: it has no revision '{shown(revision or 'main', 48)}'") from None
        except RepositoryNotFoundError:
            raise HubError(
                f"cannot {doing}: there is no such model on the Hub, or it is private and {_who(visitor)}: check the "
                f"spelling, or {_login()}"
            ) from None
        except HfHubHTTPError as error:
            if error.response.status_code != 401:
                raise
            raise HubError(f"cannot {doing}: your login is not valid any more; {_login()} again") from None
        except (httpx2.TransportError, OfflineModeIsEnabled, LocalEntryNotFoundError):
            raise HubError(
                f"cannot {doing}: the Hub cannot be reached; try again in a minute (the demo pair needs no Hub)"
            ) from None


def _who(visitor: Visitor) -> str:
    return "this account was not let in" if visitor.token else "you are not signed in"


def _login() -> str:
    return "sign in with Hugging Face" if settings.current().on_space else "log in on this machine (`hf auth login`)"
