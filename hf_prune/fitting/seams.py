"""What the residual stream is on both sides of the blocks that go, seen in one pass over the original."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.architecture.writes import writes_of
from hf_prune.errors import ConfigError, MeasureError
from hf_prune.fitting.task import Task, Window
from hf_prune.observing import Observer, Place
from hf_prune.runner import Walker
from hf_prune.samples import Batch, batches, by_length


def check_text(task: Task, surgery: str) -> None:
    """Refuse a task without text.

    Args:
        task: what goes of which model.
        surgery: what is fitted, for the error.

    Raises:
        ConfigError: there are no sequences.
    """
    if not task.sequences:
        raise ConfigError(
            f"surgery '{surgery}' is fitted to the hidden states of calibration text, and there is none; name a "
            "dataset (--dataset), or take surgery 'drop'"
        )


def check_behind_a_block(task: Task, surgery: str) -> None:
    """Refuse a window that begins where no block stands before it.

    Args:
        task: what goes of which model.
        surgery: what is fitted, for the error.

    Raises:
        ConfigError: block 0 goes.
    """
    first = task.windows()[0]
    if first.start == 0:
        raise ConfigError(
            f"surgery '{surgery}' changes the block before those that go, and layers {list(first.layers)} of "
            f"'{task.decoder.name}' have none before them; keep block 0 (protect_first=1), or take surgery "
            "'compensate' or 'drop'"
        )


def split(
    sequences: Sequence[torch.Tensor], share: float, surgery: str
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """The sequences that are fitted to, and the last ones, which decide whether the fit is any good.

    Args:
        sequences: 1-D, in the order that they were drawn in.
        share: of them that is held out, in (0, 1); at least one sequence.
        surgery: what is fitted, for the error.

    Raises:
        ConfigError: there are fewer than two sequences, or the share leaves nothing to fit to.
    """
    held_out = max(1, round(share * len(sequences)))
    if not 0 < share < 1 or held_out >= len(sequences):
        raise ConfigError(
            f"surgery '{surgery}' holds out {share} of {len(sequences)} calibration samples; expected a share between "
            "0 and 1 that leaves at least one sample on each side. Take more --samples"
        )
    return list(sequences[:-held_out]), list(sequences[-held_out:])


def walk(task: Task, groups: Sequence[Sequence[torch.Tensor]], observers: Sequence[Observer]) -> None:
    """Send groups of sequences through the original, one after the other, in one walk.

    Args:
        task: what goes of which model.
        groups: sequences; no batch holds some of two groups.
        observers: look on.
    """
    made = [batch for group in groups for batch in in_batches(task, group)]
    Walker(task.decoder, scratch=task.scratch).walk(made, observers, len(made) if task.progress else None)


def in_batches(task: Task, sequences: Sequence[torch.Tensor]) -> list[Batch]:
    """Sequences in batches, the longest first."""
    return list(batches(by_length(sequences), task.batch_size))


class Magnitudes:
    """Mean absolute value of the residual stream in front of each block, and behind the last one.

    The mean is over all real tokens and all channels, so that longer samples weigh more.
    """

    def __init__(self) -> None:
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._count = torch.zeros((), dtype=torch.float64)

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Add one batch's absolute values."""
        if not len(self._sums):
            self._sums = torch.zeros(at.depth + 1, dtype=torch.float64)
        if at.layer == 0:
            self._sums[0] += _absolute(inputs, mask)
            self._count += float(mask.sum()) * inputs.shape[-1]
        self._sums[at.layer + 1] += _absolute(outputs, mask)

    def sums(self) -> list[torch.Tensor]:
        """(layers + 1,) sums of absolute values, and how many there are."""
        return [self._sums, self._count]

    def result(self) -> dict[str, Any]:
        """`magnitudes`: (layers + 1,), of h_0 to h_L."""
        assert self._count > 0, "no batch was seen"
        return {"magnitudes": tuple((self._sums / self._count).tolist())}


def _absolute(hidden: torch.Tensor, mask: torch.Tensor) -> float:
    rows = hidden[mask.bool().to(hidden.device)].float().abs()
    # Metal has no float64: a row's sum in float32, those of all rows in float64.
    return float(rows.sum(-1).cpu().double().sum())


def factors(magnitudes: Sequence[float], windows: Sequence[Window], name: str) -> tuple[float, ...]:
    """How much louder the stream is behind each window than in front of it.

    Args:
        magnitudes: of h_0 to h_L.
        windows: blocks that go.
        name: of the model, for the error.

    Raises:
        MeasureError: the stream is all zeros on one side.
    """
    found = []
    for window in windows:
        before, behind = magnitudes[window.start], magnitudes[window.stop]
        if before <= 0 or behind <= 0:
            raise MeasureError(
                f"the residual stream of '{name}' is zero in front of block {window.start} or behind block "
                f"{window.stop - 1}: there is no factor between the two. Drop the blocks alone (surgery 'drop')"
            )
        found.append(behind / before)
    return tuple(found)


class Seams:
    """Shows, for each window, what the MLP in front of it writes and the stream on both sides; pads left out.

    Where batches are the outer loop, as they are for models in memory, no more than one batch is kept.

    Args:
        decoder: the model.
        windows: blocks that go; none begins at block 0.
    """

    def __init__(self, decoder: Decoder, windows: Sequence[Window]) -> None:
        self._before = {window.start - 1: window for window in windows}
        self._behind = {window.stop - 1: window for window in windows}
        self.last_block = max(self._behind)
        self._writes = {layer: writes_of(decoder, layer) for layer in self._before}
        self._output: torch.Tensor | None = None
        self._open: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}

    def seam(
        self, window: Window, batch: int, written: torch.Tensor, before: torch.Tensor, behind: torch.Tensor
    ) -> None:
        """Told of one batch at one window.

        Args:
            window: blocks that go.
            batch: index of the batch.
            written: (tokens, width) M, in the model's dtype.
            before: (tokens, width) h_s, in the model's dtype.
            behind: (tokens, width) h_(s+n), in the model's dtype.
        """
        raise NotImplementedError

    @contextmanager
    def around(self, layer: int, block: nn.Module) -> Iterator[None]:
        """Catch what the MLP of a block in front of a window writes."""
        if layer not in self._before:
            yield
            return
        writes = self._writes[layer]
        assert writes.projection is not None

        def catch(_module: nn.Module, _given: Any, output: torch.Tensor) -> None:
            self._output = output * writes.multiplier  # a copy in any case: Falcon adds to the output in place

        handle = block.get_submodule(writes.projection).register_forward_hook(catch)
        try:
            yield
        finally:
            handle.remove()

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Bring together what belongs together."""
        del inputs
        real = mask.bool().to(outputs.device)
        behind = self._behind.get(at.layer)
        if behind is not None:
            written, before = self._open.pop((behind.start, at.batch))
            self.seam(behind, at.batch, written, before, outputs[real].to(before.device))
        if at.layer in self._before:
            assert self._output is not None
            written, self._output = self._output.reshape(outputs.shape)[real], None
            self._open[self._before[at.layer].start, at.batch] = (written, outputs[real])
