"""Text sampled from the model itself: calibration, healing and evaluation text where there is no dataset."""

import inspect
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from transformers import DynamicCache, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer
from transformers.cache_utils import DynamicLayer

from hf_prune.errors import ConfigError, DataError, MeasureError
from hf_prune.precision import fast_arithmetic
from hf_prune.progress import tqdm
from hf_prune.records import TextUse
from hf_prune.samples import Samples, digest, hash_ids

logger = logging.getLogger(__name__)

# Memory for caches and logits of one batch. Fixed, so that the same model takes the same batch on every machine.
_BATCH_BYTES = 2 << 30
_LARGEST_BATCH = 128
# Sequences sampled at most for each one asked for, before a model that only loops is given up.
_TRIES = 4
# Shorter sequences repeat themselves by chance.
_SHORTEST_CHECKED = 16


def generate(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    *,
    samples: int,
    max_length: int,
    batch_size: int | None = None,
    seed: int,
    progress: bool = False,
    exclude: frozenset[str] = frozenset(),
) -> Samples:
    """Sample text from a causal language model, at temperature 1 from its full distribution.

    Nothing narrows the distribution (no top-k, no top-p, no penalty of the model's generation config), so that the
    text is what the model expects text to be; only ids that the tokenizer does not know are left out. A sequence
    starts with the tokenizer's BOS, else its EOS, else a random token, and is exactly `max_length` tokens long: after
    an end-of-document token sampling goes on with the next document. Random numbers come from an own generator, in
    the order of the sequences: the caller's random state is untouched, and the batch size changes a result only where
    rounding does. Degenerate sequences (`is_degenerate`), repeated ones and those in `exclude` are sampled anew.

    Args:
        model: the causal language model; its training mode is restored.
        tokenizer: its tokenizer.
        samples: sequences wanted.
        max_length: tokens in each sequence; clipped to the model's limit.
        batch_size: sequences at once; None takes `fitting_batch_size`.
        seed: of the random numbers.
        progress: whether to show a bar.
        exclude: hashes (`hash_ids`) of sequences that must not come up.

    Returns:
        The sequences, and their record with `dataset=None`.

    Raises:
        ConfigError: `max_length` below 2, or the tokenizer does not belong to the model.
        DataError: too few usable sequences, or the model has no cache to sample with.
        MeasureError: the model's logits are not finite.
    """
    max_length = min(max_length, model_limit(model.config))
    if max_length < 2:
        raise ConfigError(f"max_length={max_length} for text sampled from the model; expected at least 2 tokens")
    batch_size = batch_size or fitting_batch_size(model, max_length)
    starts, vocabulary = start_tokens(model, tokenizer)
    generator = torch.Generator().manual_seed(seed)
    kept: dict[str, torch.Tensor] = {}
    tried = 0
    total = samples * max_length
    with (
        fast_arithmetic(model),
        sampling(model),
        tqdm(total=total, desc="Sampling text", unit="tok", unit_scale=True, disable=not progress) as bar,
    ):
        while len(kept) < samples:
            size = min(batch_size, samples - len(kept), _TRIES * samples - tried)
            if size <= 0:
                raise DataError(
                    f"only {len(kept)} of {samples} sequences of {max_length} tokens sampled from the model are "
                    f"usable after {tried} tries; the others loop, repeat one token or each other, as damaged or "
                    "untrained models do. Name a dataset (--dataset)"
                )
            tried += size
            uniform = torch.rand(size, max_length, generator=generator)
            for ids in _sample(model, starts, vocabulary, uniform, bar.update):
                name = hash_ids(ids)
                if name not in exclude and name not in kept and not is_degenerate(ids):
                    kept[name] = ids
            bar.update(len(kept) * max_length - bar.n)
    if tried > samples:
        logger.info("%d of %d sampled sequences were degenerate or doubled and sampled anew", tried - samples, tried)
    sequences = tuple(kept.values())
    use = TextUse(
        dataset=None,
        config=None,
        split=None,
        revision=None,
        samples=samples,
        tokens=total,
        max_length=max_length,
        seed=seed,
        sha256=digest(sequences),
    )
    return Samples(sequences, use)


