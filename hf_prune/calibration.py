"""Text for calibration, healing and evaluation: whatever the config names, as token sequences that never overlap."""

import dataclasses
import hashlib
import itertools
import logging
import random
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import selftext
from hf_prune.config import PAPER, SAME, CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.documents import Source, Token, open_stream
from hf_prune.errors import ConfigError, DataError
from hf_prune.methods import Method
from hf_prune.progress import tqdm
from hf_prune.records import TextUse
from hf_prune.samples import Samples, digest, hash_ids
from hf_prune.selftext import model_limit

logger = logging.getLogger(__name__)

Stage = Literal["calibration", "healing", "evaluation"]
Config = CalibrationConfig | HealingConfig | EvaluationConfig
_Item = tuple[Stage | None, str]

__all__ = ["Config", "Stage", "load", "model_limit", "resolve", "shares"]

# Who gets which of ten parts of a text; what is next to each other (also across the end) stays in one piece.
_HEALING: Stage = "healing"
_SHARES: tuple[Stage, ...] = ("calibration", "evaluation", *[_HEALING] * 7, "calibration")
# Datasets with fewer documents are shared out by sections of documents, others by whole documents.
_FEW_DOCUMENTS = 100
_SECTIONS = 20
_SHORTEST_SECTION, _LONGEST_SECTION = 256, 16_384
# Passages are the unit of shuffling: characters for each token of max_length, several sequences at 4 to a token.
_PASSAGE = 16
_BUFFER_PASSAGES, _BUFFER_CHARACTERS = 10_000, 1 << 27


def load(
    config: Config,
    *,
    stage: Stage,
    method: Method,
    tokenizer: Tokenizer,
    model: PreTrainedModel | None = None,
    limit: int,
    samples: int | None = None,
    exclude: frozenset[str] = frozenset(),
    token: Token = None,
    pack: bool = False,
    calibration: CalibrationConfig | None = None,
    shared: bool = True,
    progress: bool = False,
) -> Samples:
    """Get the text of one stage as token sequences.

    A dataset is streamed and read only as far as needed: passages are shuffled in a buffer of 10,000 and cut into
    sequences of at most `max_length` tokens, each with the special tokens that the tokenizer adds, so that one book
    gives many sequences; a rest shorter than half a sequence is left out. The paper's dataset follows the paper: one
    sequence a document, truncated.

    Stages that read the same text get disjoint parts of it (`shared`), whatever their seeds and lengths: of every ten
    parts two are for calibration, one for evaluation, seven for healing. A part is a whole document, chosen by its
    hash; in datasets with fewer than 100 documents a section of one, chosen by its place.

    Args:
        config: the stage's config.
        stage: whose part of the text is wanted.
        method: the recipe, which knows its paper's dataset.
        tokenizer: of the model.
        model: the original model, where the text is sampled from it.
        limit: longest sequence that the model can take, see `model_limit`.
        samples: sequences wanted; None takes the config's number.
        exclude: hashes of sequences (`Samples.hashes`) that must not come up.
        token: of the Hub; None takes the stored one.
        pack: join sequences and cut them anew, so that each is exactly `max_length` long.
        calibration: the calibration's config, for `dataset="calibration"`.
        shared: whether other stages may read the same text; False takes all of it for this stage. See `shares`.
        progress: whether to show a bar.

    Returns:
        The sequences with their record; fewer than wanted (with a warning) where the text is too short.

    Raises:
        ConfigError: a setting is missing or contradicts the method.
        DataError: no text, no usable text, or no way to get it.
    """
    wanted = samples if samples is not None else getattr(config, "samples", None)
    if wanted is None or config.max_length is None:
        raise ConfigError(
            f"{type(config).__name__} tells no {'number of samples' if wanted is None else 'max_length'}; expected "
            "the resolved config, or the argument"
        )
    max_length = min(config.max_length, limit)
    if max_length < config.max_length:
        logger.info("max_length=%d of %s is clipped to the model's %d positions", config.max_length, stage, limit)
    source = resolve(config, stage, method, calibration)
    if source is None:
        if model is None:
            raise DataError(f"dataset=None samples the {stage} text from the original model, which is not at hand")
        # Stages with equal seeds sample different text. Generators on processors only use 32 bits of a seed.
        seed = int(_hash(f"{stage} {config.seed}")[:8], 16)
        sampled = selftext.generate(
            model, tokenizer, samples=wanted, max_length=max_length, seed=seed, progress=progress, exclude=exclude
        )
        return dataclasses.replace(sampled, use=dataclasses.replace(sampled.use, seed=config.seed))
    documents, revision = open_stream(source, seed=config.seed, token=token)
    first = next(documents, None)
    if first is None:
        raise DataError(
            f"the dataset '{source.dataset}' is empty: no row has text in column '{source.column}'; expected "
            "documents. Name another (--dataset)"
        )
    documents = itertools.chain([first], documents)
    truncate = _is_paper(config, calibration)
    texts = _texts_of_stage(documents, stage if shared else None, config.seed, _PASSAGE * max_length, truncate)
    tokenized = _Sequences(tokenizer, max_length, truncate, exclude)
    sequences = tokenized.of(texts)
    if pack:
        sequences = _packed(sequences, max_length, tokenizer.eos_token_id)
    found: list[torch.Tensor] = []
    with tqdm(total=wanted, desc=f"Reading {source.name}", unit="seq", disable=not progress) as bar:
        for ids in itertools.islice(sequences, wanted):
            found.append(ids)
            bar.update()
    if not found:
        raise DataError(_why_nothing(source, stage, tokenized))
    if len(found) < wanted:
        logger.warning("%s text: %d samples wanted, '%s' gives %d", stage, wanted, source.name, len(found))
    use = TextUse(
        dataset=source.name,
        config=source.config,
        split=source.read_split,
        revision=revision,
        samples=len(found),
        tokens=sum(map(len, found)),
        max_length=max_length,
        seed=config.seed,
        sha256=digest(found),
    )
    return Samples(tuple(found), use)


