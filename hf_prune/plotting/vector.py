"""Drawings as SVG for a page: nothing but shapes in them, in the colours of the text around them."""

import hashlib
import io
import re
from xml.etree import ElementTree

from matplotlib.figure import Figure

_SVG, _XLINK = "{http://www.w3.org/2000/svg}", "{http://www.w3.org/1999/xlink}"
_ELEMENTS = ("svg", "g", "defs", "path", "use", "rect", "clipPath", "pattern", "image")
_ATTRIBUTES = (
    "clip-path", "d", "height", "href", "id", "patternUnits", "style", "transform", "viewBox", "width", "x", "y",
)  # fmt: skip
# What is black on a white card follows the page; white below a number or a hatch is the page's own paper.
_COLOURS = {"fill: #ffffff": "fill: var(--paper, #ffffff)", "#000000": "currentColor"}
_REFERENCE = re.compile(r"#([\w-]+)")
_LONG = re.compile(r"-?\d+\.\d{3,}")


def svg(figure: Figure) -> bytes:
    """The drawing as an `svg` element that can stand in an HTML page: the same bytes for the same drawing.

    Text is drawn as paths, so that no font is needed and no name can act as markup. Comments, metadata, style sheets
    and links are left out; black is `currentColor`, white areas are `var(--paper)`, and the background is the page's.
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    drawing = _kept(ElementTree.fromstring(buffer.getvalue()))
    names: dict[str, str] = {}
    for element in drawing.iter():
        if "id" in element.attrib:
            names[element.attrib["id"]] = f"{len(names)}"
    _rename(drawing, names)
    text = ElementTree.tostring(drawing)
    # Several drawings stand in one page, where a name means one thing.
    prefix = f"d{hashlib.sha256(text).hexdigest()[:10]}-"
    _rename(drawing, {name: prefix + name for name in names.values()})
    for name in ("width", "height"):
        drawing.attrib.pop(name, None)
    drawing.attrib |= {
        "xmlns": _SVG.strip("{}"),
        "aria-hidden": "true",
        "fill": "currentColor",
        "style": "stroke-linejoin: round; stroke-linecap: butt",
    }
    return ElementTree.tostring(drawing)


def _kept(element: ElementTree.Element) -> ElementTree.Element:
    """The element with what is allowed in it, without namespaces."""
    kept = ElementTree.Element(element.tag.removeprefix(_SVG))
    for key, value in element.attrib.items():
        name = key.removeprefix(_XLINK)
        if name == "fill":  # a variable of the page is allowed in a style alone
            name, value = "style", f"fill: {value}"
        if name in _ATTRIBUTES and (name != "href" or value.startswith(("#", "data:image/png;base64,"))):
            kept.set(name, _short(name, value))
    for child in element:
        if child.tag.removeprefix(_SVG) in _ELEMENTS:
            kept.append(_kept(child))
    return kept


def _short(name: str, value: str) -> str:
    if name == "style":
        for old, new in _COLOURS.items():
            value = value.replace(old, new)
    if name == "d":
        value = _LONG.sub(lambda number: f"{float(number[0]):.2f}", " ".join(value.split()))
    return "".join(value.split()) if value.startswith("data:") else value


def _rename(drawing: ElementTree.Element, names: dict[str, str]) -> None:
    """Give elements other names, where they have them and where others point to them."""
    for element in drawing.iter():
        for key, value in element.attrib.items():
            if key == "id":
                element.set(key, names[value])
            elif "#" in value and not value.startswith("data:"):
                element.set(key, _REFERENCE.sub(lambda found: "#" + names.get(found[1], found[1]), value))
