"""What a visitor types, made into tokens: refused where it is too much, and never more than plain text."""

import dataclasses
import logging
import sys
import threading
import time
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.errors import ConfigError, DataError
from hf_prune.evaluation.scoring import max_positions
from hf_prune.space.frames import Sampling
from hf_prune.space.pair import Loaded

logger = logging.getLogger(__name__)

HOTTEST = 5.0
"""Highest temperature: far above, all tokens are drawn alike."""

_LARGEST = 2**63 - 1  # seeds and counts are integers of 64 bits
# Left-to-right and right-to-left marks, embeddings, overrides, isolates: they reorder what is around them.
_BIDI = {0x061C, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2066, 0x206A)}
_TEMPLATE_SECONDS, _TEMPLATE_CHARS = 5.0, 1_000_000
_MARK = "hfPruneVisitorPrompt"
# Settings of a tokenizer's core are changed for a call: two calls at a time would mix them.
_ENCODING = threading.Lock()


@dataclass(frozen=True)
class Asked:
    """What both models are given.

    Attributes:
        original: token ids for the original.
        pruned: token ids for the pruned model.
        sampling: as it will be used.
        notes: what was left out or limited, for the visitor.
    """

    original: tuple[int, ...]
    pruned: tuple[int, ...]
    sampling: Sampling
    notes: tuple[str, ...]


def check_sampling(sampling: Sampling) -> Sampling:
    """Refuse what means nothing; numbers that came as another kind of number are settled.

    Raises:
        ConfigError: names the setting and its value.
    """
    return dataclasses.replace(
        sampling,
        temperature=_number(sampling.temperature, "temperature", 0, HOTTEST),
        top_p=_number(sampling.top_p, "top_p", 0, 1, above=True),
        max_new_tokens=int(_number(sampling.max_new_tokens, "max_new_tokens", 1, _LARGEST, whole=True)),
        seed=int(_number(sampling.seed, "seed", 0, _LARGEST, whole=True)),
    )


def _number(value: Any, name: str, least: float, most: float, *, whole: bool = False, above: bool = False) -> float:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = number and (least < value if above else least <= value) and value <= most  # which NaN never does
    if not fits or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        bounds = f"above {least}" if above else f"from {least}"
        # Python refuses to spell out whole numbers of very many digits.
        long = isinstance(value, int) and value.bit_length() > 128
        given = f"a number of {value.bit_length():,} bits" if long else str(value)[:40]
        raise ConfigError(f"{name}={given}; expected {kind} {bounds} to {most}")
    return value


def check_prompt(prompt: str, most: int) -> tuple[str, tuple[str, ...]]:
    """The prompt without characters that a page cannot show, and a note where there were some.

    Args:
        prompt: as typed; untrusted.
        most: characters that are allowed.

    Raises:
        DataError: it is empty, or longer than that.
    """
    if not isinstance(prompt, str):
        raise DataError(f"the prompt is of type {type(prompt).__name__}; expected text")
    if len(prompt) > most:
        raise DataError(f"the prompt has {len(prompt):,} characters; at most {most:,} are read. Give a shorter one")
    lines = prompt.replace("\r\n", "\n").replace("\r", "\n")
    kept = "".join(c for c in lines if c in "\n\t" or not _unseen(c))
    if not kept.strip():
        raise DataError("the prompt is empty; type the beginning of a text, or a question")
    left_out = len(lines) - len(kept)
    told = f"{left_out} control character{'s were' if left_out > 1 else ' was'} left out of the prompt."
    return kept, (told,) if left_out else ()


