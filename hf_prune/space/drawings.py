"""The pictures of a card as drawings for the page; made once for each commit of a pair."""

import functools
import threading
from dataclasses import dataclass, field, replace

from hf_prune.markdown import one_line
from hf_prune.output import Finished
from hf_prune.pictures import COMPARISON_FILE, IMPORTANCE_FILE, PLOT_FILE, WIDTHS_FILE, pictures
from hf_prune.space.pair import Pair

_TITLES = {
    PLOT_FILE: "Distance across every run of layers",
    IMPORTANCE_FILE: "Importance of each layer",
    WIDTHS_FILE: "Width of each layer",
    COMPARISON_FILE: "Original, pruned and healed",
}


@dataclass(frozen=True)
class Drawing:
    """A picture for the page.

    Attributes:
        file: what a card calls it.
        title: above it.
        alt: what it shows, in words; untrusted text.
        svg: an `svg` element that may stand in a page.
    """

    file: str
    title: str
    alt: str
    svg: str


@dataclass(frozen=True)
class _Key:
    """Which drawings: those of one commit never change."""

    name: str
    commit: str | None
    records: Finished = field(compare=False, hash=False)


_drawing = threading.Lock()  # one at a time: more of them would only take turns on the processor


def drawn(pair: Pair) -> dict[str, Drawing]:
    """The drawings of a pair by the file that a card calls them; kept for the pairs looked at last."""
    with _drawing:
        return _drawn(_Key(pair.name, pair.pruned.commit, pair.records))


@functools.lru_cache(maxsize=32)
def _drawn(key: _Key) -> dict[str, Drawing]:
    records = key.records
    scores = records.scores
    if scores is not None:
        scores = replace(scores, measure=one_line(scores.measure, 40))
    found = pictures(records.plan, scores, records.healing, records.evaluation)
    return {
        file: Drawing(file, _TITLES[file], picture.alt, picture.draw("svg").decode())
        for file, picture in found.items()
        if file in _TITLES
    }
