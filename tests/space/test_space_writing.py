"""Two models write at once: what they write is stock, theirs alone, and over when it should be."""

import gc
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
import torch
from tokenizers import Tokenizer, decoders, models
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper

from hf_prune.demo import model_folder
from hf_prune.errors import MeasureError, PruneError
from hf_prune.space import writing
from hf_prune.space.frames import Sampling
from hf_prune.space.writing import Speech, Writer, Written, write

from ..evaluation.text import VOCAB, byte_tokenizer
from ..slicing.support import base, mixed, sliced_by
from ..tiny import tiny_model

PROMPT = tuple(byte_tokenizer()("the sea in")["input_ids"])
HOT = Sampling(temperature=1.0, top_p=0.9, max_new_tokens=24, seed=7)


@pytest.fixture(scope="module")
def embedded() -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    return (
        AutoModelForCausalLM.from_pretrained(model_folder(), dtype=torch.float32).eval(),
        AutoTokenizer.from_pretrained(model_folder()),
    )


@pytest.fixture
def long(embedded: tuple[PreTrainedModel, PreTrainedTokenizerFast]) -> list[Writer]:
    """Two that write for seconds."""
    model, tokenizer = embedded
    return [Writer("the model", model, tokenizer, tuple(tokenizer("The sea")["input_ids"]))] * 2


def tiny(model_type: str = "llama", seed: int = 0, **overrides: object) -> Writer:
    model = tiny_model(model_type, seed=seed, vocab_size=VOCAB, **overrides)
    return Writer(model_type, model, byte_tokenizer(), PROMPT)


def last(states: Iterator[tuple[Written, ...]]) -> tuple[Written, ...]:
    *_, end = states
    return end


def threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("writer")]


def tensors() -> int:
    gc.collect()
    return sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mamba", "gemma3_text", "qwen3_next", "sliced"])
def test_greedy_is_what_generate_writes(model_type: str) -> None:
    if model_type == "sliced":
        decoder = base("llama", dtype=torch.float32, vocab_size=VOCAB)
        writer = Writer("sliced", sliced_by(decoder, mixed(decoder)), byte_tokenizer(), PROMPT)
    else:
        writer = tiny(model_type)
    ids = torch.tensor([PROMPT])
    expected = writer.model.generate(
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=24, pad_token_id=0
    )[0, len(PROMPT) :].tolist()
    one, two = last(write([writer, writer], Sampling(max_new_tokens=24)))
    assert list(one.ids) == list(two.ids) == expected
    assert one.ended == ("end" if expected[-1] == writer.model.generation_config.eos_token_id else "length")
    assert one.text == byte_tokenizer().decode(expected, skip_special_tokens=True).rstrip("\ufffd")


def test_ends_with_the_end_token() -> None:
    writer = tiny()
    plain = last(write([writer], Sampling(max_new_tokens=8)))[0]
    writer.model.generation_config.eos_token_id = [plain.ids[3], 2]
    cut = last(write([writer], Sampling(max_new_tokens=8)))[0]
    assert cut.ids == plain.ids[: plain.ids.index(plain.ids[3]) + 1] and cut.ended == "end"


def test_no_end_token_is_one_of_the_tokenizer() -> None:
    writer = tiny()
    expected = last(write([writer], Sampling(max_new_tokens=12)))
    for none in ([], None):
        writer.model.generation_config.eos_token_id = none
        assert last(write([writer], Sampling(max_new_tokens=12))) == expected


def test_settings_of_a_shared_model_are_neither_used_nor_changed() -> None:
    writer = tiny()
    expected = last(write([writer], Sampling(max_new_tokens=12)))
    own = writer.model.generation_config
    own.do_sample, own.temperature, own.num_beams, own.repetition_penalty = True, 9.0, 3, 7.0
    own.bad_words_ids = [[expected[0].ids[0]]]
    before, state = own.to_dict(), torch.get_rng_state()
    assert last(write([writer], Sampling(max_new_tokens=12))) == expected
    last(write([writer], HOT))
    assert writer.model.generation_config is own and own.to_dict() == before
    assert torch.equal(torch.get_rng_state(), state), "nobody else's random numbers are touched"


