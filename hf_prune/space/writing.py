"""Models write at the same time: each in a thread of its own, with random numbers of its own, and stops when told."""

import copy
import logging
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.generation import StoppingCriteria, StoppingCriteriaList
from transformers.generation.logits_process import TemperatureLogitsWarper, TopPLogitsWarper
from transformers.generation.streamers import BaseStreamer

from hf_prune.architecture.decoder import first_device
from hf_prune.errors import MeasureError, PruneError
from hf_prune.space import leaving
from hf_prune.space.frames import Sampling

logger = logging.getLogger(__name__)

Ended = Literal["end", "length", "stopped", "time", "left"]
"""Why writing ended: by an end token, by length, told to stop, out of time, or because nobody looked any more."""

INTERVAL = 0.05
"""Seconds between two states that are handed out, so that a page is not flooded."""

PATIENCE = 10.0
"""Seconds that a state may wait to be followed by the next request, before nobody is thought to look any more."""

LONGEST = 300.0
"""Seconds that models may write for one visitor."""

COLDEST = 0.01
"""Temperatures below take the likeliest token: the division would leave nothing else."""

_LOST = "\ufffd"


@dataclass(frozen=True)
class Writer:
    """A model that is asked to go on.

    Attributes:
        name: what it is called in errors.
        model: shared with others, so nothing of it is changed.
        tokenizer: of the model.
        prompt: token ids.
    """

    name: str
    model: PreTrainedModel | Any
    tokenizer: Tokenizer
    prompt: tuple[int, ...]


@dataclass(frozen=True)
class Written:
    """What a model has written so far.

    Attributes:
        ids: new tokens, with the end token where it wrote one.
        text: the same without special tokens; never ends in half a character.
        ended: why there is no more; None while it writes.
    """

    ids: tuple[int, ...] = ()
    text: str = ""
    ended: Ended | None = None


