"""Text for calibration, healing and evaluation: whatever the config names, as token sequences that never overlap."""

import dataclasses
import itertools
import logging
import sys
from collections.abc import Iterable, Iterator

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import selftext
from hf_prune.chat import Conversations
from hf_prune.config import PAPER, SAME, CalibrationConfig, EvaluationConfig, HealingConfig, PrunerConfig
from hf_prune.documents import Source, Token, open_stream
from hf_prune.errors import ConfigError, DataError
from hf_prune.methods import Method
from hf_prune.passages import Stage, passages_of, text_hash
from hf_prune.progress import tqdm
from hf_prune.records import TextUse
from hf_prune.samples import Samples, digest
from hf_prune.self_distill import Answers
from hf_prune.selftext import model_limit
from hf_prune.sequences import Sequences

logger = logging.getLogger(__name__)

Config = CalibrationConfig | HealingConfig | EvaluationConfig
_Piece = tuple[torch.Tensor, torch.Tensor | None]

__all__ = ["Config", "Stage", "load", "model_limit", "resolve", "shares"]

# Passages are the unit of shuffling: characters for each token of max_length, several sequences at 4 to a token.
_PASSAGE = 16


def load(
    config: Config,
    *,
    stage: Stage,
    method: Method,
    tokenizer: Tokenizer,
    model: PreTrainedModel | None = None,
    limit: int,
    samples: int | None = None,
    tokens: int | None = None,
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

    Healing may name a column of messages (`chat.Conversations`): one sequence a conversation, of which the answers
    alone are learned. Where the original is to answer anew (`self_distill.Answers`), its prompts are conversations up
    to the last question, or pieces of a text, of half of `max_length` tokens each, that it goes on with.

    Args:
        config: the stage's config.
        stage: whose part of the text is wanted.
        method: the recipe, which knows its paper's dataset.
        tokenizer: of the model.
        model: the original model, where the text is sampled from it.
        limit: longest sequence that the model can take, see `model_limit`.
        samples: sequences wanted; None takes the config's number.
        tokens: enough of them: of a dataset no more is read, whatever `samples` is.
        exclude: hashes of sequences (`Samples.hashes`), and of prompts that the original must not answer
            (`Samples.prompts`), that must not come up.
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
        seed = int(text_hash(f"{stage} {config.seed}")[:8], 16)
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
    distilled = isinstance(config, HealingConfig) and config.self_distill
    truncate = _is_paper(config, calibration)
    size = sys.maxsize if source.chat else _PASSAGE * max_length
    texts = passages_of(documents, stage if shared and not source.chat else None, config.seed, size, truncate)
    reader: Conversations | Sequences
    answers: Answers | None = None
    pieces: Iterator[_Piece]
    if source.chat:
        reader = Conversations(tokenizer, max_length, exclude)
        prompts, pieces = reader.prompts(texts), reader.of(texts)
    else:
        room = max_length // 2 if distilled else max_length
        reader = Sequences(tokenizer, room, truncate, exclude, unfinished=distilled)
        sequences = prompts = reader.of(texts)
        if pack:
            sequences = _packed(sequences, max_length, tokenizer.eos_token_id)
        pieces = ((ids, None) for ids in sequences)
    if distilled:
        if model is None:
            raise DataError(f"self_distill lets the original model write the {stage} text, and it is not at hand")
        seed = int(text_hash(f"{stage} {config.seed}")[:8], 16)
        answers = Answers(model, tokenizer, max_length=max_length, seed=seed)
        pieces = answers.to(prompts, samples=wanted, tokens=tokens)
    found, total = _taken(pieces, wanted, tokens, source, progress)
    if isinstance(reader, Conversations):
        reader.report()
    if answers is not None:
        answers.report()
    if not found:
        raise DataError(_why_nothing(source, stage, reader, answers))
    if tokens is not None and total < tokens and len(found) < wanted:
        logger.warning("%s text: %d tokens wanted, '%s' gives %d", stage, tokens, source.name, total)
    elif tokens is None and len(found) < wanted:
        logger.warning("%s text: %d samples wanted, '%s' gives %d", stage, wanted, source.name, len(found))
    ids = tuple(piece[0] for piece in found)
    learned = tuple(mask for _, mask in found if mask is not None) or None
    use = TextUse(
        dataset=source.name,
        config=source.config,
        split=source.read_split,
        revision=revision,
        samples=len(found),
        tokens=total,
        max_length=max_length,
        seed=config.seed,
        sha256=digest(ids, learned),
        answers="original" if distilled else "dataset" if source.chat else None,
    )
    return Samples(ids, use, learned)


def _taken(
    pieces: Iterator[_Piece], samples: int, tokens: int | None, source: Source, progress: bool
) -> tuple[list[_Piece], int]:
    """As many sequences as are wanted, and no more than enough tokens of them; and how many tokens that is."""
    found: list[_Piece] = []
    total, unit = 0, "seq" if tokens is None else "tok"
    with tqdm(
        total=tokens or samples,
        desc=f"Reading {source.name}",
        unit=unit,
        unit_scale=bool(tokens),
        disable=not progress,
    ) as bar:
        for piece in pieces:
            found.append(piece)
            total += len(piece[0])
            bar.update(1 if tokens is None else len(piece[0]))
            if len(found) == samples or (tokens is not None and total >= tokens):
                break
    return found, total


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
    messages = config.messages_column if isinstance(config, HealingConfig) else None
    asked = config
    if config.dataset == SAME:
        config = _calibration(calibration, stage)
        # Left to the paper, the split depends on the stage.
        split = split or config.split
    if isinstance(asked, HealingConfig) and (messages or asked.self_distill):
        _check_prompts(asked, config.dataset)
    if config.dataset is None:
        return None
    if config.dataset != PAPER:
        column = messages or config.text_column
        return Source(config.dataset, config.dataset_config, split, column, chat=messages is not None)
    if method.dataset is None:
        raise ConfigError(
            f"dataset='{PAPER}' for {stage}, but method '{method.name}' names no dataset; give a Hub id or a file "
            "(--dataset)"
        )
    name, paper_config, measuring, healing = method.dataset
    split = split or (healing if stage == "healing" else measuring)
    return Source(name, config.dataset_config or paper_config, split, config.text_column)


def _check_prompts(healing: HealingConfig, dataset: str | None) -> None:
    """Refuse answers to nothing, and chat where there is none."""
    if dataset is None:
        named = "self_distill" if healing.self_distill else f"messages_column='{healing.messages_column}'"
        raise ConfigError(
            f"healing.{named} needs a dataset of prompts or conversations, and dataset=None samples text from the "
            "original model alone; name one (healing.dataset, --dataset), or leave it out"
        )
    if dataset == PAPER and healing.messages_column is not None:
        raise ConfigError(
            f"healing.messages_column='{healing.messages_column}': the dataset of the method's paper holds text and "
            "no messages; name another dataset (--dataset), or leave it out"
        )


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


def _why_nothing(source: Source, stage: Stage, reader: Sequences | Conversations, answers: Answers | None) -> str:
    name = f"the dataset '{source.dataset}'"
    if answers is not None and answers.asked:
        return (
            f"the original answered {answers.asked} prompts of {name}, none of them usably ({answers.empty} answers "
            f"are empty, {answers.stuck} loop or repeat one token); expected a model that writes. Set "
            "healing.self_distill=False"
        )
    if isinstance(reader, Conversations):
        return f"none of the {reader.texts} conversations of {name} serves {stage}: {reader.why()}"
    if reader.excluded:
        return (
            f"all {reader.excluded} sequences of {name} for {stage} are used by other stages already; expected "
            "text of its own: give more text, or another dataset"
        )
    if reader.short:
        return f"{name} has {reader.short} samples all shorter than two tokens; expected text (--dataset)"
    if reader.texts:
        return f"{name} has less text than one packed sequence; give more text, or a smaller max_length"
    return (
        f"{name} is too short to be shared between calibration, healing and evaluation: nothing is left for {stage}; "
        "give more text, or each stage a dataset of its own"
    )
