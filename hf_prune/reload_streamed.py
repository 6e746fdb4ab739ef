"""The reload contract of a folder that no model in memory was saved to: one block, or a few bytes, at a time.

Run as a program (`python -m hf_prune.reload_streamed SETTINGS`) it is the other process in which that is checked.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from hf_prune import serial
from hf_prune.architecture import decoder_of, per_layer_settings, rewrite_config
from hf_prune.architecture.layer_config import config_of
from hf_prune.block_weights import StreamedWeights
from hf_prune.loading import Source, load_model
from hf_prune.local_files import local_weights
from hf_prune.outline import fitted
from hf_prune.probe import probe, probe_ids
from hf_prune.records import ModelRef, Plan
from hf_prune.runner import Walker
from hf_prune.samples import Batch
from hf_prune.skeleton import skeleton
from hf_prune.surgery import apply_plan
from hf_prune.surgery.cut_tensors import cut_tensors, pieces_of
from hf_prune.units import Unit


def problems(
    folder: Path, source: Path | None, origin: Path | None, plan: Plan, dtype: str | torch.dtype, trusted: bool
) -> Iterator[str]:
    """What is wrong with a folder, in words; see `reload.check_streamed`.

    Args:
        folder: what was written.
        source: base checkpoint with its weights; None where they are not on this machine.
        origin: folder of the base's config, where it is known.
        plan: what was done.
        dtype: of the weights, as they were written.
        trusted: whether code in the folders may run.

    Raises:
        CheckpointError: the folder is no whole checkpoint of its class.
    """
    weights = local_weights(folder)
    model, unexpected = fitted(weights, folder, folder.name, dtype="auto", trust_remote_code=trusted)
    if unexpected:
        yield f"unexpected keys: {unexpected[:3]}"
        return
    if origin is not None:
        yield from _config_problems(model, origin, plan)
    if source is None:
        yield from _dtype_problems(model, folder)
    else:
        yield from _tensor_problems(folder, source, plan, dtype, trusted)
    yield from _probe_problems(folder, source, plan, dtype, trusted)


def _config_problems(model: Any, origin: Path, plan: Plan) -> Iterator[str]:
    """What the file says of the layers is what the base's says of those that stayed."""
    base = config_of(rewrite_config(serial.read_json(origin / "config.json"), plan.kept))
    wanted = per_layer_settings(base.get_text_config(decoder=True))
    found = per_layer_settings(model.config.get_text_config(decoder=True))
    for key in sorted(wanted.keys() | found.keys()):
        if wanted.get(key) != found.get(key):
            yield f"config key '{key}' is {found.get(key)}, expected {wanted.get(key)}"


def _dtype_problems(model: Any, folder: Path) -> Iterator[str]:
    """Every tensor is stored in the dtype that its parameter has."""
    live = {name: tensor.dtype for name, tensor in model.state_dict().items()}
    for name, entry in local_weights(folder).entries.items():
        if name in live and entry.torch_dtype != live[name]:
            yield f"tensor '{name}' is {entry.torch_dtype}, expected {live[name]}"


def _tensor_problems(folder: Path, source: Path, plan: Plan, dtype: str | torch.dtype, trusted: bool) -> Iterator[str]:
    """Every tensor is what plan and base make of it, to the byte."""
    base, mine = local_weights(source), local_weights(folder)
    _, wanted = cut_tensors(base, source, plan, dtype=dtype, trust_remote_code=trusted)
    for name in sorted(wanted.keys() ^ mine.entries.keys()):
        yield f"tensor '{name}' is {'missing' if name in wanted else 'one too many'}"
    for name in wanted.keys() & mine.entries.keys():
        tensor, entry = wanted[name], mine.entries[name]
        if (entry.torch_dtype, entry.shape) != (tensor.like.dtype, tuple(tensor.like.shape)):
            yield (
                f"tensor '{name}' is {entry.torch_dtype} {list(entry.shape)}, expected {tensor.like.dtype} "
                f"{list(tensor.like.shape)}"
            )
        elif any(
            piece != mine.mover.read(entry.file, entry.start + at, len(piece))
            for at, piece in pieces_of(tensor, base.mover)
        ):
            made = "what the plan makes of " if tensor.edits else ""
            yield f"tensor '{name}' differs from {made}'{tensor.source.name}' of the base"


def _probe_problems(
    folder: Path, source: Path | None, plan: Plan, dtype: str | torch.dtype, trusted: bool
) -> Iterator[str]:
    """What leaves the last block is finite, and what leaves the base's where all that is removed is passed by."""
    found = _walked(folder, len(plan.kept), (), plan, "auto", trusted)
    if not torch.isfinite(found).all():
        yield "hidden states behind the last block are not finite"
    if source is None or any(operation.kind not in ("drop", "silence") for operation in plan.operations):
        return
    wanted = _walked(source, plan.model.num_layers, plan.removed, plan, dtype, trusted)
    if found.dtype != wanted.dtype:
        yield f"hidden states are {found.dtype}, expected {wanted.dtype}"
    elif not torch.equal(found, wanted):
        yield f"hidden states behind the last block differ by up to {(found - wanted).abs().max().item():.3g}"


def _walked(
    folder: Path, depth: int, removed: tuple[Unit, ...], plan: Plan, dtype: str | torch.dtype, trusted: bool
) -> torch.Tensor:
    """(2, 16, width) hidden states of the probe behind the last block, before the last norm."""
    decoder = skeleton(_source(folder, depth, plan), dtype=dtype, trust_remote_code=trusted)
    ids = probe_ids(decoder.config.vocab_size)
    left: list[torch.Tensor] = []
    Walker(decoder, StreamedWeights(decoder, folder)).walk(
        [Batch(ids, torch.ones_like(ids))],
        cuts=[removed],
        leave=lambda _cut, _batch, hidden, _mask: left.append(hidden.clone()),
    )
    return left[0]


def _source(folder: Path, depth: int, plan: Plan) -> Source:
    return Source(ModelRef(plan.model.id, None, plan.model.model_type, depth, plan.model.digest), folder, False)


def _expect(path: Path, source: Path, plan: Plan, dtype: str | torch.dtype, trusted: bool) -> None:
    """Write what the base answers to the probe once it is cut in memory."""
    model = load_model(_source(source, plan.model.num_layers, plan), dtype=dtype, trust_remote_code=trusted)
    apply_plan(decoder_of(model), plan)
    save_file(probe(model), path)


def _main(settings: dict[str, Any]) -> list[str]:
    torch.set_num_threads(settings["threads"])
    folder, source, origin = (
        None if settings[name] is None else Path(settings[name]) for name in ("folder", "source", "origin")
    )
    assert folder is not None
    plan = serial.from_dict(Plan, settings["plan"])
    dtype = settings["dtype"] if settings["dtype"] == "auto" else getattr(torch, settings["dtype"])
    trusted = settings["trust_remote_code"]
    if "probe" in settings:
        assert source is not None
        _expect(Path(settings["probe"]), source, plan, dtype, trusted)
        return list(_tensor_problems(folder, source, plan, dtype, trusted))
    return list(problems(folder, source, origin, plan, dtype, trusted))


if __name__ == "__main__":
    sys.stdout.write(json.dumps({"problems": _main(json.loads(sys.argv[1]))[:5]}) + "\n")
