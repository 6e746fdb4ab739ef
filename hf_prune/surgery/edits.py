"""What happens to the numbers of a model that is cut without being loaded: noted now, done when they pass by."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

Change = Callable[[torch.Tensor, int], torch.Tensor]
"""Gets some of a tensor's numbers, flat and in the dtype that the model has them in, and the index of the first of
them; returns as many in the same dtype."""


@dataclass(frozen=True)
class Edit:
    """A change of one tensor.

    Attributes:
        change: see `Change`.
        fresh: whether it makes the numbers anew, and those of before need not be read.
        alike: whether it treats every number alike, wherever it lies: a tensor that is stored in pieces, as experts
            are, can be changed piece by piece.
    """

    change: Change
    fresh: bool = False
    alike: bool = False


class Edits:
    """The changes of all tensors of a model, by parameter: renumbering its blocks meanwhile does not matter."""

    def __init__(self) -> None:
        self._edits: dict[int, tuple[torch.Tensor, list[Edit]]] = {}

    def add(self, parameter: torch.Tensor, edit: Edit) -> None:
        """Note a change, to be made after those that were noted before.

        Args:
            parameter: of the model without weights.
            edit: what happens to it.
        """
        _, edits = self._edits.setdefault(id(parameter), (parameter, []))
        if edit.fresh:
            edits.clear()
        edits.append(edit)

    def of(self, parameter: torch.Tensor) -> tuple[Edit, ...]:
        """The changes of a parameter, in order."""
        return tuple(self._edits.get(id(parameter), (parameter, []))[1])

    def __len__(self) -> int:
        """Parameters that change."""
        return len(self._edits)
