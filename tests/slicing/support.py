"""Tiny bases of every family that can be sliced, in float64, and random bases to turn their stream with."""

import copy
import functools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.slicing.blank import blank_model, check_filled
from hf_prune.slicing.fold import write_by
from hf_prune.slicing.modeling import SLICEABLE, model_class
from hf_prune.slicing.points import Widths
from hf_prune.slicing.rotate import fill
from hf_prune.slicing.slicer import Settings, slice_model

from ..making import logits
from ..tiny import tiny_model, tokens

DEPTH, WIDTH = 3, 32

# Every family, and what changes in a family how its blocks meet the stream: name -> (model_type, config keys).
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in SLICEABLE},
    # A dense layer among those with experts.
    "qwen2_moe": ("qwen2_moe", {"decoder_sparse_step": 1, "mlp_only_layers": [0]}),
    "qwen3_moe": ("qwen3_moe", {"decoder_sparse_step": 1, "mlp_only_layers": [1]}),
    "qwen3_moe-normed": ("qwen3_moe", {"decoder_sparse_step": 2, "mlp_only_layers": [], "norm_topk_prob": True}),
    "llama-biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
    "qwen2-tied": ("qwen2", {"tie_word_embeddings": True}),
    "mixtral-tied": ("mixtral", {"tie_word_embeddings": True}),
    "opt-untied": ("opt", {"tie_word_embeddings": False}),
    "opt-bare": ("opt", {"layer_norm_elementwise_affine": False, "enable_bias": False}),
    "phi-head-norms": ("phi", {"qk_layernorm": True}),
    "gpt_neox-sequential": ("gpt_neox", {"use_parallel_residual": False}),
    "falcon-new-one-norm": ("falcon", {"num_ln_in_parallel_attn": 1}),
    "falcon-7b": ("falcon", {"new_decoder_architecture": False, "multi_query": True}),
    "falcon-rw": (
        "falcon",
        {
            "new_decoder_architecture": False, "multi_query": False, "parallel_attn": False, "alibi": True,
            "bias": True, "num_kv_heads": 4,
        },
    ),
}  # fmt: skip
_LIVELY: dict[str, dict[str, Any]] = {"opt": {"init_std": 0.3}}
_QUICK = (*SLICEABLE, "llama-tied", "falcon-rw", "gpt_neox-sequential")
each_family = pytest.mark.parametrize(
    "case", [pytest.param(case, marks=() if case in _QUICK else pytest.mark.slow) for case in CASES]
)
"""For what follows from the family: the other cases, which differ in how blocks meet the stream, are slow tests."""

LAYER_NORM = ("opt", "gpt2", "phi", "gpt_neox", "falcon")
TIED = ("llama-tied", "qwen2-tied", "mixtral-tied", "gemma")


def centred(case: str) -> bool:
    """Whether the norms of a case subtract the mean."""
    return CASES[case][0] in LAYER_NORM


@functools.cache
def base(case: str, *, dtype: torch.dtype = torch.float64, depth: int = DEPTH, **overrides: Any) -> Decoder:
    """A base whose norms scale each channel otherwise, and whose stream has a mean: nothing cancels by chance.

    Made once: slicing leaves it as it is.
    """
    model_type, fields = CASES[case]
    model: Any = tiny_model(model_type, depth, **{**_LIVELY.get(model_type, {}), **fields, **overrides})
    model.config._experts_implementation = "eager"  # grouped products have no float64
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
        for name in model_class(model_type).tables:
            model.get_submodule(name).weight.add_(0.2)
    return decoder_of(model.to(dtype), case)


def steps_of(decoder: Decoder) -> int:
    """Additions to the stream in one block."""
    return len(model_class(decoder.config.model_type).block_class.steps(decoder.config))


def points_of(decoder: Decoder) -> int:
    """Points of the stream at which a basis stands."""
    return 1 + decoder.num_layers * steps_of(decoder)


