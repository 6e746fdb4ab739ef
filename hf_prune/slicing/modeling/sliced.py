"""What sliced models of all families share.

A sliced model keeps its heads and its intermediate sizes; the residual stream between them is rotated, and narrower
than the base's `hidden_size` by another amount in each layer (`config.slice_dims`). Norms carry no weights (they are
folded into what reads them) and divide by the base's width, for which a narrower stream is one whose missing entries
are zero. Where the rotation changes, the residual passes through a linear map, the shortcut.

Method: SliceGPT, https://arxiv.org/abs/2401.15024. Part of hf_prune; needs torch and transformers only.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import transformers
from torch import nn
from transformers.pytorch_utils import Conv1D

TUPLES_IN_4 = transformers.__version__.startswith("4.")
"""Whether layers answer a tuple in families that did so in transformers 4 and no longer do."""


@dataclass(frozen=True)
class Branch:
    """One path from the residual stream and back to it.

    Attributes:
        norm: name of its norm in the block.
        body: names of the modules that follow, in order; attention is the first one alone.
        readers: names of what multiplies the normed stream (linear maps, or stacked weights of experts).
        writers: names of what writes to the stream.
        dropout: name of the block's dropout (a module, or a probability) on what is written.
        attends: whether it mixes tokens, and takes masks, positions and cache.
    """

    norm: str
    body: tuple[str, ...]
    readers: tuple[str, ...]
    writers: tuple[str, ...]
    dropout: str | None = None
    attends: bool = False


@dataclass(frozen=True)
class Step:
    """One addition to the residual stream: of one branch, or of two that read the same stream.

    Attributes:
        shortcut: name of the linear map that the residual passes through.
        width: key in `config.slice_dims` of the widths behind it.
        branches: what is added.
    """

    shortcut: str
    width: str
    branches: tuple[Branch, ...]


GATED_STEPS = (
    Step(
        "attn_shortcut",
        "attn_out",
        (
            Branch(
                norm="input_layernorm",
                body=("self_attn",),
                readers=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
                writers=("self_attn.o_proj",),
                attends=True,
            ),
        ),
    ),
    Step(
        "mlp_shortcut",
        "mlp_out",
        (
            Branch(
                norm="post_attention_layernorm",
                body=("mlp",),
                readers=("mlp.gate_proj", "mlp.up_proj"),
                writers=("mlp.down_proj",),
            ),
        ),
    ),
)
"""Attention, then a gated MLP, as Llama has them and many that came after."""


class SlicedRMSNorm(nn.Module):
    """x / sqrt(sum(x^2) / width + eps), where `width` is the base's and not that of x."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.width, self.eps = width, eps

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., any width up to `width`) in any dtype; computed in float32 at least."""
        wide = hidden_states.to(torch.promote_types(hidden_states.dtype, torch.float32))
        scale = torch.rsqrt(wide.pow(2).sum(-1, keepdim=True) / self.width + self.eps)
        return (wide * scale).to(hidden_states.dtype)

    def extra_repr(self) -> str:
        """Shown by print."""
        return f"width={self.width}, eps={self.eps}"


class SlicedFinalNorm(SlicedRMSNorm):
    """The norm before the head; in tied models it also turns the stream back to the basis of the embeddings.

    Head and embeddings are one table E Q_0, so that logits = (E Q_0) (map x): `map` holds the final norm's scale and
    the rotation between both ends of the model.
    """

    def __init__(self, width: int, eps: float, inputs: int, outputs: int | None) -> None:
        super().__init__(width, eps)
        self.map = nn.Linear(inputs, outputs, bias=False) if outputs is not None else nn.Identity()

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """(..., inputs) to (..., outputs)."""
        return self.map(super().forward(hidden_states))


class SlicedBlock(nn.Module):
    """Mixin before a family's decoder layer: the same parts, narrower, with shortcuts.

    Attributes:
        returns_tuple: whether the family's layers answer a tuple.
    """

    returns_tuple: ClassVar[bool] = False

    @classmethod
    def steps(cls, config: Any) -> tuple[Step, ...]:
        """What the block adds to the residual stream, in order."""
        raise NotImplementedError

    def __init__(self, config: Any, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.own_steps = self.steps(config)
        dims = config.slice_dims
        width = dims["embed"] if layer_idx == 0 else dims["mlp_out"][layer_idx - 1]
        for step in self.own_steps:
            norms = {branch.norm: self.get_submodule(branch.norm) for branch in step.branches}
            for branch in step.branches:
                for name in branch.readers:
                    narrow(self, name, inputs=width, bias=centres(norms[branch.norm]))
            after = dims[step.width][layer_idx]
            for name in (name for branch in step.branches for name in branch.writers):
                narrow(self, name, outputs=after)
            for name, norm in norms.items():
                put(self, name, SlicedRMSNorm(config.hidden_size, epsilon(norm)))
            setattr(self, step.shortcut, nn.Linear(width, after, bias=False) if config.slice_shortcuts else None)
            width = after

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """(batch, length, width before) to (batch, length, width behind the block)."""
        for step in self.own_steps:
            shortcut = getattr(self, step.shortcut)
            residual = hidden_states if shortcut is None else shortcut(hidden_states)
            for branch in step.branches:
                residual = residual + self.run(branch, hidden_states, *args, **kwargs)
            hidden_states = residual
        return (hidden_states, None) if self.returns_tuple else hidden_states

    def run(self, branch: Branch, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """What a branch adds: (batch, length, width of its readers) to (batch, length, width of its writers)."""
        answer = self.get_submodule(branch.norm)(hidden_states)
        if branch.attends:
            answer = self.attend(self.get_submodule(branch.body[0]), answer, *args, **kwargs)
        else:
            for name in branch.body:
                answer = first(self.get_submodule(name)(answer))
        if branch.dropout is None:
            return answer
        dropout = getattr(self, branch.dropout)
        if isinstance(dropout, nn.Module):
            return dropout(answer)
        return nn.functional.dropout(answer, p=dropout, training=self.training)

    def attend(self, attention: nn.Module, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Call the family's attention the way that its layer is called."""
        return first(attention(hidden_states, *args, **kwargs))


