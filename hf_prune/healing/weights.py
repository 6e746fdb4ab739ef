"""Weights trained themselves: in float32 while they are trained, cast once at the end."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.targets import quiet_modules
from hf_prune.healing.trained import State
from hf_prune.units import Unit


@dataclass(frozen=True)
class Weights:
    """Some of a model's own parameters; see `Trainable`.

    Training takes 16 bytes for each of them (weight, gradient and AdamW's two moments, all float32), and nothing
    beyond what they take anyway for all others. `state` copies them once more, 4 bytes each, on the CPU.
    """

    kind: ClassVar[Literal["weights"]] = "weights"

    names: tuple[str, ...]
    lowest: int
    warning: str | None = None
    keep_whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, decoder: Decoder, names: Sequence[str], warning: str | None = None) -> "Weights":
        """The parameters of these names.

        Args:
            decoder: the pruned model, with weights or without.
            names: full names, as `named_parameters` has them (tied ones once).
            warning: sentence where this is not what was asked for.

        Raises:
            ConfigError: there is none.
        """
        if not names:
            raise ConfigError(
                f"healing has nothing to train in '{decoder.name}': all of it is silenced; expected parameters. Take "
                "target 'mlp'"
            )
        known = dict(decoder.model.named_parameters())
        path = f"{decoder.blocks_path}."
        inside = [int(name.removeprefix(path).partition(".")[0]) for name in names if name.startswith(path)]
        tables = {id(p) for m in decoder.base.modules() if isinstance(m, nn.Embedding) for p in m.parameters()}
        lowest = 0 if any(id(known[name]) in tables for name in names) else min(inside, default=decoder.num_layers)
        modules = {name.rpartition(".")[0] for name in names}
        return cls(tuple(names), lowest, warning, tuple(sorted(modules - {""})))

    def begin(self, model: PreTrainedModel, config: HealingConfig) -> PreTrainedModel:
        """See `Trainable.begin`."""
        chosen = set(self.names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
            if name in chosen:
                parameter.data = parameter.data.float()
        packed: Any = model
        if getattr(packed, "is_quantized", False):
            # Trainer takes this word for a model of which every weight is packed, and refuses it without adapters.
            packed.is_quantized = False
        return model

    def state(self, trainee: nn.Module) -> State:
        """See `Trainable.state`."""
        known = dict(trainee.named_parameters())
        return {name: known[name].detach().to("cpu", torch.float32, copy=True) for name in self.names}

    @torch.no_grad()
    def restore(self, trainee: nn.Module, state: State) -> None:
        """See `Trainable.restore`; casts to the dtype that each has there."""
        known = dict(trainee.named_parameters())
        for name, tensor in state.items():
            known[name].copy_(tensor)

    def attach(self, model: PreTrainedModel, config: HealingConfig, state: State, base_model: str) -> PreTrainedModel:
        """See `Trainable.attach`; the whole model computes in float32 then."""
        model.float()
        self.restore(model, state)
        return model

    def merge(self, model: PreTrainedModel, config: HealingConfig, state: State) -> None:
        """See `Trainable.merge`."""
        self.restore(model, state)


def in_blocks(decoder: Decoder, positions: Iterable[int], silent: Collection[Unit]) -> list[str]:
    """Full names of the parameters of some blocks, but for those of silenced parts: these are to stay silent.

    Args:
        decoder: the pruned model.
        positions: of the blocks.
        silent: parts that write nothing.
    """
    prefixes = tuple(decoder.block_prefix(at) for at in positions)
    return [name for name in speaking(decoder, silent) if name.startswith(prefixes)]


def speaking(decoder: Decoder, silent: Collection[Unit]) -> list[str]:
    """Full names of all parameters but those of silenced parts, and those that no gradient reaches by design.

    Args:
        decoder: the pruned model, as it was made: of a copy made for training, all is frozen.
        silent: parts that write nothing.
    """
    quiet = tuple(f"{name}." for name in quiet_modules(decoder, silent))
    named = decoder.model.named_parameters()
    return [name for name, parameter in named if parameter.requires_grad and not name.startswith(quiet)]
