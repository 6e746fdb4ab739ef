"""An anatomy as HTML in which nothing of a stranger's is HTML."""

from collections.abc import Sequence

from hf_prune.pictures import COMPARISON_FILE, IMPORTANCE_FILE, PLOT_FILE, WIDTHS_FILE
from hf_prune.space.anatomy import Anatomy, Rows, Table
from hf_prune.space.drawings import Drawing
from hf_prune.space.layer_map import layer_map
from hf_prune.space.render import inert


def page(anatomy: Anatomy) -> str:
    """All of it."""
    return f'<div class="anatomy">{_removed(anatomy)}{_measured(anatomy)}{_results(anatomy)}{_healing(anatomy)}</div>'


def sentences(texts: Sequence[str]) -> str:
    """One paragraph of sentences; nothing where there are none."""
    said = " ".join(filter(None, texts))
    return f"<p>{inert(said)}</p>" if said else ""


def warnings(texts: Sequence[str]) -> str:
    """What to know first, as a list; nothing where there is nothing."""
    if not texts:
        return ""
    items = "".join(f"<li>{inert(text)}</li>" for text in texts)
    return f'<div class="anatomy-warnings" role="note" aria-label="Warnings"><ul>{items}</ul></div>'


def _removed(anatomy: Anatomy) -> str:
    described = inert(anatomy.described[:1].upper() + anatomy.described[1:])
    method = (
        f'<p class="anatomy-small">Method <code>{inert(anatomy.method_name)}</code>: {inert(anatomy.method)}. '
        f'<a href="{inert(anatomy.paper)}" target="_blank" rel="noopener noreferrer">The paper</a></p>'
    )
    return (
        f"<section><h3>{'What was narrowed' if anatomy.slicing else 'What was removed'}</h3>"
        f'<p class="anatomy-lead">{described}</p>'
        + layer_map(anatomy.cells, anatomy.alt)
        + sentences([anatomy.reason, anatomy.runner_up, *anatomy.fits])
        + facts(anatomy.slicing)
        + method
        + warnings(anatomy.warnings)
        + "</section>"
    )


def _measured(anatomy: Anatomy) -> str:
    drawings = [
        anatomy.drawings[file] for file in (WIDTHS_FILE, IMPORTANCE_FILE, PLOT_FILE) if file in anatomy.drawings
    ]
    if not drawings and anatomy.calibration is None:
        nothing = "Nothing was measured: the layers follow from the method alone."
        return f"<section><h3>What was measured</h3><p>{nothing}</p></section>"
    figures = "".join(map(_figure, drawings))
    return (
        "<section><h3>What was measured</h3>"
        + (f"<p>{inert(anatomy.calibration)}</p>" if anatomy.calibration else "")
        + f'<div class="anatomy-figures">{figures}</div></section>'
    )


def _results(anatomy: Anatomy) -> str:
    if anatomy.figures is None:
        return "<section><h3>What it costs</h3><p>The models of this repository were not evaluated.</p></section>"
    drawing = anatomy.drawings.get(COMPARISON_FILE)
    notes = "".join(f"<li>{inert(note)}</li>" for note in anatomy.notes)
    return (
        "<section><h3>What it costs, what it saves</h3>"
        + _worse(anatomy.worse)
        + (_figure(drawing) if drawing is not None else "")
        + _table(anatomy.figures, "All figures of the evaluation")
        + (_table(anatomy.tasks, "Benchmarks") if anatomy.tasks is not None else "")
        + f"<details><summary>Where these figures come from</summary><ul>{notes}</ul></details></section>"
    )


def _worse(worse: Rows | None) -> str:
    if worse is None:
        return ""
    if not worse:
        return "<p>No figure that was measured of both models got worse beyond two standard errors.</p>"
    items = "".join(
        f"<li><b>{inert(name)}</b>: {inert(before)} → {inert(after)} ({inert(share)} worse)</li>"
        for name, before, after, share in worse
    )
    return f"<p>What got worse:</p><ul>{items}</ul>"


def _healing(anatomy: Anatomy) -> str:
    if not anatomy.healing:
        return "<section><h3>Healing</h3><p>The model was not trained after the cut.</p></section>"
    stations = Table(("Station", "Nats per token"), anatomy.stations)
    return (
        "<section><h3>Healing</h3>"
        + facts(anatomy.healing)
        + _table(stations, "Loss on text that was not trained on")
        + "</section>"
    )


def facts(rows: Rows) -> str:
    """Names and values; nothing where there are none."""
    items = "".join(f"<div><dt>{inert(name)}</dt><dd>{inert(value)}</dd></div>" for name, value in rows)
    return f'<dl class="anatomy-facts">{items}</dl>' if rows else ""


def _figure(drawing: Drawing) -> str:
    # The box scrolls where the page is narrower than the drawing, so the keyboard has to reach it.
    return (
        f"<figure><figcaption>{inert(drawing.title)}</figcaption>"
        f'<div class="anatomy-scroll" tabindex="0" role="img" aria-label="{inert(drawing.alt)}">{drawing.svg}</div>'
        "</figure>"
    )


def _table(table: Table, caption: str) -> str:
    head = "".join(f'<th scope="col">{inert(cell.capitalize())}</th>' if cell else "<td></td>" for cell in table.head)
    rows = "".join(
        f'<tr><th scope="row">{inert(name)}</th>{"".join(f"<td>{inert(cell)}</td>" for cell in cells)}</tr>'
        for name, *cells in table.rows
    )
    return (
        f'<div class="anatomy-scroll" tabindex="0" role="region" aria-label="{inert(caption)}"><table>'
        f"<caption>{inert(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
