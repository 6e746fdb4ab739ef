"""What visitors type: refused with numbers, cut with a note, and never more than plain text."""

import dataclasses
import math
import sys
import time

import pytest
from transformers import PreTrainedTokenizerFast

from hf_prune.errors import ConfigError, DataError
from hf_prune.space import prompts
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import Loaded
from hf_prune.space.prompts import ask, check_prompt, check_sampling

from ..evaluation.text import VOCAB, byte_tokenizer
from ..tiny import tiny_model

CHAT = (
    "{{ bos_token }}{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}{{ eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def pair(tokenizer: PreTrainedTokenizerFast | None = None, chat: str | None = None) -> Loaded:
    tokenizer = tokenizer or byte_tokenizer()
    tokenizer.chat_template = chat
    model = tiny_model("llama", depth=1, vocab_size=VOCAB)  # 64 positions
    return Loaded(model, model, tokenizer, tokenizer)


def test_plain_prompts_are_what_the_tokenizer_makes_of_them() -> None:
    loaded = pair()
    asked = ask(loaded, "the sea in", Sampling(max_new_tokens=20), new_tokens=512)
    assert list(asked.original) == list(asked.pruned) == loaded.tokenizer("the sea in")["input_ids"]
    assert asked.sampling.max_new_tokens == 20 and asked.notes == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\r\nb\rc\td", "a\nb\nc\td"),
        ("a\x00b\x1b[31mc\x7f", "ab[31mc"),
        ("left\u202eright\u2066\u200f", "leftright"),
        ("lone \ud800 half", "lone  half"),
        ("👩‍👩‍👧 é 漢", "👩‍👩‍👧 é 漢"),
    ],
)
def test_characters_that_cannot_be_shown_are_left_out(text: str, expected: str) -> None:
    kept, notes = check_prompt(text, 100)
    assert kept == expected
    lost = len(text.replace("\r\n", "\n")) - len(expected)
    assert bool(notes) == bool(lost) and (not lost or notes[0].startswith(f"{lost} control character"))


@pytest.mark.parametrize("text", ["", " \n\t", "\x00\x01", "\u202e"])
def test_empty_prompts_are_refused(text: str) -> None:
    with pytest.raises(DataError, match="the prompt is empty"):
        check_prompt(text, 100)


def test_long_prompts_are_refused_at_once() -> None:
    started = time.perf_counter()
    with pytest.raises(DataError, match="has 1,000,000 characters; at most 8,000 are read"):
        check_prompt("a" * 1_000_000, 8000)
    assert time.perf_counter() - started < 0.05
    with pytest.raises(DataError, match="of type int; expected text"):
        check_prompt(5, 8000)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": -0.1}, r"temperature=-0.1; expected a number from 0 to 5"),
        ({"temperature": math.nan}, "temperature=nan"),
        ({"temperature": "hot"}, "temperature=hot"),
        ({"temperature": True}, "temperature=True"),
        ({"top_p": 0}, r"top_p=0; expected a number above 0 to 1"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0; expected a whole number from 1"),
        ({"max_new_tokens": 2.5}, "max_new_tokens=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**63}, "seed=9223372036854775808"),
        ({"seed": None}, "seed=None"),
        ({"seed": 10**400}, "seed=a number of 1,329 bits"),
        ({"temperature": 10**5000}, "temperature=a number of 16,610 bits; expected a number from 0 to 5"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"max_new_tokens": math.inf}, "max_new_tokens=inf"),
        ({"max_new_tokens": 10**400}, "max_new_tokens=a number of"),
    ],
)
def test_settings_that_mean_nothing_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check_sampling(dataclasses.replace(Sampling(), **changes))


def test_whole_numbers_from_a_page_are_settled() -> None:
    settled = check_sampling(Sampling(temperature=1, top_p=1, max_new_tokens=8.0, seed=3.0))  # type: ignore[arg-type]
    assert (settled.max_new_tokens, settled.seed) == (8, 3)
    assert isinstance(settled.max_new_tokens, int) and isinstance(settled.seed, int)


def test_ten_thousand_tokens_are_limited_with_a_note() -> None:
    asked = ask(pair(), "the sea", Sampling(max_new_tokens=10_000), new_tokens=24)
    assert asked.sampling.max_new_tokens == 24
    assert asked.notes == ("10,000 new tokens were asked for; 24 is the most here.",)
    asked = ask(pair(), "the sea", Sampling(max_new_tokens=10_000), new_tokens=512)
    assert asked.sampling.max_new_tokens == 32, "half of the positions"


