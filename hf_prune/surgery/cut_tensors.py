"""The tensors of a cut checkpoint by headers alone: which ones, made of which of the base's, and how."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedModel
from transformers.core_model_loading import revert_weight_conversion

from hf_prune.architecture import Decoder, decoder_of
from hf_prune.errors import StreamError
from hf_prune.moving import Mover, SourceWeights
from hf_prune.names import original_name
from hf_prune.outline import outline, saved_tensors, source_name
from hf_prune.records import Operation, Plan
from hf_prune.registry import surgery
from hf_prune.surgery.apply import apply_plan
from hf_prune.surgery.edits import Edit, Edits
from hf_prune.tensors import TensorEntry

_CHUNK = 4 * 2**20
"""Bytes of a tensor that are worked on at once, as they lie in the target."""


@dataclass(frozen=True)
class CutTensor:
    """One tensor of the cut checkpoint.

    Attributes:
        like: its dtype and shape, on the meta device.
        source: the tensor that it comes from.
        edits: what happens to its numbers.
    """

    like: torch.Tensor
    source: TensorEntry
    edits: tuple[Edit, ...]

    @property
    def copied(self) -> bool:
        """Whether its bytes are the source's."""
        return not self.edits and self.like.dtype == self.source.torch_dtype


def cut_tensors(
    weights: SourceWeights, origin: Path, plan: Plan, *, dtype: str | torch.dtype, trust_remote_code: bool
) -> tuple[PreTrainedModel, dict[str, CutTensor]]:
    """The cut model without its weights, and each tensor that it will be saved with, in the order of saving.

    Args:
        weights: of the base.
        origin: folder of the base's config.
        plan: what to do.
        dtype: of the weights.
        trust_remote_code: whether code in the folder may run.

    Raises:
        StreamError: it cannot be done file to file.
        CheckpointError: the weights do not fit the config.
        ConfigError: the plan was made for another model.
    """
    for operation in plan.operations:
        if surgery.get(operation.kind).streamed is None:
            raise StreamError(f"operation '{operation.kind}' of the plan needs the model in memory")
    name = plan.model.id
    model = outline(weights, origin, name, dtype=dtype, trust_remote_code=trust_remote_code)
    edits = Edits()

    def perform(decoder: Decoder, operation: Operation, positions: tuple[int, ...]) -> Decoder:
        streamed = surgery.get(operation.kind).streamed
        assert streamed is not None
        cut: Decoder = streamed(decoder, positions, edits, **operation.options)
        return cut

    decoder = apply_plan(decoder_of(model, name), plan, perform)
    leaf = decoder.blocks_path.rpartition(".")[2]
    live = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    stored = saved_tensors(model)
    changes = _changes(model, live, stored, edits)
    found = {}
    for saved, like in stored.items():
        source = weights.entries[source_name(original_name(saved, leaf, plan.kept), weights.entries, model)]
        if source.shape != tuple(like.shape):
            raise StreamError(
                f"tensor '{saved}' of '{name}' has shape {list(like.shape)}, in its checkpoint {list(source.shape)}; "
                "it is cut in memory"
            )
        found[saved] = CutTensor(like, source, changes.get(saved, ()))
    return model, found


def _changes(
    model: PreTrainedModel, live: Mapping[str, torch.Tensor], stored: Collection[str], edits: Edits
) -> dict[str, tuple[Edit, ...]]:
    """What happens to each tensor, by the name that it is saved under.

    Raises:
        StreamError: some are not stored as the model holds them, and their numbers are not all treated alike.
    """
    found: dict[str, tuple[Edit, ...]] = {}
    reached: set[int] = set()
    for name, tensor in live.items():
        changes = edits.of(tensor)
        if not changes:
            continue
        pieces = [name] if name in stored else []
        if not pieces and all(change.alike for change in changes):
            pieces = [piece for piece in revert_weight_conversion(model, {name: tensor}) if piece in stored]
        found |= dict.fromkeys(pieces, changes)
        reached |= {id(tensor)} if pieces else set()
    if len(reached) < len(edits):
        raise StreamError(
            f"the plan changes weights that a {type(model).__name__} does not store as it holds them; it is cut in "
            "memory"
        )
    return found


def pieces_of(tensor: CutTensor, mover: Mover, first: int = 0, last: int | None = None) -> Iterator[tuple[int, bytes]]:
    """What a tensor of the cut checkpoint is made of, piece by piece.

    Args:
        tensor: which one.
        mover: reads the base's weights.
        first: byte of the tensor to begin with; a multiple of the size of a number.
        last: byte to end before; the end of the tensor when None.

    Yields:
        First byte of each piece, counted from the start of the tensor, and its bytes.
    """
    source, dtype = tensor.source, tensor.like.dtype
    wide, width = source.torch_dtype.itemsize, dtype.itemsize
    end = tensor.like.nbytes if last is None else last
    for at in range(first, end, _CHUNK):
        size = min(_CHUNK, end - at)
        if tensor.copied:
            yield at, mover.read(source.file, source.start + at, size)
            continue
        start, count = at // width, size // width
        if tensor.edits and tensor.edits[0].fresh:
            values = torch.empty(count, dtype=dtype)
        else:
            raw = bytearray(mover.read(source.file, source.start + start * wide, count * wide))
            values = torch.frombuffer(raw, dtype=source.torch_dtype).to(dtype)
        for edit in tensor.edits:
            values = edit.change(values, start)
        yield at, values.view(torch.uint8).numpy().tobytes()
