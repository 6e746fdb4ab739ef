"""Frames as HTML: readable, and inert whatever strangers put in."""

import dataclasses
import html
import re
import unicodedata
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.records import Rate, Speed
from hf_prune.space import pairs, render
from hf_prune.space.frames import Cost, Frame, Parting, Token
from hf_prune.space.pair import DEMO, Half, Pair, Visitor

HOSTILE = '<img src=x onerror=alert(1)>"\' onmouseover=alert(2) x="</span><script>alert(3)</script>&lt;b&gt; ${1} `a`'


class Seen(HTMLParser):
    """What a browser would make of it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def token(text: str, kl: float | None = 0.0, agrees: bool = True, other: str = "") -> Token:
    return Token(text, kl, agrees, other)


def pair(**original: Any) -> Pair:
    demo = pairs.find(DEMO, Visitor())
    return dataclasses.replace(demo, original=dataclasses.replace(demo.original, **original))


@given(st.text())
def test_any_text_is_text(text: str) -> None:
    made = render.inert(text)
    seen = Seen(made)
    assert not seen.tags and "<" not in made and '"' not in made
    unseen = ("Cc", "Cf", "Cs", "Zl", "Zp")
    assert all(unicodedata.category(c) not in unseen or c in "\n\t\u200c\u200d" for c in seen.text)
    if not any(unicodedata.category(c) in unseen for c in text):
        assert seen.text == text


@pytest.mark.parametrize("char", ["\x00", "\x1b", "\u202e", "\u2066", "\u200b", "\u2028", "\ufeff", "\ud800", "\x7f"])
def test_what_cannot_be_seen_is_spelled_out(char: str) -> None:
    shown = render.inert(f"a{char}b")
    assert char not in shown and shown.startswith("a") and shown.endswith("b") and len(shown) > 2
    shown.encode()


def test_line_breaks_and_joiners_stay() -> None:
    assert render.inert("a\r\nb\tc\u200dd") == "a\nb\tc\u200dd"


def test_hostile_tokens_names_and_messages() -> None:
    parting = Parting((token(HOSTILE, 5.0, False, HOSTILE),), (token(HOSTILE, None),), 0)
    frame = Frame("done", HOSTILE, HOSTILE, HOSTILE, parting, notes=(HOSTILE,))
    both = pair(name=HOSTILE, commit="a" * 40)
    made = [
        *render.answers(frame, HOSTILE),
        *render.answers(dataclasses.replace(frame, parting=None)),
        render.verdict(parting, HOSTILE),
        render.notes(frame),
        render.problem(HOSTILE),
        render.picked(both),
        render.heading(HOSTILE, both.original),
        render.costs(dataclasses.replace(frame, original_cost=Cost(1, 1, 1, None, None)), HOSTILE),
    ]
    for text in made:
        seen = Seen(text)
        assert not {tag for tag, _ in seen.tags} & {"img", "script"}
        for _, attributes in seen.tags:
            assert set(attributes) <= {
                "class",
                "tabindex",
                "title",
                "role",
                "aria-live",
                "href",
                "target",
                "rel",
                "scope",
            }
            assert not str(attributes.get("href") or "https://").startswith("javascript")
    assert Seen(made[0]).text == HOSTILE
    assert HOSTILE in str(Seen(made[0]).tags[0][1]["title"])


def test_links_lead_to_the_hub_alone() -> None:
    linked = render.named(Half("acme/model", "c" * 40, 1, 1, 1))
    assert re.search(r'href="[^"]*/acme/model/tree/c{40}"', linked) and "noopener" in linked
    odd = render.named(Half('a"b/../..?x#y', "c d", 1, 1, 1))
    assert len(Seen(odd).tags) == 1 and "?x" not in str(Seen(odd).tags[0][1]["href"])
    assert "href" not in render.named(Half("acme/model", None, 1, 1, 1))


def test_tokens_are_coloured_by_kl_and_the_parting_marked() -> None:
    steps = [token(f" t{i}", kl) for i, kl in enumerate((None, 0.0, *render.LEVELS))]
    left, right = render.parted(Parting(tuple(steps), (*steps[:2], token(" x", 9.0, False, " y")), 2), "healed")
    spans = [attributes for _, attributes in Seen(left).tags]
    assert [re.findall(r"hp-k(\d)", s["class"]) for s in spans] == [[], [], ["1"], ["2"], ["3"], ["4"]]
    assert [("hp-first" in s["class"], s["tabindex"]) for s in spans[1:4]] == [
        (False, "-1"),
        (True, "0"),
        (False, "-1"),
    ]
    assert spans[0]["title"].startswith("KL unknown") and "KL 0.100 nats" in spans[2]["title"]
    last = Seen(right).tags[-1][1]
    assert "hp-other" in last["class"]
    assert last["title"] == "The answers part here; KL 9.000 nats; the original finds “ y” likeliest here"
    assert "the healed model" in render.parted(Parting((token("a", 1, False, "b"),), (), None), "healed")[0]


def test_one_answer_may_be_shorter_than_the_parting() -> None:
    same = (token("a"), token("b"))
    left, right = render.parted(Parting(same, (*same, token("c")), 2))
    assert [s["tabindex"] for _, s in Seen(left).tags] == ["0", "-1"]
    assert "hp-first" not in left and "hp-first" in right
    assert render.parted(Parting((), (), None)) == ("", "")


def test_a_line_break_can_be_pointed_at() -> None:
    assert Seen(render.parted(Parting((token("\n"),), (), None))[0]).text == "↵\n"


@pytest.mark.parametrize(
    "at,said",
    [(None, "wrote the same 2 tokens"), (0, "from the first token on"), (1, "first 1 token,"), (2, "first 2 tokens,")],
)
def test_verdict(at: int | None, said: str) -> None:
    assert said in render.verdict(Parting((token("a"), token("b")), (), at))


def test_costs_side_by_side() -> None:
    def speed(rate: float) -> Speed:
        written = Rate(rate / 10, rate / 10 - 60, rate / 10 + 50)
        return Speed(Rate(rate, rate - 400, rate + 400), written, 1, 8, 8, 5, 5)

    frame = Frame(
        "done",
        "",
        original_cost=Cost(12, 5_509_824, 22_039_296, 25_000_000, speed(2000)),
        pruned_cost=Cost(8, 3_935_424, 15_741_696, None, speed(3000)),
    )
    rows = re.findall(r"<tr><th scope='row'>(.*?)</th>(.*?)</tr>", render.costs(frame, "healed"))
    table = {title: re.findall("<td>(.*?)</td>", cells) for title, cells in rows}
    assert table["Layers"] == ["12", "8", "−33.3\xa0%"]
    assert table["Parameters"] == ["5.51\xa0M", "3.94\xa0M", "−28.6\xa0%"]
    assert table["Weights"] == ["22.04\xa0MB", "15.74\xa0MB", "−28.6\xa0%"]
    assert table["Memory while writing"] == ["25.00\xa0MB", "–", "–"]
    assert table["Reading, tokens/s"] == [
        "2,000 <small>(1,600–2,400)</small>",
        "3,000 <small>(2,600–3,400)</small>",
        "+50.0\xa0%",
    ]
    assert table["Writing, tokens/s"] == [
        "200 <small>(140–250)</small>",
        "300 <small>(240–350)</small>",
        "within the spread",
    ]
    assert "Healed</th>" in render.costs(frame, "healed") and render.costs(Frame("writing", "")) == ""
    unmeasured = dataclasses.replace(frame, pruned_cost=dataclasses.replace(frame.pruned_cost, speed=None))
    assert render.costs(unmeasured).count("<td>–</td>") == 6


def test_what_was_removed() -> None:
    demo = pair()
    dropped = demo.records.plan.dropped
    said = html.unescape(render.removed(demo))
    assert said.startswith(
        f"4 of 12 layers removed (layers {dropped[0]}–{dropped[-1]}, counted from 0), then healed; "
    )
    assert re.search(r"28\.\d\xa0% fewer parameters$", said)
    unhealed = dataclasses.replace(demo, records=dataclasses.replace(demo.records, healing=None))
    assert "healed" not in render.removed(unhealed)
    grown = dataclasses.replace(demo, pruned=dataclasses.replace(demo.pruned, parameters=2 * demo.original.parameters))
    assert render.removed(grown).endswith("100.0\xa0% more parameters")
