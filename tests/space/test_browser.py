"""The page as visitors meet it: in a real browser, with the embedded pair and the loopback Hub."""

import dataclasses
import re
import time
from contextlib import ExitStack
from typing import Any
from urllib.parse import urlencode

import pytest

from hf_prune.space import settings
from tests.space.serving import Served, served, visit

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("url")]

HOSTILE = "<img src=x onerror=alert(1)> <script>alert(2)</script> **bold** [a](javascript:alert(3)) ${alert(4)} {{5}}"


def status(page: Any) -> str:
    return str(page.locator(".hp-status").first.inner_text())


def texts(page: Any) -> list[str]:
    return [box.inner_text() for box in page.locator(".hp-text").all()[:2]]


def generate(page: Any, prompt: str | None = None) -> None:
    """Ask, and wait for all that comes of it."""
    if prompt is not None:
        page.fill("#hp-prompt textarea", prompt)
    page.evaluate("document.querySelector('.hp-status').dataset.old = 1")  # gone once there is a newer status
    page.click("#hp-go")
    page.wait_for_selector(".hp-status:not([data-old])", state="attached")
    page.wait_for_selector("#hp-go:not([disabled])", timeout=120_000)


def pick(page: Any, name: str) -> None:
    box = page.locator("#hp-picker input")
    box.click()
    box.fill(name)
    box.press("Enter")


def contrast(page: Any, selector: str) -> float:
    """WCAG contrast of a text with what lies behind it."""
    return float(
        page.evaluate(
            """(selector) => {
        const element = document.querySelector(selector);
        const rgba = (text) => {
            const [r, g, b, a = 1] = text.match(/[\\d.]+/g).map(Number);
            return [r, g, b, a];
        };
        let behind = element, fill = [0, 0, 0, 0];
        while (behind && fill[3] === 0) {
            fill = rgba(getComputedStyle(behind).backgroundColor);
            behind = behind.parentElement;
        }
        const light = (color) => {
            const [r, g, b] = color.slice(0, 3).map((v) => v / 255)
                .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const pair = [light(rgba(getComputedStyle(element).color)), light(fill)].sort((a, b) => b - a);
        return (pair[0] + 0.05) / (pair[1] + 0.05);
    }""",
            selector,
        )
    )


def test_first_paint_within_three_seconds(chromium: Any, url: str) -> None:
    with visit(chromium, url):  # a first visit compiles what Gradio serves
        pass
    start = time.perf_counter()
    with visit(chromium, url) as page:
        seconds = time.perf_counter() - start
        assert "layers" in page.locator(".hp-header").inner_text()
        assert page.locator("#hp-picker input").input_value().startswith("Demo")
        line = page.locator("#hp-line").inner_text()
        assert re.search(r"4 of 12 layers removed .*, then healed; \d+\.\d.% fewer parameters", line)
    assert seconds < 3, f"{seconds:.2f} s"


def test_nothing_is_asked_of_other_machines(chromium: Any, url: str) -> None:
    with visit(chromium, url) as page:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.reload()
        page.wait_for_selector("#hp-go")
        page.wait_for_timeout(1500)
    others = [address for address in asked if not address.startswith((url, "data:", "blob:"))]
    assert asked and not others


def test_both_write_at_once_then_part_then_cost(chromium: Any, url: str) -> None:
    with visit(chromium, url) as page:
        page.fill("#hp-prompt textarea", "The captain came on deck and")
        page.click("#hp-go")
        page.wait_for_function("[...document.querySelectorAll('.hp-text')].slice(0, 2).every(e => e.innerText.trim())")
        early = texts(page)
        assert page.locator("#hp-stop").is_enabled() and page.locator(".hp-t").count() == 0  # neither has ended
        page.wait_for_selector("#hp-go:not([disabled])", timeout=120_000)
        late = texts(page)
        assert all(after.replace("↵", "").startswith(before) for before, after in zip(early, late, strict=True))
        assert all(len(after) > len(before) for before, after in zip(early, late, strict=True))

        assert page.locator(".hp-first").count() == 2
        assert "KL" in page.locator(".hp-first").first.get_attribute("title")
        page.locator(".hp-first").first.hover()
        assert page.locator(".hp-detail").inner_text() == page.locator(".hp-first").first.get_attribute("title")

        rows = {row.locator("th").inner_text(): row.inner_text() for row in page.locator(".hp-costs tbody tr").all()}
        assert re.fullmatch(r"Layers\s+12\s+8\s+−33\.3\s%", rows["Layers"])
        assert list(rows)[1:4] == ["Parameters", "Weights", "Memory while writing"]
        assert list(rows)[4:] == ["Reading, tokens/s", "Writing, tokens/s"]
        assert "one model after the other" in page.locator(".hp-costs-box").first.inner_text()


