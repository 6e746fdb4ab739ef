"""A whole comparison, frame by frame, with the embedded pair and with pairs of the loopback Hub."""

import dataclasses
import gc
import threading
import time
from collections.abc import Callable, Sequence
from math import inf
from typing import Any

import pytest
import torch

from hf_prune.demo import pair as demo_pair
from hf_prune.errors import ConfigError, DataError, HubError, PruneError
from hf_prune.space import comparing, costing, pairs, settings
from hf_prune.space.cache import models
from hf_prune.space.comparing import compare, frames
from hf_prune.space.frames import Frame, Sampling
from hf_prune.space.pair import DEMO, Loaded, Pair

from .conftest import NOBODY

PROMPT = "The old man looked at the sea and"
SHORT = Sampling(max_new_tokens=12)
ORDER = ("loading", "writing", "comparing", "timing", "done")


@pytest.fixture(scope="module")
def demo() -> tuple[Loaded, Pair]:
    """The embedded pair, of these tests' own: what the cache holds is looked at."""
    original, pruned, tokenizer = demo_pair.load()
    return Loaded(original, pruned, tokenizer, tokenizer), pairs.find(DEMO, NOBODY)


def said(all_frames: Sequence[Frame]) -> list[str]:
    """The stages in order, each once."""
    return list(dict.fromkeys(frame.stage for frame in all_frames))


def writers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("writer")]


def test_tells_how_far_it_is(demo: tuple[Loaded, Pair]) -> None:
    costing.forget()
    told = list(frames(*demo, PROMPT, Sampling(max_new_tokens=60)))
    assert said(told) == ["writing", "comparing", "timing", "done"]
    assert all(frame.status for frame in told)
    for before, after in zip(told, told[1:], strict=False):
        assert after.original.startswith(before.original) and after.pruned.startswith(before.pruned)
        assert ORDER.index(before.stage) <= ORDER.index(after.stage)
        assert before.parting is None or after.parting == before.parting
        assert before.original_cost is None or after.original_cost == before.original_cost
    part_way = [f for f in told if f.stage == "writing" and f.original and f.pruned]
    assert len(part_way) > 2, "both are seen before either has ended"
    end = told[-1]
    assert end.parting is not None and end.original_cost is not None and end.pruned_cost is not None
    assert "".join(token.text for token in end.parting.original) == end.original
    assert "".join(token.text for token in end.parting.pruned) == end.pruned
    assert (end.original_cost.layers, end.pruned_cost.layers) == (12, 8)
    assert end.pruned_cost.parameters == 3_935_424
    at = end.parting.at
    assert at is not None and end.parting.original[at].text != end.parting.pruned[at].text
    assert end.parting.original[at].other == end.parting.pruned[at].text, "greedy: each would have written the other's"
    again = list(frames(*demo, PROMPT, SHORT))
    assert "timing" not in said(again) and again[-1].original_cost == end.original_cost
    assert "measured less than a minute ago" in again[-1].notes[-1]


def test_writes_what_the_model_writes(demo: tuple[Loaded, Pair]) -> None:
    loaded, _ = demo
    *_, end = frames(*demo, PROMPT, SHORT)
    for model, text in ((loaded.original, end.original), (loaded.pruned, end.pruned)):
        ids = loaded.tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        assert text == loaded.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_opens_the_pair_by_its_name() -> None:
    told = list(compare(DEMO, PROMPT, SHORT, NOBODY))
    assert said(told)[0] == "loading" and said(told)[-1] == "done"
    assert models().bytes > 0
    models().clear()
    assert models().bytes == 0, "nobody holds the pair any more"


@pytest.mark.parametrize("kind", ["pruned", "healed", "adapter", "sliced"])
def test_pairs_of_the_hub(pushed: Callable[[str], str], kind: str) -> None:
    told = list(compare(pushed(kind), "the sea", Sampling(0.8, 0.95, 10, 3), NOBODY))
    assert said(told)[0] == "loading" and told[-1].stage == "done"
    end = told[-1]
    assert end.parting is not None and end.pruned_cost is not None
    assert len(end.parting.original) == len(end.parting.pruned) == 10 or "</s>" in str(end.parting)
    assert end.original_cost.layers == 6
    assert end.pruned_cost.parameters != end.original_cost.parameters


@pytest.mark.parametrize(
    ("name", "prompt", "sampling", "error", "message"),
    [
        (DEMO, "a" * 1_000_000, SHORT, DataError, "has 1,000,000 characters; at most 8,000"),
        (DEMO, "\x00", SHORT, DataError, "the prompt is empty"),
        (DEMO, PROMPT, Sampling(temperature=-1), ConfigError, "temperature=-1"),
        ("../../etc", PROMPT, SHORT, ConfigError, "no Hub id"),
        ("acme/nothing-there", PROMPT, SHORT, HubError, "acme/nothing-there"),
    ],
)
def test_refusals_come_before_any_model(
    hub: Any, name: str, prompt: str, sampling: Sampling, error: type[PruneError], message: str
) -> None:
    started = time.monotonic()
    with pytest.raises(error, match=message):
        list(compare(name, prompt, sampling, NOBODY))
    assert time.monotonic() - started < 2
    assert models().bytes == 0


