"""Text through a model in strided windows: every token but the first of a sequence is predicted exactly once.

The blocks see a batch of windows; the language modelling head sees only the positions that are scored, a few at a
time, so that no more than `_CHUNK_BYTES` of float32 logits exist at once however large vocabulary and window are.
"""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_prune.architecture.decoder import first_device
from hf_prune.errors import DataError, MeasureError
from hf_prune.progress import tqdm
from hf_prune.samples import batches

logger = logging.getLogger(__name__)

# Of one float32 copy of the logits; scoring needs about four (logits as computed, in float32, log-probabilities, and
# what is compared with them), so that together they stay below 256 MB.
_CHUNK_BYTES = 64 * 2**20
# What a processor is handed of them at a time: it works through pieces that its caches and the C library's pool hold
# several times faster than through whole parts, each of which would be fresh memory.
_PIECE_BYTES = 4 * 2**20


@dataclass(frozen=True)
class Window:
    """One forward pass: inputs `start … end - 1` of a sequence, of which `first … end - 1` predict their next token.

    Attributes:
        sequence: index of the sequence.
        start: first input.
        first: first input that is scored; those before are context only.
        end: one past the last input.
    """

    sequence: int
    start: int
    first: int
    end: int


@dataclass(frozen=True)
class Rows:
    """Some scored positions with the model's logits; rows follow the text, each one exactly once.

    Attributes:
        offset: predicted tokens of the text before these.
        window: (rows,) int64 on the CPU, index of the window that each row comes from.
        targets: (rows,) int64, the token to predict, on the device of the logits.
        logits: (rows, vocabulary), as the model computed them.
    """

    offset: int
    window: torch.Tensor
    targets: torch.Tensor
    logits: torch.Tensor


def windows(length: int, window: int, stride: int, sequence: int = 0) -> Iterator[Window]:
    """Cut a sequence of `length` tokens into windows.

    The last token is never an input and the first never predicted. Windows end at `window`, `window + stride`, … and
    at the last input; each reaches `window` inputs back, so a predicted token has at least `window - stride + 1`
    tokens of context, or all there are.

    Args:
        length: tokens in the sequence.
        window: most inputs at once.
        stride: tokens that each window after the first scores.
        sequence: index to carry along.
    """
    inputs, scored = length - 1, 0
    while scored < inputs:
        end = min(scored + stride if scored else window, inputs)
        yield Window(sequence, max(0, end - window), scored, end)
        scored = end