def test_stop_at_once(chromium: Any, url: str) -> None:
    with visit(chromium, f"{url}?max_tokens=512") as page:
        page.click("#hp-go")
        page.wait_for_function("[...document.querySelectorAll('.hp-text')].slice(0, 2).every(e => e.innerText.trim())")
        start = time.perf_counter()
        page.click("#hp-stop")
        page.wait_for_function("document.querySelector('.hp-status').innerText === 'Stopped.'")
        page.wait_for_selector("#hp-go:not([disabled])")
        assert time.perf_counter() - start < 1
        page.wait_for_timeout(1000)  # what was on its way
        left = texts(page)
        page.wait_for_timeout(1500)
        assert texts(page) == left and status(page) == "Stopped."
        assert page.locator("#hp-go").is_enabled() and page.locator("#hp-stop").is_disabled()
        generate(page, "And again the sea")  # nothing is left of the run before
        assert status(page) == "Done."


def test_who_has_to_wait_is_told(chromium: Any) -> None:
    with served(queue_size=1) as small, ExitStack() as stack:
        one, two, three = (stack.enter_context(visit(chromium, f"{small.url}?max_tokens=512")) for _ in range(3))
        for page in (one, two, three):
            page.wait_for_timeout(500)  # what the link says is there
            page.click("#hp-go")
        one.wait_for_function("document.querySelector('.hp-status').innerText.startsWith('Writing')")
        assert status(two) == "Waiting for a turn …"
        place = two.locator(".hp-said .progress-text").first
        place.wait_for()
        assert "queue: 1/1" in place.inner_text()
        row, said = place.bounding_box(), two.locator(".hp-status").first.bounding_box()
        assert abs(row["y"] - said["y"]) < 6 and contrast(two, ".hp-said .progress-text") >= 4.5
        three.wait_for_selector(".hp-status .hp-problem")
        assert "Too many visitors are waiting" in status(three) and three.locator("#hp-go").is_enabled()
        two.click("#hp-stop")  # before it has begun
        two.wait_for_function("document.querySelector('.hp-status').innerText === 'Stopped.'")
        one.click("#hp-stop")
        one.wait_for_function("document.querySelector('.hp-status').innerText === 'Stopped.'")
        assert texts(two) == ["", ""] and all(texts(one))
        generate(three)
        assert status(three) == "Done."


def test_examples_fill_the_prompt(chromium: Any, url: str) -> None:
    with visit(chromium, url) as page:
        chip = page.locator(".hp-examples button").nth(1)
        chip.click()
        page.wait_for_function(
            "text => document.querySelector('#hp-prompt textarea').value === text", arg=chip.inner_text()
        )


def test_link_restores_the_page(chromium: Any, url: str, pushed_pair: str) -> None:
    prompt = "A “strange” prompt & its\nsecond line: 100 % #1 + ?"
    with visit(chromium, url) as page:
        pick(page, pushed_pair)
        page.wait_for_function("name => document.querySelector('#hp-line').innerText.includes(name)", arg=pushed_pair)
        page.fill("#hp-prompt textarea", prompt)
        page.locator("button", has_text="Settings").first.click()
        page.locator("#hp-seed input").fill("7")
        page.locator("#hp-same input").uncheck()
        page.click("#hp-copy")
        page.wait_for_selector("#hp-link textarea, #hp-link input")
        shown = page.locator("#hp-link textarea, #hp-link input").first.input_value()
        assert shown.startswith(url) and page.evaluate("navigator.clipboard.readText()") == shown
    with visit(chromium, shown) as page:
        page.wait_for_function("name => document.querySelector('#hp-line').innerText.includes(name)", arg=pushed_pair)
        assert page.locator("#hp-prompt textarea").input_value() == prompt
        page.locator("button", has_text="Settings").first.click()
        page.wait_for_function("document.querySelector('#hp-seed input')?.value === '7'")
        assert not page.locator("#hp-same input").is_checked()
        assert pushed_pair in page.locator(".hp-column").nth(1).inner_text()


def test_hostile_links_fall_back_with_a_message(chromium: Any, url: str) -> None:
    query = {"pair": f"../../etc/passwd{HOSTILE}", "prompt": HOSTILE, "temperature": "1e999", "seed": HOSTILE}
    with visit(chromium, f"{url}?{urlencode(query)}") as page:
        page.wait_for_selector(".hp-status .hp-problem")
        told = status(page)
        assert told.count("was not taken") == 3 and "the demo is shown" in told
        assert page.locator("#hp-picker input").input_value().startswith("Demo")
        assert page.locator("#hp-prompt textarea").input_value() == HOSTILE


