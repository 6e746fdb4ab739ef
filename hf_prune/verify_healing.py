"""Healing as it is claimed: what its target means in the model, of the size that it says, and a curve that can be."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import decoder_of
from hf_prune.architecture.decoder import Decoder
from hf_prune.checkpoint import read_header
from hf_prune.config import HealingConfig
from hf_prune.errors import PruneError
from hf_prune.healing.adapter import CONFIG, WEIGHTS
from hf_prune.healing.choice import choose
from hf_prune.healing.merge import MAGNITUDE, PREFIX
from hf_prune.healing.origin import Origin
from hf_prune.healing.ranks import Ranks
from hf_prune.healing.registries import kind_of
from hf_prune.healing.targets import Targets, find_targets, sides
from hf_prune.output import ADAPTER
from hf_prune.records import Healing
from hf_prune.soundness_healing import check_healing_record, curve_problems
from hf_prune.verify_checks import Check, outcome

# Settings of PEFT by which an adapter would reach further than the record says, compute something else, or import what
# it names.
_UNUSED = (
    "alora_invocation_tokens", "arrow_config", "auto_mapping", "exclude_modules", "kasa_config", "layer_replication",
    "layers_to_transform", "lora_bias", "modules_to_save", "monteclora_config", "target_parameters",
    "trainable_token_indices", "use_bdlora", "use_qalora", "velora_config",
)  # fmt: skip


def check_healing(folder: Path, meta: PreTrainedModel, healing: Healing, origin: Origin | None = None) -> Check:
    """Hold the record of healing, and a shipped adapter, against the model: what its target means there.

    Args:
        folder: the model.
        meta: the same on the meta device.
        healing: its record.
        origin: where the model comes from; one of which nothing is known when None.
    """
    name, decoder = "healing record", decoder_of(meta)
    origin = origin or Origin(tuple(range(decoder.num_layers)), decoder.num_layers)
    target = healing.settings.get("target")
    if not isinstance(target, str) or not target:
        return Check(name, "fail", reason=f"its settings have target={target!r}")
    try:
        if kind_of(target) != healing.kind:
            return Check(name, "fail", reason=f"target='{target}' trains {kind_of(target)}; it says {healing.kind}")
        problems, count = (_weights if healing.kind == "weights" else _adapters)(folder, decoder, healing, origin)
        check_healing_record(healing)
    except PruneError as error:
        return Check(name, "fail", reason=str(error))
    problems += curve_problems(healing)
    return outcome(name, problems, f"{count:,} parameters", f"{healing.trained_parameters:,} trained")


def _weights(folder: Path, decoder: Decoder, healing: Healing, origin: Origin) -> tuple[list[str], int]:
    """What contradicts the record of weights that were trained themselves, and how many parameters they have."""
    known = {field.name for field in dataclasses.fields(HealingConfig)}
    settings = {key: value for key, value in healing.settings.items() if key in known}
    chosen = choose(decoder, serial.from_dict(HealingConfig, settings), origin)
    parameters = dict(decoder.model.named_parameters())
    count = sum(parameters[name].numel() for name in chosen.names)
    problems = _names(healing, chosen.names)
    if count != healing.trained_parameters:
        problems.append(f"these weights have {count:,} parameters; it says {healing.trained_parameters:,}")
    if healing.output == "adapter":
        problems.append("it says output='adapter', and weights that are trained themselves leave none")
    return problems, count


def _adapters(folder: Path, decoder: Decoder, healing: Healing, origin: Origin) -> tuple[list[str], int]:
    """What contradicts the record of adapters, and how many parameters they have."""
    targets = find_targets(decoder, healing.settings["target"], origin.silent)
    ranks = Ranks.recorded(healing.settings)
    of_blocks = ranks.by_block(set(targets.positions.values()))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, position in targets.positions.items():
        outputs, inputs = sides(decoder.model.get_submodule(name))
        rank = of_blocks[position]
        shapes |= {f"{PREFIX}{name}.lora_A.weight": (rank, inputs), f"{PREFIX}{name}.lora_B.weight": (outputs, rank)}
        if healing.settings.get("use_dora"):
            shapes[f"{PREFIX}{name}{MAGNITUDE}"] = (outputs,)
    count = sum(math.prod(shape) for shape in shapes.values())
    problems = _names(healing, targets.names)
    if count != healing.trained_parameters:
        told = f"rank {ranks.rank}" + ("" if ranks.last_rank is None else f" to {ranks.last_rank}")
        problems.append(f"adapters of {told} have {count:,} parameters; it says {healing.trained_parameters:,}")
    if healing.output == "adapter" and (folder / ADAPTER / WEIGHTS).is_file():
        problems += _adapter_problems(folder / ADAPTER, healing.settings, ranks, targets, shapes)
    return problems, count


def _names(healing: Healing, names: tuple[str, ...]) -> list[str]:
    if sorted(healing.target_modules) == sorted(names):
        return []
    told = [", ".join(sorted(each)[:8]) + (", …" if len(each) > 8 else "") for each in (names, healing.target_modules)]
    return [f"target='{healing.settings['target']}' means {told[0]}; it says {told[1]}"]


def _adapter_problems(
    folder: Path, settings: dict[str, Any], ranks: Ranks, targets: Targets, shapes: dict[str, tuple[int, ...]]
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
    of_blocks, alphas = ranks.patterns(targets)
    wanted = {
        "peft_type": "LORA",
        "r": ranks.rank,
        "lora_alpha": ranks.alpha,
        "target_modules": targets.pattern,
        "rank_pattern": of_blocks,
        "alpha_pattern": alphas,
        "use_rslora": ranks.use_rslora,
        "use_dora": bool(settings.get("use_dora")),
        "bias": "none",
    }
    problems = [
        f"'{key}' of the adapter is {config.get(key)!r}; expected {value!r}"
        for key, value in wanted.items()
        if config.get(key, type(value)()) != value
    ]
    problems += [f"the adapter sets '{key}'" for key in _UNUSED if config.get(key)]
    wrong = sorted(key for key in found.keys() | shapes.keys() if found.get(key) != shapes.get(key))
    if wrong:
        problems.append(f"{len(wrong)} tensors of the adapter are not those of the record, such as '{wrong[0]}'")
    return problems