def test_answers_stand_where_they_cannot_be_compared(demo: tuple[Loaded, Pair]) -> None:
    loaded, pair = demo
    hook = loaded.pruned.lm_head.register_forward_hook(lambda *called: called[2].index_fill(-1, torch.tensor(5), -inf))
    try:
        *_, end = frames(loaded, pair, PROMPT, SHORT)
    finally:
        hook.remove()
    assert end.stage == "done" and end.original and end.pruned and end.parting is None
    assert any(note.startswith("The answers cannot be compared: ") for note in end.notes)
    assert end.pruned_cost is not None


def test_limits_are_told(demo: tuple[Loaded, Pair]) -> None:
    settings.use(dataclasses.replace(settings.current(), new_tokens=8))
    *_, end = frames(*demo, "a\x00b", Sampling(max_new_tokens=10_000))
    assert len(end.parting.original) == 8
    assert end.notes[:2] == (
        "1 control character was left out of the prompt.",
        "10,000 new tokens were asked for; 8 is the most here.",
    )


def test_stop_ends_writing_and_times_nothing(demo: tuple[Loaded, Pair]) -> None:
    costing.forget()
    stop = threading.Event()
    stream = frames(*demo, PROMPT, Sampling(max_new_tokens=250), stop)
    while not (seen := next(stream)).pruned:
        pass
    stop.set()
    told = time.monotonic()
    rest = []
    for frame in stream:
        if not rest or frame.stage != "writing":
            rest.append((time.monotonic() - told, frame))
    assert next(after for after, frame in rest if frame.stage == "comparing") < 1.5
    end = rest[-1][1]
    assert end.stage == "done" and end.status == "Stopped." and "Writing was stopped." in end.notes
    assert end.original.startswith(seen.original) and end.parting is not None and end.original_cost is None
    assert len(end.parting.original) < 250


def test_who_leaves_gives_everything_back(demo: tuple[Loaded, Pair]) -> None:
    list(frames(*demo, PROMPT, SHORT))
    gc.collect()
    tensors = sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects())
    stream = compare(DEMO, PROMPT, Sampling(max_new_tokens=250), NOBODY)
    while not next(stream).original:
        pass
    assert len(writers()) == 2
    stream.close()
    assert not writers()
    models().clear()
    assert models().bytes == 0, "nobody holds the pair any more"
    gc.collect()
    assert sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()) <= tensors


class _Slow:
    """A pair that takes its time to open; stands for a long download."""

    def __init__(self, loaded: Loaded | None, seconds: float) -> None:
        self.loaded, self.seconds, self.state = loaded, seconds, "closed"

    def opened(self, pair: Pair, visitor: object, progress: Callable[[str], None]) -> "_Slow":
        self.progress = progress
        return self

    def __enter__(self) -> Loaded:
        self.progress("Downloading acme/large (9.00 GB) …")
        time.sleep(self.seconds)
        if self.loaded is None:
            raise OSError("no space left\non device")
        self.state = "open"
        return self.loaded

    def __exit__(self, *_: object) -> None:
        self.state = "closed"


def test_loading_is_told_while_it_lasts(demo: tuple[Loaded, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    slow = _Slow(demo[0], 0.6)
    monkeypatch.setattr(comparing.pairs, "opened", slow.opened)
    told = [frame.status for frame in compare(DEMO, PROMPT, SHORT, NOBODY) if frame.stage == "loading"]
    assert told[0] == "Looking the models up …" and told[-1] == "Downloading acme/large (9.00 GB) …"
    assert slow.state == "closed"


def test_who_leaves_while_it_loads_holds_nothing(demo: tuple[Loaded, Pair], monkeypatch: pytest.MonkeyPatch) -> None:
    slow = _Slow(demo[0], 0.5)
    monkeypatch.setattr(comparing.pairs, "opened", slow.opened)
    stream = compare(DEMO, PROMPT, SHORT, NOBODY)
    next(stream)
    next(stream)
    started = time.monotonic()
    stream.close()
    assert time.monotonic() - started < 0.3, "nobody waits for the download"
    deadline = time.monotonic() + 5
    while any(thread.name == "opening" for thread in threading.enumerate()) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert slow.state == "closed"


def test_what_goes_wrong_in_loading_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparing.pairs, "opened", _Slow(None, 0).opened)
    with pytest.raises(PruneError, match=r"the models cannot be loaded \(OSError: no space left on device\)"):
        list(compare(DEMO, PROMPT, SHORT, NOBODY))


def test_visitors_at_the_same_time_get_their_own(demo: tuple[Loaded, Pair]) -> None:
    """One is still writing while another's answers are held against each other with the same modules."""
    prompts = [PROMPT, "It was a dark night, and the", "She opened the letter and read:"]
    samplings = [Sampling(0.9, 0.95, length, seed) for length, seed in ((24, 1), (6, 2), (15, 3))]
    alone = [list(frames(*demo, *asked))[-1] for asked in zip(prompts, samplings, strict=True)]
    found: dict[int, Frame] = {}

    def visit(number: int) -> None:
        *_, found[number] = frames(*demo, prompts[number], samplings[number])

    threads = [threading.Thread(target=visit, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, expected in enumerate(alone):
        assert (found[number].original, found[number].pruned) == (expected.original, expected.pruned)
        assert [t.text for t in found[number].parting.original] == [t.text for t in expected.parting.original]
        kls = [t.kl for t in found[number].parting.original]
        assert kls == pytest.approx([t.kl for t in expected.parting.original], rel=1e-3, abs=1e-6)
