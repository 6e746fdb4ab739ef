"""Try a cut: another number of layers or another method over the stored scores, and the model that comes of it."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import gradio as gr

from hf_prune.space import cut_page, cutting, pairs, render, settings
from hf_prune.space.cutting import Cut, Offer
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import DEMO, Pair, Visitor
from hf_prune.space.render import problem
from hf_prune.space.tabs.answers import Answers, awaiting, buttons, cleared, show, stoppable
from hf_prune.space.tabs.compare import EXAMPLES
from hf_prune.space.tabs.shared import COMPUTE, Profile, Shared, Token, told, visitor

Held: TypeAlias = tuple[int, Pair] | None
"""A pair, and a hash of the visitor that it was found for."""

_LABEL = "cut"
_KEEP = 3600  # seconds that a session's pair is held; then it is found anew


def build(page: Shared) -> None:
    """Draw the tab and wire it.

    Args:
        page: what all tabs share.
    """
    demo = pairs.find(DEMO, Visitor())
    offers = cutting.offers(demo)
    chosen, count = _start(demo, offers)
    cut = cutting.plan_cut(demo, chosen, count)
    held = gr.State(None, time_to_live=_KEEP)
    gr.HTML(
        "<p class='hp-note'>The scores of all layers are stored with the model, so any other cut can be chosen at "
        "once. The result is not healed: it is the original without these layers, in memory only.</p>"
    )
    with gr.Row(elem_classes="cut-choice"):
        method = gr.Radio(_choices(offers), value=chosen, label="Method", min_width=320, elem_id="hp-cut-method")
        layers = gr.Slider(
            1, _most(offers, chosen), count, step=1, label="Layers to remove", min_width=280, elem_id="hp-cut-layers"
        )
    plan = gr.HTML(cut_page.page(demo, cut), elem_id="hp-cut-plan")
    why_not = gr.HTML(cut_page.not_offered(offers))
    prompt = gr.Textbox(
        EXAMPLES[0],
        label="Prompt",
        lines=1,
        max_lines=10,
        max_length=settings.current().prompt_chars,
        elem_id="hp-cut-prompt",
    )
    with gr.Accordion("Settings", open=False):
        knobs = _knobs()
    with gr.Row(elem_classes="hp-actions"):
        go = gr.Button("Generate with this cut", variant="primary", elem_id="hp-cut-go")
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="hp-cut-stop")
    answers = Answers(demo.original, cutting.as_half(demo, cut), _LABEL)
    # None of these runs a model, and none waits for one: they go past the queue.
    light: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    page.pair.change(
        _picked,
        [page.pair, answers.status],
        [held, method, layers, plan, why_not, *answers.headings, *answers.outputs],
        **light,
    )
    method.input(_method, [page.pair, held, method, layers], [held, layers, plan], trigger_mode="always_last", **light)
    layers.input(_planned, [page.pair, held, method, layers], [held, plan], trigger_mode="always_last", **light)
    awaiting(go, stop, answers.status, prompt.submit)
    running = gr.on(
        [go.click, prompt.submit],
        _run,
        [page.pair, held, method, layers, prompt, *knobs],
        [go, stop, *answers.headings, *answers.outputs],
        concurrency_id=COMPUTE,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=answers.status,
        api_visibility="private",
    )
    stoppable(running, go, stop, answers.status)


def _knobs() -> list[gr.components.Component]:
    """Temperature, most new tokens and seed; the rest is as in Compare at first."""
    most, start = settings.current().new_tokens, Sampling()
    with gr.Row():
        temperature = gr.Slider(
            0, 2, start.temperature, step=0.05, label="Temperature", info="0 takes the likeliest token each time."
        )
        tokens = gr.Slider(1, most, min(start.max_new_tokens, most), step=1, label="Max new tokens")
        seed = gr.Number(start.seed, precision=0, label="Seed")
    return [temperature, tokens, seed]


def _start(pair: Pair, offers: tuple[Offer, ...]) -> tuple[str, int]:
    """The method and the number that the pair was made with, as far as they are offered."""
    usable = [offer for offer in offers if offer.why_not is None]
    made = pair.records.plan
    chosen = next((offer for offer in usable if offer.method == made.method), usable[0])
    count = len(made.dropped) or pair.original.layers // 4
    return chosen.method, max(1, min(count, chosen.most))


def _choices(offers: tuple[Offer, ...]) -> list[tuple[str, str]]:
    return [(f"{offer.method}: {offer.title}", offer.method) for offer in offers if offer.why_not is None]


def _most(offers: tuple[Offer, ...], method: str) -> int:
    return next((offer.most for offer in offers if offer.method == method), 1)


def _pair(name: str, held: Held, who: Visitor) -> Pair:
    """The page's pair: the one that this session holds, so that sliding asks nobody, else found anew.

    It is held for who found it: not for somebody else, not even in the same session.
    """
    return held[1] if held is not None and held[0] == hash(who) and held[1].name == name else pairs.find(name, who)


def _picked(name: str, status: str, profile: Profile, token: Token, request: gr.Request) -> list[Any]:
    """Everything, for another pair."""
    try:
        who = visitor(profile, token, request)
        pair = pairs.find(name, who)
        offers = cutting.offers(pair)
        method, count = _start(pair, offers)
        cut = cutting.plan_cut(pair, method, count)
        return [
            (hash(who), pair),
            gr.update(choices=_choices(offers), value=method),
            gr.update(maximum=_most(offers, method), value=count),
            cut_page.page(pair, cut),
            cut_page.not_offered(offers),
            *_headings(pair, cut),
            *cleared(status),
        ]
    except Exception as error:
        return [None, gr.skip(), gr.skip(), problem(told(error)), "", *[gr.skip()] * 8]


def _method(
    name: str,
    held: Held,
    method: str,
    count: float,
    profile: Profile,
    token: Token,
    request: gr.Request,
) -> list[Any]:
    """Another method, which may let fewer layers go."""
    try:
        who = visitor(profile, token, request)
        pair = _pair(name, held, who)
        most = _most(cutting.offers(pair), method)
        count = min(int(count or 0), most)
        plan = cut_page.page(pair, cutting.plan_cut(pair, method, count))
        return [(hash(who), pair), gr.update(maximum=most, value=count), plan]
    except Exception as error:
        return [held, gr.skip(), problem(told(error))]


def _planned(
    name: str,
    held: Held,
    method: str,
    count: float,
    profile: Profile,
    token: Token,
    request: gr.Request,
) -> list[Any]:
    """Another number of layers; the slider itself is left to the hand that moves it."""
    try:
        who = visitor(profile, token, request)
        pair = _pair(name, held, who)
        return [(hash(who), pair), cut_page.page(pair, cutting.plan_cut(pair, method, int(count or 0)))]
    except Exception as error:
        return [held, problem(told(error))]


def _run(
    name: str,
    held: Held,
    method: str,
    count: float,
    prompt: str,
    temperature: float,
    max_tokens: int,
    seed: int,
    profile: Profile,
    token: Token,
    request: gr.Request,
) -> Iterator[list[Any]]:
    """Both answers as they are written, then what was found; a failure is a message in the status line."""
    rest = gr.skip()
    yield [*buttons(running=True), rest, rest, "Starting …", *[""] * 5]
    try:
        who = visitor(profile, token, request)
        pair = _pair(name, held, who)
        cut = cutting.plan_cut(pair, method, int(count or 0))
        sampling = Sampling(temperature=temperature, max_new_tokens=max_tokens, seed=seed)
        frames = cutting.compare_cut(pair, method, int(count or 0), prompt, sampling, who)
        heads = _headings(pair, cut)
        yield [rest, rest, *heads, *[rest] * 6]
        for frame in frames:
            # With the headings each time: while these are written, another pair may be picked.
            yield [rest, rest, *heads, *show(frame, _LABEL)]
    except Exception as error:
        yield [*buttons(running=False), rest, rest, problem(told(error)), *[rest] * 5]
    else:
        yield [*buttons(running=False), *[rest] * 8]


def _headings(pair: Pair, cut: Cut) -> list[str]:
    return [render.heading("original", pair.original), cut_page.heading(pair, cut, _LABEL)]