def is_degenerate(ids: torch.Tensor) -> bool:
    """Whether a sequence is no text but a stuck model.

    True if one token fills more than half of it, or if it is a loop: more than half of its tokens equal the token p
    places before, for one period p up to a quarter of the length. Sequences below 16 tokens never count as stuck.

    Args:
        ids: (length,) int64.
    """
    length = len(ids)
    if length < _SHORTEST_CHECKED:
        return False
    half = length // 2
    if int(ids.unique(return_counts=True)[1].max()) > half:
        return True
    return any(int((ids[period:] == ids[:-period]).sum()) > half for period in range(1, length // 4 + 1))


def model_limit(config: Any) -> int:
    """The longest sequence a model can take, in tokens.

    Args:
        config: the model's config; of a multimodal one, its text part counts.

    Returns:
        The positions the config names; 2048 for models without a limit of their own (ALiBi, state spaces).
    """
    config = config.get_text_config(decoder=True)
    for name in (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "max_sequence_length",
        "n_ctx",
        "seq_length",
    ):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 2048


def fitting_batch_size(model: PreTrainedModel, max_length: int) -> int:
    """Sequences to sample at once: 128, or fewer where their caches and logits would take over 2 GiB.

    Args:
        model: the causal language model.
        max_length: tokens in each sequence.
    """
    config = model.config.get_text_config(decoder=True)
    heads = getattr(config, "num_attention_heads", None) or 1
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    cached = 2 * config.num_hidden_layers * kv_heads * head_dim * model.dtype.itemsize * max_length
    logits = 3 * 4 * config.vocab_size  # logits, probabilities and their running sum, in float32
    return max(1, min(_LARGEST_BATCH, _BATCH_BYTES // (cached + logits)))


def start_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> tuple[torch.Tensor, int]:
    """The ids that a sequence may start with, and the number of ids to sample from."""
    rows = len(cast(torch.Tensor, model.get_input_embeddings().weight))
    known = max(tokenizer.get_vocab().values()) + 1
    # Vocabularies are often padded: rows above the tokenizer's ids are never trained and decode to nothing.
    vocabulary = min(rows, known)
    for start in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if start is None:
            continue
        if start >= rows:
            raise ConfigError(
                f"the tokenizer starts texts with id {start}, but the model has only {rows} tokens; the tokenizer "
                "belongs to another model"
            )
        return torch.tensor([start]), vocabulary
    special = set(tokenizer.all_special_ids)
    return torch.tensor([i for i in range(vocabulary) if i not in special]), vocabulary


@contextmanager
def sampling(model: PreTrainedModel) -> Iterator[None]:
    """Evaluation mode without gradients; afterwards the model is as it was."""
    training = model.training
    model.eval()
    try:
        # Not inference_mode, whose tensors could not be trained on.
        with torch.no_grad():
            yield
    finally:
        model.train(training)


class _ReservedLayer(DynamicLayer):
    """Keys and values of one layer in memory reserved once.

    `DynamicLayer` allocates and copies everything again for each token: more than half of the time of a small model.
    """

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length, self._used = length, 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append states of shape (batch, heads, new tokens, head size); returns all so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
            self._all = [x.new_empty(*x.shape[:2], self._length, x.shape[3]) for x in (key_states, value_states)]
        start, self._used = self._used, self._used + key_states.shape[2]
        for room, states in zip(self._all, (key_states, value_states), strict=True):
            room[:, :, start : self._used] = states
        self.keys, self.values = (room[:, :, : self._used] for room in self._all)
        return self.keys, self.values


def reserved_cache(model: PreTrainedModel, length: int) -> DynamicCache:
    """The model's usual cache; where a layer keeps everything, with memory reserved for `length` tokens."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_ReservedLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _sample(
    model: PreTrainedModel,
    starts: torch.Tensor,
    vocabulary: int,
    uniform: torch.Tensor,
    advance: Callable[[int], object],
) -> tuple[torch.Tensor, ...]:
    """One batch of sequences.

    transformers' own `generate` would stop at EOS, use the caller's random state and obey the model's generation
    config, and its multinomial draw takes longer on processors.

    Args:
        model: the model, in evaluation mode.
        starts: ids to start with.
        vocabulary: ids to sample from.
        uniform: (batch, length) float32 random numbers in [0, 1), one for each token.
        advance: called with the number of new tokens.

    Returns:
        1-D int64 tensors on the CPU.
    """
    batch, length = uniform.shape
    ids = torch.empty(batch, length, dtype=torch.int64)
    ids[:, 0] = starts[(uniform[:, 0] * len(starts)).long()]
    cache = reserved_cache(model, length)
    for position in range(1, length):
        logits = next_logits(model, ids[:, position - 1 : position], cache)
        ids[:, position] = draw(model, logits[:, :vocabulary], uniform[:, position], ids[:, :position])
        advance(batch)
    return tuple(row.clone() for row in ids)


def next_logits(model: PreTrainedModel, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
    """Let a model read on, and give the logits of what comes next.

    Args:
        model: in evaluation mode.
        ids: (batch, new tokens) int64 on the CPU.
        cache: of the tokens before them.

    Returns:
        (batch, vocabulary) on the model's device.

    Raises:
        DataError: the model does not take such a cache.
    """
    # Logits of a whole prompt may take more memory than the model.
    last = {"logits_to_keep": 1} if ids.shape[1] > 1 and _keeps_last(model) else {}
    output = model(input_ids=ids.to(_device(model)), past_key_values=cache, use_cache=True, **last)
    if getattr(output, "past_key_values", None) is not cache:
        raise DataError(
            f"no text can be sampled from a model of type '{model.config.model_type}', which keeps no ordinary "
            "cache of keys and values. Name a dataset (--dataset)"
        )
    return output.logits[:, -1]


def draw(model: PreTrainedModel, logits: torch.Tensor, uniform: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """One token a row, by inverting the distribution function.

    Args:
        model: it comes from, for messages.
        logits: (batch, vocabulary).
        uniform: (batch,) float32 in [0, 1).
        ids: (batch, tokens so far) int64, for messages.

    Returns:
        (batch,) int64 on the CPU.

    Raises:
        MeasureError: logits are not finite.
    """
    sums = logits.float().softmax(-1).cumsum(-1)
    if not bool(sums[:, -1].isfinite().all()):
        raise MeasureError(_not_finite(model, ids.to(_device(model))))
    # A float32 below 1 times a sum stays below that sum, so that the id found is always one of the vocabulary.
    drawn = uniform[:, None].to(sums.device) * sums[:, -1:]
    return torch.searchsorted(sums, drawn, right=True)[:, 0].cpu()


def _device(model: PreTrainedModel) -> torch.device:
    return model.device if model.device.type != "meta" else torch.device("cpu")


def _keeps_last(model: PreTrainedModel) -> bool:
    return "logits_to_keep" in inspect.signature(model.forward).parameters


def _not_finite(model: PreTrainedModel, ids: torch.Tensor) -> str:
    """Name the first layer whose output holds NaN or infinity."""
    states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    bad = next((index for index, state in enumerate(states) if not bool(state.isfinite().all())), len(states))
    where = "embeddings" if bad == 0 else f"layer {bad - 1}" if bad < len(states) else "output head"
    return (
        f"NaN or infinity comes out of the model's {where} while text is sampled from it (dtype {model.dtype}); the "
        "weights are damaged, or too large for this dtype: check the checkpoint, or load it in float32 or bfloat16"
    )
