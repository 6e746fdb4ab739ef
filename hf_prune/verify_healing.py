"""Healing as it is claimed: adapters of the size that the record says, on the maps that healing takes, and no more."""

import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import decoder_of
from hf_prune.checkpoint import read_header
from hf_prune.errors import PruneError
from hf_prune.healing.adapter import CONFIG, WEIGHTS
from hf_prune.healing.targets import Targets, find_targets
from hf_prune.output import ADAPTER
from hf_prune.records import Healing
from hf_prune.units import Unit
from hf_prune.verify_checks import Check, outcome

_TENSOR = "base_model.model.{}.lora_{}.weight"
# Settings of PEFT by which an adapter would reach further than the record says, or import what it names.
_UNUSED = (
    "alpha_pattern", "auto_mapping", "layer_replication", "layers_to_transform", "modules_to_save", "rank_pattern",
    "target_parameters", "trainable_token_indices", "use_dora", "use_rslora",
)  # fmt: skip


def check_healing(folder: Path, meta: PreTrainedModel, healing: Healing, silent: Collection[Unit] = ()) -> Check:
    """Hold the record of healing, and a shipped adapter, against the maps of the model that carry adapters.

    Args:
        folder: the model.
        meta: the same on the meta device.
        healing: its record.
        silent: parts of the model that write nothing, and carry no adapters.
    """
    name, target, rank = "healing record", healing.settings.get("target"), healing.settings.get("rank")
    if target not in ("mlp", "all") or not isinstance(rank, int) or rank < 1:
        return Check(name, "fail", reason=f"its settings have target={target!r} and rank={rank!r}")
    decoder = decoder_of(meta)
    try:
        targets = find_targets(decoder, target, silent)
    except PruneError as error:
        return Check(name, "fail", reason=str(error))
    problems = []
    if tuple(sorted(healing.target_modules)) != targets.names:
        problems.append(
            f"target='{target}' means {', '.join(targets.names)}; it says {', '.join(healing.target_modules)}"
        )
    shapes: dict[str, tuple[int, ...]] = {}
    for at, block in enumerate(decoder.blocks):
        for module_name, module in block.named_modules():
            full = f"{decoder.blocks_path}.{at}.{module_name}"
            if re.fullmatch(targets.pattern, full):
                rows, columns = module.weight.shape
                outs, ins = (columns, rows) if type(module).__name__ == "Conv1D" else (rows, columns)
                shapes |= {_TENSOR.format(full, "A"): (rank, ins), _TENSOR.format(full, "B"): (outs, rank)}
    count = sum(a * b for a, b in shapes.values())
    if count != healing.trained_parameters:
        problems.append(f"adapters of rank {rank} have {count:,} parameters; it says {healing.trained_parameters:,}")
    if healing.output == "adapter" and (folder / ADAPTER / WEIGHTS).is_file():
        problems += _adapter_problems(folder / ADAPTER, healing.settings, targets, shapes)
    return outcome(name, problems, f"{count:,} parameters", f"{healing.trained_parameters:,} trained")


def _adapter_problems(
    folder: Path, settings: dict[str, Any], targets: Targets, shapes: dict[str, tuple[int, ...]]
) -> list[str]:
    try:
        config = serial.read_json(folder / CONFIG)
        found = {key: entry.shape for key, entry in read_header(folder / WEIGHTS).items()}
    except PruneError as error:
        return [str(error)]
    except (KeyError, TypeError) as error:
        return [f"the adapter's tensors cannot be read: {error!r}"]
    if not isinstance(config, dict):
        return [f"{CONFIG} is a {type(config).__name__}; expected keys and values"]
    wanted = {
        "peft_type": "LORA",
        "r": settings.get("rank"),
        "lora_alpha": settings.get("alpha"),
        "target_modules": targets.pattern,
        "bias": "none",
    }
    problems = [
        f"'{key}' of the adapter is {config.get(key)!r}; expected {value!r}"
        for key, value in wanted.items()
        if config.get(key) != value
    ]
    problems += [f"the adapter sets '{key}'" for key in _UNUSED if config.get(key)]
    wrong = sorted(key for key in found.keys() | shapes.keys() if found.get(key) != shapes.get(key))
    if wrong:
        problems.append(f"{len(wrong)} tensors of the adapter are not those of the record, such as '{wrong[0]}'")
    return problems
