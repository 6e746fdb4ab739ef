"""The README's pictures of the page, from the real page in a real browser: `python -m tests.space.pictures`.

One try each: what is seen, speeds included, is what the machine gave. Run it where nothing else runs.
"""

import io
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.hub.fixtures import start_session_hub, stop_session_hub

FOLDER = Path(__file__).parents[2] / "space"
WIDTH = 1100


def main() -> None:
    """Write `space/compare.png` and `space/anatomy.png`."""
    from .serving import browser, served, visit

    with served() as page, browser() as chromium:
        with visit(chromium, page.url, width=WIDTH) as tab:
            tab.get_by_role("button", name="There was once a king").click()
            tab.click("#hp-go")
            tab.wait_for_selector(".hp-costs-box table", timeout=120_000)
            tab.get_by_text("Done.").wait_for()
            _save(tab.screenshot(full_page=True), "compare.png")
        with visit(chromium, page.url, dark=True, width=WIDTH) as tab:
            tab.get_by_role("tab", name="Anatomy").click()
            heat_map = tab.get_by_text("Distance across every run of layers")
            heat_map.wait_for()
            tab.wait_for_timeout(1000)
            below = tab.get_by_text("What it costs, what it saves").last.bounding_box()
            tab.set_viewport_size({"width": WIDTH, "height": int(below["y"]) - 10})
            _save(tab.screenshot(), "anatomy.png")


def _save(picture: bytes, name: str) -> None:
    """As a PNG of 256 colours, which no eye tells apart here, at a third of the size."""
    image = Image.open(io.BytesIO(picture)).convert("RGB").quantize(256)
    image.save(FOLDER / name, optimize=True)
    sys.stdout.write(f"{FOLDER / name}: {(FOLDER / name).stat().st_size} bytes\n")


if __name__ == "__main__":
    start_session_hub()
    try:
        main()
    except pytest.skip.Exception as reason:
        sys.exit(str(reason))
    finally:
        stop_session_hub()
