"""What of a block writes into the residual stream: the one table that names these weights, family by family."""

import logging
from dataclasses import dataclass

from torch import nn

from hf_prune.architecture.decoder import Decoder
from hf_prune.architecture.families import base_type
from hf_prune.errors import ArchitectureError, CheckpointError, PruneError
from hf_prune.units import Part

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Row:
    """One line of the table.

    Attributes:
        types: `config.model_type` values.
        attention: what writes for whatever mixes tokens: linear maps, or lone tensors, by their dotted names in the
            block. Of several names those count that a block has.
        mlp: likewise for the MLP; all experts of one that has some.
        gains: norms of what attention and MLP write, where it is these that have the last word.
        offset: what is added to the gains of these norms.
        reads: linear maps that read the residual stream itself, without a norm in between, and are not followed by one
            that makes up for its magnitude.
        multiplier: config key of a factor on every write.
    """

    types: tuple[str, ...]
    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    gains: tuple[str, str] | None = None
    offset: float = 0.0
    reads: tuple[str, ...] = ()
    multiplier: str | None = None


_EXPERTS = ("mlp.experts.down_proj", "mlp.experts.down_proj_bias")
_ROWS = (
    _Row(
        ("llama", "mistral", "ministral", "qwen2", "qwen3", "gemma", "phi3", "stablelm", "olmo", "smollm3", "cohere")
        + ("cohere2", "glm", "ernie4_5", "nemotron"),
        ("self_attn.o_proj",),
        ("mlp.down_proj",),
    ),
    _Row(("granite",), ("self_attn.o_proj",), ("mlp.down_proj",), multiplier="residual_multiplier"),
    _Row(("mixtral", "gpt_oss"), ("self_attn.o_proj",), _EXPERTS),
    _Row(
        ("qwen2_moe", "qwen3_moe", "qwen3_next", "deepseek_v3"),
        ("self_attn.o_proj", "linear_attn.out_proj"),
        ("mlp.down_proj", *_EXPERTS, "mlp.shared_expert.down_proj", "mlp.shared_experts.down_proj"),
    ),
    _Row(
        ("granitemoe",),
        ("self_attn.o_proj",),
        ("block_sparse_moe.experts.down_proj",),
        multiplier="residual_multiplier",
    ),
    _Row(
        ("gemma2", "gemma3_text"),
        ("self_attn.o_proj",),
        ("mlp.down_proj",),
        gains=("post_attention_layernorm", "post_feedforward_layernorm"),
        offset=1.0,
    ),
    _Row(
        ("glm4",),
        ("self_attn.o_proj",),
        ("mlp.down_proj",),
        gains=("post_self_attn_layernorm", "post_mlp_layernorm"),
    ),
    _Row(
        ("afmoe",),
        ("self_attn.o_proj",),
        ("mlp.down_proj", "mlp.experts.down_proj", "mlp.shared_experts.down_proj"),
        gains=("post_attention_layernorm", "post_mlp_layernorm"),
    ),
    # No norm before attention and MLP. Attention does not mind: its queries and keys are normed, and a norm follows
    # what its values become. The MLP's activation function does.
    _Row(
        ("olmo2", "olmo3", "exaone4"),
        ("self_attn.o_proj",),
        ("mlp.down_proj",),
        gains=("post_attention_layernorm", "post_feedforward_layernorm"),
        reads=("mlp.gate_proj", "mlp.up_proj"),
    ),
    _Row(("phi",), ("self_attn.dense",), ("mlp.fc2",)),
    _Row(("starcoder2",), ("self_attn.o_proj",), ("mlp.c_proj",)),
    _Row(("gpt2",), ("attn.c_proj",), ("mlp.c_proj",)),
    _Row(("gpt_neo",), ("attn.attention.out_proj",), ("mlp.c_proj",)),
    _Row(("gptj",), ("attn.out_proj",), ("mlp.fc_out",)),
    _Row(("gpt_neox",), ("attention.dense",), ("mlp.dense_4h_to_h",)),
    _Row(("bloom", "falcon"), ("self_attention.dense",), ("mlp.dense_4h_to_h",)),
    _Row(("opt",), ("self_attn.out_proj",), ("fc2",)),
    _Row(("mpt",), ("attn.out_proj",), ("ffn.down_proj",)),
    _Row(("lfm2",), ("self_attn.out_proj", "conv.out_proj"), ("feed_forward.w2",)),
    _Row(("mamba",), ("mixer.out_proj",), ()),
)
_BY_TYPE = {model_type: row for row in _ROWS for model_type in row.types}

# model_type -> (config key, the value that does no harm, why another one does)
_SETTINGS: dict[str, tuple[str, bool, str]] = {
    **dict.fromkeys(
        ("bloom", "falcon"),
        (
            "apply_residual_connection_post_layernorm",
            False,
            "each block normalises the residual stream itself, and so undoes its magnitude",
        ),
    ),
    "opt": ("_remove_final_layer_norm", False, "no norm stands behind its last block to undo the magnitude"),
}


@dataclass(frozen=True)
class Writes:
    """What of one block writes into the residual stream.

    What it writes is proportional to the `attention` and `mlp` parameters (plus `offset` in each entry): both times a
    factor, or at -`offset`, it writes as much times that factor, or nothing.

    Attributes:
        attention: names of the parameters in the block, weights and biases.
        mlp: likewise; empty where there is no MLP.
        offset: 1 where these are gains g of norms that act as 1 + g, else 0.
        reads: parameters that read the residual stream itself, without a norm in between.
        projection: the linear map whose output is the whole write of the MLP, up to `multiplier`; None where there is
            no such single map.
        why_none: of `projection`, where there is none.
        multiplier: what that output is multiplied by before it is added.
    """

    attention: tuple[str, ...]
    mlp: tuple[str, ...]
    offset: float
    reads: tuple[str, ...]
    projection: str | None
    why_none: str
    multiplier: float

    @property
    def all(self) -> tuple[str, ...]:
        """Parameters of both parts."""
        return self.attention + self.mlp