class SlicedCausalLM(nn.Module):
    """Mixin before a family's causal language model.

    Attributes:
        block_class: the family's sliced decoder layer.
        blocks: name of the list of blocks.
        final_norm: name of the norm behind them.
        tables: names of the embedding tables (tokens, learned positions) that are added to make the stream.
        norm_offset: what the base's norms add to their weight before they multiply by it (Gemma: 1).
    """

    block_class: ClassVar[type[SlicedBlock]]
    blocks: ClassVar[str] = "model.layers"
    final_norm: ClassVar[str] = "model.norm"
    tables: ClassVar[tuple[str, ...]] = ("model.embed_tokens",)
    norm_offset: ClassVar[float] = 0.0

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        model: Any = self
        dims = config.slice_dims
        blocks = model.get_submodule(self.blocks)
        for layer in range(len(blocks)):
            blocks[layer] = self.block_class(config, layer)
        for name in self.tables:
            narrow(self, name, outputs=dims["embed"])
        norm, head, last = model.get_submodule(self.final_norm), model.get_output_embeddings(), dims["mlp_out"][-1]
        tied = bool(config.tie_word_embeddings)
        resize(head, inputs=dims["embed"] if tied else last, bias=centres(norm))
        outputs = dims["embed"] if tied else None
        put(self, self.final_norm, SlicedFinalNorm(config.hidden_size, epsilon(norm), last, outputs))
        for module in self.modules():
            module.__dict__.pop("_is_hf_initialized", None)  # of the weights that were replaced
        model.post_init()


def narrow(
    owner: nn.Module, name: str, *, inputs: int | None = None, outputs: int | None = None, bias: bool = False
) -> None:
    """Give a part its sliced shape; names that a block does not have (a dense MLP beside experts) are passed by."""
    found = part(owner, name)
    if found is None:
        return
    if isinstance(found, nn.Parameter):
        shape = list(found.shape)  # (expert, outputs, inputs)
        shape[-1], shape[-2] = inputs or shape[-1], outputs or shape[-2]
        put(owner, name, nn.Parameter(found.new_empty(shape), found.requires_grad))
    else:
        resize(found, inputs=inputs, outputs=outputs, bias=bias)


def resize(module: nn.Module, *, inputs: int | None = None, outputs: int | None = None, bias: bool = False) -> None:
    """New, uninitialised weights for a linear map (or table) whose stream is narrower."""
    weight: Any = module.weight
    flipped = transposed(module)
    rows, columns = weight.shape if not flipped else weight.shape[::-1]
    rows, columns = outputs or rows, inputs or columns
    module.weight = nn.Parameter(weight.new_empty((columns, rows) if flipped else (rows, columns)))
    if getattr(module, "bias", None) is not None or bias:
        module.bias = nn.Parameter(weight.new_zeros(rows))
    # What the module says of itself; routers reshape by `hidden_dim`.
    for name, value in (
        ("in_features", columns), ("out_features", rows), ("nx", columns), ("nf", rows),
        ("embedding_dim", rows), ("hidden_dim", columns),
    ):  # fmt: skip
        if name in module.__dict__:
            setattr(module, name, value)


def transposed(module: nn.Module) -> bool:
    """Whether a weight is (inputs, outputs): Conv1D, and embeddings, whose input is the token."""
    return isinstance(module, Conv1D | nn.Embedding)


def part(owner: nn.Module, name: str) -> Any:
    """A module or parameter by its dotted name; None where it is not there."""
    for leaf in name.split("."):
        owner = getattr(owner, leaf, None)  # type: ignore[assignment]
        if owner is None:
            return None
    return owner


def put(owner: nn.Module, name: str, value: Any) -> None:
    """Set a module or parameter by its dotted name."""
    parent, _, leaf = name.rpartition(".")
    setattr(owner.get_submodule(parent) if parent else owner, leaf, value)


def centres(norm: nn.Module) -> bool:
    """Whether a norm subtracts the mean and may shift (LayerNorm): its readers then carry a bias."""
    return isinstance(norm, nn.LayerNorm)


def epsilon(norm: nn.Module) -> float:
    """The epsilon of a norm, under the names that families give it."""
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)  # type: ignore[arg-type]


def first(answer: Any) -> torch.Tensor:
    """The hidden states in what a module answers."""
    return answer[0] if isinstance(answer, tuple) else answer
