"""Making a model as visitors do it: in a real browser, on the real page, logged in to the loopback Hub.

OAuth of the real Hub is what this machine can't have; what comes of a sign-in there is tested in `test_visitor`.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hf_prune.space import disk, effort, make_page, settings
from hf_prune.space.effort import Effort
from hf_prune.space.jobs import WORKSHOP
from hf_prune.space.pair import Visitor
from tests.cli.support import CALIBRATION, EVALUATION, HEALING, fast, planted
from tests.hub.fixtures import ALICE
from tests.space.serving import Served, visit

pytestmark = pytest.mark.browser

HOSTILE = "<img src=x onerror=alert(1)> <script>alert(2)</script>"


@pytest.fixture(autouse=True)
def url(server: Served, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The page for somebody who is logged in on this machine, with recipes that take seconds."""
    settings.use(server.limits)
    monkeypatch.setenv("HF_TOKEN", ALICE)
    monkeypatch.setattr("hf_prune.space.wishes.effort", lambda: Effort(CALIBRATION, HEALING, EVALUATION, 1 << 20))
    monkeypatch.setattr(effort, "_BESIDE", 10**6)
    fast(monkeypatch)
    yield server.url
    WORKSHOP.cancel("alice")
    assert WORKSHOP.wait(60)
    WORKSHOP._jobs.clear()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = planted(tmp_path_factory.mktemp("models") / "tiny-base")
    (folder / "README.md").write_text(f"---\nlicense: other\nlicense_name: '{HOSTILE}'\n---\n# Base\n")
    return folder


@pytest.fixture
def source(hub, new_repo_id, base: Path) -> str:
    repo = new_repo_id()
    hub.add_repo(repo, base)
    return repo


