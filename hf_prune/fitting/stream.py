"""A map of the residual stream stands in for the blocks that go."""

import math
from collections.abc import Sequence
from typing import Any

import torch

from hf_prune.errors import ConfigError, MeasureError
from hf_prune.fitting.replaceme import check_tokens
from hf_prune.fitting.seams import check_behind_a_block, check_text, in_batches, split, walk
from hf_prune.fitting.task import Fitted, Task, Window, drop
from hf_prune.joint_moments import JointMoments, best_map, left_over, spectrum
from hf_prune.observing import Place
from hf_prune.patching.families import check_patchable
from hf_prune.records import Operation, ranges
from hf_prune.registry import fitted


@fitted(
    "emulate",
    title="Drop, and add the low-rank map of the stream that comes closest to what the blocks added",
    url="https://arxiv.org/abs/2407.16286",
    needs="text",
)
def emulate(task: Task, *, rank: int | None = 0, held_out: float = 0.2, min_tokens_per_width: int = 10) -> Fitted:
    """Emulated updates: h_s becomes h_s + B A h_s + b in the place of blocks s … s+n-1 (A deeper look, section 4).

    Rank 0 is the paper's mean update, b = E (h_(s+n) - h_s). With rank r, B A is the best map of that rank for the
    mean squared error in closed form (reduced-rank regression); None takes the full least-squares map, of which
    LinearPatch's is a special case. The paper trains its low-rank maps and released no code for them. Each of several
    windows is fitted on the original. Held-out text decides whether a map is used.

    Args:
        task: what goes of which model.
        rank: of B A; None for a full (width, width) map.
        held_out: share of the calibration samples that decide, the last ones.
        min_tokens_per_width: tokens that are fitted to, for each channel of the stream, at least; for rank 0 any
            number does.

    Raises:
        ConfigError: block 0 goes, the rank is out of range, or there is too little text; names how much would do.
        ArchitectureError: there is no modeling code for such models of this family.
        MeasureError: hidden states are not finite.
    """
    width = task.decoder.config.hidden_size
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or not 0 <= rank < width):
        raise ConfigError(f"rank={rank!r}; expected a whole number from 0 to {width - 1}, or None for a full map")
    _check(task, "emulate")
    fit, decide = split(task.sequences, held_out, "emulate")
    if rank != 0:
        check_tokens(task, fit, min_tokens_per_width, "emulate")
    seen = WindowMoments(task.windows(), len(in_batches(task, fit)))
    walk(task, [fit, decide], [seen])
    kind = "map" if rank is None else "mean update" if rank == 0 else f"map of rank {rank}"
    found = [(w, *_emulated(seen.fitted_to[w.start], rank), seen.held_out[w.start]) for w in task.windows()]
    return _fitted(task, [(w, weight, bias, rank, judge) for w, weight, bias, judge in found], kind)


