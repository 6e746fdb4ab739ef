"""The box above the tabs in which a pruned model is picked."""

import gradio as gr

from hf_prune.markdown import one_line
from hf_prune.space import pairs, render, search, settings
from hf_prune.space.pair import DEMO, Pair, Visitor
from hf_prune.space.tabs.shared import TYPED, Profile, Shared, Token, told, visitor

DEMO_NAME = "Demo: a small book model"
_MAX_NAME = 120


def build() -> Shared:
    """Draw the box and the line below it, and keep the two in step with the page's pair."""
    demo = pairs.find(DEMO, Visitor())
    picker = gr.Dropdown(
        choices(settings.current().featured),
        value=DEMO,
        label="Pruned model",
        info="A Hub id such as org/model, made with hf-prune; type to search. The original is read from its records.",
        allow_custom_value=True,
        interactive=True,
        elem_id="hp-picker",
    )
    searched = gr.HTML("", visible=False, elem_id="hp-searched")
    line = gr.HTML(render.picked(demo), elem_id="hp-line")
    page = Shared(pair=gr.State(DEMO), picker=picker)
    gr.on(
        [picker.change],
        _pick,
        [picker, page.pair],
        [page.pair, line],
        concurrency_limit=None,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    picker.key_up(
        _search,
        picker,
        [picker, searched],
        js=TYPED.format("hp-picker"),
        concurrency_limit=None,
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )
    return page


def choices(names: tuple[str, ...] | list[str]) -> list[tuple[str, str]]:
    """What the box offers: the demo first."""
    others = (name for name in dict.fromkeys(names) if name != DEMO)
    return [(DEMO_NAME, DEMO), *((one_line(name, _MAX_NAME), name) for name in others)]


def _pick(name: str | None, current: str, profile: Profile, token: Token, request: gr.Request) -> tuple[str, str]:
    """The pair of that name and the line that says what it is; the pair before stays where there is none."""
    try:
        pair: Pair = pairs.find((name or "").strip(), visitor(profile, token, request))
    except Exception as error:
        still = DEMO_NAME if current == DEMO else current
        return current, render.problem(f"{told(error)}\nStill shown: {still}.")
    return pair.name, render.picked(pair)


def _search(typed: str | None, profile: Profile, token: Token, request: gr.Request) -> list[dict]:
    """More to choose from, for what was typed so far, and why the Hub could not be searched."""
    typed = str(typed or "")[:_MAX_NAME].strip()
    if len(typed) < 2:
        return [gr.update(choices=choices(settings.current().featured)), gr.update(visible=False)]
    found = search.find(typed, visitor(profile, token, request))
    said = gr.update(value=render.problem(found.message or ""), visible=found.message is not None)
    return [gr.update(choices=choices([*found.names, *settings.current().featured])), said]
