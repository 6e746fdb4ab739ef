"""Chat data: conversations as the tokenizer's template renders them, and which tokens are the assistant's."""

import itertools
import json
import logging
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.errors import DataError
from hf_prune.samples import hash_ids
from hf_prune.sequences import special_tokens

logger = logging.getLogger(__name__)

_MARKED = re.compile(r"\{%-?\s*generation\s*-?%\}")
_ASSISTANT, _USER = "assistant", "user"

Message = dict[str, Any]
_Made = TypeVar("_Made")


class _RefusedError(Exception):
    """A chat template takes no such conversation."""


def document(values: Sequence[Any], columns: Sequence[str], dataset: str) -> str | None:
    """One row's conversation as JSON text, by which conversations are shuffled and told apart.

    Args:
        values: of the columns: a list of messages; or, as TRL has it, a prompt and its completion, both text or both
            lists of messages.
        columns: their names.
        dataset: for messages.

    Returns:
        JSON of a list of messages, or of a pair of texts; None where there is nothing in the row.

    Raises:
        DataError: the row holds something else.
    """
    if any(not value for value in values):
        return None
    if len(values) == 2 and all(isinstance(value, str) for value in values):
        return json.dumps(values, ensure_ascii=False)
    if len(values) > 2 or not all(isinstance(value, list) for value in values):
        kinds = " and ".join(type(value).__name__ for value in values)
        raise DataError(
            f"{_named(columns)} of the dataset '{dataset}' {'hold' if len(columns) > 1 else 'holds'} {kinds}; "
            "expected one column of lists of messages, or two, of prompts and completions, as 'prompt,completion' "
            "(--heal-messages-column). Text alone goes by --text-column"
        )
    messages = [message for value in values for message in value]
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            found = f"keys {', '.join(message)}" if isinstance(message, dict) else type(message).__name__
            raise DataError(
                f"a message in {_named(columns)} of the dataset '{dataset}' has {found}; expected 'role' (such as "
                "'user' or 'assistant') and 'content'. Rename them in the data"
            )
    kept = [{key: value for key, value in message.items() if value is not None} for message in messages]
    kept = [{key: _said(value) if key == "content" else value for key, value in message.items()} for message in kept]
    try:
        return json.dumps(kept, ensure_ascii=False)
    except TypeError as error:
        raise DataError(f"a message in {_named(columns)} of the dataset '{dataset}' is no JSON: {error}") from error


def _said(content: Any) -> Any:
    """The content of a message; where that is a list of parts, all of them text, the text."""
    if not isinstance(content, list):
        return content
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part for part in content]
    return "".join(map(str, texts)) if all(isinstance(text, str) for text in texts) else content


def _answers(conversation: Sequence[Message]) -> list[int]:
    """Where the assistant's turns behind another turn are."""
    return [at for at, message in enumerate(conversation) if at and message["role"] == _ASSISTANT]


def _named(columns: Sequence[str]) -> str:
    return f"column{'s' if len(columns) > 1 else ''} {' and '.join(repr(name) for name in columns)}"