def test_draws_follow_the_warped_distribution() -> None:
    writer, draws = tiny(), 500
    ids = torch.tensor([PROMPT])
    with torch.no_grad():
        scores = writer.model(ids).logits[:, -1].float()
    warped = TopPLogitsWarper(0.7)(ids, TemperatureLogitsWarper(0.6)(ids, scores))[0].softmax(-1)
    counts = torch.zeros(VOCAB)
    for seed in range(draws):
        counts[last(write([writer], Sampling(0.6, 0.7, 1, seed)))[0].ids[0]] += 1
    assert counts[warped == 0].sum() == 0, "what top-p cuts off is never drawn"
    drawn = warped > 0
    assert 3 < int(drawn.sum()) < VOCAB
    expected = draws * warped[drawn]
    chi = ((counts[drawn] - expected) ** 2 / expected).sum()
    free = int(drawn.sum()) - 1
    assert float(chi) < free + 5 * (2 * free) ** 0.5


def test_the_same_seed_gives_the_same_text() -> None:
    one, other = tiny(), tiny(seed=1)
    first = last(write([one, other], HOT))
    assert last(write([one, other], HOT)) == first
    assert last(write([other, one], HOT)) == first[::-1], "with same_seed it does not matter who is first"
    apart = last(write([one, other], Sampling(1.0, 0.9, 24, 7, same_seed=False)))
    assert apart[0] == first[0]
    assert apart[1] == last(write([other], Sampling(1.0, 0.9, 24, 8)))[0] != first[1]


def test_models_that_agree_draw_alike() -> None:
    writer = tiny()
    one, other = last(write([writer, writer], HOT))
    assert one == other and len(set(one.ids)) > 4


def test_visitors_do_not_mix() -> None:
    writers = [tiny(), tiny(seed=1)]
    alone = [last(write(writers, Sampling(1.0, 1.0, 20, seed))) for seed in (1, 2, 3)]
    found: dict[int, tuple[Written, ...]] = {}

    def visit(seed: int) -> None:
        found[seed] = last(write(writers, Sampling(1.0, 1.0, 20, seed)))

    visitors = [threading.Thread(target=visit, args=(seed,)) for seed in (1, 2, 3)]
    for visitor in visitors:
        visitor.start()
    for visitor in visitors:
        visitor.join()
    assert [found[seed] for seed in (1, 2, 3)] == alone
    assert len(set(alone)) == 3


def test_consumers_in_turns_get_what_each_gets_alone(
    embedded: tuple[PreTrainedModel, PreTrainedTokenizerFast],
) -> None:
    model, tokenizer = embedded
    writers = [Writer("the model", model, tokenizer, tuple(tokenizer("The sea")["input_ids"]))] * 2
    samplings = [Sampling(1.0, 0.95, 30, seed, same_seed=False) for seed in (5, 6)]
    alone = [last(write(writers, sampling)) for sampling in samplings]
    streams = [write(writers, sampling) for sampling in samplings]
    latest: list[tuple[Written, ...]] = [(), ()]
    running = {0, 1}
    while running:
        for index in sorted(running):
            state = next(streams[index], None)
            if state is None:
                running.discard(index)
            else:
                latest[index] = state
    assert latest == alone


def test_states_only_grow_and_come_at_a_bounded_rate(long: list[Writer]) -> None:
    started = time.monotonic()
    states = list(write(long, Sampling(0.9, 0.95, 150)))
    took = time.monotonic() - started
    assert 3 < len(states) <= took / writing.INTERVAL + 4, "first tokens and the last state come when they come"
    for before, after in zip(states, states[1:], strict=False):
        for one, two in zip(before, after, strict=True):
            assert two.ids[: len(one.ids)] == one.ids and two.text.startswith(one.text)
    assert [state.ended for state in states[-1]] == ["length"] * 2
    assert all(len(state.ids) == 150 for state in states[-1])
    assert any(0 < len(one.ids) < 150 and 0 < len(two.ids) < 150 for one, two in states), "both write at once"


def test_first_tokens_are_not_held_back(long: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "INTERVAL", 6.0)
    started = time.monotonic()
    stream = write(long, Sampling(max_new_tokens=400))
    while not all(state.ids for state in next(stream)):
        pass
    assert time.monotonic() - started < 4
    stream.close()


def test_stop_ends_at_once(long: list[Writer]) -> None:
    stop = threading.Event()
    stream = write(long, Sampling(max_new_tokens=400), stop)
    seen = next(stream)
    stop.set()
    told = time.monotonic()
    end = last(stream)
    assert time.monotonic() - told < 1
    assert {state.ended for state in end} == {"stopped"}
    assert all(len(one.ids) <= len(two.ids) < 400 for one, two in zip(seen, end, strict=True))
    assert not threads()


