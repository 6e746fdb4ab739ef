"""The frozen prefix on disk: what enters the first trained block is computed once a row, and read in later passes."""

import hashlib
import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from hf_prune.architecture import Decoder
from hf_prune.block_calls import first
from hf_prune.healing.held_out import evaluation_mode
from hf_prune.healing.prefix import Inputs, Prefix, Shared, capturing, choose_prefix, entering, in_bytes
from hf_prune.healing.row_store import Fields, RowStore, planned_bytes
from hf_prune.healing.rows import MODEL_INPUTS, Rows
from hf_prune.healing.view import TeacherView
from hf_prune.memory_budget import parse_memory

log = logging.getLogger(__name__)

_FIELD = "hidden"
_PROBED = 16  # tokens


@dataclass(frozen=True)
class Entry:
    """How a model may begin behind its frozen prefix.

    Attributes:
        depth: blocks of the prefix.
        tuples: whether its blocks return tuples.
        width: numbers a token that enter the block behind the prefix.
        dtype: of them.
        unfit: why it may not, one sentence; None where it may.
    """

    depth: int
    tuples: bool
    width: int
    dtype: torch.dtype
    unfit: str | None = None

    @property
    def token_bytes(self) -> int:
        """Bytes a token."""
        return self.width * self.dtype.itemsize

    @property
    def fields(self) -> Fields:
        """Of the store."""
        return {_FIELD: (self.width, self.dtype)}


@torch.no_grad()
def find_entry(decoder: Decoder, depth: int, ids: torch.Tensor, *, autocast: bool) -> Entry:
    """Let the model begin behind its prefix once, and see whether it ends where it ends without that.

    Models in which a later block reads more than the hidden states that enter it (keys of an earlier one, say) don't.

    Args:
        decoder: the pruned model, ready to be trained.
        depth: blocks of the prefix, at least 1.
        ids: (length,) token ids of a row.
        autocast: whether it computes in bfloat16 where that is safe.
    """
    device = decoder.model.device
    given = {"input_ids": ids[:_PROBED].unsqueeze(0).to(device)}
    outputs: list[object] = []
    handle = decoder.blocks[-1].register_forward_hook(lambda _block, _args, output: outputs.append(output))
    training = decoder.model.training
    evaluation_mode(decoder.model)
    try:
        with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
            with capturing(decoder, (depth,)) as states:
                decoder.base(**given, use_cache=False)
            hidden = states[depth]
            tuples = isinstance(outputs[0], tuple)
            entry = Entry(depth, tuples, hidden.shape[-1], hidden.dtype)
            refused = f"'{decoder.name}' cannot begin at block {depth} from the hidden states that enter it alone"
            if hidden.shape[:-1] != given["input_ids"].shape:
                return Entry(depth, tuples, hidden.shape[-1], hidden.dtype, refused)
            try:
                with entering(decoder, depth, hidden, tuples):
                    decoder.base(**given, use_cache=False)
            except (AttributeError, IndexError, KeyError, RuntimeError, TypeError) as error:
                return Entry(depth, tuples, entry.width, entry.dtype, f"{refused} ({error})")
    finally:
        handle.remove()
        decoder.model.train(training)
    whole, behind = (torch.nan_to_num(first(output)) for output in outputs)
    return entry if torch.equal(whole, behind) else Entry(depth, tuples, entry.width, entry.dtype, refused)


class Stored:
    """The hidden states of all rows, kept as they are first computed; see `Prefix`.

    A row is kept without pads, and padded with zeros: a causal model's tokens see no pads behind them. Where rows of a
    batch are missing, the model computes the whole batch.

    Args:
        entry: how the model begins.
        store: one row for each of training.
    """

    def __init__(self, entry: Entry, store: RowStore) -> None:
        self.depth, self._entry, self.store = entry.depth, entry, store

    def hidden(self, inputs: Inputs, teacher: TeacherView | None) -> torch.Tensor | None:
        """See `Prefix`."""
        numbers = inputs["rows"].tolist()
        if not all(self.store.has(number) for number in numbers):
            return None
        batch, length = inputs["input_ids"].shape
        hidden = torch.zeros((batch, length, self._entry.width), dtype=self._entry.dtype)
        for to, number in zip(hidden, numbers, strict=True):
            to[: self.store.lengths[number]] = self.store.get(number)[_FIELD]
        return hidden.to(inputs["input_ids"].device)

    def keep(self, inputs: Inputs, hidden: torch.Tensor) -> None:
        """See `Prefix`."""
        for row, number in zip(hidden.detach(), inputs["rows"].tolist(), strict=True):
            if not self.store.has(number):
                self.store.put(number, **{_FIELD: row[: self.store.lengths[number]]})