def _emulated(moments: JointMoments, rank: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """The best weight (width, width) of a rank, and its bias."""
    before, added = moments.means()
    if rank == 0:
        return torch.zeros_like(moments.covariances()[0]), added
    weight, bias = best_map(moments)
    if rank is None:
        return weight, bias
    # Of what the full map writes, the directions of most variance (reduced-rank regression).
    turned = best_directions(weight @ moments.covariances()[0] @ weight.T, rank)
    weight = turned @ (turned.T @ weight)
    return weight, added - weight @ before


def best_directions(covariance: torch.Tensor, rank: int) -> torch.Tensor:
    """(width, up to rank): the eigenvectors of a covariance with the largest eigenvalues."""
    return spectrum(covariance)[1][:, -rank:]


@fitted(
    "linear_patch",
    title="Drop, and scale the stream channel by channel in a rotated basis",
    url="https://arxiv.org/abs/2505.24680",
    needs="text",
)
def linear_patch(task: Task, *, held_out: float = 0.2) -> Fitted:
    """LinearPatch: h_s becomes P h_s, P = H diag(δ) Hᵀ, in the place of blocks s … s+n-1 (section 3).

    δ_c is the mean over samples of E_t |h_(s+n) H|_c / E_t |h_s H|_c. H is Sylvester's Hadamard matrix; where the
    width is 2^k m with m odd, that of size 2^k, with the cosine basis of size m (the released code has tables for some
    m). The paper's distillation of P is not done here: healing trains what it trains. Held-out text decides whether
    the patch is used.

    Args:
        task: what goes of which model.
        held_out: share of the calibration samples that decide, the last ones.

    Raises:
        ConfigError: block 0 goes, or there is too little text.
        ArchitectureError: there is no modeling code for such models of this family.
        MeasureError: hidden states are not finite.
    """
    _check(task, "linear_patch")
    fit, decide = split(task.sequences, held_out, "linear_patch")
    basis = hadamard(task.decoder.config.hidden_size)
    seen = WindowMoments(task.windows(), len(in_batches(task, fit)), basis)
    walk(task, [fit, decide], [seen])
    found = []
    for window in task.windows():
        factors = seen.ratios[window.start] / seen.samples[window.start]
        weight = basis @ torch.diag(factors - 1) @ basis.T
        found.append((window, weight, torch.zeros(len(weight), dtype=weight.dtype), None, seen.held_out[window.start]))
    return _fitted(task, found, "scale of rotated channels")


def hadamard(width: int) -> torch.Tensor:
    """An orthogonal (width, width) float64 matrix whose entries are all about as large, see `linear_patch`."""
    odd = width // (width & -width)
    points = torch.arange(odd, dtype=torch.float64)
    basis = torch.cos(math.pi / odd * (points[:, None] + 0.5) * points) * math.sqrt(2 / odd)
    basis[:, 0] /= math.sqrt(2)
    while len(basis) < width:
        basis = torch.cat([torch.cat([basis, basis], 1), torch.cat([basis, -basis], 1)]) / math.sqrt(2)
    return basis


def _check(task: Task, surgery: str) -> None:
    check_text(task, surgery)
    check_behind_a_block(task, surgery)
    check_patchable(task.decoder.config, task.decoder.name)


def _fitted(
    task: Task,
    found: Sequence[tuple[Window, torch.Tensor, torch.Tensor, int | None, JointMoments]],
    kind: str,
) -> Fitted:
    """The answer: the maps that do better than nothing on held-out text."""
    layers: list[int] = []
    tensors: dict[str, torch.Tensor] = {}
    notes = []
    rank: int | None = None
    for window, weight, bias, rank, judge in found:
        rest = left_over(judge, weight.to(judge.table), bias.to(judge.table))
        if not math.isfinite(rest):
            raise MeasureError(
                f"the hidden states around layers {ranges(window.layers)} of '{task.decoder.name}' are not finite. "
                "Try another --dtype (bfloat16 or float32 instead of float16)"
            )
        used = rest < 1
        notes.append(
            f"A {kind} {'stands' if used else 'was fitted, NOT used,'} in for layers {ranges(window.layers)}: on "
            f"held-out text it gets {rest:.1%} of the square of what they added wrong, where dropping alone gets "
            "100 %."
        )
        if not used:
            continue
        tensors |= {f"{len(layers)}.{n}": t.float().cpu() for n, t in _parameters(weight, bias, rank).items()}
        layers.append(window.start - 1)
    patched = [Operation("patch", tuple(layers), {"rank": rank})] if layers else []
    return Fitted((drop(task.layers), *patched), tensors, tuple(notes))


def _parameters(weight: torch.Tensor, bias: torch.Tensor, rank: int | None) -> dict[str, torch.Tensor]:
    """What a patch of the shipped code holds."""
    if rank is None:
        return {"up.weight": weight, "up.bias": bias}
    if rank == 0:
        return {"bias": bias}
    left, values, right = torch.linalg.svd(weight)
    root = values[:rank].sqrt()
    return {"down.weight": root[:, None] * right[:rank], "up.weight": left[:, :rank] * root, "up.bias": bias}


class WindowMoments:
    """Joint moments of the stream in front of each window and of what its blocks add.

    Args:
        windows: blocks that go.
        fit: number of batches that are fitted to; the others judge.
        basis: (width, width) float64; with it, the growth of the channels in that basis is added up as well, over the
            samples that are fitted to.
    """

    def __init__(self, windows: Sequence[Window], fit: int, basis: torch.Tensor | None = None) -> None:
        self._behind = {window.stop - 1: window for window in windows}
        self._starts = {window.start for window in windows}
        self.last_block = max(self._behind)
        self._fit, self._basis = fit, basis
        self._open: dict[tuple[int, int], torch.Tensor] = {}
        self.fitted_to: dict[int, JointMoments] = {}
        self.held_out: dict[int, JointMoments] = {}
        self.ratios: dict[int, torch.Tensor] = {}
        self.samples: dict[int, int] = {}

    def see(self, at: Place, inputs: torch.Tensor, outputs: torch.Tensor, mask: torch.Tensor) -> None:
        """Bring together what belongs together."""
        if at.layer in self._starts:
            self._open[at.layer, at.batch] = inputs.cpu().double()
        window = self._behind.get(at.layer)
        if window is None:
            return
        before, behind = self._open.pop((window.start, at.batch)), outputs.cpu().double()
        real = mask.cpu().bool()
        groups = self.fitted_to if at.batch < self._fit else self.held_out
        groups.setdefault(window.start, JointMoments.zeros(before.shape[-1])).add(
            before[real], (behind - before)[real]
        )
        if self._basis is not None and at.batch < self._fit:
            for one, other, row in zip(before, behind, real, strict=True):
                self._grow(window.start, one[row] @ self._basis, other[row] @ self._basis)

    def _grow(self, start: int, before: torch.Tensor, behind: torch.Tensor) -> None:
        small, large = before.abs().mean(0), behind.abs().mean(0)
        ratio = torch.where(small > 0, large / small, torch.ones_like(small))
        self.ratios[start] = self.ratios.get(start, 0) + ratio
        self.samples[start] = self.samples.get(start, 0) + 1

    def sums(self) -> list[torch.Tensor]:
        """(2 width + 1, 2 width + 1) of each window, those that are fitted to first; see `JointMoments`."""
        return [moments.table for group in (self.fitted_to, self.held_out) for moments in group.values()]

    def result(self) -> dict[str, Any]:
        """Nothing: see the attributes."""
        return {}
