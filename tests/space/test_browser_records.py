"""Anatomy and Try a cut as visitors meet them: in a real browser, with the embedded pair and the loopback Hub."""

import time
from typing import Any

import pytest

from tests.space.serving import visit
from tests.space.test_browser import contrast, pick

pytestmark = [pytest.mark.browser, pytest.mark.usefixtures("url")]

PHONE = 390


def open_tab(page: Any, name: str) -> None:
    """Open a tab, through the menu that narrow windows put it in where there is no room for it."""
    tab = page.get_by_role("tab", name=name, exact=True)
    if not tab.count():
        page.locator(".overflow-menu button").first.click()
        tab = page.locator(".overflow-dropdown button", has_text=name)
    tab.click()
    if name == "Try a cut":
        page.wait_for_selector("#hp-cut-plan .layers")
        page.wait_for_timeout(500)  # a key that comes while Gradio still mounts the tab is lost, on a busy machine


def anatomy(page: Any) -> None:
    open_tab(page, "Anatomy")
    page.wait_for_selector("#hp-anatomy svg")


def removed(page: Any, where: str = "#hp-cut-plan") -> list[int]:
    """Layers that the map shows as removed."""
    return [int(text) for text in page.locator(f"{where} .layers .layers-removed").all_inner_texts()]


def wait_removed(page: Any, count: int) -> None:
    page.wait_for_function(
        "(n) => document.querySelectorAll('#hp-cut-plan .layers .layers-removed').length === n", arg=count
    )


def slide(page: Any, key: str) -> None:
    page.locator("#hp-cut-layers input[type=range]").press(key)


