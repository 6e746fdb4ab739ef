"""A checkpoint's stock model without its weights, and the way in and out for those of one block at a time.

The skeleton is built and checked as `loading.load_model` would load it, by transformers itself, but from the headers
of the files: parameters are on the meta device, in the dtypes that they would have; buffers that no file holds (rotary
tables, masks) are real. No weight is read.
"""

import copy
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    convert_and_load_state_dict_in_model,
    dot_natural_key,
    rename_source_key,
)
from transformers.initialization import meta_device_safe_creation_ops, no_tie_weights
from transformers.modeling_utils import LoadStateDictConfig

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.checkpoint import checkpoint_entries
from hf_prune.errors import CheckpointError
from hf_prune.loading import LOADING, Source, read_config
from hf_prune.progress import no_loading_bar
from hf_prune.tensors import TensorEntry


def skeleton(
    source: Source,
    *,
    dtype: str | torch.dtype = "auto",
    trust_remote_code: bool = False,
    device: torch.device | str = "cpu",
) -> Decoder:
    """The model of a source with all parameters on the meta device, and real buffers.

    Args:
        source: where it is.
        dtype: of the weights, as in `loading.load_model`.
        trust_remote_code: whether code from the repo may run.
        device: of the buffers.

    Raises:
        CheckpointError: weights are missing, of another shape, or quantized.
        ArchitectureError: the model cannot lose blocks.
    """
    assert source.folder is not None
    name = source.ref.id
    config = read_config(source.folder, name, trust_remote_code=trust_remote_code)
    if getattr(config, "quantization_config", None):
        raise CheckpointError(
            f"'{name}' is quantized (config key 'quantization_config'): its weights mean something only together, so "
            "that they cannot be streamed block by block; load it whole, without a memory budget"
        )
    entries = checkpoint_entries(source.folder)
    wanted = _dtype(dtype, config, entries)
    with LOADING, torch.device("meta"), meta_device_safe_creation_ops(), no_tie_weights():
        model = AutoModelForCausalLM.from_config(config, dtype=wanted, trust_remote_code=trust_remote_code)
    with LOADING, no_loading_bar():
        _hold_against(model, entries, wanted, name)
        _real_buffers(model, torch.device(device))
    model.config._name_or_path = str(source.folder)
    return decoder_of(model.eval(), name)


def _dtype(dtype: str | torch.dtype, config: PretrainedConfig, entries: Mapping[str, TensorEntry]) -> torch.dtype:
    """What transformers makes of "auto": the config's dtype, else that of the first floating tensor."""
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype != "auto":
        return getattr(torch, dtype)
    if config.dtype is not None:
        return getattr(torch, config.dtype) if isinstance(config.dtype, str) else config.dtype
    floating = (
        e.torch_dtype for e in entries.values() if e.torch_dtype.is_floating_point and e.torch_dtype.itemsize > 1
    )
    return next(floating, torch.float32)


def _hold_against(model: Any, entries: Mapping[str, TensorEntry], dtype: torch.dtype, name: str) -> None:
    """Let transformers load what the headers promise, all of it without a number in it, and say what does not fit."""
    promised = {
        entry.name: torch.empty(entry.shape, dtype=entry.torch_dtype, device="meta") for entry in entries.values()
    }
    mapping: list[Any] = get_model_conversion_mapping(model)
    load = LoadStateDictConfig(
        pretrained_model_name_or_path=name,
        ignore_mismatched_sizes=True,  # so that they are listed, and refused below
        device_map={"": torch.device("meta")},
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype),
        weight_mapping=mapping,
    )
    info, _ = convert_and_load_state_dict_in_model(model, promised, load)
    found = type(model)._finalize_model_loading(model, load, info).to_dict()
    wrong = {kind: sorted(map(str, found[f"{kind}_keys"])) for kind in ("missing", "mismatched")}
    if any(wrong.values()):
        listed = "; ".join(f"{kind}: {', '.join(keys[:3])} ({len(keys)})" for kind, keys in wrong.items() if keys)
        raise CheckpointError(
            f"the weights of '{name}' do not fit its config: {listed}. transformers would make them up; "
            "repair the checkpoint"
        )


def _real_buffers(model: Any, device: torch.device) -> None:
    """Compute the buffers that no file holds, as transformers does behind the loading."""
    for path, buffer in list(model.named_non_persistent_buffers()):
        parent, _, leaf = path.rpartition(".")
        module = model.get_submodule(parent)
        module._buffers[leaf] = torch.empty_like(buffer, device=device)
        module._is_hf_initialized = False  # parameters are marked one by one, and stay as they are
    model.initialize_weights()


@dataclass(frozen=True)
class Piece:
    """Tensors of a checkpoint that together become a parameter of the model (or, rarely, a few).

    Attributes:
        target: name of the parameter; of the first of them.
        sources: names of the tensors, each with the pattern by which the converter knows it.
        dtype: of the parameter.
        converter: transformers' own conversion (such as the experts of a mixture made one tensor); None where one
            tensor is the parameter.
    """

    target: str
    dtype: torch.dtype
    sources: tuple[tuple[str, str], ...]
    converter: WeightConverter | None = None


@dataclass
class _Place:
    """Where a parameter lives: all modules that hold it (tied ones), and its empty form."""

    empty: torch.Tensor
    homes: list[tuple[dict[str, Any], str]] = field(default_factory=list)


