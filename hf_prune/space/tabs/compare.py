"""Compare: one prompt, two models writing side by side, where they part and what each takes."""

from collections.abc import Iterator
from typing import Any, TypeAlias

import gradio as gr

from hf_prune.space import comparing, pairs, settings, share
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import DEMO, Pair, Visitor
from hf_prune.space.render import problem
from hf_prune.space.tabs.answers import Answers, awaiting, buttons, cleared, headed, show, stoppable
from hf_prune.space.tabs.shared import COMPUTE, Profile, Shared, Token, told, visitor

Seen: TypeAlias = tuple[str, str, list[str]]
"""Of a pair: its name, what its second half is called, and what stands above its answers."""

EXAMPLES = (
    "The old man looked out at the sea and",
    "It was a dark and stormy night, and",
    "My dear sister, I write to tell you that",
    "There was once a king who had three sons",
)


def build(page: Shared) -> None:
    """Draw the tab and wire it.

    Args:
        page: what all tabs share.
    """
    demo = pairs.find(DEMO, Visitor())
    prompt = gr.Textbox(
        EXAMPLES[0],
        label="Prompt",
        info="Enter generates, Shift + Enter starts a new line.",
        lines=1,
        max_lines=10,
        max_length=settings.current().prompt_chars,
        elem_id="hp-prompt",
    )
    with gr.Row(elem_classes="hp-examples"):
        for text in EXAMPLES:
            gr.Button(text, size="sm", variant="secondary").click(
                None, None, prompt, js=f"() => {text!r}", api_visibility="private"
            )
    with gr.Accordion("Settings", open=False):
        knobs = _knobs()
    with gr.Row(elem_classes="hp-actions"):
        go = gr.Button("Generate", variant="primary", elem_id="hp-go")
        stop = gr.Button("Stop", variant="stop", interactive=False, elem_id="hp-stop")
        copy = gr.Button("Copy link", variant="secondary", elem_id="hp-copy")
    link = gr.Textbox(label="Link", visible=False, interactive=True, elem_id="hp-link")
    answers = Answers(demo.original, demo.pruned, demo.label)
    seen = gr.State(_seen(demo))

    asked = [page.picker, prompt, *knobs]
    outputs = [go, stop, *answers.headings, *answers.outputs]
    awaiting(go, stop, answers.status, prompt.submit)
    running = gr.on(
        [go.click, prompt.submit],
        _run,
        [seen, *asked],
        outputs,
        concurrency_id=COMPUTE,
        concurrency_limit=1,
        show_progress="minimal",
        show_progress_on=answers.status,
        api_visibility="private",
    )
    stoppable(running, go, stop, answers.status)
    copy.click(None, asked, link, js=share.link_script(), api_visibility="private")
    gr.on(  # once the page is there
        None,
        _restore,
        None,
        [*asked, answers.status],
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )
    page.pair.change(
        _headings,
        [page.pair, answers.status],
        [seen, *answers.headings, *answers.outputs],
        concurrency_limit=None,
        show_progress="hidden",
        api_visibility="private",
    )


def _knobs() -> list[gr.components.Component]:
    """The settings, in the order of `share.NAMES` after pair and prompt."""
    most, start = settings.current().new_tokens, Sampling()
    with gr.Row():
        temperature = gr.Slider(
            0, 2, start.temperature, step=0.05, label="Temperature", info="0 takes the likeliest token each time."
        )
        top_p = gr.Slider(
            0.05, 1, start.top_p, step=0.05, label="Top-p", info="Draws from the likeliest tokens of this share."
        )
    with gr.Row():
        tokens = gr.Slider(1, most, min(start.max_new_tokens, most), step=1, label="Max new tokens")
        seed = gr.Number(start.seed, precision=0, label="Seed", elem_id="hp-seed")
    with gr.Row():
        same = gr.Checkbox(start.same_seed, label="Same seed for both models", elem_id="hp-same")
        chat = gr.Checkbox(start.chat, label="Chat template, where the model has one")
    return [temperature, top_p, tokens, seed, same, chat]


def _run(
    seen: Seen,
    name: str | None,
    prompt: str,
    temperature: float,
    top_p: float,
    max_tokens: int,
    seed: int,
    same_seed: bool,
    chat: bool,
    profile: Profile,
    token: Token,
    request: gr.Request,
) -> Iterator[list[Any]]:
    """Both answers as they are written, then what was found; a failure is a message in the status line."""
    rest = gr.skip()
    yield [*buttons(running=True), rest, rest, "Starting …", *[""] * 5]
    try:
        who = visitor(profile, token, request)
        sampling = Sampling(temperature, top_p, max_tokens, seed, same_seed, chat)
        name = (name or "").strip()
        if name != seen[0]:  # picked this moment
            seen = _seen(pairs.find(name, who))
        _, label, heads = seen
        for frame in comparing.compare(name, prompt, sampling, who):
            # With the headings each time: while these are written, another pair may be picked.
            yield [rest, rest, *heads, *show(frame, label)]
    except Exception as error:
        yield [*buttons(running=False), rest, rest, problem(told(error)), *[rest] * 5]
    else:
        yield [*buttons(running=False), *[rest] * 8]


def _headings(name: str, status: str, profile: Profile, token: Token, request: gr.Request) -> list[Any]:
    """The models' names and sizes, once another pair is picked; answers of the one before go."""
    try:
        pair = pairs.find(name, visitor(profile, token, request))
    except Exception:  # the line below the picker has said so
        return [gr.skip()] * 9
    seen = _seen(pair)
    return [seen, *seen[2], *cleared(status)]


def _seen(pair: Pair) -> Seen:
    return pair.name, pair.label, headed(pair.original, pair.pruned, pair.label)


def _restore(request: gr.Request) -> list[Any]:
    """What a share link says, for the widgets in the order of `share.NAMES`, and what was wrong with it."""
    query = {name: str(value) for name, value in request.query_params.items() if name in share.NAMES}
    now = settings.current()
    found = share.read(query, prompt_chars=now.prompt_chars, new_tokens=now.new_tokens)
    drawn = found.sampling
    knobs = [drawn.temperature, drawn.top_p, drawn.max_new_tokens, drawn.seed, drawn.same_seed, drawn.chat]
    values = dict(zip(share.NAMES, [found.pair, found.prompt, *knobs], strict=True))
    told = problem("\n".join(found.problems)) if found.problems else gr.skip()
    return [*(value if name in query else gr.skip() for name, value in values.items()), told]