def inside(page: Any) -> bool:
    """Whether nothing makes the page itself scroll sideways."""
    return bool(page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"))


@pytest.mark.parametrize("width", [1280, PHONE])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_anatomy_is_drawn_and_read_in_every_light_and_width(chromium: Any, url: str, dark: bool, width: int) -> None:
    with visit(chromium, url, dark=dark, width=width) as page:
        anatomy(page)
        assert removed(page, "#hp-anatomy") == [3, 4, 5, 6]
        assert page.locator("#hp-anatomy figure").count() == 3 and page.locator("#hp-anatomy table").count() == 2
        assert page.get_by_role("img", name="Heat map: angular distance").is_visible()
        assert inside(page)
        for selector in (
            "p",
            ".anatomy-small",
            ".anatomy-warnings li",
            "dt",
            "td",
            "caption",
            "figcaption",
            "summary",
        ):
            assert contrast(page, f"#hp-anatomy {selector}") >= 4.5, selector
        for state in ("healed", "removed"):
            assert contrast(page, f"#hp-anatomy .layers .layers-{state} b") >= 4.5
        ink = page.evaluate("getComputedStyle(document.querySelector('#hp-anatomy svg')).color")
        assert ink == page.evaluate("getComputedStyle(document.querySelector('#hp-anatomy figcaption')).color")
        if width == PHONE:  # the drawing scrolls in its own box, by keyboard too
            box = page.locator("#hp-anatomy .anatomy-scroll").first
            assert box.evaluate("(box) => box.scrollWidth > box.clientWidth")
            box.focus()
            page.keyboard.press("ArrowRight")
            page.wait_for_function("document.querySelector('#hp-anatomy .anatomy-scroll').scrollLeft > 0")
            cells = page.locator("#hp-anatomy .layers .layers-cell")
            assert all((box := cell.bounding_box()) and box["x"] + box["width"] <= PHONE for cell in cells.all())


@pytest.mark.parametrize("width", [1280, PHONE])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_cut_is_tried_by_keyboard_in_every_light_and_width(chromium: Any, url: str, dark: bool, width: int) -> None:
    with visit(chromium, url, dark=dark, width=width) as page:
        open_tab(page, "Try a cut")
        assert removed(page) == [3, 4, 5, 6]
        slide(page, "ArrowLeft")
        wait_removed(page, 3)
        assert page.locator("#hp-cut-plan [role=status]").inner_text().endswith("(3 of 12, counted from 0)")
        for _ in range(20):  # past the end
            slide(page, "ArrowRight")
        wait_removed(page, 11)
        assert "11 of 12 layers (92%) are gone" in page.locator("#hp-cut-plan .anatomy-warnings").inner_text()
        assert "estimate" in page.locator("#hp-cut-plan dl").inner_text()
        page.locator("#hp-cut-method input").first.focus()
        page.keyboard.press("Tab")  # each choice is a stop of its own
        page.keyboard.press("Space")
        page.wait_for_function("document.querySelector('#hp-cut-plan').innerText.includes('nothing was measured')")
        assert removed(page) == list(range(11))
        assert inside(page)
        for selector in ("[role=status]", "dt", "dd", ".anatomy-small", ".anatomy-warnings li", ".layers-kept b"):
            assert contrast(page, f"#hp-cut-plan {selector}") >= 4.5, selector


def test_the_slider_answers_while_a_model_writes(chromium: Any, url: str) -> None:
    with visit(chromium, f"{url}?max_tokens=400") as page:
        page.click("#hp-go")
        page.wait_for_function("document.querySelector('.hp-text').innerText.length > 20", timeout=60_000)
        open_tab(page, "Try a cut")
        start = time.monotonic()
        slide(page, "ArrowRight")
        wait_removed(page, 5)
        took = time.monotonic() - start
        open_tab(page, "Compare")
        assert page.locator("#hp-go").is_disabled(), "it writes on"
        page.click("#hp-stop")
        assert took < 3


def test_both_models_write_with_the_cut_and_stop_works(chromium: Any, url: str) -> None:
    with visit(chromium, url) as page:
        open_tab(page, "Try a cut")
        slide(page, "ArrowRight")
        wait_removed(page, 5)
        page.click("#hp-cut-go")
        page.wait_for_selector("#hp-cut-go[disabled]")
        panel = page.locator("[role=tabpanel]", has=page.locator("#hp-cut-go"))
        panel.locator(".hp-costs").wait_for(timeout=120_000)
        page.wait_for_selector("#hp-cut-go:not([disabled])")
        shown = panel.locator(".hp-costs").inner_text()
        assert "Cut" in shown and "12" in shown and "7" in shown
        assert "without layers" in panel.locator(".hp-name").nth(1).inner_text()
        one, other = panel.locator(".hp-text").all_inner_texts()
        assert one and other and one != other
        page.click("#hp-cut-go")
        page.wait_for_selector("#hp-cut-stop:not([disabled])")
        page.click("#hp-cut-stop")
        page.wait_for_selector("#hp-cut-go:not([disabled])")


def test_another_pair_brings_its_own_records(chromium: Any, url: str, hub: Any, pushed: Any) -> None:
    name = pushed("sliced")
    with visit(chromium, url) as page:
        anatomy(page)
        pick(page, name)
        page.wait_for_function("document.querySelector('#hp-anatomy').innerText.includes('What was narrowed')")
        assert page.locator("#hp-anatomy .layers .layers-cell small").count() == 6
        open_tab(page, "Try a cut")
        page.wait_for_function("document.body.innerText.includes('chooses by scores of measure')")
        assert page.locator("#hp-cut-method input").count() == 1
        assert page.locator("#hp-cut-layers input[type=range]").get_attribute("max") == "5"
        slide(page, "ArrowRight")
        wait_removed(page, 2)


def test_a_prompt_that_is_refused_is_a_message(chromium: Any, url: str) -> None:
    with visit(chromium, url) as page:
        open_tab(page, "Try a cut")
        page.fill("#hp-cut-prompt textarea", " ")
        page.click("#hp-cut-go")
        panel = page.locator("[role=tabpanel]", has=page.locator("#hp-cut-go"))
        panel.locator(".hp-problem").wait_for()
        assert "prompt" in panel.locator(".hp-problem").inner_text()
        page.wait_for_selector("#hp-cut-go:not([disabled])")
