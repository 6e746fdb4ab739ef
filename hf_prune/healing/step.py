"""The loss of one micro-batch: the pruned model's forward, the original's beside it where a loss needs that."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import torch
from torch import nn

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.origin import Origin
from hf_prune.healing.prefix import Inputs, Prefix, capturing, entering, freeze_below
from hf_prune.healing.registries import loss as registry
from hf_prune.healing.rows import MODEL_INPUTS
from hf_prune.healing.view import TeacherView, View


class Teacher(Protocol):
    """The original model, as far as losses ask for it."""

    def view(self, inputs: Inputs) -> TeacherView:
        """What the original makes of a micro-batch, without gradients."""
        ...


@dataclass(frozen=True)
class WeightedLoss:
    """One term of the loss.

    Attributes:
        name: in the registry.
        weight: its factor.
        needs: see `registries`.
        function: view -> sum over the positions that count.
    """

    name: str
    weight: float
    needs: str
    function: Callable[[View], torch.Tensor]


def parse_losses(config: HealingConfig) -> tuple[WeightedLoss, ...]:
    """The terms that `config.loss` names: "kl", or "next_token=1,kl=0.5".

    Raises:
        ConfigError: an unknown name, one twice, or a weight that is no number above 0.
    """
    found: dict[str, WeightedLoss] = {}
    for part in (config.loss or "").split(","):
        name, _, number = (piece.strip() for piece in part.partition("="))
        entry = registry.get(name)
        try:
            weight = float(number or 1)
        except ValueError:
            weight = 0.0
        if not 0 < weight < float("inf") or name in found:
            expected = "each name once" if name in found else "a weight above 0"
            raise ConfigError(
                f"healing.loss={config.loss!r}: '{part.strip()}'; expected {expected}, such as 'next_token=1,kl=0.5'"
            )
        settings = {key: getattr(config, key) for key in entry.options()}
        found[name] = WeightedLoss(name, weight, entry.needs, partial(entry.function, **settings))
    return tuple(found.values())


def compared_positions(losses: Sequence[WeightedLoss], origin: Origin) -> tuple[int, ...]:
    """Positions in the pruned model at which hidden states of both models are compared."""
    needs = {loss.needs for loss in losses}
    positions = set(origin.seams) if "seams" in needs else set()
    if "behind" in needs:
        positions |= set(range(min(origin.seams, default=0), len(origin.kept) + 1))
    return tuple(sorted(positions))


class Step:
    """The loss of micro-batches.

    Args:
        decoder: the pruned model, as it was before adapters came into its blocks.
        losses: the terms.
        positions: where hidden states are compared.
        teacher: the original, where a term needs it.
        frozen: blocks below all that is trained; they and the embeddings run without dropout.
        prefix: where hidden states behind the frozen prefix come from; None lets the model compute them.
        tuples: whether the model's blocks return tuples; matters with a prefix alone.
        seams: those of the positions that stand behind a gap.
    """

    def __init__(
        self,
        decoder: Decoder,
        losses: Sequence[WeightedLoss],
        *,
        positions: tuple[int, ...] = (),
        teacher: Teacher | None = None,
        frozen: int = 0,
        prefix: Prefix | None = None,
        tuples: bool = False,
        seams: tuple[int, ...] = (),
    ) -> None:
        self.decoder, self.losses, self.positions = decoder, tuple(losses), positions
        self.teacher, self.frozen, self.prefix, self._tuples = teacher, frozen, prefix, tuples
        self.seams = tuple(at for at in seams if at in positions)

    def view(self, model: nn.Module, inputs: Inputs) -> View:
        """What pruned and original model make of a micro-batch.

        Args:
            model: what is trained, possibly wrapped for several devices.
            inputs: from `rows.collate`, on the model's device.
        """
        teacher = None if self.teacher is None else self.teacher.view(inputs)
        depth = 0 if self.prefix is None else self.prefix.depth
        hidden = None if self.prefix is None else self.prefix.hidden(inputs, teacher)
        given: dict[str, Any] = {name: inputs[name] for name in MODEL_INPUTS if name in inputs}
        looked_at = self.positions if self.prefix is None or hidden is not None else (*self.positions, depth)
        freeze_below(self.decoder, self.frozen)
        with entering(self.decoder, depth, hidden, self._tuples), capturing(self.decoder, looked_at) as states:
            logits = model(**given, use_cache=False).logits
        if self.prefix is not None and hidden is None:
            self.prefix.keep(inputs, states[depth])
        compared = {position: states[position] for position in self.positions}
        return View(logits, inputs["labels"], compared, teacher, self.seams)

    def __call__(self, model: nn.Module, inputs: Inputs) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The weighted sum of all terms over the positions that count, and each term's own sum, without gradients.

        All of them stay where they were computed: to read one would let a GPU wait in each micro-batch.

        Args:
            model: see `view`.
            inputs: see `view`.
        """
        view = self.view(model, inputs)
        sums = {term.name: term.function(view) for term in self.losses}
        total = torch.stack([term.weight * sums[term.name] for term in self.losses]).sum()
        return total, {name: value.detach() for name, value in sums.items()}
