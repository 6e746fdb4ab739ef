"""Make one: a model and a recipe, plan and cost first, then a job that ends in the visitor's account."""

from typing import Any

import gradio as gr

from hf_prune.errors import HubError
from hf_prune.methods import METHODS
from hf_prune.space import bases, make_page, making, settings
from hf_prune.space.effort import effort
from hf_prune.space.job import Status
from hf_prune.space.jobs import WORKSHOP
from hf_prune.space.making import Offer
from hf_prune.space.pair import Visitor
from hf_prune.space.render import problem
from hf_prune.space.tabs.shared import TYPED, Profile, Shared, Token, has_login, told, visitor
from hf_prune.space.wishes import CHOICES, Wish, default_repo

LAYERS, SHARE = "Layers", "Share"
_KEEP = 3600  # seconds that a plan is held
_THOUSAND = 1024
_LINES = 8
_SECONDS = 1.0  # between two looks at a job


def build(page: Shared) -> None:
    """Draw the tab and wire it.

    Args:
        page: what all tabs share.
    """
    planned, owner = gr.State(None, time_to_live=_KEEP), gr.State(None)
    gr.HTML(
        "<p class='hp-note'>Pick a model and how much of it goes. Layers are chosen on text that the model writes "
        "itself, so no dataset is needed. The result lands in your account, with a card that tells what it cost.</p>"
    )
    who = gr.HTML(make_page.who(Visitor(), settings.current(), has_login()), elem_id="hp-make-who")
    with gr.Row(elem_classes="mk-row"):
        model = gr.Dropdown(
            list(bases.SUGGESTED),
            value=None,
            label="Model to prune",
            info="A Hub id such as org/model; type to search.",
            allow_custom_value=True,
            interactive=True,
            elem_id="hp-make-model",
            min_width=320,
        )
        repo = gr.Textbox(
            label="Name of the pruned model",
            info="In your own account.",
            max_length=200,
            elem_id="hp-make-repo",
            min_width=320,
        )
    line = gr.HTML(elem_id="hp-make-line")
    method = gr.Radio(
        [(f"{name}: {said}", name) for name, said in CHOICES.items()],
        value="uidl",
        label="Method",
        elem_id="hp-make-method",
    )
    with gr.Row(elem_classes="mk-row"):
        unit = gr.Radio(
            [LAYERS, SHARE], value=LAYERS, label="Amount as", elem_id="hp-make-unit", min_width=160, scale=0
        )
        layers = gr.Slider(
            1, 47, 4, step=1, label="Layers to remove", elem_id="hp-make-layers", min_width=280, scale=4
        )
        share = gr.Slider(
            0.05,
            0.6,
            0.25,
            step=0.05,
            label="Share to remove",
            visible=False,
            elem_id="hp-make-share",
            min_width=280,
            scale=4,
        )
    most = effort().most_tokens // _THOUSAND
    with gr.Row(elem_classes="mk-row mk-options"):
        with gr.Column(min_width=190, scale=1):
            heal = gr.Checkbox(most > 0, label="Heal afterwards", interactive=most > 0, elem_id="hp-make-heal")
            private = gr.Checkbox(False, label="Private", elem_id="hp-make-private")
        tokens = gr.Slider(
            16,
            max(most, 16),
            min(64, max(most, 16)),
            step=16,
            visible=most > 0,
            label="Healing budget, thousands of tokens",
            info="A short training on the model's own text. More heals more, and takes longer.",
            elem_id="hp-make-tokens",
            min_width=280,
            scale=4,
        )
    with gr.Row(elem_classes="hp-actions"):
        plan = gr.Button("Show plan and cost", variant="secondary", interactive=False, elem_id="hp-make-plan")
        go = gr.Button("Prune and push", variant="primary", interactive=False, elem_id="hp-make-go")
    shown = gr.HTML(make_page.NO_PLAN, elem_id="hp-make-offer")
    status = gr.HTML(elem_id="hp-make-status")
    log = gr.Textbox(
        label="Log", lines=_LINES, max_lines=_LINES, interactive=False, visible=False, elem_id="hp-make-log"
    )
    with gr.Row(elem_classes="hp-actions"):
        cancel = gr.Button("Cancel", variant="stop", visible=False, elem_id="hp-make-cancel")
        look = gr.Button("Open in Compare", visible=False, elem_id="hp-make-open")
    timer = gr.Timer(_SECONDS, active=False)

    fields: list[Any] = [model, method, unit, layers, share, heal, tokens, repo, private]
    job = [status, log, cancel, look, timer]
    light: dict[str, Any] = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
    asking: dict[str, Any] = {"concurrency_limit": None, "api_visibility": "private"}
    blocks = gr.context.Context.root_block
    assert blocks is not None
    blocks.load(_arrive, None, [owner, who, plan, *job], show_progress="hidden", **asking)
    model.key_up(
        _search,
        model,
        model,
        js=TYPED.format("hp-make-model"),
        trigger_mode="always_last",
        show_progress="hidden",
        **asking,
    )
    model.change(_model, [model, owner], [line, repo, layers], trigger_mode="always_last", **asking)
    gr.on([method.input, unit.input], _amount, [method, unit], [unit, layers, share], **light)
    heal.input(lambda on: gr.update(visible=on), heal, tokens, **light)
    gr.on([field.change for field in fields], _changed, None, [planned, shown, go], **light)
    plan.click(_plan, fields, [planned, shown, go, owner], show_progress_on=shown, **asking)
    go.click(_go, [planned, owner], [planned, shown, go, *job], show_progress_on=shown, **asking)
    timer.tick(_job, owner, job, **light)
    cancel.click(_cancel, owner, job, **light)
    look.click(lambda name: _finished(name), owner, page.picker, **light)