def prefix_key(fingerprint: str, rows: Rows, entry: Entry, made_by: Sequence[str]) -> str:
    """A sha256 of all that hidden states depend on.

    Args:
        fingerprint: of the pruned checkpoint.
        rows: with all that a model is given of them.
        entry: with the depth of the prefix.
        made_by: dtypes, quantization and device of the model that computes.
    """
    total = hashlib.sha256("\n".join([fingerprint, str(entry), *made_by]).encode())
    for number in range(len(rows)):
        row = rows[number]
        for name in MODEL_INPUTS:
            if name in row:
                total.update(f"{name} {len(row[name])}".encode() + row[name].to(torch.int64).numpy().tobytes())
    return total.hexdigest()


def disk_room(budget: str | None, folder: Path, taken: int = 0) -> int:
    """Bytes that may be written below a folder.

    Args:
        budget: `HealingConfig.store_budget`; None takes a tenth of what is free there (what lies in the folder counts
            as free, so that a run that goes on decides as it did before).
        folder: it need not be there yet.
        taken: bytes that are promised to something else out of the same budget.

    Raises:
        ConfigError: the budget is no size.
    """
    if budget is not None:
        return max(0, parse_memory(budget) - taken)
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    inside = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) if folder.is_dir() else 0
    return max(0, (shutil.disk_usage(there).free + inside) // 10 - taken)


@dataclass(frozen=True)
class Opened:
    """What `Step` and the record are told of the frozen prefix.

    Attributes:
        prefix: where its hidden states come from; None lets the model compute them each time.
        tuples: whether its blocks return tuples.
        notes: sentences for the record.
        reused: what is computed once, and how much that is, one sentence; None where nothing is.
    """

    prefix: Prefix | None = None
    tuples: bool = False
    notes: tuple[str, ...] = ()
    reused: str | None = None


def open_prefix(
    decoder: Decoder,
    rows: Rows,
    asked: str | None,
    *,
    frozen: int,
    shared: int,
    passes: float,
    room: int,
    folder: Path,
    fingerprint: str,
    made_by: Sequence[str],
    autocast: bool,
) -> Opened:
    """Decide about the frozen prefix, say what it takes, and open its store where it has one.

    Args:
        decoder: the pruned model, ready to be trained.
        rows: training text.
        asked: `HealingConfig.prefix`.
        frozen: see `prefix.frozen_depth`.
        shared: see `prefix.choose_prefix`.
        passes: of training over the rows.
        room: see `disk_room`.
        folder: of the store.
        fingerprint: of the pruned checkpoint.
        made_by: see `prefix_key`.
        autocast: whether training computes in bfloat16 where that is safe.

    Raises:
        ConfigError: what was asked for is of no use here, or takes too much room.
        CheckpointError: the folder holds the states of something else.
        OutputError: the disk has no room.
    """
    entry = None
    if frozen and asked != "recompute":
        entry = find_entry(decoder, frozen, rows[0]["input_ids"], autocast=autocast)
    lengths = [len(rows[number]["input_ids"]) for number in range(len(rows))]
    size = 0 if entry is None else planned_bytes(lengths, entry.fields)
    choice = choose_prefix(
        asked, frozen=frozen, shared=shared, passes=passes, size=size, room=room,
        unfit=None if entry is None else entry.unfit,
    )  # fmt: skip
    depth, whole = min(frozen, shared) if choice.way == "share" else frozen, decoder.num_layers
    log.info("frozen prefix, %d of %d blocks: %s (%s)", depth, whole, choice.way, choice.reason)
    notes = () if choice.note is None else (choice.note,)
    if entry is None or choice.way == "recompute":
        return Opened(notes=notes)
    if choice.way == "share":
        told = f"The original computed the first {depth} of {whole} blocks for both models"
        return Opened(Shared(depth), entry.tuples, notes, f"{told}, {depth / whole:.0%} of the healed model's.")
    a_token = f"{entry.token_bytes:,} bytes a token ({entry.width} x {str(entry.dtype).removeprefix('torch.')})"
    log.info(
        "stored states: %s on disk, %s; %s are allowed. The first of %.1f passes writes them, each later "
        "one reads them in place of %d of %d blocks: they pay from the second pass on",
        in_bytes(size), a_token, in_bytes(room), passes, depth, whole,
    )  # fmt: skip
    key = prefix_key(fingerprint, rows, entry, made_by)
    what = f"hidden states entering block {depth} of '{decoder.name}'"
    store = RowStore(folder, key, lengths, entry.fields, what=what)
    told = f"Hidden states behind the first {depth} of {whole} blocks were computed once and read in later passes"
    return Opened(Stored(entry, store), entry.tuples, notes, f"{told}: {in_bytes(size)} on disk, {a_token}.")
