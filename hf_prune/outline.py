"""What stock transformers makes of a checkpoint, and what it would save, by the headers alone: no weight is read."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.core_model_loading import (
    Chunk,
    Concatenate,
    MergeModulelist,
    Split,
    SplitModulelist,
    Transpose,
    WeightConverter,
    revert_weight_conversion,
)
from transformers.modeling_utils import remove_tied_weights_from_state_dict

from hf_prune.errors import CheckpointError, StreamError
from hf_prune.loading import LOADING, read_config
from hf_prune.moving import SourceWeights
from hf_prune.names import home
from hf_prune.progress import no_loading_bar
from hf_prune.tensors import TensorEntry

# Taken together and apart again, a tensor has the same bytes as before.
_UNDONE = (Chunk, Concatenate, MergeModulelist, Split, SplitModulelist, Transpose)
_CHUNK = 8 * 2**20


def outline(
    weights: SourceWeights,
    origin: Path,
    name: str,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """The model that `loading.load_model` would load, on the meta device.

    Args:
        weights: of the checkpoint.
        origin: folder of its config.
        name: what the model is called in errors.
        dtype: of the weights, as in transformers.
        trust_remote_code: whether code in the folder may run.

    Raises:
        CheckpointError: weights are missing or of another shape.
        StreamError: the checkpoint is quantized.
    """
    return fitted(weights, origin, name, dtype=dtype, trust_remote_code=trust_remote_code)[0]


def fitted(
    weights: SourceWeights, origin: Path, name: str, *, dtype: str | torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, list[str]]:
    """The same, and the names of the tensors that the model has no place for; see `outline`.

    Args:
        weights: of the checkpoint.
        origin: folder of its config.
        name: what the model is called in errors.
        dtype: of the weights.
        trust_remote_code: whether code in the folder may run.
    """
    config = read_config(origin, name, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None) is not None:
        raise StreamError(f"'{name}' is quantized: its tensors are not those of the model; it is cut in memory")
    tensors = _on_meta(weights.entries)
    with LOADING, no_loading_bar(), _without_threads():
        with torch.device("meta"):
            stock = type(AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code))
        model, unexpected = _load(stock, config, tensors, dtype, name)
        equal = [doubled for doubled in _doubled(model) if _equal(*doubled, model, weights)]
        if equal:  # stored twice, and one and the same in the model: loading ties them
            for copy, _ in equal:
                del tensors[source_name(copy, tensors, model)]
            model, _ = _load(stock, config, tensors, dtype, name)
    return model, unexpected


@contextmanager
def _without_threads() -> Iterator[None]:
    """Keep transformers from starting threads that would read weights: of many tensors they take memory and time."""
    name = "HF_DEACTIVATE_ASYNC_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def _on_meta(entries: Mapping[str, TensorEntry]) -> dict[str, torch.Tensor]:
    # In the order in which transformers sees them: the first one of a floating type may decide on the dtype.
    ordered = sorted(entries.values(), key=lambda entry: (entry.file, entry.name))
    return {e.name: torch.empty(e.shape, dtype=e.torch_dtype, device="meta") for e in ordered}


def _load(
    stock: Any, config: Any, tensors: dict[str, torch.Tensor], dtype: Any, name: str
) -> tuple[PreTrainedModel, list[str]]:
    model, info = stock.from_pretrained(
        None,
        config=config,
        state_dict=tensors,
        dtype=dtype,
        device_map="meta",
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    wrong = {kind: sorted(map(str, info[kind])) for kind in ("missing_keys", "mismatched_keys") if info[kind]}
    if wrong:
        listed = "; ".join(f"{k.replace('_keys', '')}: {', '.join(v[:3])} ({len(v)})" for k, v in wrong.items())
        raise CheckpointError(
            f"the weights of '{name}' do not fit its config: {listed}. transformers would make them up; repair the "
            "checkpoint"
        )
    return model.eval(), sorted(map(str, info["unexpected_keys"]))


def _doubled(model: Any) -> list[tuple[str, str]]:
    """Pairs that the config ties and the checkpoint stores twice; on the meta device they are left untied."""
    tied = getattr(model, "all_tied_weights_keys", {})
    return [(c, s) for c, s in tied.items() if model.get_parameter(c) is not model.get_parameter(s)]


def _equal(copy: str, source: str, model: PreTrainedModel, weights: SourceWeights) -> bool:
    one, two = (weights.entries[source_name(n, weights.entries, model)] for n in (copy, source))
    if (one.shape, one.dtype) != (two.shape, two.dtype):
        raise StreamError(
            f"'{one.name}' and '{two.name}' are tied by the config and stored in two shapes or dtypes; the model is "
            "cut in memory"
        )
    pieces = ((at, min(_CHUNK, one.size - at)) for at in range(0, one.size, _CHUNK))
    read = weights.mover.read
    return all(read(one.file, one.start + at, n) == read(two.file, two.start + at, n) for at, n in pieces)


def source_name(name: str, names: Mapping[str, Any], model: PreTrainedModel) -> str:
    """The name that the checkpoint gives a tensor: some were saved without the prefix of their base model, or with it.

    Args:
        name: in the model.
        names: those of the checkpoint.
        model: the model.

    Raises:
        StreamError: there is none.
    """
    found = home(name, names, model.base_model_prefix)
    if found is None:
        raise StreamError(
            f"tensor '{name}' has no counterpart of that name in the checkpoint; the model is cut in memory"
        )
    return found


def saved_tensors(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """What `save_pretrained` would write, in its order: names, shapes and dtypes.

    Args:
        model: on the meta device, from `outline`; it may be cut.

    Raises:
        StreamError: tensors are not stored as the model holds them, and what is done to them cannot be undone byte
            for byte.
    """
    conversions: Any = getattr(model, "_weight_conversions", None) or []
    for conversion in conversions:
        operations = conversion.operations if isinstance(conversion, WeightConverter) else []
        for operation in operations:
            if not isinstance(operation, _UNDONE):
                raise StreamError(
                    f"the tensors of {type(model).__name__} go through '{type(operation).__name__}' when they are "
                    "loaded; it is cut in memory"
                )
    ignored = set(model._keys_to_ignore_on_save or ())
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
    return revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))
