"""Documents shared out among stages: each gets passages of its own, in random order."""

import hashlib
import itertools
import random
from collections.abc import Iterable, Iterator
from typing import Literal

Stage = Literal["calibration", "healing", "evaluation"]
Item = tuple[Stage | None, str]
"""A passage, and whose it is."""

# Who gets which of ten parts of a text; what is next to each other (also across the end) stays in one piece.
_HEALING: Stage = "healing"
_SHARES: tuple[Stage, ...] = ("calibration", "evaluation", *[_HEALING] * 7, "calibration")
# Datasets with fewer documents are shared out by sections of documents, others by whole documents.
_FEW_DOCUMENTS = 100
_SECTIONS = 20
_SHORTEST_SECTION, _LONGEST_SECTION = 256, 16_384
_BUFFER_PASSAGES, _BUFFER_CHARACTERS = 10_000, 1 << 27


def passages_of(documents: Iterator[str], stage: Stage | None, seed: int, size: int, truncate: bool) -> Iterator[str]:
    """The passages that belong to a stage, in random order.

    Args:
        documents: read as far as needed: a buffer of 10,000 passages ahead.
        stage: whose passages; None takes all.
        seed: of the order.
        size: of a passage at most, in characters.
        truncate: only the first passage of each document.
    """
    head = list(itertools.islice(documents, _FEW_DOCUMENTS))
    parts: Iterable[Item]
    if stage is None:
        parts = ((None, text) for text in itertools.chain(head, documents))
    elif len(head) < _FEW_DOCUMENTS:
        parts = _shared_out(head)
    else:
        parts = ((_SHARES[int(text_hash(text), 16) % len(_SHARES)], text) for text in itertools.chain(head, documents))
    first = 1 if truncate else None
    passages = ((owner, passage) for owner, text in parts for passage in itertools.islice(cut(text, size), first))
    return (passage for owner, passage in shuffled(passages, seed) if owner == stage)


def _shared_out(documents: list[str]) -> Iterator[Item]:
    """Share out few documents by their sections, in an order that depends on nothing but the documents.

    Sections of one stage that follow each other in a document stay together.
    """
    number = 0
    for _, text in sorted({text_hash(text): text for text in documents}.items()):
        length = min(max(len(text) // _SECTIONS, _SHORTEST_SECTION), _LONGEST_SECTION)
        sections = list(cut(text, length))
        owned = [(_SHARES[(number + k) % len(_SHARES)], section) for k, section in enumerate(sections)]
        number += len(sections)
        for owner, run in itertools.groupby(owned, key=lambda pair: pair[0]):
            yield owner, "".join(section for _, section in run)


def text_hash(text: str) -> str:
    """The sha256 of a text, whatever characters it holds."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def cut(text: str, size: int) -> Iterator[str]:
    """Cut a text into pieces of at most `size` characters, before a space where there is one; nothing is lost."""
    start = 0
    while len(text) - start > size:
        space = max(
            text.rfind(" ", start + size // 2, start + size), text.rfind("\n", start + size // 2, start + size)
        )
        end = space if space > start else start + size
        yield text[start:end]
        start = end
    yield text[start:]


def shuffled(passages: Iterable[Item], seed: int) -> Iterator[Item]:
    """Random order through a bounded buffer; complete where everything fits into it."""
    choice = random.Random(seed)
    buffer: list[Item] = []
    characters = 0
    for item in passages:
        buffer.append(item)
        characters += len(item[1])
        if len(buffer) >= _BUFFER_PASSAGES or characters >= _BUFFER_CHARACTERS:
            index = choice.randrange(len(buffer))
            buffer[index], buffer[-1] = buffer[-1], buffer[index]
            characters -= len(buffer[-1][1])
            yield buffer.pop()
    choice.shuffle(buffer)
    yield from buffer
