"""Self-data distillation: the original model's own answers to the prompts of a dataset."""

import logging
import math
from collections.abc import Iterator

import torch
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import selftext
from hf_prune.precision import fast_arithmetic
from hf_prune.samples import hash_ids

logger = logging.getLogger(__name__)

# Batches that are sampled between two looks at how much is there: prompts of about the same length go together.
_AHEAD = 4
# Prompts after which a model that gave no usable answer at all is given up: datasets on the Hub hardly end.
_HOPELESS = 256


class Answers:
    """Answers that a model gives to prompts, at temperature 1 from its full distribution.

    Fine-tuning a pruned model on what the original answers keeps it at the original's own distribution
    (Self-Data Distillation, https://arxiv.org/abs/2410.09982; with self-generated responses alone, as here,
    https://arxiv.org/abs/2602.01997). Drawn from the full distribution, the next-token loss on the answers is, up to a
    constant, an estimate without bias of the divergence KL(original || pruned) over whole answers.

    An answer ends with an end-of-text token, which is part of it, or at `max_length`. Answers that are empty or stuck
    (`selftext.is_degenerate`), and prompts that come up a second time, are left out. Random numbers come from an own
    generator in the order of the prompts: the batch size changes a result only where rounding does.

    Attributes:
        asked: prompts answered.
        empty: answers left out, as they hold nothing but their end.
        stuck: answers left out, as they loop or repeat one token.
        repeated: prompts left out, as they came up before.

    Args:
        model: the original; its training mode is restored.
        tokenizer: its tokenizer.
        max_length: tokens of prompt and answer together.
        seed: of the random numbers.
        batch_size: prompts at once; None takes `selftext.fitting_batch_size`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: Tokenizer,
        *,
        max_length: int,
        seed: int,
        batch_size: int | None = None,
    ) -> None:
        self._model, self._room = model, max_length
        self._batch_size = batch_size or selftext.fitting_batch_size(model, max_length)
        self._vocabulary = selftext.start_tokens(model, tokenizer)[1]
        self._ends = torch.tensor(sorted(_end_tokens(model, tokenizer)), dtype=torch.int64)
        self._generator = torch.Generator().manual_seed(seed)
        self.asked = self.empty = self.stuck = self.repeated = 0

    def to(
        self, prompts: Iterator[torch.Tensor], *, samples: int, tokens: int | None = None
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Prompts with their answers, in the order of the prompts.

        Args:
            prompts: (length,) int64 each, shorter than `max_length`; read as far as needed.
            samples: how many will be taken.
            tokens: how many tokens of prompts and answers will be taken.

        Ends early where none of the first 256 answers is usable.

        Yields:
            ids, (length,) int64, and what is learned of them, (length,) bool: the answer.

        Raises:
            DataError: the model has no cache to sample with.
            MeasureError: the model's logits are not finite.
        """
        seen: set[str] = set()
        made = total = 0
        while made or self.asked < _HOPELESS:
            # No more than what is likely to be taken, by the mean length so far.
            left = samples - made
            if tokens is not None:
                left = min(left, math.ceil((tokens - total) / (total / made if made else self._room)))
            group = self._next(prompts, min(_AHEAD * self._batch_size, max(1, left)), seen)
            if not group:
                break
            for ids, start in zip(self._answered(group), map(len, group), strict=True):
                self.asked += 1
                answer = ids[start:]
                if not len(answer) or int(answer[0]) in self._ends:
                    self.empty += 1
                elif selftext.is_degenerate(answer):
                    self.stuck += 1
                else:
                    made, total = made + 1, total + len(ids)
                    yield ids, torch.arange(len(ids)) >= start

    def report(self) -> None:
        """Log what was left out."""
        if self.empty or self.stuck or self.repeated:
            logger.info(
                "of %d answers of the original, %d were empty and %d stuck; %d prompts came up before",
                self.asked, self.empty, self.stuck, self.repeated,
            )  # fmt: skip

    def _next(self, prompts: Iterator[torch.Tensor], count: int, seen: set[str]) -> list[torch.Tensor]:
        group: list[torch.Tensor] = []
        while len(group) < count and (prompt := next(prompts, None)) is not None:
            name = hash_ids(prompt)
            if name in seen:
                self.repeated += 1
            else:
                seen.add(name)
                group.append(prompt)
        return group

    def _answered(self, prompts: list[torch.Tensor]) -> list[torch.Tensor]:
        """Each prompt with its answer behind it."""
        uniform = torch.rand(len(prompts), self._room, generator=self._generator)
        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
        found: dict[int, torch.Tensor] = {}
        with fast_arithmetic(self._model), selftext.sampling(self._model):
            for at in range(0, len(order), self._batch_size):
                batch = order[at : at + self._batch_size]
                made = self._sample([prompts[i] for i in batch], uniform[batch])
                found |= dict(zip(batch, made, strict=True))
        return [found[i] for i in range(len(prompts))]

    def _sample(self, prompts: list[torch.Tensor], uniform: torch.Tensor) -> list[torch.Tensor]:
        """One batch. All rows stand at the same position, so that there are no pads: those whose prompt is longer
        than what is done read on in it while others answer.

        Args:
            prompts: 1-D.
            uniform: (prompts, max_length) float32 random numbers in [0, 1), one for each token.
        """
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        ids = torch.zeros(len(prompts), self._room, dtype=torch.int64)
        for row, prompt in zip(ids, prompts, strict=True):
            row[: len(prompt)] = prompt
        stops = torch.full_like(lengths, self._room)
        cache = selftext.reserved_cache(self._model, self._room)
        done, position = 0, int(lengths.min())
        while position < self._room and bool((stops == self._room).any()):
            logits = selftext.next_logits(self._model, ids[:, done:position], cache)
            drawn = selftext.draw(self._model, logits[:, : self._vocabulary], uniform[:, position], ids[:, :position])
            answering = lengths <= position
            ids[answering, position] = drawn[answering]
            ended = answering & torch.isin(drawn, self._ends) & (stops == self._room)
            done, position = position, position + 1
            stops[ended] = position
        return [row[:stop].clone() for row, stop in zip(ids, stops.tolist(), strict=True)]


def _end_tokens(model: PreTrainedModel, tokenizer: Tokenizer) -> set[int]:
    """Ids that end an answer: what the model's generation config and the tokenizer say."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = named if isinstance(named, list) else [named]
    return {int(i) for i in (*ids, tokenizer.eos_token_id) if i is not None}