def test_what_cannot_be_opened_is_a_message(chromium: Any, url: str, hub: Any, pushed_pair: str) -> None:
    with visit(chromium, url) as page:
        for name, told in (
            ("acme/no-such-model", "no such model"),
            ("../../etc", "no Hub id"),
            (HOSTILE, "no Hub id"),
        ):
            pick(page, name)
            page.wait_for_function("told => document.querySelector('#hp-line').innerText.includes(told)", arg=told)
            assert "Still shown: Demo" in page.locator("#hp-line").inner_text()
            generate(page)
            assert told in status(page) and "Traceback" not in page.content()
        pick(page, pushed_pair)
        page.wait_for_function("!document.querySelector('#hp-line .hp-problem')")


def test_what_may_not_be_opened_is_a_message(
    chromium: Any, url: str, hub: Any, pair_folders: Any, new_repo_id: Any, server: Served, pushed_pair: str
) -> None:
    gated = new_repo_id("acme")
    hub.add_repo(gated, pair_folders("pruned"), gated=True)
    with visit(chromium, f"{url}?max_tokens=8") as page:
        for name, told in ((gated, "it is gated, and you are not signed in"), (pushed_pair, "can be opened here")):
            if name == pushed_pair:
                settings.use(dataclasses.replace(server.limits, model_bytes=1000))
            pick(page, name)
            page.wait_for_function("told => document.querySelector('#hp-line').innerText.includes(told)", arg=told)
            assert "Still shown: Demo" in page.locator("#hp-line [role=alert]").inner_text()
            generate(page)
            assert told in status(page) and texts(page) == ["", ""]
            assert page.locator(".hp-status [role=alert]").count() and page.locator("#hp-stop").is_disabled()


def test_search_keeps_up_with_fast_typing(chromium: Any, url: str, pushed_pair: str) -> None:
    with visit(chromium, url) as page:
        box = page.locator("#hp-picker input")
        box.click()
        box.fill("")
        box.press_sequentially(pushed_pair)  # without a pause: faster than any search
        page.get_by_role("option", name=pushed_pair).wait_for()
        assert box.input_value() == pushed_pair


def test_a_hub_that_cannot_be_searched_is_told(chromium: Any, url: str, hub: Any) -> None:
    hub.fail("GET", "/api/models.*search=", 500, times=50)
    with visit(chromium, url) as page:
        box = page.locator("#hp-picker input")
        box.click()
        box.fill("")
        box.press_sequentially("space")
        page.wait_for_selector("#hp-searched .hp-problem")
        assert "the Hub is not well" in page.locator("#hp-searched").inner_text()
        hub.faults.reset()
        box.press_sequentially("-")
        page.wait_for_selector("#hp-searched", state="hidden")


def test_answers_never_stand_below_another_pairs_name(chromium: Any, url: str, pushed_pair: str) -> None:
    heads = "() => [...document.querySelectorAll('.hp-name')].slice(0, 2).map(e => e.innerText)"
    with visit(chromium, f"{url}?max_tokens=200") as page:
        before = page.evaluate(heads)
        page.click("#hp-go")
        page.wait_for_function("[...document.querySelectorAll('.hp-text')].slice(0, 2).every(e => e.innerText.trim())")
        pick(page, pushed_pair)
        page.wait_for_function("name => document.querySelector('#hp-line').innerText.includes(name)", arg=pushed_pair)
        page.wait_for_selector("#hp-go:not([disabled])", timeout=120_000)
        assert all(texts(page)) and page.evaluate(heads) == before
        pick(page, "demo")
        page.wait_for_selector("#hp-line b")
        page.wait_for_function("document.querySelectorAll('.hp-t').length === 0")  # what was written goes
        assert texts(page) == ["", ""] and status(page) == "" and page.locator(".hp-costs").count() == 0
        generate(page)
        pick(page, pushed_pair)
        page.wait_for_function("name => document.querySelectorAll('.hp-name')[1].innerText === name", arg=pushed_pair)
        assert texts(page) == ["", ""] and page.locator(".hp-costs").count() == 0


def test_settings_that_mean_nothing_are_told(chromium: Any, url: str) -> None:
    with visit(chromium, url) as page:  # without a link's settings: they come late enough to undo what is typed here
        page.locator("button", has_text="Settings").first.click()
        for typed, told in (("-5", "seed=-5; expected a whole number"), ("", "seed=None; expected a whole number")):
            page.locator("#hp-seed input").fill(typed)
            generate(page)
            assert told in status(page)