def widths_of(decoder: Decoder, widths: Sequence[int]) -> Widths:
    """One width at each point, in the order of the stream, as `Widths`."""
    embed, *rest = widths
    if steps_of(decoder) == 1:
        return Widths(embed, (), tuple(rest))
    return Widths(embed, tuple(rest[::2]), tuple(rest[1::2]))


def full(decoder: Decoder) -> Widths:
    """The widths that cut nothing."""
    return widths_of(decoder, [decoder.config.hidden_size] * points_of(decoder))


def mixed(decoder: Decoder) -> Widths:
    """Other widths at every point, growing and shrinking."""
    wide = decoder.config.hidden_size
    return widths_of(decoder, [wide - 4 - (5 * i) % 13 for i in range(points_of(decoder))])


def random_basis(width: int, columns: int, seed: int) -> torch.Tensor:
    """(width, columns) orthonormal columns, float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(width, width, dtype=torch.float64, generator=generator))[0][:, :columns]


def filled(
    decoder: Decoder, points: Sequence[torch.Tensor], *, shortcuts: bool = True, tied: bool = False
) -> PreTrainedModel:
    """The sliced model with these bases."""
    widths = widths_of(decoder, [basis.shape[1] for basis in points])
    sliced = blank_model(decoder, widths, shortcuts=shortcuts, tied=tied)
    with torch.no_grad():
        fill(decoder, sliced, points)
    check_filled(sliced)
    return sliced


@functools.cache
def fused_case(case: str) -> PreTrainedModel:
    """`fused` of a case."""
    return fused(base(case))


def fused(decoder: Decoder) -> PreTrainedModel:
    """The base with its norms folded and nothing turned or cut."""
    eye = torch.eye(decoder.config.hidden_size, dtype=torch.float64)
    return filled(decoder, [eye] * points_of(decoder), shortcuts=False)


def text(count: int = 6, length: int = 24, seed: int = 5) -> list[torch.Tensor]:
    """Calibration sequences of several lengths, so that batches hold pads."""
    return [row[: length - 3 * (i % 3)] for i, row in enumerate(tokens(count, length, seed))]


def sliced_by(decoder: Decoder, widths: Widths, **settings: Any) -> PreTrainedModel:
    """The model sliced on `text()`."""
    return slice_model(decoder, widths, text(), Settings(**{"batch_size": 4, **settings}))


def difference(one: PreTrainedModel, other: PreTrainedModel, ids: torch.Tensor | None = None) -> float:
    """Largest difference of logits, as a share of their spread."""
    ids = tokens(3, 14) if ids is None else ids
    a, b = logits(one, ids), logits(other, ids)
    return float((a - b).abs().max() / b.std())


@functools.cache
def ranked(case: str) -> Decoder:
    """A base of hidden size 64 whose stream fills 20 directions at first, and four more at each point behind.

    Ten directions come from the embeddings alone, so that what blocks add is not all that the stream holds.
    """
    decoder = copy.deepcopy(base(case, hidden_size=64, intermediate_size=96, **_WIDER.get(CASES[case][0], {})))
    family = model_class(decoder.config.model_type)
    directions = random_basis(64, 64, seed=11)
    if centred(case):  # what LayerNorm takes away must not count as a direction
        directions = torch.linalg.qr(directions[:, :60] - directions[:, :60].mean(0, keepdim=True))[0]
    with torch.no_grad():
        for name in family.tables:
            _project(decoder.model, name, directions[:, :20])
        rank = 20
        for block in decoder.blocks:
            for step in family.block_class.steps(decoder.config):
                rank += 4
                for name in (name for branch in step.branches for name in branch.writers):
                    _project(block, name, directions[:, 10:rank])
    return decoder


_WIDER: dict[str, dict[str, Any]] = {
    "opt": {"word_embed_proj_dim": 64, "ffn_dim": 96},
    "gpt2": {"n_embd": 64, "n_inner": 96},
}


def _project(owner: torch.nn.Module, name: str, directions: torch.Tensor) -> None:
    right = directions @ directions.T
    for leaf, tensor in write_by(owner, name, right).items():
        owner.get_parameter(leaf).copy_(tensor)
