"""Whether and how the original is at hand while its pruned model is healed: in memory, in 4 bits, or on disk."""

import logging
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from hf_prune import extras
from hf_prune.architecture import Decoder
from hf_prune.config import HealingConfig
from hf_prune.errors import ConfigError
from hf_prune.healing.checkpoint import fingerprint
from hf_prune.healing.cost import Cost
from hf_prune.healing.origin import Origin
from hf_prune.healing.original import Computing, check_fit, files_of, load_original, no_files
from hf_prune.healing.prefix import in_bytes
from hf_prune.healing.prefix_store import disk_room
from hf_prune.healing.rows import Rows
from hf_prune.healing.step import Teacher, WeightedLoss
from hf_prune.healing.teacher import Resident, same_blocks, share_tensors
from hf_prune.healing.teacher_store import TOP_K, Kept, Stored, fill, folder_name, open_store, spent_on
from hf_prune.memory import give_back

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What healing wants to know of the original.

    Attributes:
        positions: in the pruned model, at which hidden states are compared in training.
        predictions: whether predictions are, in training.
        mode: as `HealingConfig.teacher`.
        trained: whether training looks at the original at all, or the held-out figures alone.
    """

    positions: tuple[int, ...]
    predictions: bool
    mode: str
    trained: bool


@dataclass(frozen=True)
class Teaching:
    """The original, as far as it is asked.

    Attributes:
        teacher: for training rows; None where no loss looks at it.
        judge: for held-out rows, whose row numbers are their own; None where nothing does.
        shared: blocks at the start that `teacher` computes to the bit as the pruned model does.
        unshared: why these are fewer than could be, one clause; None where they are not.
        disk: bytes that were taken on disk.
        spent: floating point operations that it took before training.
        notes: sentences for the record.
        reused: what of the original was computed once, one sentence.
    """

    teacher: Teacher | None = None
    judge: Teacher | None = None
    shared: int = 0
    unshared: str | None = None
    disk: int = 0
    spent: float = 0.0
    notes: tuple[str, ...] = ()
    reused: str | None = None

    def beside(self, length: int) -> Cost:
        """Operations of the original in each training step.

        Args:
            length: longest row in tokens.
        """
        return self.teacher.cost(length) if isinstance(self.teacher, Resident) else Cost()


def check_losses(losses: Sequence[WeightedLoss], positions: Sequence[int], lowest: int, origin: Origin) -> None:
    """Refuse, before any training, losses that have nothing to look at, or that nothing trained can lower.

    Args:
        losses: the terms.
        positions: from `step.compared_positions`.
        lowest: block that holds the lowest trained tensor.
        origin: what the cut was.

    Raises:
        ConfigError: the original is not at hand; no whole block was dropped; all that is compared lies below all that
            is trained; or the stream behind the cut was rescaled.
    """
    for term in losses:
        if term.needs == "nothing":
            continue
        if origin.load is None:
            raise ConfigError(
                f"healing.loss '{term.name}' compares with the original, which is not at hand; expected the model "
                "that was pruned. Name it (original=..., --original), or take loss 'next_token'"
            )
        if term.needs == "predictions":
            continue
        if not origin.seams:
            raise ConfigError(
                f"healing.loss '{term.name}' compares hidden states behind dropped blocks, and none of the "
                f"{origin.depth} was dropped (those of a sliced model are turned and narrower, and compare with "
                "nothing). Take loss 'kl'"
            )
        if origin.rescaled:
            raise rescaled_stream(term.name)
        compared = origin.seams if term.needs == "seams" else positions
        if max(compared) <= lowest:
            raise ConfigError(
                f"healing.loss '{term.name}' looks at what enters {_places(compared, len(origin.kept))}, and the "
                f"lowest block that is trained is {lowest}: nothing below changes, so that the loss is a constant. "
                "Train blocks below the cut (healing.target 'mlp', 'all' or 'seam'), or take loss 'kl'"
            )


def rescaled_stream(loss: str) -> ConfigError:
    """What is said where hidden states have another size than the original's.

    Args:
        loss: name of the loss that compares them.
    """
    return ConfigError(
        f"healing.loss '{loss}' compares hidden states with the original's, and surgery 'compensate' makes those "
        "behind the cut smaller or larger by a factor that later blocks count on. Take loss 'kl', or surgery 'drop'"
    )


def asked(config: HealingConfig, losses: Sequence[WeightedLoss], positions: Sequence[int]) -> Asked | None:
    """What healing wants to know of the original; None where nothing.

    Held-out divergences are measured wherever the original is there anyway, and where training stops by them. For them
    alone its predictions are stored: they are few, and the original need not stay.

    Args:
        config: resolved.
        losses: the terms.
        positions: from `step.compared_positions`.
    """
    predictions = any(term.needs == "predictions" for term in losses)
    trained = predictions or bool(positions)
    if not trained and config.stop_on != "kl" and config.teacher is None:
        return None
    mode = config.teacher or ("resident" if trained else "stored")
    return Asked(tuple(positions), predictions, mode, trained)


def check_teacher(wanted: Asked, origin: Origin) -> None:
    """Refuse ways to have the original at hand that there are none of here.

    Args:
        wanted: what is asked of it.
        origin: how to get at it.

    Raises:
        ConfigError: it is not at hand, or in memory alone although it is to be in 4 bits.
        MissingExtraError: bitsandbytes is not installed, and it is to be in 4 bits.
    """
    if origin.load is None:
        raise ConfigError(
            f"healing.teacher='{wanted.mode}' is the original, which is not at hand; expected the model that was "
            "pruned. Name it (original=..., --original), or leave teacher and stop_on='kl' out"
        )
    if wanted.mode == "nf4":
        extras.require("bitsandbytes", "heal", "healing with teacher='nf4'")
        if origin.source is None:
            raise no_files()


def beside(
    wanted: Asked,
    origin: Origin,
    pruned: Decoder,
    parameters: Mapping[str, nn.Parameter],
    *,
    frozen: int,
    computing: Computing,
) -> Teaching:
    """The original in memory beside the pruned model.

    Loaded for this alone, it shares with the pruned model all tensors that are the same to the bit: of a model whose
    blocks at the seam are trained, it costs the removed blocks and the trained ones. One that somebody else holds is
    never written to.

    Args:
        wanted: what is asked of it.
        origin: how to get at it.
        pruned: the model that is healed, as it was before adapters came.
        parameters: all of its parameters, by their names at that time; now it is known which of them are trained.
        frozen: blocks below all that is trained or compared.
        computing: how the pruned model computes.

    Raises:
        ConfigError: vocabulary or width are not those of the original; or there are no files to load in 4 bits.
    """
    decoder, owned = load_original(origin, wanted.mode, computing)
    check_fit(decoder, pruned, states=bool(wanted.positions))
    freed = share_tensors(decoder, parameters, origin.kept) if owned else 0
    give_back()
    size = sum(p.numel() * p.element_size() for p in decoder.model.parameters())
    log.info(
        "original in memory%s: %.2f GB, %.2f GB of them the pruned model's own",
        " in 4 bits" if wanted.mode == "nf4" else "", size / 1e9, freed / 1e9,
    )  # fmt: skip
    shared, why = min(frozen, origin.same_below), None
    if shared and computing.quantized != (wanted.mode == "nf4"):
        whole, small = ("original", "healed model") if computing.quantized else ("healed model", "original")
        why = f"frozen weights of the {small} are in 4 bits, and those of the {whole} are not (quantize, teacher)"
    elif shared:
        why = same_blocks(decoder, pruned, parameters, shared, origin.kept)
    ways: dict[str, Any] = {"device": computing.device, "autocast": computing.autocast, "owned": owned}
    judge = Resident(decoder, origin.kept, (), predictions=True, **ways)
    if not wanted.trained:
        return Teaching(judge=judge)
    shared = 0 if why else shared
    teacher = Resident(decoder, origin.kept, wanted.positions, predictions=wanted.predictions, shared=shared, **ways)
    return Teaching(teacher, judge, shared, why)


def on_disk(
    wanted: Asked,
    origin: Origin,
    pruned: Decoder,
    config: HealingConfig,
    rows: Rows,
    held_out: Rows,
    *,
    folder: Path,
    computing: Computing,
    progress: bool,
) -> Teaching:
    """What the original makes of all rows, on disk: computed now where it is not there yet, and the original let go.

    Args:
        wanted: what is asked of it.
        origin: how to get at it.
        pruned: the model that is healed; its weights are not looked at.
        config: resolved.
        rows: training rows.
        held_out: held-out rows.
        folder: for the stores. What else lies there, of other settings, is deleted.
        computing: how the pruned model will compute.
        progress: whether to show a bar.

    Raises:
        ConfigError: more disk would be taken than may be; or vocabulary or width are not those of the original.
        OutputError: the disk has no room.
    """
    vocabulary = int(pruned.config.vocab_size)
    count = min(config.top_k or TOP_K, vocabulary)
    width = int(pruned.config.hidden_size)
    plans: list[tuple[Kept, Rows]] = [(Kept(count, 1.0, (), width, computing.dtype), held_out)]
    if wanted.trained:
        top = count if wanted.predictions else 0
        plans.insert(0, (Kept(top, config.temperature, wanted.positions, width, computing.dtype), rows))
    size = sum(kept.bytes(text) for kept, text in plans)
    room = disk_room(config.store_budget, folder)
    told = f"{in_bytes(size)} on disk, {_a_token(plans[0][0])} bytes a token"
    log.info("what the original makes of the text: %s; %s are allowed", told, in_bytes(room))
    if size > room:
        raise ConfigError(
            f"healing.teacher='stored' takes {told}; expected at most {in_bytes(room)} (healing.store_budget, a "
            f"tenth of the free disk where it is None). Raise the budget, lower healing.top_k ({count}), or train on "
            "less text, or take teacher 'resident' or 'nf4'"
        )
    source = files_of(origin)
    weights = "" if source is None or source.folder is None else fingerprint(source.folder)
    # What cannot be told from the weights of another model is never read again.
    stands_for = f"{origin.key}{weights}" or secrets.token_hex()
    how = f"{stands_for} {computing.dtype} {computing.autocast} {computing.device.type}"
    keys = [kept.key(how, text, origin.kept) for kept, text in plans]
    _delete_others(folder, {folder_name(key) for key in keys})
    stores = [open_store(folder, key, kept, text) for key, (kept, text) in zip(keys, plans, strict=True)]
    if any(store.left for store in stores):
        decoder, owned = load_original(origin, "resident", computing)
        check_fit(decoder, pruned, states=bool(wanted.positions))
        for store, (kept, text) in zip(stores, plans, strict=True):
            original = Resident(
                decoder, origin.kept, kept.positions, predictions=kept.top_k > 0, device=computing.device,
                autocast=computing.autocast, owned=owned,
            )  # fmt: skip
            fill(store, kept, original, text, batch_size=config.micro_batch_size or 1, progress=progress)
            del original
        del decoder
        give_back()
    told_apart = (
        f"Divergences from the original tell its {count} likeliest tokens apart, and put all others into one bucket: "
        "they are at most those over the whole vocabulary."
    )
    notes = (told_apart,) if count < vocabulary else ()
    made = [Stored(kept, store, computing.device) for store, (kept, _) in zip(stores, plans, strict=True)]
    reused = f"The original ran once over the text, and what it made of it was read from disk: {told}."
    spent = spent_on(stores[0]) if wanted.trained else 0.0
    return Teaching(made[0] if wanted.trained else None, made[-1], disk=size, spent=spent, notes=notes, reused=reused)


def _delete_others(folder: Path, names: set[str]) -> None:
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name not in names:
            shutil.rmtree(path)


def _places(positions: Sequence[int], depth: int) -> str:
    return ", ".join(f"block {at}" if at < depth else "the last norm" for at in positions)


def _a_token(kept: Kept) -> str:
    return f"{sum(width * dtype.itemsize for width, dtype in kept.fields.values()):,}"
