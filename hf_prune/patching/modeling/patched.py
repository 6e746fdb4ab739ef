"""What patched models of all families share.

A patched model is one of its family whose blocks lack their attention, their MLP or both: `config.removed_parts` says
which, by part and number of the block. What is gone has no weights, nor has the norm in front of it, and is not
computed. In the blocks of `config.linear_attention`, attention and its norm are one linear map of the stream.
Behind the blocks of `config.stream_patches`, a map of the stream is added to it.
Everything else is the family's own.

Part of hf_prune; needs torch and transformers only.
"""

from typing import Any, ClassVar

import torch
from torch import nn

PARTS = {
    "attention": ("self_attn", "input_layernorm"),
    "mlp": ("mlp", "post_attention_layernorm"),
}
"""Names in a block of what a part is made of, its norm last."""


class PatchedBlock(nn.Module):
    """Mixin before a family's decoder layer: attention, then an MLP, each behind a norm, where they are there."""

    self_attn: Any
    input_layernorm: Any
    mlp: Any
    post_attention_layernorm: Any
    stream_patch: Any

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.patch(config, layer_idx)

    def patch(self, config: Any, layer_idx: int) -> None:
        """Lose what the config says that this block lacks; what is gone already is passed by.

        Args:
            config: of the model.
            layer_idx: 0-based number of the block.
        """
        self.layer_idx = layer_idx
        linear = layer_idx in (getattr(config, "linear_attention", None) or ())
        if linear and not isinstance(self.self_attn, LinearAttention):
            like = self.input_layernorm.weight
            self.self_attn = LinearAttention(config.hidden_size, layer_idx).to(like.device, like.dtype)
            self.input_layernorm = None
        if not hasattr(self, "stream_patch"):
            self.stream_patch = None
        patched = layer_idx in (getattr(config, "stream_patches", None) or ())
        if patched and self.stream_patch is None:
            like = next(self.parameters())
            self.stream_patch = StreamPatch(config.hidden_size, getattr(config, "stream_rank", None)).to(
                like.device, like.dtype
            )
        for part, names in PARTS.items():
            if layer_idx in config.removed_parts.get(part, ()):
                for name in names:
                    setattr(self, name, None)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """(batch, length, width) to the same."""
        if self.self_attn is None:
            count_tokens(kwargs.get("past_key_values"), hidden_states, self.layer_idx)
        else:
            read = hidden_states if self.input_layernorm is None else self.input_layernorm(hidden_states)
            answer, _ = self.self_attn(read, *args, **kwargs)
            hidden_states = hidden_states + answer
        if self.mlp is not None:
            hidden_states = hidden_states + self.mlp(self.post_attention_layernorm(hidden_states))
        return hidden_states if self.stream_patch is None else self.stream_patch(hidden_states)


class StreamPatch(nn.Module):
    """h + B A h + b in the place of blocks that are gone.

    Args:
        width: of the stream.
        rank: of B A; None for one map in their place, 0 for b alone.
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.down: Any = nn.Linear(width, rank, bias=False) if rank else None
        self.up: Any = None if rank == 0 else nn.Linear(rank or width, width)
        self.bias: Any = nn.Parameter(torch.zeros(width)) if rank == 0 else None

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(batch, length, width) to the same."""
        if self.up is None:
            return hidden_states + self.bias
        return hidden_states + self.up(hidden_states if self.down is None else self.down(hidden_states))


class LinearAttention(nn.Module):
    """W x + b in the place of attention; called as that is.

    Args:
        width: of the stream.
        layer_idx: 0-based number of the block.
    """

    def __init__(self, width: int, layer_idx: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, width)
        self.layer_idx = layer_idx

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, None]:
        """(batch, length, width) to the same, and no attention weights."""
        count_tokens(kwargs.get("past_key_values"), hidden_states, self.layer_idx)
        return self.map(hidden_states), None


def count_tokens(cache: Any, hidden_states: torch.Tensor, layer: int) -> None:
    """Let a cache know how many tokens have passed a block without attention.

    Caches have a layer for each block, and ask one of them, often the first, how long they are: positions and masks
    of all blocks follow from that. Two numbers a token are kept for it, in place of keys and values.

    Args:
        cache: of the model; None where nothing is cached.
        hidden_states: (batch, length, width) what enters the block.
        layer: 0-based number of the block.
    """
    if cache is not None:
        one = torch.ones_like(hidden_states[:, None, :, :1])  # (batch, heads, length, width of a head)
        cache.update(one, one, layer)


class PatchedCausalLM(nn.Module):
    """Mixin before a family's causal language model.

    Attributes:
        block_class: the family's patched decoder layer.
    """

    block_class: ClassVar[type[PatchedBlock]]

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        model: Any = self
        for layer in range(len(model.model.layers)):
            model.model.layers[layer] = self.block_class(config, layer)
        for module in self.modules():
            module.__dict__.pop("_is_hf_initialized", None)  # of the blocks that were replaced
        model.post_init()