def _arrive(profile: Profile, token: Token, request: gr.Request) -> list[Any]:
    """Who came, and the job that they left running."""
    here, said = visitor(profile, token, request), ""
    try:
        here = making.account(here) if here.token else Visitor()
    except Exception as error:
        here, said = Visitor(), problem(told(error))
    shown = said or make_page.who(here, settings.current(), has_login())
    return [here.name, shown, gr.update(interactive=here.name is not None), *_view(WORKSHOP.status(here.name))]


def _search(typed: str | None, key: gr.KeyUpData, profile: Profile, token: Token, request: gr.Request) -> Any:
    """More models, for what was typed so far; keys that type nothing close the list, and it stays closed."""
    if len(str(key.key)) > 1 and key.key not in ("Backspace", "Delete"):
        return gr.skip()
    return gr.update(choices=bases.search(str(typed or ""), visitor(profile, token, request)))


def _model(
    name: str | None,
    owner: str | None,
    profile: Profile,
    token: Token,
    request: gr.Request,
) -> list[Any]:
    """What was picked: a line about it, a name for its child, and how many layers can go."""
    name = (name or "").strip()
    if not name:
        return ["", "", gr.skip()]
    repo = default_repo(name, owner)
    try:
        half = bases.describe(name, visitor(profile, token, request))
    except Exception as error:
        return [problem(told(error)), repo, gr.skip()]
    return [make_page.model(half), repo, gr.update(maximum=half.layers - 1, value=max(1, half.layers // 5))]


def _amount(method: str, unit: str) -> list[Any]:
    """The sliders that a method takes: those that narrow layers drop none."""
    whole = METHODS[method].cuts == "layers"
    unit = unit if whole else SHARE
    return [
        gr.update(value=unit, interactive=whole),
        gr.update(visible=unit == LAYERS),
        gr.update(visible=unit == SHARE),
    ]


def _changed() -> list[Any]:
    """A plan is for what was asked when it was made."""
    return [None, make_page.NO_PLAN, gr.update(interactive=False)]


def _plan(
    model: str | None,
    method: str,
    unit: str,
    layers: float,
    share: float,
    heal: bool,
    tokens: float,
    repo: str,
    private: bool,
    profile: Profile,
    token: Token,
    request: gr.Request,
) -> list[Any]:
    """Plan and cost, or why there are none."""
    wish = Wish(
        model or "",
        method,
        layers=int(layers) if unit == LAYERS else None,
        share=round(share, 2) if unit == SHARE else None,
        heal_tokens=int(tokens) * _THOUSAND if heal else 0,
        repo=repo or "",
        private=bool(private),
    )
    try:
        made = making.estimate(wish, visitor(profile, token, request))
    except Exception as error:
        return [None, problem(told(error)), gr.update(interactive=False), gr.skip()]
    return [made, make_page.offer(made), gr.update(interactive=True), made.owner]


def _go(
    made: Offer | None,
    owner: str | None,
    profile: Profile,
    token: Token,
    request: gr.Request,
) -> list[Any]:
    """Begin, or say why not."""
    try:
        if made is None:
            raise HubError("there is no plan (any more): show plan and cost first")
        status = WORKSHOP.submit(visitor(profile, token, request), made)
    except Exception as error:
        return [made, problem(told(error)), gr.update(interactive=made is not None), *_view(WORKSHOP.status(owner))]
    return [None, "", gr.update(interactive=False), *_view(status)]


def _job(owner: str | None) -> list[Any]:
    return _view(WORKSHOP.status(owner))


def _cancel(owner: str | None) -> list[Any]:
    return _view(WORKSHOP.cancel(owner))


def _finished(owner: str | None) -> Any:
    status = WORKSHOP.status(owner)
    return gr.skip() if status is None or status.state != "done" else gr.update(value=status.repo)


def _view(status: Status | None) -> list[Any]:
    """Status, log, the two buttons, and whether to look again."""
    state = "" if status is None else status.state
    log = "" if status is None else "\n".join(status.log)
    goes_on = status is not None and not status.ended
    return [
        make_page.job(status),
        gr.update(value=log, visible=bool(log)),
        gr.update(visible=goes_on, interactive=state in ("waiting", "running") and not (status and status.cancelling)),
        gr.update(visible=state == "done"),
        gr.Timer(active=goes_on),
    ]