def test_a_visitor_who_leaves_frees_threads_and_memory(long: list[Writer]) -> None:
    last(write(long, Sampling(max_new_tokens=2)))
    before = tensors()
    stream = write(long, Sampling(max_new_tokens=400))
    next(stream)
    assert len(threads()) == 2
    told = time.monotonic()
    stream.close()
    assert time.monotonic() - told < 1
    assert not threads()
    assert tensors() <= before


def test_a_visitor_who_never_asks_again_is_not_waited_for(long: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PATIENCE", 0.2)
    stream = write(long, Sampling(max_new_tokens=400))
    next(stream)
    limit = time.monotonic() + 5
    while threads() and time.monotonic() < limit:
        time.sleep(0.01)
    assert not threads(), "though the iterator is still there"
    assert {state.ended for state in last(stream)} == {"left"}


def test_a_slow_reader_is_no_lost_one(long: list[Writer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "PATIENCE", 1.0)
    states = []
    for state in write(long, Sampling(max_new_tokens=250)):
        states.append(state)
        time.sleep(0.3)
    assert {state.ended for state in states[-1]} == {"length"}


def test_time_is_limited(long: list[Writer]) -> None:
    started = time.monotonic()
    end = last(write(long, Sampling(max_new_tokens=450), seconds=0.3))
    assert time.monotonic() - started < 2
    assert {state.ended for state in end} == {"time"}


def test_failures_reach_the_reader() -> None:
    good, bad = tiny(), tiny()

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel\nfor this")

    bad.model.model.layers[3].forward = fail
    with pytest.raises(PruneError, match=r"llama stopped writing \(RuntimeError: no kernel for this\)") as caught:
        last(write([good, bad], Sampling(max_new_tokens=40)))
    assert not threads() and caught.value.__cause__ is None
    broken = tiny()
    broken.model.lm_head.weight.data[5] = torch.nan
    for sampling in (Sampling(), HOT):
        with pytest.raises(MeasureError, match="the logits of llama hold NaN"):
            last(write([broken], sampling))


def byte_fallback() -> PreTrainedTokenizerFast:
    """A tokenizer that spells unknown characters in bytes, as SentencePiece's do."""
    words = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁the", "▁sea", "é"]
    core = Tokenizer(models.BPE(vocab={w: i for i, w in enumerate(words)}, merges=[], byte_fallback=True))
    core.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def spelled(tokenizer: PreTrainedTokenizerFast, text: str) -> Sequence[int]:
    if "<0x41>" in tokenizer.get_vocab():
        return [tokenizer.convert_tokens_to_ids(f"<0x{byte:02X}>") for byte in text.encode()]
    return tokenizer(text)["input_ids"]


@pytest.mark.parametrize("make", [byte_tokenizer, byte_fallback])
@pytest.mark.parametrize("text", ["naïve 漢字 🙂🙂 end", "👩‍👩‍👧 — “q”"])
def test_no_half_character_is_ever_shown(make: object, text: str) -> None:
    tokenizer = make()
    speech, seen = Speech(tokenizer), [""]
    for token in spelled(tokenizer, text):
        seen.append(speech.add([token]))
        assert seen[-1].startswith(seen[-2]) and text.startswith(seen[-1]), "nothing is taken back"
    assert seen[-1] == text and len(set(seen)) > 5
    assert speech.add([tokenizer.eos_token_id]) == text, "special tokens say nothing"
    speech.add(spelled(tokenizer, "🙂")[:2])
    assert speech.text == text


def test_a_character_that_never_comes_to_be_holds_nothing_up() -> None:
    """A line break in bytes, then half a character: the tokenizer finds the break broken, too."""
    tokenizer = byte_fallback()
    words = ["▁the", "<0x0A>", "<0xE2>", "▁sea", "<0x0A>", "▁the"]
    ids = tokenizer.convert_tokens_to_ids(words)
    speech, seen = Speech(tokenizer), [""]
    for token in ids:
        seen.append(speech.add([token]))
        assert seen[-1].startswith(seen[-2]), "nothing is taken back"
    assert seen[-1] == " the\n\ufffd sea\n the"
    assert Speech(tokenizer).add(ids) == seen[-1], "however many come at a time"
