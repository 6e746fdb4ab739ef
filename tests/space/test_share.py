"""Share links: what they say comes back, and what is wrong in them falls back and is told."""

from typing import Any
from urllib.parse import parse_qsl, urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_prune.space import share
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import DEMO


def read(**query: Any) -> share.Restored:
    return share.read({name: str(value) for name, value in query.items()}, prompt_chars=100, new_tokens=256)


def test_everything_comes_back() -> None:
    said = ("acme/model", "a\nb & c=%", 0.7, 0.5, 12, 4_000_000_000, "false", "false")
    query = dict(parse_qsl(urlencode(dict(zip(share.NAMES, said, strict=True)))))
    found = share.read(query, prompt_chars=100, new_tokens=256)
    assert found == share.Restored(said[0], said[1], Sampling(0.7, 0.5, 12, 4_000_000_000, False, False), ())


def test_nothing_said_is_the_default() -> None:
    assert read() == share.Restored(DEMO, "", Sampling(), ())
    assert read(unknown="<b>").problems == ()
    assert share.read({}, prompt_chars=9, new_tokens=8).sampling.max_new_tokens == 8


@pytest.mark.parametrize(
    "name,value",
    [
        ("pair", "../../etc/passwd"), ("pair", "/etc/passwd"), ("pair", "a/b/c"), ("pair", "<b>/x"), ("pair", ""),
        ("temperature", "nan"), ("temperature", "-1"), ("temperature", "2.01"), ("temperature", "inf"),
        ("temperature", "1e9"), ("temperature", "hot"), ("top_p", "0"), ("top_p", "1.1"), ("max_tokens", "0"),
        ("max_tokens", "257"), ("max_tokens", "1.5"), ("max_tokens", "９"), ("seed", "-1"), ("seed", str(2**32)),
        ("seed", "9" * 5000), ("same_seed", "yes"), ("chat", "1"),
    ],
)  # fmt: skip
def test_wrong_values_fall_back(name: str, value: str) -> None:
    found = read(**{name: value})
    assert found.pair == DEMO and found.sampling == Sampling()
    [told] = found.problems
    assert name in told and "was not taken: expected" in told and len(told) < 250


def test_long_prompts_are_cut() -> None:
    found = read(prompt="x" * 1_000_000)
    assert found.prompt == "x" * 100 and "1,000,000 characters" in found.problems[0]


@given(st.dictionaries(st.sampled_from(share.NAMES), st.text(max_size=300)))
def test_any_query_gives_a_page_that_works(query: dict[str, str]) -> None:
    found = share.read(query, prompt_chars=100, new_tokens=256)
    drawn = found.sampling
    assert 0 <= drawn.temperature <= 2 and 0 < drawn.top_p <= 1 and 1 <= drawn.max_new_tokens <= 256
    assert 0 <= drawn.seed <= share.MAX_SEED and len(found.prompt) <= 100 and ".." not in found.pair
    assert len(found.problems) <= len(share.NAMES)
