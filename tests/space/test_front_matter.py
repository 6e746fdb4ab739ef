"""The Space's own README and requirements: valid, in step with the project, and true of the page."""

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from gradio_client import Client
from huggingface_hub import HfApi, SpaceCard, SpaceHardware
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from hf_prune.space import bounds, settings
from tests.hub.listing import space_errors
from tests.space.serving import served

ROOT = Path(__file__).parents[2]
CARD = SpaceCard((ROOT / "space" / "README.md").read_text(encoding="utf-8"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LOCAL = "http://127.0.0.1:7860"


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", CARD.text, re.DOTALL | re.MULTILINE)


def pinned(name: str) -> str:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line)[name]


def test_front_matter_is_what_the_hub_takes(hub) -> None:
    data = CARD.data.to_dict()
    assert space_errors(data) == []
    CARD.validate(repo_type="space")
    assert {"title", "emoji", "short_description", "license", "tags"} <= data.keys()
    assert data["sdk"] == "gradio" and "hf-prune" in data["tags"] and data["models"] == []
    assert data["license"] == PROJECT["license"].lower()
    assert data["suggested_hardware"] in [flavor.value for flavor in SpaceHardware]
    assert (ROOT / "space" / data["app_file"]).is_file()


def test_loopback_hub_refuses_what_the_hub_refuses(hub, hub_token) -> None:
    for change in ({"colorFrom": "mauve"}, {"short_description": "x" * 61}, {"sdk": "tk"}):
        card = SpaceCard(str(CARD))
        for key, value in change.items():
            card.data[key] = value
        with pytest.raises(ValueError, match=next(iter(change))):
            card.validate(repo_type="space")
    with pytest.raises(ValueError, match="space_sdk"):
        HfApi().create_repo("alice/no-sdk", repo_type="space")


def test_versions_agree_with_the_project() -> None:
    data = CARD.data.to_dict()
    assert data["sdk_version"] == pinned("gradio")
    (gradio,) = (r for r in map(Requirement, PROJECT["optional-dependencies"]["space"]) if r.name == "gradio")
    assert gradio.specifier.contains(data["sdk_version"])
    assert SpecifierSet(PROJECT["requires-python"]).contains(Version(data["python_version"]))
    assert isinstance(data["python_version"], str)  # unquoted, 3.10 would be 3.1


def test_sign_in_asks_for_no_more_than_it_needs() -> None:
    assert CARD.data["hf_oauth"] is True and CARD.data["hf_oauth_scopes"] == ["gated-repos", "contribute-repos"]


def test_requirements_name_the_project_alone() -> None:
    lines = (ROOT / "space" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["hf-prune[space]"]


def test_variables_are_those_that_are_read() -> None:
    named = set(re.findall(r"`(HF_PRUNE_SPACE_\w+)`", CARD.text))
    assert named == set(re.findall(r"^    (HF_PRUNE_SPACE_\w+) ", settings.__doc__ or "", re.MULTILINE))
    limits = settings.Settings(on_space=True, hardware="", memory_bytes=1, model_bytes=1)
    assert f"{limits.prompt_chars:,} characters and {limits.new_tokens} tokens" in CARD.text
    assert f"a queue of {limits.queue_size}." in CARD.text and bounds.LARGEST > limits.prompt_chars


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with served(mcp=True) as page:
        settings.use(page.limits)
        yield page.url.rstrip("/")


@pytest.mark.slow
def test_endpoints_of_the_text_are_those_of_the_page(address: str) -> None:
    named = Client(address, verbose=False).view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(named) == {"/compare", "/plan"}
    assert set(named) == set(re.findall(r'api_name="(/\w+)"', CARD.text))


@pytest.mark.slow
def test_python_of_the_text(address: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Word for word, but for the address."""
    (snippet,) = blocks("python")
    assert LOCAL in snippet
    names: dict = {}
    exec(snippet.replace(LOCAL, address), names)
    said = capsys.readouterr().out
    assert "Done." in said and names["state"]["stage"] == "done" and names["state"]["original"]
    assert names["state"]["pruned_cost"]["parameters"] < names["state"]["original_cost"]["parameters"]
    assert len(names["plan"]["dropped"]) == 4


@pytest.mark.slow
def test_mcp_clients_find_the_same_tools(address: str) -> None:
    """The configuration of the text, and the real client of the protocol."""
    anyio, mcp = pytest.importorskip("anyio"), pytest.importorskip("mcp")
    from mcp.client.streamable_http import streamable_http_client

    (configuration,) = blocks("json")
    (server,) = json.loads(configuration)["mcpServers"].values()

    async def ask() -> tuple[set[str], str]:
        async with streamable_http_client(server["url"].replace(LOCAL, address)) as (reading, writing, _):
            async with mcp.ClientSession(reading, writing) as session:
                await session.initialize()
                tools = {tool.name: tool for tool in (await session.list_tools()).tools}
                (name,) = (name for name in tools if name.endswith("plan"))
                answer = await session.call_tool(name, {"pair": "demo", "method": "uidl", "drop_layers": 3})
                return set(tools), answer.content[0].text

    tools, answer = anyio.run(ask)
    assert {name.rpartition("_")[2] for name in tools} == {"compare", "plan"}
    assert "dropped" in answer