def _unseen(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs") or ord(character) in _BIDI


def ask(loaded: Loaded, prompt: str, sampling: Sampling, *, new_tokens: int) -> Asked:
    """Make tokens of a prompt, as many as the models have room for.

    A prompt goes through the chat template where the model has one and the visitor wants it. Special tokens that the
    visitor typed stay plain text, where the tokenizer lets them.

    Args:
        loaded: the models.
        prompt: from `check_prompt`.
        sampling: from `check_sampling`.
        new_tokens: most that anybody may ask for.

    Raises:
        DataError: no tokens, too many for a chat template, or a template that fails.
    """
    notes: list[str] = []
    new = min(sampling.max_new_tokens, new_tokens)
    limits = [limit for limit in map(max_positions, (loaded.original, loaded.pruned)) if limit is not None]
    if limits and new > min(limits) // 2:
        new = max(1, min(limits) // 2)
    if new < sampling.max_new_tokens:
        notes.append(f"{sampling.max_new_tokens:,} new tokens were asked for; {new:,} is the most here.")
    room = min(limits) - new if limits else None
    chat = sampling.chat and bool(getattr(loaded.tokenizer, "chat_template", None))
    ids = [_encoded(loaded.tokenizer, prompt, chat, room, notes)]
    if loaded.pruned_tokenizer is loaded.tokenizer:
        ids *= 2
    else:
        ids.append(_encoded(loaded.pruned_tokenizer, prompt, chat, room, notes))
    settled = dataclasses.replace(sampling, max_new_tokens=new)
    return Asked(ids[0], ids[1], settled, tuple(dict.fromkeys(notes)))


def _encoded(tokenizer: Tokenizer, prompt: str, chat: bool, room: int | None, notes: list[str]) -> tuple[int, ...]:
    with _ENCODING:
        ids = _chat(tokenizer, prompt) if chat else _tokens(tokenizer, prompt, front=True, split=True)
    if not ids:
        raise DataError("the prompt has no tokens in this model's vocabulary; give other text")
    if room is None or len(ids) <= room:
        return tuple(ids)
    if chat:
        raise DataError(
            f"the prompt has {len(ids):,} tokens with the chat template; these models have room for {room:,} beside "
            "the answer. Give a shorter one, or ask for fewer new tokens"
        )
    front = 1 if ids[0] == tokenizer.bos_token_id and room > 1 else 0
    notes.append(
        f"The prompt has {len(ids):,} tokens; these models have room for {room:,} beside the answer, so its beginning "
        "was left out."
    )
    return (*ids[:front], *ids[len(ids) - room + front :])


def _chat(tokenizer: Tokenizer, prompt: str) -> list[int]:
    typed = [str(token) for token in tokenizer.all_special_tokens if str(token) and str(token) in prompt]
    if not typed:
        return _tokens(tokenizer, _rendered(tokenizer, prompt), front=False, split=False)
    parts = _rendered(tokenizer, _MARK).split(_MARK)
    if len(parts) != 2:
        raise DataError(
            f"the prompt holds {typed[0]!r}, which the chat template of this model would take for a mark of its own; "
            "leave it out, or switch the chat template off"
        )
    before, after = (_tokens(tokenizer, part, front=False, split=False) if part else [] for part in parts)
    return [*before, *_tokens(tokenizer, prompt, front=False, split=True), *after]


def _rendered(tokenizer: Tokenizer, prompt: str) -> str:
    """The prompt in the chat template; a template is code of whoever made the repo, in transformers' sandbox."""
    messages = [{"role": "user", "content": prompt}]
    try:
        with _in_time(_TEMPLATE_SECONDS):
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception as error:  # it may raise whatever it likes
        logger.debug("a chat template failed", exc_info=error)
        raise DataError(
            f"the chat template of this model fails ({type(error).__name__}); switch the chat template off"
        ) from error
    if len(text) > _TEMPLATE_CHARS:
        raise DataError(
            f"the chat template of this model makes {len(text):,} characters of the prompt; switch the chat template "
            "off"
        )
    return text


@contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    """Raise `TimeoutError` in a template that goes on for longer: loops in loops would hold up all visitors."""
    deadline, before = time.monotonic() + seconds, sys.gettrace()

    def look(frame: FrameType, event: str, arg: Any) -> Any:
        if time.monotonic() > deadline:
            raise TimeoutError
        return look if frame.f_code.co_filename == "<template>" else None  # nothing else is looked at line by line

    sys.settrace(look)  # of this thread alone
    try:
        yield
    finally:
        sys.settrace(before)


def _tokens(tokenizer: Tokenizer, text: str, *, front: bool, split: bool) -> list[int]:
    """Token ids; `split` takes special tokens in the text for the letters they are made of."""
    settings: dict[str, Any] = {"add_special_tokens": front, "verbose": False}
    try:
        ids: Any = tokenizer(text, split_special_tokens=split, **settings)["input_ids"]
    except (TypeError, ValueError):
        if not split:
            raise
        ids = tokenizer(text, **settings)["input_ids"]  # a kind of tokenizer that never takes text for special tokens
    return [int(i) for i in ids]
