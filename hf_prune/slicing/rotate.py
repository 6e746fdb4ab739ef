"""Fill a sliced model from its base, given the basis of the residual stream at each point."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.slicing.blank import put_parameter, rest_of
from hf_prune.slicing.fold import NormScale, norm_scale, read_by, reading, write_by, writing
from hf_prune.slicing.modeling.sliced import Step


class Rotator:
    """Moves weights from a base model into a blank sliced one.

    A basis is a (D, d) float64 matrix with orthonormal columns; products are formed in float64 and cast once.

    Args:
        decoder: the base.
        sliced: from `blank_model`.
    """

    def __init__(self, decoder: Decoder, sliced: Any) -> None:
        self.decoder, self.sliced = decoder, sliced
        self.width: int = decoder.config.hidden_size
        self.blocks: Any = sliced.get_submodule(decoder.blocks_path)
        norm = decoder.model.get_submodule(sliced.final_norm)
        self._final = norm_scale(norm, self.width, sliced.norm_offset)
        self.centred = self._final.centred

    def norm_of(self, layer: int, name: str) -> NormScale:
        """A norm of a block of the base."""
        return norm_scale(self.decoder.blocks[layer].get_submodule(name), self.width, self.sliced.norm_offset)

    def tables(self, basis: torch.Tensor) -> None:
        """Embeddings (and learned positions): E Q."""
        right = writing(basis, self.centred)
        for name in self.sliced.tables:
            self._put(self.sliced, write_by(self.decoder.model, name, right))

    def readers(self, layer: int, step: Step, basis: torch.Tensor) -> None:
        """What reads the stream: W diag(scale) Q, bias + W shift."""
        for branch in step.branches:
            norm = self.norm_of(layer, branch.norm)
            right = reading(basis, norm)
            for name in branch.readers:
                self._put(self.blocks[layer], read_by(self.decoder.blocks[layer], name, right, norm))

    def writers(self, layer: int, step: Step, basis: torch.Tensor | None) -> None:
        """What writes to the stream: Q^T W, Q^T b; without a basis in the base's own one."""
        if basis is None and self.centred:
            basis = torch.eye(self.width, dtype=torch.float64)
        right = None if basis is None else writing(basis, self.centred)
        for branch in step.branches:
            for name in branch.writers:
                self._put(self.blocks[layer], write_by(self.decoder.blocks[layer], name, right))

    def shortcut(self, layer: int, step: Step, before: torch.Tensor, behind: torch.Tensor) -> None:
        """The residual's change of basis S = Q_before^T Q_behind; an nn.Linear holds S^T."""
        product = (behind.T @ before).to(self.decoder.model.dtype)
        self._put(self.blocks[layer], {f"{step.shortcut}.weight": product.contiguous()})

    def rest(self, layer: int) -> None:
        """What neither reads nor writes the stream (norms of queries and keys) stays as it is."""
        block = self.decoder.blocks[layer]
        names = rest_of(block, self.blocks[layer])
        self._put(self.blocks[layer], {name: block.get_parameter(name).detach().clone() for name in names})

    def head(self, first: torch.Tensor, last: torch.Tensor) -> None:
        """The head reads the last point; a tied one is the table itself, behind a map between both ends.

        logits = E diag(scale) x is, in the basis Q of the embeddings and Q' of the last point, (E Q)(map x') with
        map = B diag(scale) Q', where B is the best d x D matrix for E ~ (E Q) B (least squares over the vocabulary:
        B = Q^T where nothing is sliced).

        Args:
            first: basis of the embeddings.
            last: basis of the last point.
        """
        model, sliced = self.decoder.model, self.sliced
        head: Any = model.get_output_embeddings()
        name = next(key for key, module in model.named_modules() if module is head)
        right = reading(last, self._final)
        if not sliced.config.tie_word_embeddings:
            self._put(sliced, read_by(model, name, right, self._final))
            return
        sliced.get_output_embeddings().weight = sliced.get_input_embeddings().weight
        back = best_inverse(head.weight.detach(), first)
        norm_map = (back @ right).to(model.dtype).contiguous()
        self._put(sliced, {f"{sliced.final_norm}.map.weight": norm_map})

    def _put(self, owner: nn.Module, made: dict[str, torch.Tensor]) -> None:
        for name, tensor in made.items():
            put_parameter(owner, name, tensor)


def best_inverse(table: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The (d, D) matrix B that makes (E Q) B nearest to E: (Q^T G Q)^-1 Q^T G with G = E^T E, in float64.

    Args:
        table: (V, D) embeddings E.
        basis: (D, d) Q.
    """
    gram = _gram(table)
    left = basis.T @ gram
    # A vocabulary smaller than D leaves directions that no token uses; the pseudo-inverse sets nothing there.
    return torch.linalg.pinv(left @ basis, hermitian=True) @ left


def _gram(table: torch.Tensor, rows: int = 8192) -> torch.Tensor:
    width = table.shape[1]
    total = torch.zeros(width, width, dtype=torch.float64, device=table.device)
    for start in range(0, len(table), rows):
        piece = table[start : start + rows].double()
        total += piece.T @ piece
    return total


def fill(decoder: Decoder, sliced: Any, points: Sequence[torch.Tensor]) -> None:
    """Fill a whole sliced model from bases that are known.

    Args:
        decoder: the base.
        sliced: blank.
        points: one basis at each point: embeddings, then behind each step of each block.
    """
    rotator = Rotator(decoder, sliced)
    rotator.tables(points[0])
    at = 0
    for layer in range(decoder.num_layers):
        for step in rotator.blocks[layer].own_steps:
            before, behind = points[at], points[at + 1]
            rotator.readers(layer, step, before)
            rotator.writers(layer, step, behind)
            if sliced.config.slice_shortcuts:
                rotator.shortcut(layer, step, before, behind)
            at += 1
        rotator.rest(layer)
    rotator.head(points[0], points[-1])