def writes_of(decoder: Decoder, layer: int) -> Writes:
    """What of a block writes into the residual stream.

    Args:
        decoder: the model.
        layer: 0-based index of the block.

    Raises:
        ArchitectureError: that is not known of the architecture.
    """
    row, block = _row(decoder), decoder.blocks[layer]
    attention, mlp = _present(block, row.attention), _present(block, row.mlp)
    if not attention or (row.mlp and not mlp):
        missing, names = ("attention", row.attention) if not attention else ("MLP", row.mlp)
        raise ArchitectureError(
            f"block {layer} of '{decoder.name}' has no {missing} output where those of model_type "
            f"'{decoder.config.model_type}' have one; expected one of: {', '.join(names)}"
        )
    projection, why = None, ""
    if not row.mlp:
        why = "it has no MLP"
    elif row.gains is not None:
        why = f"a norm ({row.gains[1]}) stands between its MLP and the residual stream"
    elif len(mlp) > 1 or not _is_module(block, mlp[0]):
        why = "its MLP is made of experts, each with an output of its own"
    else:
        projection = mlp[0]
    if row.gains is not None:
        attention, mlp = (row.gains[0],), (row.gains[1],)
    return Writes(
        _parameters(block, attention),
        _parameters(block, mlp),
        row.offset,
        _parameters(block, _present(block, row.reads)),
        projection,
        why,
        1.0 if row.multiplier is None else float(getattr(decoder.config, row.multiplier)),
    )


def outputs_of(block: nn.Module, part: Part) -> tuple[str, ...]:
    """What writes for a part of a block, whichever family that is of.

    Args:
        block: of a model.
        part: "attention" or "mlp".

    Returns:
        Dotted names in the block of linear maps, or of lone tensors; none where the block is not made of two parts.
    """
    rows = [row for row in _ROWS if row.mlp]
    names = (name for row in rows for name in (row.attention if part == "attention" else row.mlp))
    return _present(block, tuple(dict.fromkeys(names)))


def parameters_of(block: nn.Module, outputs: tuple[str, ...]) -> tuple[str, ...]:
    """Names in the block of the weights and biases that such outputs are made of."""
    return _parameters(block, outputs)


def check_scale_free(decoder: Decoder) -> None:
    """Refuse a model in which the magnitude of the whole residual stream matters.

    Args:
        decoder: the model.

    Raises:
        ArchitectureError: names the architecture, or the config key, and the reason.
    """
    _row(decoder)
    model_type = base_type(decoder.config.model_type)
    if model_type not in _SETTINGS:
        return
    key, good, why = _SETTINGS[model_type]
    value = getattr(decoder.config, key, good)
    if value != good:
        raise ArchitectureError(
            f"in '{decoder.name}' (model_type '{model_type}') the magnitude of the residual stream matters: {why} "
            f"(config key '{key}', value {value!r}; only {good!r} is supported)"
        )


def check_floating(decoder: Decoder, layer: int) -> None:
    """Refuse weights that cannot be changed as numbers.

    Args:
        decoder: the model.
        layer: 0-based index of the block.

    Raises:
        CheckpointError: they are quantized, or are not in memory.
    """
    for name, parameter in decoder.blocks[layer].named_parameters():
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            raise CheckpointError(
                f"weight '{name}' of block {layer} of '{decoder.name}' is {parameter.dtype}: it is quantized, and "
                "nothing can be fitted into it. Prune the unquantized model that it was made from, then quantize the "
                "result, or drop layers alone (surgery 'drop')"
            )
        if parameter.is_meta:
            raise CheckpointError(
                f"weight '{name}' of block {layer} of '{decoder.name}' is not in memory: the model is spread to where "
                "it cannot be changed. Load it whole (--device cpu, or a GPU with more memory)"
            )


def can_rescale(decoder: Decoder) -> bool:
    """Whether surgery "compensate" is exact on a model.

    Args:
        decoder: the model, with weights or without.
    """
    try:
        check_scale_free(decoder)
        for layer in range(decoder.num_layers):
            writes_of(decoder, layer)
            if not next(decoder.blocks[layer].parameters()).is_meta:
                check_floating(decoder, layer)
    except PruneError as error:
        logger.info("later blocks are not rescaled: %s", error)
        return False
    return True


def _present(block: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(name for name in names if _is_module(block, name) or _has_parameter(block, name))


def _is_module(block: nn.Module, name: str) -> bool:
    try:
        return bool(block.get_submodule(name))
    except AttributeError:
        return False


def _has_parameter(block: nn.Module, name: str) -> bool:
    try:
        return block.get_parameter(name) is not None
    except AttributeError:
        return False


def _parameters(block: nn.Module, names: tuple[str, ...]) -> tuple[str, ...]:
    """Names of parameters: a linear map stands for its weight and, where it has one, its bias."""
    found = [
        f"{name}.{leaf}" for name in names for leaf in ("weight", "bias") if _has_parameter(block, f"{name}.{leaf}")
    ]
    return (*found, *(name for name in names if _has_parameter(block, name)))


def _row(decoder: Decoder) -> _Row:
    model_type = base_type(decoder.config.model_type)
    if model_type not in _BY_TYPE:
        raise ArchitectureError(
            f"'{decoder.name}' has model_type '{model_type}': which of its weights write into the residual stream is "
            f"not known; expected one of: {', '.join(_BY_TYPE)}. Drop layers without anything in their place "
            "(surgery 'drop')"
        )
    return _BY_TYPE[model_type]