def resolve(config: Config, stage: Stage, method: Method, calibration: CalibrationConfig | None) -> Source | None:
    """Where the text of a stage comes from.

    `dataset="calibration"` is the calibration's source; a split of the stage's own is kept. `dataset="paper"` takes
    the paper's split for calibration and evaluation, or its split for healing; what the config names comes first.

    Args:
        config: the stage's config.
        stage: the stage.
        method: the recipe.
        calibration: the calibration's config; needed for `dataset="calibration"`.

    Returns:
        The source, None for text sampled from the model.

    Raises:
        ConfigError: the method's paper names no dataset, or there is no calibration config to refer to.
    """
    split = config.split
    if config.dataset == SAME:
        config = _calibration(calibration, stage)
        # Left to the paper, the split depends on the stage.
        split = split or config.split
    if config.dataset is None:
        return None
    if config.dataset != PAPER:
        return Source(config.dataset, config.dataset_config, split, config.text_column)
    if method.dataset is None:
        raise ConfigError(
            f"dataset='{PAPER}' for {stage}, but method '{method.name}' names no dataset; give a Hub id or a file "
            "(--dataset)"
        )
    name, paper_config, measuring, healing = method.dataset
    split = split or (healing if stage == "healing" else measuring)
    return Source(name, config.dataset_config or paper_config, split, config.text_column)


def shares(config: PrunerConfig, stage: Stage) -> bool:
    """Whether another stage reads the same text, so that each gets a part of it only.

    Args:
        config: the recipe.
        stage: the stage in question.

    Raises:
        ConfigError: as `resolve`.
    """
    configs: dict[Stage, Config] = {
        "calibration": config.calibration,
        "evaluation": config.evaluation,
        "healing": config.healing,
    }
    method = config.recipe()
    sources = {name: resolve(part, name, method, config.calibration) for name, part in configs.items()}
    mine = sources.pop(stage)
    return mine is not None and any(other is not None and mine.overlaps(other) for other in sources.values())


def _calibration(calibration: CalibrationConfig | None, stage: Stage) -> CalibrationConfig:
    if calibration is None or calibration.dataset == SAME:
        raise ConfigError(
            f"dataset='{SAME}' for {stage} refers to the calibration's dataset, "
            + ("which is not given" if calibration is None else "which refers to itself; name one, or None")
        )
    return calibration


