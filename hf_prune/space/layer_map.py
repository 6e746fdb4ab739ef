"""The layers of a model as cells that a page lays out: they wrap on a phone, and one sentence says the same aloud."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from hf_prune.space.render import inert

State = Literal[
    "kept",
    "healed",
    "narrowed",
    "changed",
    "attention",
    "mlp",
    "silenced",
    "no-attention",
    "no-mlp",
    "no-parts",
    "removed",
]

NAMES: dict[State, str] = {
    "kept": "kept",
    "healed": "kept and healed",
    "narrowed": "kept, narrower",
    "changed": "kept, weights changed",
    "attention": "attention silenced",
    "mlp": "MLP silenced",
    "silenced": "attention and MLP silenced",
    "no-attention": "without attention",
    "no-mlp": "without MLP",
    "no-parts": "without attention and MLP",
    "removed": "removed",
}
"""What each state is called."""


@dataclass(frozen=True)
class Cell:
    """One layer of the base.

    Attributes:
        layer: its number, counted from 0.
        state: what became of it.
        figure: a short figure below the number; empty for none.
        detail: more about it, for those who point at it.
    """

    layer: int
    state: State
    figure: str = ""
    detail: str = ""


def layer_map(cells: Sequence[Cell], alt: str) -> str:
    """The cells as HTML, with a legend of the states that occur.

    Args:
        cells: in order.
        alt: the map in words.
    """
    drawn = "".join(map(_cell, cells))
    states = [state for state in NAMES if any(cell.state == state for cell in cells)]
    legend = "".join(
        f'<span class="layers-key"><i class="layers-cell layers-{state}"></i>{NAMES[state]}</span>' for state in states
    )
    return (
        f'<div class="layers" role="img" aria-label="{inert(alt)}">{drawn}</div>'
        f'<p class="layers-legend" aria-hidden="true">{legend}</p>'
    )


def _cell(cell: Cell) -> str:
    title = f"Layer {cell.layer}: {NAMES[cell.state]}" + (f"; {cell.detail}" if cell.detail else "")
    figure = f"<small>{inert(cell.figure)}</small>" if cell.figure else ""
    return f'<span class="layers-cell layers-{cell.state}" title="{inert(title)}"><b>{cell.layer}</b>{figure}</span>'