class Speech:
    """The text of tokens that come one after the other: it only grows, and never by half a character."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.text = ""
        self._tokenizer = tokenizer
        self._front = ""
        self._ids: list[int] = []
        self._told = 0  # how many of them are in the text

    def add(self, ids: Sequence[int]) -> str:
        """Take more tokens; returns the text of all so far, which is the same however many come at a time."""
        for token in ids:
            self._ids.append(token)
            whole = self._front + plain_text(self._tokenizer, self._ids)
            text = whole.rstrip(_LOST)
            # Tokenizers that spell out bytes take back whole characters while the next one is not complete.
            if not text.startswith(self.text):
                if text != whole:
                    continue
                # It never became one, and spoils what came before: that stays, and is not looked at any more.
                self._front, self._ids = self.text, self._ids[self._told :]
                text = self._front + plain_text(self._tokenizer, self._ids)
            self.text, self._told = text, len(self._ids)
        return self.text


def plain_text(tokenizer: Tokenizer, ids: Sequence[int], special: bool = False) -> str:
    """What tokens say, to the letter."""
    return str(tokenizer.decode(list(ids), skip_special_tokens=not special, clean_up_tokenization_spaces=False))


def write(
    writers: Sequence[Writer], sampling: Sampling, stop: threading.Event | None = None, *, seconds: float = LONGEST
) -> Iterator[tuple[Written, ...]]:
    """Let models write after their prompts at the same time, by stock `generate`.

    Every one draws with a generator of its own, so that the same seed gives the same text whatever else goes on in
    the process. Of the models' generation settings only the special tokens count. Closing the iterator, leaving it
    alone for `PATIENCE` seconds, or setting `stop` ends the threads after the token that they are at; when the
    iterator is done, none of them runs any more.

    Args:
        writers: who writes.
        sampling: how; the first writer draws with its seed, the others too or with those that follow.
        stop: may be set at any time, from any thread.
        seconds: most time they get.

    Returns:
        What all have written, whenever there is more, at most every `INTERVAL`; first tokens and the last state are
        never held back.

    Raises:
        PruneError: a model could not go on.
    """
    desk = _Desk(len(writers), stop or threading.Event(), time.monotonic() + seconds)
    speeches = [Speech(writer.tokenizer) for writer in writers]
    threads = [
        threading.Thread(target=_work, args=(desk, index, writer, sampling), name=f"writer {index}", daemon=True)
        for index, writer in enumerate(writers)
    ]
    for thread in threads:
        thread.start()
    states = tuple(Written() for _ in writers)
    try:
        shown = 0.0
        while not all(state.ended for state in states):
            desk.wait(shown + INTERVAL)
            ids, endings = desk.look()
            new = tuple(
                replace(state, ids=got, text=speech.add(got[len(state.ids) :]), ended=ending)
                for state, speech, got, ending in zip(states, speeches, ids, endings, strict=True)
            )
            if new != states:
                states, shown = new, time.monotonic()
                desk.left = shown
                yield states
                desk.left = None
    finally:
        desk.halt.set()
        for thread in threads:
            thread.join()


class _Desk:
    """What threads that write and the one that reads have in common."""

    def __init__(self, writers: int, stop: threading.Event, deadline: float) -> None:
        self.halt = threading.Event()
        self.left: float | None = None
        """When the reader went away with a state; None while it waits for the next."""
        self._stop, self._deadline = stop, deadline
        self._changed = threading.Condition()
        self._ids: list[list[int]] = [[] for _ in range(writers)]
        self._endings: list[Ended | None] = [None] * writers
        self._error: PruneError | None = None
        self._news = self._urgent = False

    def reason(self) -> Ended | None:
        """Why nobody should write any more, if so."""
        now, left = time.monotonic(), self.left
        if self.halt.is_set() or leaving.over() or (left is not None and now - left > PATIENCE):
            return "left"
        return "stopped" if self._stop.is_set() else "time" if now > self._deadline else None

    def put(self, index: int, token: int) -> None:
        """One more token."""
        with self._changed:
            if self._endings[index] is None:
                self._urgent = self._urgent or not self._ids[index]
                self._ids[index].append(token)
                self._tell()

    def end(self, index: int, ending: Ended) -> None:
        """No more tokens."""
        with self._changed:
            self._endings[index] = self._endings[index] or ending
            self._tell()

    def fail(self, error: PruneError) -> None:
        """Somebody cannot go on, so the others need not."""
        self.halt.set()
        with self._changed:
            self._error = self._error or error
            self._tell()

    def _tell(self) -> None:
        self._news = True
        self._changed.notify()

    def wait(self, earliest: float) -> None:
        """Until there is something new, not before `earliest` but for first tokens; at once where all is over."""
        with self._changed:
            while self._error is None and not all(self._endings) and self.reason() is None:
                rest = earliest - time.monotonic()
                if self._urgent or (rest <= 0 and self._news):
                    break
                # Nobody says when `stop` is set, so it is looked at from time to time.
                self._changed.wait(rest if 0 < rest < INTERVAL else INTERVAL)
            self._news = self._urgent = False

    def look(self) -> tuple[list[tuple[int, ...]], list[Ended | None]]:
        """All tokens so far, and who ended why. Told to stop, all end here, whatever a thread is still at.

        Raises:
            PruneError: somebody could not go on.
        """
        with self._changed:
            if self._error is not None:
                raise self._error
            reason = self.reason()
            if reason is not None:
                self._endings = [ending or reason for ending in self._endings]
            return [tuple(ids) for ids in self._ids], list(self._endings)


def _work(desk: _Desk, index: int, writer: Writer, sampling: Sampling) -> None:
    """What one thread does."""
    try:
        seed = sampling.seed if index == 0 or sampling.same_seed else sampling.seed + index
        model = _own_settings(writer, sampling.max_new_tokens)
        ids = torch.tensor([writer.prompt], dtype=torch.int64, device=first_device(model))
        with leaving.computing(), torch.inference_mode():
            output = cast(Any, model).generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                generation_config=model.generation_config,
                logits_processor=LogitsProcessorList([_Draw(writer.name, sampling, seed)]),
                stopping_criteria=StoppingCriteriaList([_Told(desk)]),
                streamer=_Teller(desk, index),
            )
        last, ends = int(output[0, -1]), model.generation_config.eos_token_id
        done = last in (ends if isinstance(ends, list) else [ends])
        desk.end(index, "end" if done else desk.reason() or "length")
    except BaseException as error:
        logger.debug("%s stopped writing", writer.name, exc_info=error)
        # The frames of a traceback hold on to the cache of what was written.
        desk.fail(error.with_traceback(None) if isinstance(error, PruneError) else _failure(writer.name, error))


def _failure(name: str, error: BaseException) -> PruneError:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return PruneError(f"there is not enough memory for {name} to write that much; ask for fewer tokens")
    told = " ".join(str(error).split())[:200]
    return PruneError(f"{name} stopped writing ({type(error).__name__}: {told}); try another prompt, or another model")


def _own_settings(writer: Writer, new_tokens: int) -> PreTrainedModel:
    """The same modules under generation settings of one's own: those of a model in memory are everybody's."""
    model: Any = writer.model
    model = model.get_base_model() if hasattr(model, "peft_config") else model
    own, view = model.generation_config, copy.copy(model)
    # An empty list is no end token either.
    end = writer.tokenizer.eos_token_id if own.eos_token_id in (None, []) else own.eos_token_id
    first_end = end[0] if isinstance(end, list) else end
    pad = next((i for i in (own.pad_token_id, writer.tokenizer.pad_token_id, first_end) if i is not None), 0)
    view.generation_config = GenerationConfig(
        do_sample=False,
        num_beams=1,
        use_cache=True,
        max_new_tokens=new_tokens,
        bos_token_id=own.bos_token_id,
        eos_token_id=end,
        pad_token_id=pad,
    )
    return view


class _Draw(LogitsProcessor):
    """Leaves one token over: the likeliest, or one drawn from softmax(logits / temperature), cut off by top-p.

    Drawn is by a race: each token gets an exponential random time over its probability, and the first one wins. So
    two models that draw with the same numbers part only where their distributions do.
    """

    def __init__(self, name: str, sampling: Sampling, seed: int) -> None:
        self._name = name
        self._random = torch.Generator().manual_seed(seed)
        self._greedy = sampling.temperature < COLDEST
        self._warpers: list[LogitsProcessor] = []
        if not self._greedy:
            self._warpers.append(TemperatureLogitsWarper(float(sampling.temperature)))
        if not self._greedy and sampling.top_p < 1:
            self._warpers.append(TopPLogitsWarper(float(sampling.top_p)))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        if bool(scores.isnan().any()):
            raise MeasureError(
                f"the logits of {self._name} hold NaN; its weights are broken, or overflow in its dtype"
            )
        if self._greedy:
            return scores
        for warper in self._warpers:
            scores = warper(input_ids, scores)
        chances = scores[0].float().softmax(-1).cpu()
        race = torch.empty_like(chances).exponential_(generator=self._random)
        token = (chances / race.clamp_min_(torch.finfo(race.dtype).tiny)).argmax()
        chosen = torch.full_like(scores, -torch.inf)
        chosen[0, int(token)] = 0
        return cast(torch.FloatTensor, chosen)


class _Told(StoppingCriteria):
    """Stops where nobody wants more."""

    def __init__(self, desk: _Desk) -> None:
        self._desk = desk

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        over = self._desk.reason() is not None
        return cast(torch.BoolTensor, torch.full((len(input_ids),), over, dtype=torch.bool, device=input_ids.device))


class _Teller(BaseStreamer):
    """Hands new tokens over as they come."""

    def __init__(self, desk: _Desk, index: int) -> None:
        self._desk, self._index, self._prompt = desk, index, True

    def put(self, value: torch.Tensor) -> None:
        if not self._prompt:
            self._desk.put(self._index, int(value.reshape(-1)[0]))
        self._prompt = False

    def end(self) -> None:
        """Nothing to do: the thread says why."""
