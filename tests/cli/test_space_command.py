"""`hf-prune space` and `hf-prune space deploy`."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gradio_client import Client

from hf_prune.cli import spacing
from hf_prune.space_deploy import Deployment
from tests.cli.support import call, done
from tests.hub.fixtures import ALICE
from tests.test_space_deploy import NAME, make_wheel

COMMAND = (sys.executable, "-m", "hf_prune.cli", "space")


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[tuple[tuple, dict[str, Any], dict[str, str | None]]]:
    """What the page was launched with, instead of serving it until it is stopped."""
    from hf_prune.space_page import app

    names = ("HF_PRUNE_SPACE_FEATURED", "HF_PRUNE_SPACE_MEMORY_GB")
    for name in names:
        monkeypatch.setenv(name, "")  # given back afterwards
    calls: list = []
    monkeypatch.setattr(
        app, "launch", lambda *args, **kwargs: calls.append((args, kwargs, {name: os.environ[name] for name in names}))
    )
    return calls


def test_options_reach_the_page(launched):
    done("space", "--host", "0.0.0.0", "--port", 7999, "--share", "--mcp", "--open")
    done("space", "--pair", "me/one", "--pair", "me/two", "--memory", "2.5")
    (first, second) = launched
    assert first[:2] == (("0.0.0.0", 7999), {"share": True, "mcp": True, "open_browser": True})
    assert first[2] == {"HF_PRUNE_SPACE_FEATURED": "", "HF_PRUNE_SPACE_MEMORY_GB": ""}
    assert second[:2] == ((None, None), {"share": None, "mcp": None, "open_browser": False})
    assert second[2] == {"HF_PRUNE_SPACE_FEATURED": "me/one,me/two", "HF_PRUNE_SPACE_MEMORY_GB": "2.5"}


def test_without_the_extra_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    real = spacing.require

    def require(module: str, extra: str, purpose: str) -> Any:
        monkeypatch.delitem(sys.modules, "gradio")
        monkeypatch.setattr("importlib.import_module", _missing)
        return real(module, extra, purpose)

    monkeypatch.setattr(spacing, "require", require)
    assert "the page needs the package 'gradio'" in (said := call("space").failed())
    assert "pip install 'hf-prune[space]'" in said


def _missing(name: str) -> Any:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "0"), "--port"),
        (("--port", "70000"), "--port"),
        (("--port", "80", "deploy", "me/x"), "--port before 'deploy'"),
        (("--pair", "me/x", "--open", "deploy", "me/x"), "--pair, --open before 'deploy'"),
        (("deploy",), "SPACE"),
        (("close",), "close"),
    ],
)
def test_wrong_usage(launched, words, said):
    wrong = call("space", *words)
    assert wrong.code == 2 and said in wrong.err and not launched


def failed(*words: str) -> str:
    """What `hf-prune space` says at last, after it has said that it starts."""
    called = call("space", *words)
    *first, last = called.err.splitlines()
    assert called.code == 1 and first == ["Starting; Ctrl-C stops it."] and last.startswith("Error: "), called.err
    return last


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--pair", "../etc"), "is no Hub id"),
        (("--memory", "0"), "expected gigabytes"),
        (("--host", "192.0.2.1"), "can't be served on 192.0.2.1, port 7860 and up"),
        (("--host", "no host"), "can't be served on no host, port 7860 and up"),
    ],
)
@pytest.mark.slow
def test_settings_that_are_refused(monkeypatch, words, said):
    for name in ("HF_PRUNE_SPACE_FEATURED", "HF_PRUNE_SPACE_MEMORY_GB"):
        monkeypatch.setenv(name, "")
    assert said in failed(*words)


@contextmanager
def running(*words: str, folder: Path) -> Iterator[str]:
    """`hf-prune space` in a process of its own, from its address to Ctrl-C."""
    process = subprocess.Popen(
        [*COMMAND, *words],
        cwd=folder,
        env=dict(os.environ) | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watch = threading.Timer(200, process.kill)
    watch.start()
    try:
        assert process.stdout is not None
        said = []
        for line in process.stdout:
            said.append(line)
            if found := re.search(r"http://127\.0\.0\.1:\d+", line):
                yield found[0]
                break
        else:
            raise AssertionError("".join(said))
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=60)[0]
        assert process.returncode in (0, 130) and "Traceback" not in rest, rest
    finally:
        watch.cancel()
        process.kill()


@pytest.mark.slow
def test_page_is_served_until_it_is_stopped(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with running("--port", str(port), folder=tmp_path) as address:
        assert address.endswith(f":{port}")
        client = Client(address, verbose=False)
        plan = client.predict("demo", "uidl", 3, api_name="/plan")
        assert len(plan["dropped"]) == 3
        with socket.socket() as taken:
            taken.settimeout(5)
            assert taken.connect_ex(("127.0.0.1", port)) == 0
        busy = subprocess.run([*COMMAND, "--port", str(port)], capture_output=True, text=True, timeout=200)
        assert busy.returncode == 1 and f"can't be served on 127.0.0.1, port {port}" in busy.stderr.splitlines()[-1]
        assert "Traceback" not in busy.stderr
    assert list(tmp_path.iterdir()) == []


def test_deploy_tells_what_was_done(hub, hub_token, new_repo_id, tmp_path):
    repo, wheel = new_repo_id(), make_wheel(tmp_path)
    told = done("space", "deploy", repo, "--wheel", wheel, "--hardware", "zero-a10g", "--dry-run")
    assert f"✓ Would deploy {repo}" in told.out and "hardware: zero-a10g" in told.out and not hub.exists(repo, "space")
    told = done("space", "deploy", repo, "--wheel", wheel)
    assert f"✓ Deployed {repo}" in told.out and f"url: {hub.endpoint}/spaces/{repo}" in told.out
    assert NAME in told.out and "new Space: True" in told.out
    again = done("space", "deploy", repo, "--wheel", wheel, "--json", "--quiet").json
    assert again["added"] == [] and NAME in again["unchanged"] and again["commit"]
    assert set(again) == {"url", "commit", "added", "deleted", "unchanged", "bytes", "new Space", "hardware", "models"}


def test_deploy_passes_its_options_on(monkeypatch, tmp_path):
    asked: dict[str, Any] = {}

    def deploy(repo_id: str, **kwargs: Any) -> Deployment:
        asked.update(kwargs, repo_id=repo_id)
        return Deployment(repo_id, "url", None, (), (), (), 0, False, None, ())

    monkeypatch.setattr("hf_prune.space_deploy.deploy", deploy)
    words = ("--pair", "me/one", "--pair", "me/two", "--wheel", "x.whl", "--overwrite", "--dry-run", "--token", "t")
    done("space", "deploy", "me/my-space", "--hardware", "t4-small", *words)
    assert asked == {
        "repo_id": "me/my-space",
        "hardware": "t4-small",
        "pairs": ["me/one", "me/two"],
        "wheel": Path("x.whl"),
        "overwrite": True,
        "token": "t",
        "dry_run": True,
    }


def test_deploy_fails_in_one_line_without_the_token(hub, hub_token, new_repo_id, tmp_path):
    repo = new_repo_id()
    hub.fail("POST", "/repos/create", 402, message=f"pay, {ALICE}")
    said = call("space", "deploy", repo, "--wheel", make_wheel(tmp_path)).failed()
    assert "has to be paid for" in said and ALICE not in said
    assert "unknown hardware 'gpu'" in call("space", "deploy", repo, "--hardware", "gpu").failed()
