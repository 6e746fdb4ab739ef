"""How the page looks: colours and type that need no network, in light and dark."""

from importlib.resources import files
from typing import Any

import gradio as gr

_SYSTEM = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
_MONO = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "Liberation Mono", "monospace")


def css() -> str:
    """All style sheets of the package, base first."""
    sheets = sorted(files("hf_prune.space").joinpath("css").iterdir(), key=lambda f: (f.name != "base.css", f.name))
    return "\n".join(sheet.read_text(encoding="utf-8") for sheet in sheets if sheet.name.endswith(".css"))


def theme() -> gr.themes.Base:
    """Calm colours of enough contrast, fonts that every system has."""
    base = gr.themes.Base(
        primary_hue="teal", secondary_hue="teal", neutral_hue="slate", radius_size="md", font=_SYSTEM, font_mono=_MONO
    )
    return base.set(
        body_background_fill="white",
        body_background_fill_dark="#0d131b",
        body_text_color="#16202c",
        body_text_color_dark="#e8edf3",
        body_text_color_subdued="#4a5767",
        body_text_color_subdued_dark="#a9b5c3",
        block_title_text_color="#16202c",
        block_title_text_color_dark="#e8edf3",
        block_title_text_weight="600",
        block_label_text_color="#4a5767",
        block_label_text_color_dark="#a9b5c3",
        block_info_text_color="#4a5767",
        block_info_text_color_dark="#a9b5c3",
        block_background_fill="white",
        block_background_fill_dark="#121922",
        block_border_color="#d5dbe3",
        block_border_color_dark="#33404f",
        border_color_primary="#d5dbe3",
        border_color_primary_dark="#33404f",
        input_background_fill="#f6f8fa",
        input_background_fill_dark="#1a232e",
        input_border_color="#d5dbe3",
        input_border_color_dark="#33404f",
        input_border_width="1px",
        input_placeholder_color="#5d6a7a",
        input_placeholder_color_dark="#94a2b3",
        slider_color="#0b6e69",
        slider_color_dark="#5ccfc6",
        checkbox_border_color="#75828f",
        checkbox_border_color_dark="#8592a1",
        checkbox_background_color_selected="#0b6e69",
        checkbox_background_color_selected_dark="#0b6e69",
        button_primary_background_fill="#0b6e69",
        button_primary_background_fill_dark="#0b6e69",
        button_primary_background_fill_hover="#095a56",
        button_primary_background_fill_hover_dark="#0d7f79",
        button_primary_text_color="white",
        button_primary_text_color_dark="white",
        button_secondary_background_fill="#eef2f6",
        button_secondary_background_fill_dark="#222d3a",
        button_secondary_text_color="#16202c",
        button_secondary_text_color_dark="#e8edf3",
    )


def launch_options() -> dict[str, Any]:
    """What `launch` takes of it."""
    return {"theme": theme(), "css": css(), "footer_links": []}
