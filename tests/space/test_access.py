"""Who the page acts for, over real HTTP: a visitor's sign-in counts for requests of the page itself alone."""

import uuid
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import anyio
import httpx
import pytest
from gradio_client import Client
from gradio_client.exceptions import AppError

from hf_prune.space import settings
from tests.hub.fixtures import ALICE
from tests.space.conftest import BASE
from tests.space.serving import Served, served

ELSEWHERE = {"Origin": "https://elsewhere.example"}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served() as found:
        yield found


@pytest.fixture
def closed(hub: Any, server: Served, pushed_pair: str, pair_folders: Any, monkeypatch: pytest.MonkeyPatch) -> str:
    """A private pair of alice's, whose machine this is: only she can open the page."""
    settings.use(server.limits)
    name = "alice/space-closed"
    if not hub.exists(name):
        hub.add_repo(name, pair_folders("pruned"), private=True)
    monkeypatch.setenv("HF_TOKEN", ALICE)
    hub.reset()
    return name


class Page:
    """The page as a program sees it that sends events by their numbers, also those that are not in its API."""

    def __init__(self, url: str) -> None:
        self.web = httpx.Client(base_url=f"{url}gradio_api/", timeout=60)
        self.numbers = {d["api_name"]: d["id"] for d in self.web.get(f"{url}config").json()["dependencies"]}
        self.session = uuid.uuid4().hex

    def close(self) -> None:
        self.web.close()

    def fire(self, name: str, *data: Any, event: Any = None, **headers: str) -> str:
        """All that comes back for one event."""
        body = {"data": data, "fn_index": self.numbers[name], "session_hash": self.session, "event_data": event}
        self.web.post("queue/join", json=body, headers=headers).raise_for_status()
        with self.web.stream("GET", "queue/data", params={"session_hash": self.session}, headers=headers) as said:
            return "".join(line for line in said.iter_lines() if "process_" in line)


@pytest.fixture
def page(server: Served) -> Iterator[Page]:
    found = Page(server.url)
    yield found
    found.close()


def asked(pair: str) -> list[tuple[str, list[Any], str]]:
    """Event, its data and what only somebody is told who may open the pair."""
    prompt = "Once upon a time"
    return [
        ("_pick", [pair, None], BASE),
        ("_headings", [None, ""], BASE),
        ("_shown", [None], "Drop layers"),
        ("_planned", [None, None, "simple", 1], "removed 4."),
        ("_picked", [None, ""], BASE),
        ("_run", [None, pair, prompt, 0, 1, 4, 0, True, False], "Weights"),
        ("_run_1", [None, None, "simple", 1, prompt, 0, 4, 0], "Weights"),
        ("_model", [pair, None], "parameters"),
        ("compare", [pair, prompt, 0, 1, 4, 0], "prefill"),
        ("plan", [pair, "simple", 1], "kept"),
    ]


def test_the_page_of_another_site_does_not_ask_in_a_visitors_name(
    server: Served, page: Page, closed: str, hub: Any
) -> None:
    for name, data, secret in asked(closed):
        told = page.fire(name, *data)
        assert secret in told, (name, told)
    assert {request.user for request in hub.requests} == {"alice"}
    hub.reset()
    fresh = Page(server.url)
    for name, data, secret in asked(closed):
        # Even in a session in which the pair was picked; Compare repeats the headings that are there already.
        told = (fresh if name == "_run" else page).fire(name, *data, **ELSEWHERE)
        assert secret not in told and BASE not in told, (name, told)
    for event in ("_search", "_search_1"):
        page.fire(event, event={"key": "x", "input_value": "space-closed"}, **ELSEWHERE)
    page.fire("_arrive", **ELSEWHERE)
    fresh.close()
    assert hub.requests and {request.user for request in hub.requests} == {None}


def test_programs_ask_in_nobodys_name_but_on_this_machine(server: Served, closed: str, hub: Any) -> None:
    """No program sends an origin. On a Space it has no cookies either; here whoever runs it has the login anyway."""
    client = Client(server.url, verbose=False)
    assert client.predict(closed, "simple", 1, api_name="/plan")["kept"]
    assert {request.user for request in hub.requests} == {"alice"}
    client.close()
    settings.use(replace(server.limits, local_login=False))
    client, elsewhere = Client(server.url, verbose=False), Client(server.url, headers=ELSEWHERE, verbose=False)
    hub.reset()
    for program in (client, elsewhere):
        assert program.predict("demo", "simple", 1, api_name="/plan")["kept"]
        with pytest.raises(AppError, match="no such model on the Hub, or it is private"):
            program.predict(closed, "simple", 1, api_name="/plan")
        program.close()
    assert {request.user for request in hub.requests} == {None}


@pytest.mark.slow
def test_mcp_from_another_site_asks_in_nobodys_name(closed: str, hub: Any) -> None:
    async def use(address: str, headers: dict[str, str]) -> str:
        async with (
            httpx.AsyncClient(headers=headers, timeout=60) as web,
            streamable_http_client(address, http_client=web) as (read, write, *_),
            ClientSession(read, write) as session,
        ):
            await session.initialize()
            tools = (await session.list_tools()).tools
            plan = next(tool.name for tool in tools if tool.name.endswith("plan"))
            done = await session.call_tool(plan, {"pair": closed, "method": "simple", "drop_layers": 1})
            return done.content[0].text

    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    with served(mcp=True) as found:
        assert "kept" in anyio.run(use, f"{found.url}gradio_api/mcp/", {})
        hub.reset()
        told = anyio.run(use, f"{found.url}gradio_api/mcp/", ELSEWHERE)
    assert "kept" not in told
    assert {request.user for request in hub.requests} <= {None}


@pytest.mark.parametrize(
    ("system", "client_id", "button"),
    [("spaces", "an id", True), ("spaces", None, False), (None, "an id", False)],
)
def test_the_button_is_there_where_somebody_can_sign_in(
    monkeypatch: pytest.MonkeyPatch, system: str | None, client_id: str | None, button: bool
) -> None:
    """Without a client Gradio does not start; where it sees no Space, it hands this machine's login to anybody."""
    monkeypatch.setenv("SPACE_ID", "me/space")
    for name, value in (("SYSTEM", system), ("OAUTH_CLIENT_ID", client_id)):
        monkeypatch.delenv(name, raising=False)
        if value is not None:
            monkeypatch.setenv(name, value)
    for name in ("OAUTH_CLIENT_ID", "OAUTH_CLIENT_SECRET", "OAUTH_SCOPES", "OPENID_PROVIDER_URL"):
        monkeypatch.setattr(f"gradio.oauth.{name}", client_id)  # read when Gradio is imported
    from space import app

    page = app.build()
    assert page.expects_oauth is button
