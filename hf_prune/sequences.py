"""Texts as token sequences of bounded length, with the special tokens that the tokenizer adds."""

from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune.errors import ConfigError, DataError
from hf_prune.samples import hash_ids


class Sequences:
    """Turns texts into token sequences, and counts what it leaves out.

    Attributes:
        texts: texts read.
        short: sequences left out, as they hold no text or a single token.
        excluded: sequences left out, as they are used elsewhere.

    Args:
        tokenizer: of the model.
        max_length: longest sequence.
        truncate: one sequence a text; what is longer is cut off.
        exclude: hashes of sequences to leave out.
        unfinished: without the special tokens that end a text, as something is to follow.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        max_length: int,
        truncate: bool,
        exclude: frozenset[str],
        *,
        unfinished: bool = False,
    ) -> None:
        self._tokenizer, self._exclude, self._truncate = tokenizer, exclude, truncate
        self._front, self._back = special_tokens(tokenizer)
        self._back = [] if unfinished else self._back
        self._room = max_length - len(self._front) - len(self._back)
        if self._room < 1 or max_length < 2:
            raise ConfigError(
                f"max_length={max_length} leaves no room for text; expected at least "
                f"{max(2, max_length - self._room + 1)}"
            )
        self.texts = self.short = self.excluded = 0

    def of(self, texts: Iterable[str]) -> Iterator[torch.Tensor]:
        """The sequences of some texts: (length,) int64 each."""
        for text in texts:
            self.texts += 1
            ids = self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            starts = range(0, 1 if self._truncate else max(len(ids), 1), self._room)
            for start in starts:
                piece = ids[start : start + self._room]
                if start and 2 * len(piece) < self._room:
                    continue
                sequence = torch.tensor([*self._front, *piece, *self._back], dtype=torch.int64)
                if not piece or len(sequence) < 2:
                    self.short += 1
                elif hash_ids(sequence) in self._exclude:
                    self.excluded += 1
                else:
                    yield sequence


def special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids that the tokenizer puts before and after a text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    for start in range(len(full) - len(bare) + 1):
        if full[start : start + len(bare)] == bare:
            return full[:start], full[start + len(bare) :]
    raise DataError(
        f"{type(tokenizer).__name__} turns 'a' into {full} with special tokens and into {bare} without; expected the "
        "same ids between special ones"
    )