class Filling:
    """Puts the tensors of a checkpoint in their places in a skeleton, and takes them out again.

    Args:
        decoder: a skeleton.
        entries: the tensors of its checkpoint.

    Attributes:
        blocks: the pieces of each block.
        around: those of the base model around its blocks (embeddings, last norm).
        head: the rest.
    """

    def __init__(self, decoder: Decoder, entries: Mapping[str, TensorEntry]) -> None:
        self._model = decoder.model
        self._places = _places(decoder.model)
        self.blocks: list[list[Piece]] = [[] for _ in decoder.blocks]
        self.around: list[Piece] = []
        self.head: list[Piece] = []
        owners = {id(t): layer for layer, block in enumerate(decoder.blocks) for t in _tensors(block)}
        base = {id(tensor) for tensor in _tensors(decoder.base)}
        for piece in _pieces(decoder.model, entries):
            tensor = id(self._places[piece.target].empty)
            layer = owners.get(tensor)
            group = self.blocks[layer] if layer is not None else self.around if tensor in base else self.head
            group.append(piece)

    def put(
        self,
        pieces: Iterable[Piece],
        tensors: Mapping[str, torch.Tensor],
        compute: Callable[[torch.dtype], torch.dtype] = lambda dtype: dtype,
        *,
        copies: bool = False,
    ) -> list[str]:
        """Fill places.

        Args:
            pieces: which ones.
            tensors: their sources, by name.
            compute: the dtype to compute in with parameters of a dtype.
            copies: whether what is put must share no memory with `tensors`.

        Returns:
            The names of the parameters that are there now, for `take_out`.
        """
        with torch.inference_mode(False), torch.no_grad():
            apart = {_storage(tensor) for tensor in tensors.values()} if copies else set()
            return [
                self._fill(name, value.to(compute(piece.dtype)), apart)
                for piece in pieces
                for name, value in self._made(piece, tensors).items()
            ]

    def _fill(self, name: str, value: torch.Tensor, apart: Collection[int]) -> str:
        place = self._places[name]
        if _storage(value) in apart:
            value = value.clone()
        if isinstance(place.empty, nn.Parameter):
            # As the loaded model's: some products are computed another way where a gradient could be asked for.
            value = nn.Parameter(value, requires_grad=place.empty.requires_grad)
        for registry, leaf in place.homes:
            registry[leaf] = value
        return name

    def take_out(self, names: Iterable[str]) -> None:
        """Leave the places of these parameters empty again."""
        for name in names:
            place = self._places[name]
            for registry, leaf in place.homes:
                registry[leaf] = place.empty

    def is_at(self, piece: Piece, module: nn.Module, leaf: str) -> bool:
        """Whether a piece becomes (or is tied to) a parameter of a module."""
        return any(registry is module._parameters and at == leaf for registry, at in self._places[piece.target].homes)

    def size(self, piece: Piece, dtype: torch.dtype) -> int:
        """Bytes of what a piece becomes, in a dtype."""
        return self._places[piece.target].empty.numel() * dtype.itemsize

    def _made(self, piece: Piece, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if piece.converter is None:
            return {piece.target: tensors[piece.sources[0][0]].to(piece.dtype)}
        converter: Any = copy.deepcopy(piece.converter)
        for name, pattern in piece.sources:
            converter.add_tensor(piece.target, name, pattern, tensors[name].to(piece.dtype))
        made = converter.convert(piece.target, model=self._model, config=self._model.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _tensors(module: nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]


def _places(model: nn.Module) -> dict[str, _Place]:
    by_tensor: dict[int, _Place] = {}
    for module in model.modules():
        registries: Sequence[dict[str, Any]] = (module._parameters, module._buffers)
        for registry in registries:
            for leaf, tensor in registry.items():
                if tensor is not None:
                    by_tensor.setdefault(id(tensor), _Place(tensor)).homes.append((registry, leaf))
    return {name: by_tensor[id(tensor)] for name, tensor in model.state_dict(keep_vars=True).items()}


def sources_of(decoder: Decoder, parameters: Collection[str], stored: Collection[str]) -> set[str]:
    """Which tensors of a checkpoint parameters are made of: one may be stored in pieces, and under another name.

    Args:
        decoder: the model, with weights or without.
        parameters: their full names.
        stored: names of the checkpoint's tensors.
    """
    wanted = set(parameters)
    return {name for piece in _pieces(decoder.model, stored) if piece.target in wanted for name, _ in piece.sources}


def _pieces(model: PreTrainedModel, entries: Collection[str]) -> list[Piece]:
    """Which tensors become which parameters, as `convert_and_load_state_dict_in_model` groups them."""
    mapping = get_model_conversion_mapping(model)
    renamings = [entry for entry in mapping if isinstance(entry, WeightRenaming)]
    converters = [entry for entry in mapping if isinstance(entry, WeightConverter)]
    by_pattern = {pattern: converter for converter in converters for pattern in converter.source_patterns}
    state, prefix = model.state_dict(), model.base_model_prefix
    plain: dict[str, Piece] = {}
    sources: dict[str, list[tuple[str, str]]] = {}
    for name in sorted(entries, key=dot_natural_key):
        target, pattern = rename_source_key(name, renamings, converters, prefix, state)
        if target not in state and name in state:
            target, pattern = rename_source_key(name, [], [], prefix, state)
        if target not in state:
            continue  # of no use to this model, such as the layers that predict further tokens
        if pattern is None:
            plain[target] = Piece(target, state[target].dtype, ((name, name),))
        else:
            sources.setdefault(target, []).append((name, pattern))
    made = [
        Piece(target, state[target].dtype, tuple(found), by_pattern[found[0][1]]) for target, found in sources.items()
    ]
    return [*plain.values(), *made]
