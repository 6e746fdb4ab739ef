"""Carry out a plan file to file: the bytes that stay are copied, those that go are never read, nothing is loaded."""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hf_prune import serial
from hf_prune.errors import OutputError
from hf_prune.journal import Journal
from hf_prune.moving import LARGEST_SPAN, SourceWeights, Span
from hf_prune.progress import tqdm
from hf_prune.records import Plan
from hf_prune.saving import no_room
from hf_prune.shards import Shard, index_file, index_text, lay_out
from hf_prune.surgery.cut_tensors import CutTensor, cut_tensors, pieces_of
from hf_prune.tensors import TensorEntry


def write_weights(
    weights: SourceWeights,
    origin: Path,
    plan: Plan,
    folder: Path,
    *,
    journal: Path | None = None,
    dtype: str | torch.dtype = "auto",
    max_shard_size: str = "5GB",
    trust_remote_code: bool = False,
    progress: bool = False,
) -> PreTrainedModel:
    """Write the weights of a cut checkpoint, tensor by tensor the same as loading, cutting and saving would.

    Args:
        weights: of the base.
        origin: folder of the base's config; its weights may lie elsewhere.
        plan: what to do.
        folder: where the files go: empty, or as a killed call with the same `journal` has left it.
        journal: remembers what was written; None starts afresh, and leaves nothing behind on an error.
        dtype: of the weights, as in `loading.load_model`.
        max_shard_size: as in `save_pretrained`.
        trust_remote_code: whether code in the folder of the config may run.
        progress: whether to show a bar.

    Returns:
        The cut model without its weights, on the meta device: its config and generation config are those to save.

    Raises:
        StreamError: it cannot be done file to file; it may be in memory.
        CheckpointError: the weights do not fit the config, or changed meanwhile.
        OutputError: there is no room, or `folder` is not empty or overlaps with the base.
        HubError: the Hub did not send what was asked for.
        OSError: the disk is full all the same, or broken.
    """
    _check_apart(origin, folder)
    model, tensors = cut_tensors(weights, origin, plan, dtype=dtype, trust_remote_code=trust_remote_code)
    likes = {name: tensor.like for name, tensor in tensors.items()}
    shards = lay_out(likes, max_shard_size, lambda name: (tensors[name].source.file, tensors[name].source.start))
    notes = Journal(journal, folder, _key(weights, plan, shards))
    begun = notes.begun and all(_is_made(folder / shard.file, shard.size) for shard in shards)
    if not begun:
        notes.forget()
        _make_room(shards, folder, ours=journal is not None)
    try:
        for shard in shards:  # also on the way on: nothing says that they had come to the disk
            with (folder / shard.file).open("r+b") as file:
                file.write(shard.header)
        with notes:
            _fill(shards, tensors, weights, folder, notes, progress)
        name = index_file(shards)
        if name is not None:
            serial.write_text(folder / name, index_text(shards, model.num_parameters()))
    except BaseException as error:
        if journal is not None:
            raise
        _remove(shards, folder)
        reason = no_room(error)
        if reason is None:
            raise
        raise OutputError(
            f"{reason} '{folder}' ({shutil.disk_usage(folder).free / 1e6:.0f} MB free); nothing was left there. Free "
            "some space, or choose another disk"
        ) from error
    return model


def _key(weights: SourceWeights, plan: Plan, shards: Sequence[Shard]) -> str:
    """Stands for what is written, and where."""
    total = hashlib.sha256(weights.identity.encode())
    total.update(json.dumps(serial.to_dict(plan), sort_keys=True).encode())
    for shard in shards:
        total.update(shard.file.encode() + shard.header)
    return total.hexdigest()


def _check_apart(origin: Path, folder: Path) -> None:
    one, two = origin.resolve(), folder.resolve()
    if one == two or one in two.parents or two in one.parents:
        raise OutputError(
            f"the output '{folder}' and the base '{origin}' are the same folder, or one lies in the other; choose "
            "another output"
        )


def _is_made(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size


def _make_room(shards: Sequence[Shard], folder: Path, *, ours: bool) -> None:
    """Make the files, in their full length: whether there is room is known before any work."""
    old = sorted(path for path in folder.iterdir() if ".safetensors" in path.suffixes)
    if old and not ours:
        names = ", ".join(path.name for path in old[:3])
        raise OutputError(f"'{folder}' holds weights already ({names}); expected an empty one")
    for path in old:  # of another plan
        path.unlink()
    needed, free = sum(shard.size for shard in shards), shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the weights take {needed / 1e9:.2f} GB; '{folder}' has room for {free / 1e9:.2f} GB. Free some space, "
            "or choose another disk"
        )
    try:
        for shard in shards:
            with (folder / shard.file).open("wb") as file:
                # Not allocated: each extent would be written twice into the file system's own journal.
                file.truncate(shard.size)
    except OSError as error:
        _remove(shards, folder)
        reason = no_room(error)
        if reason is None:
            raise
        raise OutputError(
            f"{reason} '{folder}', where {needed / 1e9:.2f} GB are needed; choose another disk"
        ) from error


def _remove(shards: Sequence[Shard], folder: Path) -> None:
    for shard in shards:
        with suppress(FileNotFoundError):
            (folder / shard.file).unlink()


def _fill(
    shards: Sequence[Shard],
    tensors: Mapping[str, CutTensor],
    weights: SourceWeights,
    folder: Path,
    notes: Journal,
    progress: bool,
) -> None:
    entries = [entry for shard in shards for entry in shard.entries]
    with tqdm(
        desc="writing the cut checkpoint",
        total=sum(entry.size for entry in entries),
        unit="B",
        unit_scale=True,
        unit_divisor=1000,
        disable=not progress,
    ) as bar:

        def done(span: Span) -> None:
            notes.add(span)
            bar.update(span.size)

        spans = list(_spans([e for e in entries if tensors[e.name].copied], tensors))
        bar.update(sum(span.size for span in spans if span in notes))
        weights.mover.move([span for span in spans if span not in notes], folder, done)
        for entry in entries:
            if not tensors[entry.name].copied:
                for span in _spans([entry], tensors):
                    if span in notes:
                        bar.update(span.size)
                    else:
                        _work(span, entry, tensors[entry.name], weights, folder)
                        done(span)


def _spans(entries: Sequence[TensorEntry], tensors: Mapping[str, CutTensor]) -> Iterator[Span]:
    """The bytes of tensors, neighbours in both files in one piece, no piece longer than may be moved at once.

    Of a tensor that is not merely copied, start and size are as in the target.
    """
    pieces: list[Span] = []
    for entry in entries:
        source = tensors[entry.name].source
        last = pieces[-1] if pieces else None
        if (
            last is not None
            and (last.file, last.target) == (source.file, entry.file)
            and last.start + last.size == source.start
            and last.at + last.size == entry.start
        ):
            pieces[-1] = dataclasses.replace(last, size=last.size + entry.size)
        else:
            pieces.append(Span(source.file, source.start, entry.size, entry.file, entry.start))
    for piece in pieces:
        for at in range(0, piece.size, LARGEST_SPAN):
            size = min(LARGEST_SPAN, piece.size - at)
            yield dataclasses.replace(piece, start=piece.start + at, at=piece.at + at, size=size)


def _work(span: Span, entry: TensorEntry, tensor: CutTensor, weights: SourceWeights, folder: Path) -> None:
    """Cast and change one span of a tensor, chunk by chunk."""
    first = span.at - entry.start
    with (folder / span.target).open("r+b") as file:
        for at, piece in pieces_of(tensor, weights.mover, first, first + span.size):
            file.seek(entry.start + at)
            file.write(piece)
