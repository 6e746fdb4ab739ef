"""What is trained: adapters beside the weights, or weights themselves; taken off as tensors, put on, made one."""

from typing import Any, Literal, Protocol

import torch
from torch import nn
from transformers import PreTrainedModel

from hf_prune.config import HealingConfig

State = dict[str, torch.Tensor]
"""Trained tensors in float32 on the CPU, by name."""


class Trainable(Protocol):
    """What a healing target chooses in one model."""

    @property
    def kind(self) -> Literal["adapters", "weights"]:
        """Adapters beside the weights, or weights themselves."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is trained, for the record: module names within a block, or whole tensor names."""
        ...

    @property
    def lowest(self) -> int:
        """Position of the lowest block that holds something trained; 0 also where the embeddings do."""
        ...

    @property
    def warning(self) -> str | None:
        """Sentence where this is not what was asked for."""
        ...

    @property
    def keep_whole(self) -> tuple[str, ...]:
        """Names of modules that must not be quantized, as they are trained."""
        ...

    def begin(self, model: PreTrainedModel, config: HealingConfig) -> Any:
        """Make a loaded model, plain or 4-bit, ready to be trained: all else is frozen. Changes it in place."""
        ...

    def state(self, trainee: nn.Module) -> State:
        """The trained tensors."""
        ...

    def restore(self, trainee: nn.Module, state: State) -> None:
        """Put trained tensors back into what `begin` gave."""
        ...

    def attach(self, model: PreTrainedModel, config: HealingConfig, state: State, base_model: str) -> Any:
        """A plain model with the trained tensors as they are, uncast, for inference. Changes it in place."""
        ...

    def merge(self, model: PreTrainedModel, config: HealingConfig, state: State) -> None:
        """Make the trained tensors part of a plain model's weights, in float32, cast once to what they were."""
        ...