def _is_paper(config: Config, calibration: CalibrationConfig | None) -> bool:
    named = config.dataset
    return (calibration.dataset if named == SAME and calibration is not None else named) == PAPER


def _texts_of_stage(
    documents: Iterator[str], stage: Stage | None, seed: int, size: int, truncate: bool
) -> Iterator[str]:
    """The passages that belong to a stage (all for None), of at most `size` characters, in random order.

    With `truncate`, only the first of each document.
    """
    head = list(itertools.islice(documents, _FEW_DOCUMENTS))
    parts: Iterable[_Item]
    if stage is None:
        parts = ((None, text) for text in itertools.chain(head, documents))
    elif len(head) < _FEW_DOCUMENTS:
        parts = _shared_out(head)
    else:
        parts = ((_SHARES[int(_hash(text), 16) % len(_SHARES)], text) for text in itertools.chain(head, documents))
    first = 1 if truncate else None
    passages = ((owner, passage) for owner, text in parts for passage in itertools.islice(_cut(text, size), first))
    return (passage for owner, passage in _shuffled(passages, seed) if owner == stage)


def _shared_out(documents: list[str]) -> Iterator[_Item]:
    """Share out few documents by their sections, in an order that depends on nothing but the documents.

    Sections of one stage that follow each other in a document stay together.
    """
    number = 0
    for _, text in sorted({_hash(text): text for text in documents}.items()):
        length = min(max(len(text) // _SECTIONS, _SHORTEST_SECTION), _LONGEST_SECTION)
        sections = list(_cut(text, length))
        owned = [(_SHARES[(number + k) % len(_SHARES)], section) for k, section in enumerate(sections)]
        number += len(sections)
        for owner, run in itertools.groupby(owned, key=lambda pair: pair[0]):
            yield owner, "".join(section for _, section in run)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _cut(text: str, size: int) -> Iterator[str]:
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


def _shuffled(passages: Iterable[_Item], seed: int) -> Iterator[_Item]:
    """Random order through a bounded buffer; complete where everything fits into it."""
    choice = random.Random(seed)
    buffer: list[_Item] = []
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


class _Sequences:
    """Turns texts into token sequences, and counts what it leaves out.

    Args:
        tokenizer: of the model.
        max_length: longest sequence.
        truncate: one sequence a text; what is longer is cut off.
        exclude: hashes of sequences to leave out.
    """

    def __init__(self, tokenizer: Tokenizer, max_length: int, truncate: bool, exclude: frozenset[str]) -> None:
        self._tokenizer, self._exclude, self._truncate = tokenizer, exclude, truncate
        self._front, self._back = _special_tokens(tokenizer)
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


def _special_tokens(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
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


def _packed(sequences: Iterable[torch.Tensor], length: int, separator: int | None) -> Iterator[torch.Tensor]:
    """Join sequences, with EOS between where the tokenizer has one, and cut them to exactly `length` tokens."""
    rest = torch.empty(0, dtype=torch.int64)
    for ids in sequences:
        rest = torch.cat((rest, ids))
        if separator is not None and ids[-1] != separator:
            rest = torch.cat((rest, torch.tensor([separator])))
        while len(rest) >= length:
            yield rest[:length].clone()
            rest = rest[length:]


def _why_nothing(source: Source, stage: Stage, tokenized: _Sequences) -> str:
    name = f"the dataset '{source.dataset}'"
    if tokenized.excluded:
        return (
            f"all {tokenized.excluded} sequences of {name} for {stage} are used by other stages already; expected "
            "text of its own: give more text, or another dataset"
        )
    if tokenized.short:
        return f"{name} has {tokenized.short} samples all shorter than two tokens; expected text (--dataset)"
    if tokenized.texts:
        return f"{name} has less text than one packed sequence; give more text, or a smaller max_length"
    return (
        f"{name} is too short to be shared between calibration, healing and evaluation: nothing is left for {stage}; "
        "give more text, or each stage a dataset of its own"
    )
