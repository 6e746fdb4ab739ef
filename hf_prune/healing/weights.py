"""Weights trained themselves: in float32 while they are trained, cast once at the end."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.trained import State


@dataclass(frozen=True)
class Weights:
    """Some of a model's own parameters; see `Trainable`."""

    kind: ClassVar[Literal["weights"]] = "weights"

    names: tuple[str, ...]
    lowest: int
    warning: str | None = None
    keep_whole: tuple[str, ...] = ()

    @classmethod
    def of(cls, decoder: Decoder, names: Sequence[str], warning: str | None = None) -> "Weights":
        """The parameters of these names.

        Args:
            decoder: the pruned model.
            names: full names, as `named_parameters` has them (tied ones once).
            warning: sentence where this is not what was asked for.

        Raises:
            ConfigError: there is none.
        """
        if not names:
            raise ConfigError(
                f"healing has nothing to train in '{decoder.name}'; expected parameters. Take target 'mlp'"
            )
        path = f"{decoder.blocks_path}."
        inside = [int(name.removeprefix(path).partition(".")[0]) for name in names if name.startswith(path)]
        embeddings = {id(p) for p in decoder.model.get_input_embeddings().parameters()}
        known = dict(decoder.model.named_parameters())
        lowest = 0 if any(id(known[name]) in embeddings for name in names) else min(inside, default=decoder.num_layers)
        modules = sorted({name.rpartition(".")[0] for name in names})
        return cls(tuple(names), lowest, warning, tuple(modules))

    def begin(self, model: PreTrainedModel, config: HealingConfig) -> PreTrainedModel:
        """See `Trainable.begin`."""
        chosen = set(self.names)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
            if name in chosen:
                parameter.data = parameter.data.float()
        return model

    def state(self, trainee: nn.Module) -> State:
        """See `Trainable.state`."""
        known = dict(trainee.named_parameters())
        return {name: known[name].detach().float().cpu().clone() for name in self.names}

    @torch.no_grad()
    def restore(self, trainee: nn.Module, state: State) -> None:
        """See `Trainable.restore`."""
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
