"""The same linear map as least squares finds, but the one whose direction comes closest."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from hf_prune.activation_store import ActivationStore
from hf_prune.architecture import Decoder
from hf_prune.errors import ConfigError
from hf_prune.fitting.replaceme import check_foldable, check_tokens, folded
from hf_prune.fitting.seams import Seams, in_batches, split, walk
from hf_prune.fitting.task import Fitted, Task, Window
from hf_prune.progress import tqdm
from hf_prune.records import ranges
from hf_prune.registry import fitted


@fitted(
    "replaceme_cosine",
    title="Drop, and fold the linear map whose direction comes closest into the MLP before (trained)",
    url="https://arxiv.org/abs/2505.02819",
    needs="text",
)
def replaceme_cosine(
    task: Task,
    *,
    epochs: int = 10,
    learning_rate: float = 1e-4,
    tokens_at_once: int = 1024,
    max_tokens: int = 65536,
    accurate: bool = False,
    held_out: float = 0.2,
    min_tokens_per_width: int = 10,
) -> Fitted:
    """ReplaceMe by cosine: T = argmin Σ 1 - cos(M T, h_(s+n) - Y) (section 3.3), by Adam from T = I.

    Names as in `replaceme`. That loss does not mind how large M T is beside Y; the released code has another one for
    that, `accurate`: 1 - cos(Y + M T, h_(s+n)). The map is used only where it brings the stream itself closer: that
    very figure, on held-out text, has to be lower than dropping's, 1 - cos(h_s, h_(s+n)). Each of several windows is
    fitted on the original.

    Args:
        task: what goes of which model.
        epochs: passes over the tokens.
        learning_rate: of Adam.
        tokens_at_once: tokens of one step.
        accurate: train on the stream itself in place of what the MLP should write.
        max_tokens: that are kept, in memory or on disk, three states each; whole samples, the first ones.
        held_out: share of the calibration samples that decide, the last ones.
        min_tokens_per_width: tokens that are fitted to, for each channel of the stream, at least.

    Raises:
        ConfigError: block 0 goes, there is too little text (names how much would do), or an option is out of range.
        ArchitectureError: the MLP in front has no single output that is added to the stream as it is; names why.
        CheckpointError: the weights are quantized.
        OutputError: the disk has no room for the states.
    """
    if epochs < 1 or tokens_at_once < 1 or learning_rate <= 0:
        raise ConfigError(
            f"epochs={epochs}, tokens_at_once={tokens_at_once}, learning_rate={learning_rate}; expected at least 1, "
            "at least 1, and more than 0"
        )
    check_foldable(task, "replaceme_cosine")
    width = task.decoder.config.hidden_size
    enough = math.ceil(min_tokens_per_width * width / (1 - held_out)) if 0 < held_out < 1 else 0
    if max_tokens < enough:  # more samples would not help
        raise ConfigError(
            f"max_tokens={max_tokens}: a map of {width} x {width} numbers takes {min_tokens_per_width} x {width} "
            f"tokens beside those that are held out ({held_out}); expected at least {enough}, or surgery "
            "'replaceme', which keeps none"
        )
    fit, decide = split(_first(task.sequences, max_tokens), held_out, "replaceme_cosine")
    check_tokens(task, fit, min_tokens_per_width, "replaceme_cosine")
    seen = KeptSeams(task.decoder, task.windows(), task.scratch)
    walk(task, [fit, decide], [seen])
    fits = range(len(in_batches(task, fit)))
    changes: list[torch.Tensor | None] = []
    notes: list[str] = []
    for window in task.windows():
        trained = _train(seen, window, fits, task, epochs, learning_rate, tokens_at_once, accurate)
        held = range(len(fits), seen.batches)
        error, dropped = _seam(seen, window, held, trained), _seam(seen, window, held, None)
        used = error < dropped
        changes.append(trained.double() if used else None)
        tried = f"1 - cos at the seam is {error:.4g} on held-out text, {dropped:.4g} without it"
        notes.append(
            f"A linear map stands in for layers {ranges(window.layers)}, folded into the MLP of layer "
            f"{window.start - 1}: {tried}."
            if used
            else f"A linear map in place of layers {ranges(window.layers)} was trained and NOT used: {tried}."
        )
    return folded(task, changes, tuple(notes))


def _first(sequences: Sequence[torch.Tensor], most: int) -> list[torch.Tensor]:
    """The first sequences that together have no more than so many tokens."""
    kept, tokens = [], 0
    for ids in sequences:
        tokens += len(ids)
        if tokens > most:
            break
        kept.append(ids)
    return kept


class KeptSeams(Seams):
    """Keeps the states on both sides of each window.

    Args:
        decoder: the model.
        windows: see `Seams`.
        scratch: folder for what memory has no room for.
    """

    def __init__(self, decoder: Decoder, windows: Sequence[Window], scratch: Path | None) -> None:
        super().__init__(decoder, windows)
        self._store, self.batches = ActivationStore(folder=scratch), 0

    def seam(
        self, window: Window, batch: int, written: torch.Tensor, before: torch.Tensor, behind: torch.Tensor
    ) -> None:
        """Keep one batch's rows."""
        self._store[window.start, batch] = torch.stack([written, before, behind]).cpu()
        self.batches = max(self.batches, batch + 1)

    def rows(
        self, window: Window, batch: int, device: torch.device
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """M, h_s and h_(s+n) of one batch, each (tokens, width) float32."""
        written, before, behind = self._store[window.start, batch].to(device).float().clone().unbind()
        return written, before, behind

    def sums(self) -> list[torch.Tensor]:
        """None: this observer runs in one process."""
        return []

    def result(self) -> dict[str, Any]:
        """Nothing: see `rows`."""
        return {}


def _train(
    seen: KeptSeams,
    window: Window,
    numbers: Sequence[int],
    task: Task,
    epochs: int,
    rate: float,
    at_once: int,
    accurate: bool,
) -> torch.Tensor:
    """Δ = T - I, (width, width) float32."""
    weight = next(task.decoder.blocks[window.start - 1].parameters())
    change = torch.zeros(task.decoder.config.hidden_size, task.decoder.config.hidden_size, device=weight.device)
    change.requires_grad_()
    optimizer = torch.optim.Adam([change], lr=rate)
    generator = torch.Generator().manual_seed(task.seed)
    for _ in tqdm(range(epochs), f"fitting layers {ranges(window.layers)}", unit="epoch", disable=not task.progress):
        for written, before, behind in _pieces(seen, window, numbers, weight.device, at_once, generator):
            rest = 0 if accurate else before - written
            loss = _distance(before + written @ change - rest, behind - rest).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return change.detach()


def _pieces(
    seen: KeptSeams,
    window: Window,
    numbers: Sequence[int],
    device: torch.device,
    at_once: int,
    generator: torch.Generator,
) -> Iterator[tuple[torch.Tensor, ...]]:
    """All rows once, in a drawn order: batches in turn, and within each its rows."""
    for turn in torch.randperm(len(numbers), generator=generator).tolist():
        rows = seen.rows(window, numbers[turn], device)
        order = torch.randperm(len(rows[0]), generator=generator)
        for some in order.split(math.ceil(len(order) / math.ceil(len(order) / at_once))):
            yield tuple(states[some.to(device)] for states in rows)


def _seam(seen: KeptSeams, window: Window, numbers: Sequence[int], change: torch.Tensor | None) -> float:
    """Mean over tokens of 1 - cos(Y + M T, h_(s+n))."""
    total, count = 0.0, 0
    device = torch.device("cpu") if change is None else change.device
    for number in numbers:
        written, before, behind = seen.rows(window, number, device)
        reached = before if change is None else before + written @ change
        distances = _distance(reached, behind)
        total, count = total + float(distances.sum()), count + len(distances)
    return total / count


def _distance(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """(tokens,) 1 - cos, as half the squared distance of the unit vectors: 0 to the bit for equal states."""
    normalize = torch.nn.functional.normalize
    return (normalize(one, dim=-1) - normalize(two, dim=-1)).square().sum(-1) / 2