def test_long_names_wrap(chromium: Any, url: str, hub: Any, pair_folders: Any) -> None:
    name = "acme/" + "w" * 91
    hub.add_repo(name, pair_folders("pruned"))
    with visit(chromium, f"{url}?{urlencode({'pair': name})}", width=390, height=844) as page:
        page.wait_for_function("name => document.querySelector('#hp-line').innerText.includes(name)", arg=name)
        page.wait_for_function("name => document.querySelectorAll('.hp-name')[1].innerText === name", arg=name)
        for box in (page.locator("#hp-line a").first, page.locator(".hp-name a").nth(1)):
            found = box.bounding_box()
            assert found["x"] >= 0 and found["x"] + found["width"] <= 390


def test_injection_stays_text(chromium: Any, url: str) -> None:
    with visit(chromium, f"{url}?max_tokens=24") as page:
        generate(page, HOSTILE)
        assert status(page) == "Done."
        assert page.locator(".hp-answers img, .hp-answers script, .hp-answers strong").count() == 0
        assert page.locator("#hp-prompt textarea").input_value() == HOSTILE


def test_keyboard_only(chromium: Any, url: str) -> None:
    with visit(chromium, f"{url}?max_tokens=24") as page:
        reached = []
        for _ in range(40):
            page.keyboard.press("Tab")
            reached.append(
                page.evaluate("document.activeElement.id || document.activeElement.closest('[id^=hp-]')?.id")
            )
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline != "none", reached
            if "hp-go" in reached:
                break
        order = [name for name in ("hp-picker", "hp-prompt", "hp-go") if name in reached]
        assert order == ["hp-picker", "hp-prompt", "hp-go"] == sorted(order, key=reached.index)
        page.locator("#hp-prompt textarea").focus()
        page.keyboard.press("End")
        page.keyboard.press("Shift+Enter")
        page.keyboard.type("and then")
        assert page.locator("#hp-prompt textarea").input_value().endswith("\nand then")
        page.keyboard.press("Enter")
        page.wait_for_selector(".hp-costs", timeout=120_000)
        for _ in range(40):
            page.keyboard.press("Tab")
            if page.evaluate("document.activeElement.classList.contains('hp-t')"):
                break
        first = page.locator(".hp-detail").inner_text()
        page.keyboard.press("ArrowRight")
        assert "KL" in first and page.locator(".hp-detail").inner_text() != ""
        assert page.evaluate("document.activeElement.classList.contains('hp-t')")
        page.keyboard.press("Tab")  # one stop an answer
        page.keyboard.press("Tab")
        assert not page.evaluate("document.activeElement.closest('.hp-text') === document.querySelector('.hp-text')")


def test_phone(chromium: Any, url: str) -> None:
    with visit(chromium, f"{url}?max_tokens=24", width=390, height=844) as page:
        generate(page)
        page.locator("button", has_text="Settings").first.click()
        page.wait_for_timeout(300)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("document.querySelector('.hp-costs').getBoundingClientRect().right") <= 390
        one, other = (page.locator(".hp-column").nth(i).bounding_box() for i in (0, 1))
        assert other["y"] >= one["y"] + one["height"] and abs(other["x"] - one["x"]) < 1


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_contrast(chromium: Any, url: str, dark: bool) -> None:
    with visit(chromium, f"{url}?max_tokens=24", dark=dark) as page:
        assert page.evaluate("document.body.classList.contains('dark')") is dark
        found = {
            selector: contrast(page, selector)
            for selector in (
                ".hp-header p", ".hp-picked", "#hp-prompt textarea", "#hp-prompt label span", "#hp-go", "#hp-copy",
                ".hp-examples button", "[role=tab][aria-selected=true]", ".hp-column h3", ".hp-column p",
            )
        }  # fmt: skip
        generate(page)
        page.evaluate("""() => document.querySelector('.hp-text').innerHTML +=
            [1, 2, 3, 4].map((k) => `<span class="hp-t hp-k${k}" id="k${k}">x</span>`).join('')""")
        for selector in ("#k1", "#k2", "#k3", "#k4", ".hp-legend", ".hp-verdict", ".hp-costs td", ".hp-note"):
            found[selector] = contrast(page, selector)
        pick(page, "no id")
        page.wait_for_selector("#hp-line .hp-problem")
        found[".hp-problem"] = contrast(page, "#hp-line .hp-problem")
    assert min(found.values()) >= 4.5, found


def test_everything_that_takes_input_has_a_name(chromium: Any, url: str) -> None:
    with visit(chromium, url) as page:
        page.locator("button", has_text="Settings").first.click()
        nameless = page.evaluate(
            """() => [...document.querySelectorAll('input, textarea, select, button')]
            .filter((e) => e.offsetParent && !e.innerText?.trim() && !e.ariaLabel && !e.labels?.length && !e.title)
            .map((e) => e.outerHTML.slice(0, 200))"""
        )
        assert nameless == []