def opened(page: Any) -> Any:
    page.wait_for_selector("#hp-go")
    tab = page.get_by_role("tab", name="Make one")
    if not tab.is_visible():  # on a phone, the last tabs are behind a button
        page.locator(".overflow-menu button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text="Make one")
    tab.click()
    page.wait_for_selector("#hp-make-who p")
    return page


def pick(page: Any, name: str, wait: str = "8 layers") -> None:
    box = page.locator("#hp-make-model input")
    box.click()
    box.fill(name)
    box.press("Enter")
    box.press("Tab")
    page.wait_for_selector(f"#hp-make-line :text('{wait}')")
    page.wait_for_function("() => document.querySelector('#hp-make-repo :is(input, textarea)').value !== ''")
    time.sleep(0.3)  # what follows from the choice has arrived


def plan(page: Any) -> None:
    page.click("#hp-make-plan")
    page.wait_for_selector(".mk-offer")


def test_plan_run_reload_and_done(hub, url: str, chromium, source: str) -> None:
    bodies: list[str] = []

    def keep(response: Any) -> None:
        kind = response.headers.get("content-type", "")
        if "json" in kind or "html" in kind:
            bodies.append(response.text())

    with visit(chromium, url) as page:
        page.on("response", keep)
        opened(page)
        page.wait_for_selector("#hp-make-who :text('alice')")
        assert page.locator("#hp-make-go").is_disabled() and "No plan yet" in page.inner_text("#hp-make-offer")
        pick(page, source)
        plan(page)
        shown = page.inner_text("#hp-make-offer")
        for said in ("1 of 8 layers", f"{source}-pruned", "everyone (public)", "Time, a rough guess", "1,024|tokens"):
            assert any(part in shown for part in said.split("|")), (said, shown)
        assert HOSTILE.split()[0] in shown and page.locator("#hp-make-offer img, #hp-make-offer script").count() == 0
        page.check("#hp-make-private input")
        page.wait_for_selector("#hp-make-offer :text('No plan yet')")
        assert page.locator("#hp-make-go").is_disabled(), "a plan for something else is no plan"
        plan(page)
        assert "you alone (private)" in page.inner_text("#hp-make-offer")
        with disk._lock:  # the job gets no further than to its download
            page.click("#hp-make-go")
            page.wait_for_selector(".mk-running")
            page.wait_for_selector("#hp-make-log textarea")
            page.reload()
            opened(page)
            page.wait_for_selector(".mk-running")
            assert f"{source}-pruned" in page.inner_text("#hp-make-status")
        page.wait_for_selector(".mk-done", timeout=120_000)
        log = page.input_value("#hp-make-log textarea")
        assert "Plan: drop layer" in log and "Pushing to" in log
        assert page.locator(".mk-done a").get_attribute("href") == f"{hub.endpoint}/{source}-pruned"
        page.click("#hp-make-open")
        page.wait_for_selector(f"#hp-line :text('{source}-pruned')")
    assert hub.store.get("model", f"{source}-pruned").private
    assert bodies and not any(ALICE in body for body in bodies) and ALICE not in log


def test_cancel(hub, url: str, chromium, source: str) -> None:
    with visit(chromium, url) as page:
        opened(page)
        pick(page, source)
        plan(page)
        with disk._lock:
            page.click("#hp-make-go")
            page.wait_for_selector(".mk-running")
            page.click("#hp-make-cancel")
            page.wait_for_selector("#hp-make-status :text('stops at the next step')")
        page.wait_for_selector(".mk-cancelled")
        assert "nothing was pushed" in page.inner_text("#hp-make-status")
        assert page.locator("#hp-make-cancel").count() == 0 or not page.locator("#hp-make-cancel").is_visible()
    assert not hub.exists(f"{source}-pruned")


def test_a_job_that_fails_keeps_its_message(hub, url: str, chromium, source: str, monkeypatch) -> None:
    with visit(chromium, url) as page:
        opened(page)
        pick(page, source)
        plan(page)
        monkeypatch.setattr("hf_prune.hub_client.WAITS", (0.0,))
        hub.faults.fail("POST", f"{source}-pruned/commit", 403, times=100)
        page.click("#hp-make-go")
        page.wait_for_selector(".mk-failed", timeout=120_000)
        assert "the Hub answered 403" in page.inner_text(".mk-failed .hp-problem")
        page.reload()
        opened(page)
        page.wait_for_selector(".mk-failed .hp-problem")


@pytest.mark.parametrize(
    ("name", "said"),
    [(HOSTILE, "is no Hub id"), ("alice/not-there-at-all", "there is no such model"), ("bob/shut", "it is gated")],
)
def test_what_cannot_be_made_is_said(hub, url: str, chromium, base: Path, name: str, said: str) -> None:
    if not hub.exists("bob/shut"):
        hub.add_repo("bob/shut", base, gated=True)
    with visit(chromium, url) as page:
        opened(page)
        box = page.locator("#hp-make-model input")
        box.click()
        box.fill(name)
        box.press("Enter")
        box.press("Tab")
        page.wait_for_selector(f"#hp-make-line .hp-problem:has-text('{said}')")
        page.click("#hp-make-plan")
        page.wait_for_selector(f"#hp-make-offer .hp-problem:has-text('{said}')")
        assert page.locator("#hp-make-go").is_disabled()


def test_other_methods_take_a_share(url: str, chromium) -> None:
    with visit(chromium, url) as page:
        opened(page)
        page.get_by_label("slicegpt").check()
        page.wait_for_selector("#hp-make-share input")
        assert page.locator("#hp-make-layers input").count() == 0 or not page.is_visible("#hp-make-layers input")
        page.get_by_label("uidl").check()
        page.get_by_label("Layers", exact=True).check()
        page.wait_for_selector("#hp-make-layers input")
        page.uncheck("#hp-make-heal input")
        page.wait_for_selector("#hp-make-tokens", state="hidden")


def test_by_keyboard_alone(url: str, chromium, source: str) -> None:
    with visit(chromium, url) as page:
        opened(page)
        page.wait_for_selector("#hp-make-who :text('alice')")
        page.focus("#hp-make-model input")
        page.keyboard.type(source)
        page.keyboard.press("Enter")
        page.keyboard.press("Tab")
        page.wait_for_selector("#hp-make-line :text('8 layers')")
        time.sleep(0.5)
        for _ in range(40):
            if page.evaluate("document.activeElement.id") == "hp-make-plan":
                break
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        page.wait_for_selector(".mk-offer")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "hp-make-go"


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_has_no_sideways_scroll(url: str, chromium, source: str, dark: bool) -> None:
    with visit(chromium, url, dark=dark, width=390, height=844) as page:
        opened(page)
        pick(page, source)
        plan(page)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390


def asked(url: str, name: str, data: list, **headers: str) -> str:
    """What a program gets that calls one of the page's functions."""
    body = json.dumps({"data": data}).encode()
    call = f"{url}gradio_api/call/{name}"
    request = urllib.request.Request(call, body, headers={"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request) as answer:
        event = json.load(answer)["event_id"]
    with urllib.request.urlopen(f"{call}/{event}") as answer:
        return answer.read().decode()


@pytest.mark.parametrize(
    "headers", [{"Origin": "https://elsewhere.example"}, {"Origin": "null"}, {"Host": "rebound.example:7860"}]
)
def test_other_sites_act_for_nobody(url: str, source: str, headers: dict[str, str]) -> None:
    """A page of another site may reach this machine through a visitor's browser, and is not the visitor."""
    given = [source, "uidl", "Layers", 2, 0.25, False, 16, "", False]
    assert "nobody is signed in" in asked(url, "_plan", given, **headers)
    assert "alice" not in asked(url, "_arrive", [], **headers)
    assert "mk-offer" in asked(url, "_plan", given, Origin=url.rstrip("/"))
    with urllib.request.urlopen(f"{url}gradio_api/info") as answer:
        assert not {"/_go", "/_plan", "/_arrive", "/_cancel"} & set(json.load(answer)["named_endpoints"])


def test_nobody_signed_in(url: str, chromium, monkeypatch) -> None:
    monkeypatch.delenv("HF_TOKEN")
    with visit(chromium, url) as page:
        opened(page)
        page.wait_for_selector("#hp-make-who :text('hf auth login')")
        assert page.locator("#hp-make-plan").is_disabled() and page.locator("#hp-make-go").is_disabled()
        assert page.locator("input[type=password]").count() == 0


@pytest.mark.parametrize(
    ("changes", "login", "said"),
    [
        ({"on_space": True}, True, "Sign in with Hugging Face"),
        ({"on_space": True}, False, "this Space was set up without it"),
        ({"local_login": True}, False, "hf auth login"),
        ({}, False, "Others can open this page"),
    ],
)
def test_how_to_sign_in_is_said(changes: dict, login: bool, said: str) -> None:
    here = settings.Settings(**{"on_space": False, "hardware": "x", "memory_bytes": 1, "model_bytes": 1} | changes)
    assert said in make_page.who(Visitor(), here, login)