def cut(
    model: PreTrainedModel, sequences: Sequence[torch.Tensor], window: int, stride: int | None, name: str
) -> tuple[list[Window], int, int]:
    """The windows of a whole text, the window clipped to what the model can see.

    Args:
        model: whose limit counts.
        sequences: 1-D int64 tensors.
        window: most inputs at once.
        stride: tokens that each window after the first scores; None takes half of the window.
        name: of the text, for errors.

    Returns:
        The windows, and window and stride as used.

    Raises:
        DataError: the text has fewer than two tokens to predict, or window and stride would skip tokens.
    """
    limit = max_positions(model)
    clipped = window if limit is None else min(window, limit)
    step = max(1, clipped // 2) if stride is None else min(stride, clipped)
    if window < 1 or step < 1 or (stride is not None and stride > window):
        raise DataError(f"window={window} with stride={stride}; expected 1 <= stride <= window, or tokens are skipped")
    if clipped < window:
        logger.warning(
            "text '%s': the model sees %d tokens at once, so windows have that many, not %d", name, clipped, window
        )
    found = [w for i, ids in enumerate(sequences) for w in windows(len(ids), clipped, step, i)]
    predicted = sum(w.end - w.first for w in found)
    if predicted < 2:
        raise DataError(
            f"text '{name}' has {len(sequences)} sequences with {predicted} tokens to predict; at least 2 are needed. "
            "The first token of a sequence is never predicted: give longer or more text"
        )
    if predicted < clipped:
        logger.warning(
            "text '%s' has %d tokens to predict, fewer than one window of %d: its figures rest on little",
            name,
            predicted,
            clipped,
        )
    return found, clipped, step


def max_positions(model: PreTrainedModel) -> int | None:
    """Tokens that the model can see at once; None where its config sets no limit."""
    config = model.config.get_text_config(decoder=True)
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "max_seq_len", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def score(
    model: PreTrainedModel,
    sequences: Sequence[torch.Tensor],
    spans: Sequence[Window],
    batch_size: int,
    name: str,
    progress: bool = False,
    *,
    whole: bool = False,
) -> Iterator[Rows]:
    """Run windows through the model and hand out the logits of the scored positions.

    To be consumed under `torch.inference_mode()`, in eval mode.

    Args:
        model: the causal LM.
        sequences: 1-D int64 tensors.
        spans: windows into them.
        batch_size: windows at once.
        name: of the text, for progress and errors.
        progress: whether to show a bar.
        whole: hand out parts of the same length on every kind of device.

    Raises:
        MeasureError: a logit is NaN or infinite; names text, sequence and window.
    """
    device = first_device(model)
    inputs = [sequences[w.sequence][w.start : w.end] for w in spans]
    offset = 0
    with tqdm(total=len(spans), desc=f"scoring {name}", unit="window", leave=False, disable=not progress) as bar:
        for number, batch in enumerate(batches(inputs, batch_size)):
            chosen = range(number * batch_size, number * batch_size + len(batch.input_ids))
            row, column, target = _scored(sequences, spans, chosen)
            batch = batch.to(device)
            parts = _logits(model, batch.input_ids, batch.attention_mask, row, column)
            for part in parts if whole else _pieces(parts):
                size = len(part.logits)
                rows = slice(part.start, part.start + size)
                window = row[rows] + chosen.start
                _check_finite(part.logits, window, spans, name)
                yield Rows(offset, window, target[rows].to(part.logits.device), part.logits)
                offset += size
            bar.update(len(chosen))


def _scored(
    sequences: Sequence[torch.Tensor], spans: Sequence[Window], chosen: range
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Row and column in the batch of every scored position, and the token that follows it."""
    rows, columns, targets = [], [], []
    for row, index in enumerate(chosen):
        span = spans[index]
        columns.append(torch.arange(span.first - span.start, span.end - span.start))
        rows.append(torch.full_like(columns[-1], row))
        targets.append(sequences[span.sequence][span.first + 1 : span.end + 1])
    return torch.cat(rows), torch.cat(columns), torch.cat(targets).long()


@dataclass(frozen=True)
class _Part:
    start: int
    logits: torch.Tensor


def _logits(
    model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, row: torch.Tensor, column: torch.Tensor
) -> Iterator[_Part]:
    """Logits of the positions (row, column), in parts.

    The model's own forward runs once, with all but one position a row hidden from its head; it then runs again for
    every part with the body's answer given, so that whatever the architecture does after its body (head, scaling,
    soft-capping) is done by its own code. A model whose body can't be told gives all logits at once.
    """
    body: nn.Module = model.get_decoder()
    hidden: list[torch.Tensor] = []
    kinds: list[type[ModelOutput]] = []

    def keep(_: nn.Module, __: Any, output: Any) -> Any:
        if not isinstance(output, ModelOutput) or output.get("last_hidden_state") is None:
            return output
        hidden.append(output["last_hidden_state"])
        kinds.append(type(output))
        return type(output)(last_hidden_state=hidden[-1][:, :1])

    handle = body.register_forward_hook(keep)
    try:
        whole = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
    finally:
        handle.remove()
    vocabulary = whole.shape[-1]
    size = max(1, _CHUNK_BYTES // (4 * vocabulary))
    if not hidden:
        for start in range(0, len(row), size):
            yield _Part(start, whole[row[start : start + size], column[start : start + size]])
        return
    del whole
    for start in range(0, len(row), size):
        picked = hidden[0][row[start : start + size], column[start : start + size]][None]
        with _answering(body, kinds[0](last_hidden_state=picked)):
            logits = model(input_ids=ids[:1, :1], use_cache=False).logits[0]
        yield _Part(start, logits)


def _pieces(parts: Iterator[_Part]) -> Iterator[_Part]:
    """The same rows, a few at a time where a processor works on them."""
    for part in parts:
        size = len(part.logits)
        if part.logits.device.type == "cpu":
            size = max(1, _PIECE_BYTES // (4 * part.logits.shape[-1]))
        for start in range(0, len(part.logits), size):
            yield _Part(part.start + start, part.logits[start : start + size])


@contextlib.contextmanager
def _answering(module: nn.Module, answer: Any) -> Iterator[None]:
    """Let a module's forward return `answer` without computing anything."""
    own = module.__dict__.get("forward")
    module.__dict__["forward"] = lambda *_, **__: answer
    try:
        yield
    finally:
        if own is None:
            del module.__dict__["forward"]
        else:
            module.__dict__["forward"] = own


def _check_finite(logits: torch.Tensor, window: torch.Tensor, spans: Sequence[Window], name: str) -> None:
    broken = ~(logits.amin(-1).isfinite() & logits.amax(-1).isfinite())  # both pass NaN on; far faster than isfinite
    if broken.any():
        span = spans[int(window[int(broken.nonzero()[0])])]
        raise MeasureError(
            f"text '{name}': the logits hold NaN or infinity in sequence {span.sequence}, tokens "
            f"{span.start}–{span.end - 1}; expected finite numbers. The weights are broken, or overflow in this "
            "dtype: check them, or load the model in another dtype"
        )
