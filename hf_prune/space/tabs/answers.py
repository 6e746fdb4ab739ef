"""Two answers side by side, and below them where they part and what each model takes."""

import json
from collections.abc import Callable
from typing import Any

import gradio as gr
from gradio.events import Dependency

from hf_prune.space import render
from hf_prune.space.frames import Frame
from hf_prune.space.pair import Half

_WAITING = "Waiting for a turn …"
_DONE, _STOPPED = "Done.", "Stopped."
_FULL = "Too many visitors are waiting already, so this was not taken. Please try again in a minute."

_HIDDEN: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}

_WALK = """
    const tokens = () => [...element.querySelectorAll('.hp-t')];
    const tell = (token) => {
        const detail = element.closest('.hp-answers').querySelector('.hp-detail');
        if (detail && token) { detail.textContent = token.title; }
    };
    const hovered = (event) => event.target.closest('.hp-t');
    element.addEventListener('mouseover', (event) => tell(hovered(event)));
    element.addEventListener('click', (event) => { const token = hovered(event); if (token) { token.focus(); } });
    element.addEventListener('focusin', (event) => {
        const token = hovered(event);
        if (!token) { return; }
        tokens().forEach((other) => { other.tabIndex = other === token ? 0 : -1; });
        tell(token);
    });
    element.addEventListener('keydown', (event) => {
        const all = tokens(), at = all.indexOf(hovered(event));
        const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: all.length - 1 }[event.key];
        if (at < 0 || to === undefined || !all[to]) { return; }
        event.preventDefault();
        all[to].focus();
    });
"""


class Answers:
    """The widgets; made where they should stand on the page.

    Attributes:
        headings: components that take `headed`.
        outputs: components that take `show`, in its order; the first is the status line.
    """

    def __init__(self, original: Half, pruned: Half, label: str = "pruned") -> None:
        """Draw them.

        Args:
            original: the model on the left, at first.
            pruned: the one on the right.
            label: what that one is called.
        """
        self.status = gr.HTML(
            html_template='<div class="hp-status" role="status" aria-live="polite">${value}</div>',
            value="",
            elem_classes="hp-said",
        )
        with gr.Column(elem_classes="hp-answers"):
            with gr.Row(elem_classes="hp-pair"):
                columns = [_column(text) for text in headed(original, pruned, label)]
            self.headings = [heading for heading, _ in columns]
            verdict, costs, notes = (
                gr.HTML(value="", elem_classes=f"hp-{name}-box") for name in ("verdict", "costs", "notes")
            )
        self.outputs = [self.status, *(text for _, text in columns), verdict, costs, notes]


def headed(original: Half, pruned: Half, label: str = "pruned") -> list[str]:
    """What stands above the two answers; for `Answers.headings`."""
    return [render.heading("original", original), render.heading(label, pruned)]


def show(frame: Frame, label: str = "pruned") -> list[str]:
    """A picture of a comparison; for `Answers.outputs`."""
    verdict = render.verdict(frame.parting, label) if frame.parting is not None else ""
    return [
        render.inert(frame.status),
        *render.answers(frame, label),
        verdict,
        render.costs(frame, label),
        render.notes(frame),
    ]


def cleared(status: str) -> list[Any]:
    """Nothing, once another pair is picked; for `Answers.outputs`. What is said of a run or of a failure stays."""
    return ["" if status in (_DONE, _STOPPED) else gr.skip(), *[""] * 5]


def buttons(running: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Generate and Stop: one of them can be pressed."""
    return gr.update(interactive=not running), gr.update(interactive=running)


def awaiting(go: gr.Button, stop: gr.Button, status: gr.HTML, *starts: Callable[..., Dependency]) -> None:
    """Say at once that a run waits for its turn, and let it be stopped. Comes before the event that runs.

    Args:
        go: the button that starts it.
        stop: the button that stops it.
        status: where it is said.
        starts: what else starts it than a click.
    """
    said = _script(True, _WAITING)
    gr.on([go.click, *starts], None, None, [go, stop, status], js=said, **_HIDDEN)


def stoppable(running: Dependency, go: gr.Button, stop: gr.Button, status: gr.HTML) -> None:
    """Let the button stop what runs, and say where a run was not taken.

    Stopping takes two steps: it is shown at once, before Gradio cancels, so the last answers may still come on top.
    The second step goes through the queue, whose messages come after those that are on their way.

    Args:
        running: the event.
        go: the button that started it.
        stop: the button that stops it.
        status: where it is said.
    """
    shown = [go, stop, status]
    # What was stopped counts as failed too; only what still waits was not taken.
    full, same = _script(False, render.problem(_FULL)), json.dumps([gr.update()] * 3)
    script = f"(said) => said === {json.dumps(_WAITING)} ? ({full})() : {same}"
    running.failure(None, status, shown, js=script, **_HIDDEN)
    stopping = stop.click(None, None, shown, js=_script(False, _STOPPED), cancels=running, queue=False, **_HIDDEN)
    stopping.then(lambda: [*buttons(running=False), _STOPPED], None, shown, concurrency_limit=None, **_HIDDEN)


def _script(running: bool, said: str) -> str:
    """JavaScript that gives what `buttons` gives, and a status, without asking the server."""
    return f"() => {json.dumps([*buttons(running), said])}"


def _column(heading: str) -> tuple[gr.HTML, gr.HTML]:
    with gr.Column(elem_classes="hp-column", min_width=280):
        above = gr.HTML(value=heading, elem_classes="hp-heading")
        text = gr.HTML(
            value="",
            # Only what `render` has made inert gets in here; it is put into the template, never read as one.
            html_template='<div class="hp-text" dir="auto" role="group" aria-label="Answer">${value}</div>',
            js_on_load=_WALK,
        )
    return above, text