class Conversations:
    """Turns conversations into token sequences and masks of the assistant's tokens, and counts what it leaves out.

    Messages are rendered by the tokenizer's chat template; contents that are lists of texts are joined, and others
    that are no text are left out. What it marks by `{% generation %}` is learned; of a
    template without marks, each of the assistant's turns behind another turn: what rendering up to its end adds to
    rendering up to its start with the prompt for an answer, up to the last special token, which ends the turn. A
    prompt and a completion that are text are joined as they are, with EOS behind, and the completion is learned.
    Answers without a word are not learned.

    Attributes:
        texts: conversations read.
        cut: those cut off at `max_length`.
        unlearned: those left out, as nothing of the assistant's is in their first `max_length` tokens.
        refused: those left out, as the template does not take them.
        excluded: those left out, as they are used elsewhere.

    Args:
        tokenizer: of the model.
        max_length: longest sequence.
        exclude: hashes of sequences to leave out.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, exclude: frozenset[str]) -> None:
        self._tokenizer, self._room, self._exclude = tokenizer, max_length, exclude
        self._special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._marked: bool | None = None
        self._refusal = ""
        self.texts = self.cut = self.unlearned = self.refused = self.excluded = 0

    def of(self, texts: Iterable[str]) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """The sequences of some conversations: ids, (length,) int64, and what is learned of them, (length,) bool.

        Raises:
            DataError: messages without a chat template, or one from which the assistant's turns cannot be told.
        """
        for text in texts:
            self.texts += 1
            rendered = self._try(self._render, json.loads(text))
            if rendered is None:
                continue
            whole, marks = rendered[0], self._without_silence(*rendered)
            ids, learned = torch.tensor(whole[: self._room]), torch.tensor(marks[: self._room])
            self.cut += len(whole) > self._room
            if not bool(learned[1:].any()):
                self.unlearned += 1
            elif hash_ids(ids) in self._exclude:
                self.excluded += 1
            else:
                yield ids, learned

    def prompts(self, texts: Iterable[str]) -> Iterator[torch.Tensor]:
        """What stands before the last answer of some conversations, with the template's prompt for an answer.

        Those longer than three quarters of `max_length` are left out: they leave little room for an answer.

        Raises:
            DataError: as `of`.
        """
        for text in texts:
            self.texts += 1
            rendered = self._try(self._prompt, json.loads(text))
            if rendered is None:
                continue
            ids = torch.tensor(rendered, dtype=torch.int64)
            if not 0 < 4 * len(ids) <= 3 * self._room:
                self.unlearned += 1
            elif hash_ids(ids) in self._exclude:
                self.excluded += 1
            else:
                yield ids

    def report(self) -> None:
        """Log what was left out, and what was cut."""
        told = [
            (self.refused, f"left out, as the chat template does not take them ({self._refusal})"),
            (self.unlearned, f"left out, as their first {self._room} tokens hold no answer, or no room for one"),
            (self.cut, f"cut off at {self._room} tokens"),
        ]
        for count, what in told:
            if count:
                logger.warning("of %d conversations, %d were %s", self.texts, count, what)

    def why(self) -> str:
        """What became of the conversations, where none is left."""
        return (
            f"{self.unlearned} have no answer with words in it, or none that begins within max_length={self._room} "
            f"tokens, {self.excluded} are used by other stages already, {self.refused} are none that the chat "
            "template takes"
            + (f" ({self._refusal})" if self.refused else "")
            + ". Give more conversations, a larger max_length, or fewer held-out samples"
        )

    def _try(self, render: Callable[[Any], _Made], conversation: Any) -> _Made | None:
        try:
            return render(conversation)
        except _RefusedError as error:
            self.refused += 1
            self._refusal = self._refusal or str(error)
            return None

    def _render(self, conversation: list[Any]) -> tuple[list[int], list[bool]]:
        if isinstance(conversation[0], str):
            return self._completed(*conversation)
        if self._has_marks():
            made = self._templated(conversation, return_assistant_tokens_mask=True)
            return list(made["input_ids"]), [bool(mark) for mark in made["assistant_masks"]]
        whole = self._ids(conversation)
        learned = [False] * len(whole)
        for at in _answers(conversation):
            before = self._ids(conversation[:at], add_generation_prompt=True)
            after = self._ids(conversation[: at + 1])
            if whole[: len(before)] != before or whole[: len(after)] != after:
                return self._by_characters(conversation)
            self._learn(learned, after, len(before))
        return whole, learned

    def _by_characters(self, conversation: list[Message]) -> tuple[list[int], list[bool]]:
        """What `_render` gives, where tokens lie across the borders of turns: each belongs to where it begins."""
        text = self._text(conversation)
        borders = []
        for at in _answers(conversation):
            before = self._text(conversation[:at], add_generation_prompt=True)
            after = self._text(conversation[: at + 1])
            if not text.startswith(before) or not text.startswith(after) or not self._tokenizer.is_fast:
                raise DataError(
                    f"the chat template writes the start of a conversation (up to turn {at} of {len(conversation)}) "
                    "otherwise when more follows, so that the assistant's tokens cannot be told. Mark them in the "
                    "template by {% generation %} and {% endgeneration %}, or train on single answers"
                )
            borders.append((len(before), len(after)))
        made = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        whole, starts = list(made["input_ids"]), [start for start, _ in made["offset_mapping"]]
        learned = [False] * len(whole)
        for begin, end in borders:
            self._learn(learned, whole[: bisect_left(starts, end)], bisect_left(starts, begin))
        return whole, learned

    def _learn(self, learned: list[bool], ids: list[int], start: int) -> None:
        """Mark an answer, which begins at `start`, as learned up to where it ends; `ids` ends with its turn."""
        end = self._turn_end(ids, start)
        learned[start:end] = [True] * (end - start)

    def _prompt(self, conversation: list[Any]) -> list[int]:
        if isinstance(conversation[0], str):
            return self._asked(conversation[0])
        asked = [at for at, message in enumerate(conversation) if message["role"] == _USER]
        self._has_marks()
        return self._ids(conversation[: asked[-1] + 1], add_generation_prompt=True) if asked else []

    def _completed(self, prompt: str, completion: str) -> tuple[list[int], list[bool]]:
        before, bare = self._asked(prompt), self._bare(prompt)
        whole = before[: len(before) - len(bare)] + self._bare(prompt + completion)
        if whole[: len(before)] != before:
            # A token lies across the border. When the model is used, the prompt is cut into tokens alone.
            whole = before + self._bare(completion)
        end = self._tokenizer.eos_token_id
        if end is not None and whole[-1] != end:
            whole.append(end)
        return whole, [at >= len(before) for at in range(len(whole))]

    def _asked(self, prompt: str) -> list[int]:
        """A prompt that is text, with the special tokens in front of it and none that would end it."""
        return special_tokens(self._tokenizer)[0] + self._bare(prompt)

    def _bare(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _without_silence(self, ids: list[int], learned: list[bool]) -> list[bool]:
        """What is learned but for answers that hold nothing but their end: nobody wants a model to say nothing."""
        kept, start = list(learned), 0
        for mark, run in itertools.groupby(learned):
            end = start + len(list(run))
            if mark and not str(self._tokenizer.decode(ids[start:end], skip_special_tokens=True)).strip():
                kept[start:end] = [False] * (end - start)
            start = end
        return kept

    def _text(self, messages: list[Message], **more: Any) -> str:
        return str(self._templated(messages, tokenize=False, **more))

    def _ids(self, messages: list[Message], **more: Any) -> list[int]:
        return list(self._templated(messages, **more)["input_ids"])

    def _templated(self, messages: list[Message], **more: Any) -> Any:
        if any(isinstance(message.get("content"), list | dict) for message in messages):
            raise _RefusedError("its content is no text")
        try:
            return self._tokenizer.apply_chat_template(messages, **more)
        except (TemplateError, TypeError) as error:  # roles in a wrong order, contents of a wrong type
            raise _RefusedError(" ".join(str(error).split())) from error

    def _turn_end(self, ids: list[int], start: int) -> int:
        """Where a turn that begins at `start` ends: behind its last special token, if only blanks follow that."""
        special = [at for at in range(start, len(ids)) if ids[at] in self._special]
        if special and not str(self._tokenizer.decode(ids[special[-1] + 1 :])).strip():
            return special[-1] + 1
        return len(ids)

    def _has_marks(self) -> bool:
        if self._marked is None:
            if not self._tokenizer.chat_template:
                raise DataError(
                    f"the tokenizer ({type(self._tokenizer).__name__}) has no chat template, by which messages become "
                    "text. Take a model that has one, put a chat_template.jinja beside the model, or name two columns "
                    "of plain text, 'prompt,completion' (--heal-messages-column)"
                )
            self._marked = bool(_MARKED.search(self._tokenizer.get_chat_template())) and self._tokenizer.is_fast
        return self._marked