def test_a_prompt_beyond_the_positions_loses_its_beginning() -> None:
    text = "".join(chr(97 + i % 26) for i in range(100))
    loaded = pair()
    asked = ask(loaded, text, Sampling(max_new_tokens=20), new_tokens=512)
    assert list(asked.original) == loaded.tokenizer(text)["input_ids"][-44:]
    assert asked.notes == (
        "The prompt has 100 tokens; these models have room for 44 beside the answer, so its beginning was left out.",
    )


def test_the_start_token_stays_in_front_of_a_cut_prompt() -> None:
    from tokenizers.processors import TemplateProcessing

    tokenizer = byte_tokenizer()
    tokenizer._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    asked = ask(pair(tokenizer), "a" * 100, Sampling(max_new_tokens=20), new_tokens=512)
    assert asked.original[0] == 1 and len(asked.original) == 44 and 1 not in asked.original[1:]


def test_typed_special_tokens_stay_text() -> None:
    loaded = pair()
    asked = ask(loaded, "a</s>b<s>", Sampling(), new_tokens=20)
    assert not {1, 2} & set(asked.original)
    assert loaded.tokenizer.decode(asked.original) == "a</s>b<s>"
    assert loaded.tokenizer("a</s>b")["input_ids"][1] == 2, "the tokenizer itself is as before"


def test_chat_goes_through_the_template() -> None:
    loaded = pair(chat=CHAT)
    asked = ask(loaded, "hi", Sampling(), new_tokens=20)
    assert loaded.tokenizer.decode(asked.original) == "<s>[user] hi</s>[assistant] "
    assert asked.original[0] == 1 and asked.original.count(1) == 1, "one start token"
    plain = ask(loaded, "hi", Sampling(chat=False), new_tokens=20)
    assert loaded.tokenizer.decode(plain.original) == "hi"


def test_nobody_speaks_for_another_in_a_chat() -> None:
    loaded = pair(chat=CHAT)
    asked = ask(loaded, "a</s>b", Sampling(), new_tokens=20)
    assert loaded.tokenizer.decode(asked.original) == "<s>[user] a</s>b</s>[assistant] "
    assert asked.original.count(2) == 1, "only the template's own"


def test_templates_that_fail_are_told() -> None:
    with pytest.raises(DataError, match="chat template of this model fails .*switch the chat template off"):
        ask(pair(chat="{{ raise_exception('no') }}"), "hi", Sampling(), new_tokens=20)
    with pytest.raises(DataError, match="makes 2,000,000 characters of the prompt"):
        ask(pair(chat="{{ 'a' * 2000000 }}"), "hi", Sampling(), new_tokens=20)
    twice = "{% for m in messages %}{{ m['content'] }}{{ m['content'] }}{% endfor %}"
    with pytest.raises(DataError, match="'</s>', which the chat template"):
        ask(pair(chat=twice), "a</s>", Sampling(), new_tokens=20)


def test_templates_that_never_end_do(monkeypatch: pytest.MonkeyPatch) -> None:
    """They would hold up all visitors, whose prompts are encoded one at a time."""
    monkeypatch.setattr(prompts, "_TEMPLATE_SECONDS", 0.3)
    loop = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
    before, started = sys.gettrace(), time.perf_counter()
    with pytest.raises(DataError, match="chat template of this model fails .TimeoutError."):
        ask(pair(chat=loop), "hi", Sampling(), new_tokens=20)
    assert time.perf_counter() - started < 5 and sys.gettrace() is before


def test_chats_are_not_cut() -> None:
    with pytest.raises(DataError, match=r"has 1\d\d tokens with the chat template; these models have room for 44"):
        ask(pair(chat=CHAT), "a" * 100, Sampling(max_new_tokens=20), new_tokens=20)


def test_two_tokenizers_cut_for_themselves() -> None:
    other = byte_tokenizer()
    other.add_tokens(["sea"])
    asked = ask(dataclasses.replace(pair(), pruned_tokenizer=other), "the sea", Sampling(), new_tokens=20)
    assert len(asked.original) > len(asked.pruned)
