"""The real page over real HTTP, and a real browser in front of it."""

import dataclasses
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from hf_prune.space import settings
from hf_prune.space.settings import Settings

_NAMES = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
_QUIET = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
).split()


@dataclasses.dataclass(frozen=True)
class Served:
    """A page that is being served.

    Attributes:
        url: of the page.
        limits: its settings; a test that `conftest` has given others puts these in force again with `settings.use`.
    """

    url: str
    limits: Settings


@contextmanager
def served(*, mcp: bool = False, **changes: Any) -> Iterator[Served]:
    """Serve the page on a free port of this machine.

    Args:
        mcp: whether programs may use it as an MCP server.
        changes: fields of `Settings` that differ from this machine's.
    """
    from space import app

    page = app.launch("127.0.0.1", mcp=mcp, block=False, **changes)
    try:
        yield Served(page.local_url, settings.current())
    finally:
        page.close(verbose=False)
        settings.use(None)


@contextmanager
def browser() -> Iterator[Any]:
    """A Chromium; the test is skipped where none is installed."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = next(filter(None, map(shutil.which, _NAMES)), None)
    if path is None:
        pytest.skip(f"no Chromium is installed: none of {', '.join(_NAMES)} is on the path")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=path, args=_QUIET)
        try:
            yield chromium
        finally:
            chromium.close()


@contextmanager
def visit(chromium: Any, address: str, *, dark: bool = False, width: int = 1280, height: int = 900) -> Iterator[Any]:
    """A visitor of their own, with the page open; fails where the page opened a dialog or its scripts an error.

    Args:
        chromium: from `browser`.
        address: with a query, perhaps.
        dark: whether the visitor's system is dark.
        width: of the window, in pixels.
        height: likewise.
    """
    context = chromium.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        permissions=["clipboard-read", "clipboard-write"],
    )
    page, wrong = context.new_page(), []
    page.set_default_timeout(30_000)
    page.on("dialog", lambda dialog: (wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("pageerror", lambda error: wrong.append(f"script: {error}"))
    try:
        page.goto(address)
        page.wait_for_selector("#hp-go")
        yield page
        assert not wrong, wrong
    finally:
        context.close()
