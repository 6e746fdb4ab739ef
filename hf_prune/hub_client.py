"""How the Hub stages talk to the Hub: one client, one kind of error, patience with what passes by itself."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn, TypeVar

import httpx2
from huggingface_hub import HfApi, constants, get_token
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

from hf_prune import __version__
from hf_prune.errors import HubError, PruneError

Token = str | bool | None
_Result = TypeVar("_Result")

logger = logging.getLogger(__name__)

# Seconds between tries of what huggingface_hub does not retry itself; a longer Retry-After than the last is an error.
WAITS = (1.0, 2.0, 4.0)
LONGEST_WAIT = 60.0
_PASSING_STATUS = (408, 429, 500, 502, 503, 504)
_LASTING_TRANSPORT = (httpx2.LocalProtocolError, httpx2.UnsupportedProtocol, httpx2.ProxyError)


def client(token: Token = None) -> HfApi:
    """The Hub's client, which names us as the library that asks.

    Args:
        token: an access token; None for the one that `hf auth login` saved, False for none.

    Returns:
        The client.

    Raises:
        HubError: the token cannot be one.
    """
    if isinstance(token, str):
        token = token.strip()
        if not (token.isascii() and token.isprintable()):
            # Sent as it is, it would show in the error of the HTTP client.
            raise HubError("the access token holds line breaks or characters that no token has: copy it again, whole")
    return HfApi(library_name="hf-prune", library_version=__version__, token=token)


@contextmanager
def hub_errors(doing: str, repo_id: str, *, token: Token = None, revision: str | None = None) -> Iterator[None]:
    """Turn whatever the Hub's client raises into one `HubError` that says what to do, and never shows the token.

    Args:
        doing: what is being done, as in "cannot {doing}".
        repo_id: the repo it is done to.
        token: the token in use, to keep it out of the message.
        revision: the revision in question.

    Raises:
        HubError: the translated error.
    """
    try:
        yield
        return
    except PruneError:
        raise
    except (httpx2.HTTPError, httpx2.InvalidURL, OSError, ValueError, RuntimeError, RevisionResolutionError) as error:
        caught = error
    _raise(caught, _explain(caught, repo_id, revision), doing, token)


def retrying(call: Callable[[], _Result]) -> _Result:
    """Do a call again while it fails for a reason that passes: 429, 5xx, a lost connection.

    Args:
        call: something that may be done twice.

    Returns:
        What the call returns.
    """
    for wait in WAITS:
        try:
            return call()
        except (httpx2.HTTPError, OSError, RuntimeError, RevisionResolutionError) as error:
            pause = _pause(error, wait)
            if pause is None:
                raise
            logger.warning("The Hub failed for now (%s); next try in %.0f s", type(error).__name__, pause)
        time.sleep(pause)
    return call()


def status_of(error: BaseException) -> int | None:
    """The HTTP status behind an error, or None where there is none."""
    for link in _chain(error):
        if isinstance(link, HfHubHTTPError):
            return link.response.status_code
    return None


def _pause(error: BaseException, wait: float) -> float | None:
    """Seconds until the next try is worth it, None if never."""
    for link in _chain(error):
        if isinstance(link, OfflineModeIsEnabled):
            return None
        if isinstance(link, HfHubHTTPError):
            if link.response.status_code not in _PASSING_STATUS:
                return None
            asked = link.response.headers.get("Retry-After", "")
            pause = max(wait, float(asked)) if asked.isdigit() else wait
            return pause if pause <= LONGEST_WAIT else None
        if isinstance(link, httpx2.TransportError):
            return None if isinstance(link, _LASTING_TRANSPORT) else wait
        if isinstance(link, OSError) and str(link).startswith("Consistency check failed"):
            return wait
    return None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what caused it."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.__cause__


def _explain(error: BaseException, repo_id: str, revision: str | None) -> str:
    """What is wrong, what was expected and what to do."""
    links = list(_chain(error))
    offline = constants.is_offline_mode()
    for link in links:
        if isinstance(link, GatedRepoError):
            return (
                f"'{repo_id}' is gated and this account was not let in: ask for access on its page on the Hub, then "
                "log in with `hf auth login`"
            )
        if isinstance(link, RevisionNotFoundError):
            return (
                f"'{repo_id}' has no revision '{revision or 'main'}'; expected a branch, a tag or a commit of this "
                "repo: look at 'Files and versions' on its page"
            )
        if isinstance(link, RepositoryNotFoundError):
            return (
                f"there is no model '{repo_id}' on the Hub (nor a folder of this name), or it is private and this "
                "account may not see it: check the spelling, or log in with `hf auth login`"
            )
        if isinstance(link, HfHubHTTPError):
            return _explain_status(link, repo_id)
    for link in links:
        if isinstance(link, OfflineModeIsEnabled | LocalEntryNotFoundError | RevisionResolutionError) and offline:
            return (
                f"HF_HUB_OFFLINE is set and '{repo_id}' is not (wholly) in the cache: unset it, or download the repo "
                "once while online"
            )
        if isinstance(link, HFValidationError):
            return f"'{repo_id}' is neither a folder nor a repo id; expected 'name' or 'namespace/name'"
        if isinstance(link, LocalTokenNotFoundError):
            return "this needs an account and no access token is saved: log in with `hf auth login`"
        if isinstance(link, httpx2.TransportError):
            return f"the Hub cannot be reached ({type(link).__name__}: {link}): check the network and HF_ENDPOINT"
        if isinstance(link, LocalEntryNotFoundError | RevisionResolutionError):
            return f"the Hub cannot be reached and '{repo_id}' is not in the cache: {link}"
    return f"{error}" if type(error) is ValueError else f"{type(error).__name__}: {error}"


def _explain_status(error: HfHubHTTPError, repo_id: str) -> str:
    status = error.response.status_code
    said = error.server_message or error.response.headers.get("X-Error-Message") or "no reason given"
    retry_after = error.response.headers.get("Retry-After")
    when = f"in {retry_after} s" if retry_after else "in a few minutes"
    if status == 401:
        todo = "the access token is missing, expired or mistyped: log in with `hf auth login`"
    elif status == 402:
        todo = (
            "this has to be paid for: take what is free (for a Space, `--hardware zero-a10g` may be), or see "
            "https://huggingface.co/settings/billing"
        )
    elif status == 403:
        todo = f"this account may not do that to '{repo_id}': log in with a token that may write to this namespace"
    elif status == 404:
        todo = f"'{repo_id}' lacks what was asked for"
    elif status == 409:
        todo = f"'{repo_id}' is being changed by somebody else, or exists already: try again"
    elif status == 412:
        todo = f"somebody pushed to '{repo_id}' meanwhile: look at what they pushed, then try again"
    elif status == 429:
        todo = f"too many requests: try again {when}"
    elif status >= 500:
        todo = f"the Hub is not well: try again {when} (what was uploaded already is kept)"
    else:
        todo = f"the Hub refused the request for '{repo_id}'"
    return f"the Hub answered {status} ({said}): {todo}"


def _raise(error: BaseException, explanation: str, doing: str, token: Token) -> NoReturn:
    """Raise the translated error; the original rides along unless the token shows in it."""
    secrets = {secret.strip() for secret in (token, get_token()) if isinstance(secret, str) and secret.strip()}
    leaks = any(secret in f"{link} {link!r}" for secret in secrets for link in _chain(error))
    message = f"cannot {doing}: {explanation}"
    for secret in secrets:
        message = message.replace(secret, "<token>")
    message = re.sub(r"\bhf_[A-Za-z0-9]{20,}", "<token>", message)
    raise HubError(message) from (None if leaks else error)
