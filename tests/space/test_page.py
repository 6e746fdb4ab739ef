"""The page over real HTTP: what programs may call, what they are told, and how large a request may be."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import httpx
import pytest
import torch
from gradio_client import Client
from gradio_client.exceptions import AppError

from hf_prune.demo import pair as demo
from hf_prune.space import bounds, comparing, settings
from hf_prune.space.tabs.shared import UNEXPECTED
from tests.hub.fixtures import ALICE
from tests.space.serving import Served, served

ROOT = Path(__file__).parents[2]
PROMPT = "The captain came on deck and"

pytestmark = pytest.mark.usefixtures("url")


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    found = Client(url, verbose=False)
    yield found
    found.close()


def greedy(prompt: str, tokens: int) -> list[str]:
    """What both models of the demo write, by stock `generate`."""
    original, pruned, tokenizer = demo.load()
    ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        made = [
            model.generate(ids, do_sample=False, max_new_tokens=tokens)[0, ids.shape[1] :]
            for model in (original, pruned)
        ]
    return [tokenizer.decode(new, skip_special_tokens=True) for new in made]


def test_only_two_functions_can_be_called(client: Client, url: str) -> None:
    info: Any = client.view_api(return_format="dict")
    assert set(info["named_endpoints"]) == {"/compare", "/plan"} and not info["unnamed_endpoints"]
    taken = {
        name: [p["parameter_name"] for p in found["parameters"]] for name, found in info["named_endpoints"].items()
    }
    assert taken["/compare"] == ["pair", "prompt", "temperature", "top_p", "max_tokens", "seed"]
    assert taken["/plan"] == ["pair", "method", "drop_layers"]


def test_compare_streams_and_ends_whole(client: Client) -> None:
    states = list(client.submit("demo", PROMPT, max_tokens=24, api_name="/compare"))
    assert states[0]["stage"] == "loading" and states[-1]["stage"] == "done"
    partial = [state["original"] for state in states if state["stage"] == "writing"]
    assert len(set(partial)) > 2 and all(b.startswith(a) for a, b in zip(partial, partial[1:], strict=False))
    last = states[-1]
    assert [last["original"], last["pruned"]] == greedy(PROMPT, 24)
    assert last["parting"]["at"] is not None and last["parting"]["original"][0]["kl"] >= 0
    assert (last["original_cost"]["layers"], last["pruned_cost"]["layers"]) == (12, 8)


def test_settings_reach_the_models(client: Client) -> None:
    def ask(**drawn: Any) -> tuple[str, str]:
        last = client.predict("demo", PROMPT, max_tokens=16, api_name="/compare", **drawn)
        return last["original"], last["pruned"]

    hot = ask(temperature=1.0, top_p=1.0, seed=3)
    assert hot == ask(temperature=1.0, top_p=1.0, seed=3) != ask(temperature=1.0, top_p=1.0, seed=4)
    assert hot != ask(temperature=0.0)


def test_plan_answers_at_once(client: Client) -> None:
    start = time.perf_counter()
    cut = client.predict("demo", "uidl", 3, api_name="/plan")
    assert time.perf_counter() - start < 2
    assert len(cut["dropped"]) == 3 and len(cut["kept"]) == 9


@pytest.mark.parametrize(
    "arguments,told",
    [
        (("demo", ""), "the prompt is empty"), (("demo", "x" * 1_000_000), "1,000,000 characters; at most 8,000"),
        (("../../etc", "x"), "is no Hub id"), (("acme/none-such", "x"), "no such model"),
        (("demo", "x", 99.0), "temperature=99"), (("demo", "x", 0.0, 2.0), "top_p=2"),
        (("demo", "x", 0.0, 0.9, -5), "max_new_tokens=-5"),
    ],
)  # fmt: skip
def test_wrong_input_is_a_message(client: Client, hub: Any, arguments: tuple[Any, ...], told: str) -> None:
    with pytest.raises(AppError, match=told) as failure:
        client.predict(*arguments, api_name="/compare")
    assert "Traceback" not in str(failure.value) and "site-packages" not in str(failure.value)


def test_wrong_cut_is_a_message(client: Client) -> None:
    with pytest.raises(AppError, match="unknown method"):
        client.predict("demo", "<b>", 3, api_name="/plan")
    with pytest.raises(AppError, match="drop_layers=12"):
        client.predict("demo", "uidl", 12, api_name="/plan")


@pytest.mark.slow
def test_too_large_and_too_many(client: Client, server: Served, pushed_pair: str) -> None:
    last = client.predict("demo", "Once", max_tokens=10_000, api_name="/compare")
    assert any("10,000 new tokens were asked for" in note for note in last["notes"])
    with served(model_bytes=1000) as small:
        other = Client(small.url, verbose=False)
        with pytest.raises(AppError, match="at most 0.00 GB can be opened here"):
            other.predict(pushed_pair, "x", api_name="/compare")
        other.close()


def test_what_nobody_foresaw_tells_nothing(
    client: Client, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("a path and who knows what")

    monkeypatch.setattr(comparing, "compare", fail)
    with pytest.raises(AppError) as failure:
        client.predict("demo", "x", api_name="/compare")
    assert str(failure.value) == UNEXPECTED
    assert "unexpected RuntimeError" in caplog.text


def test_no_token_of_the_machine_is_used_where_others_come_in(monkeypatch: pytest.MonkeyPatch) -> None:
    from space import app

    monkeypatch.setenv("HF_TOKEN", ALICE)
    for host, mine in (("127.0.0.1", True), ("0.0.0.0", False)):
        page = app.launch(host, block=False)
        try:
            assert settings.current().local_login is mine
        finally:
            page.close(verbose=False)


def test_nothing_is_shared_that_nobody_asked_to_share(monkeypatch: pytest.MonkeyPatch) -> None:
    from space import app

    monkeypatch.setenv("HF_TOKEN", ALICE)
    monkeypatch.setenv("KAGGLE_KERNEL_RUN_TYPE", "Interactive")  # where Gradio shares a page by itself
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **_: pytest.fail("a public link was asked for"))
    page = app.launch("127.0.0.1", block=False)
    try:
        assert settings.current().local_login and not page.share
    finally:
        page.close(verbose=False)


def test_requests_are_bounded(url: str) -> None:
    join = f"{url}gradio_api/queue/join"
    answer = httpx.post(join, content=b"x" * (bounds.LARGEST + 1))
    assert answer.status_code == 413 and "at most 4,000,000 bytes" in answer.text
    # Without a length, whatever comes too much is not read; the connection ends.
    chunks = (b"x" * 100_000 for _ in range(60))
    with pytest.raises(httpx.HTTPError):
        httpx.post(join, content=chunks, timeout=30).raise_for_status()
    assert httpx.get(url).status_code == 200


def test_no_files_come_in_or_out(url: str) -> None:
    assert httpx.post(f"{url}gradio_api/upload", files={"files": ("a.txt", b"hello")}).status_code >= 400
    for path in ("/etc/passwd", str(ROOT / "pyproject.toml"), "../pyproject.toml"):
        assert httpx.get(f"{url}gradio_api/file={path}").status_code in (403, 404)


def test_everything_that_writes_html_is_kept_from_scripts(url: str) -> None:
    """The page's own configuration is data; no component interprets Markdown or runs a visitor's text."""
    config = httpx.get(f"{url}config").json()
    kinds = {component["type"] for component in config["components"]}
    assert not kinds & {"markdown", "chatbot", "file", "uploadbutton"}
    assert not config["analytics_enabled"]


@pytest.mark.slow
def test_mcp_tools() -> None:
    from mcp import ClientSession
    from mcp.client.streamable_http import streamable_http_client

    async def use(address: str) -> tuple[list[Any], Any, Any]:
        async with streamable_http_client(address) as (read, write, *_), ClientSession(read, write) as session:
            await session.initialize()
            tools = (await session.list_tools()).tools
            plan = next(tool.name for tool in tools if tool.name.endswith("plan"))
            compare = next(tool.name for tool in tools if tool.name.endswith("compare"))
            cut = await session.call_tool(plan, {"pair": "demo", "method": "uidl", "drop_layers": 2})
            text = await session.call_tool(compare, {"pair": "demo", "prompt": PROMPT, "max_tokens": 8})
            return tools, cut, text

    with served(mcp=True) as found:
        tools, cut, text = anyio.run(use, f"{found.url}gradio_api/mcp/")
    assert len(tools) == 2
    described = {tool.name.rpartition("_")[2]: tool for tool in tools}
    assert "pruned language model" in described["compare"].description
    assert set(described["compare"].inputSchema["properties"]) == {
        "pair", "prompt", "temperature", "top_p", "max_tokens", "seed",
    }  # fmt: skip
    assert described["plan"].inputSchema["properties"]["drop_layers"]["type"] in ("integer", "number")
    [planned], [written] = cut.content, text.content
    assert len(json.loads(planned.text)["dropped"]) == 2
    assert json.loads(written.text)["pruned"] == greedy(PROMPT, 8)[1]


@pytest.mark.slow
def test_runs_from_a_checkout(tmp_path: Path) -> None:
    environment = os.environ | {"GRADIO_SERVER_PORT": "7946", "HF_HOME": str(tmp_path)}
    process = subprocess.Popen([sys.executable, str(ROOT / "space" / "app.py")], env=environment, cwd=tmp_path)
    try:
        for _ in range(120):
            try:
                page = httpx.get("http://127.0.0.1:7946/", timeout=5)
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.5)
        assert page.status_code == 200 and "hf-prune" in page.text
    finally:
        process.terminate()
        process.wait(timeout=30)
