"""Config and weights of a pruned model are its base's minus the plan: tensor by tensor, no model in memory."""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import Decoder, decoder_of, rewrite_config
from hf_prune.architecture.layer_config import compatible, config_of
from hf_prune.checkpoint import INDEX, SINGLE, read_header, weight_files
from hf_prune.errors import PruneError
from hf_prune.healing.targets import quiet_modules
from hf_prune.names import home, original_name
from hf_prune.origins import origin_of
from hf_prune.output import Finished
from hf_prune.patching.settings import patched_settings
from hf_prune.records import Healing, Plan, ranges
from hf_prune.reload import load_meta
from hf_prune.skeleton import sources_of
from hf_prune.sparsity.maps import linear_maps
from hf_prune.verify_checks import Check, outcome
from hf_prune.verify_edits import edited
from hf_prune.verify_healing import check_healing
from hf_prune.verify_tensors import StoredTensor, load, masked, same, stored_tensors

_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What is written anew with every save, and the dtype, which is held against the weights themselves.
_NOT_COMPARED = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}
_SLICING_CHANGES = {
    "architectures", "auto_map", "head_dim", "hidden_size", "model_type", "rms_norm_eps", "slice_dims",
    "slice_shortcuts", "tie_word_embeddings",
}  # fmt: skip


_CODE = {"architectures", "auto_map"}
"""Keys that name modeling code; `load_meta` runs this package's, whatever they say."""
_STAND_IN = re.compile(r"\.(self_attn\.map|stream_patch(\.down|\.up)?)\.(weight|bias)$")
"""Tensors of maps that stand in for attention or for blocks: the base has none like them."""


def check_model(folder: Path, base: Path, finished: Finished) -> list[Check]:
    """Hold config and weights of a downloaded model against base and plan.

    Args:
        folder: the model.
        base: the base model's folder.
        finished: the model's records.
    """
    plan = finished.plan
    checks = [_check_config(folder, base, plan)]
    try:
        meta = load_meta(folder, False)
    except PruneError as error:
        return [*checks, Check("weights fit the config", "fail", reason=str(error))]
    tensors = stored_tensors(folder)
    checks.append(outcome("weights fit the config", _check_index(folder), f"{len(tensors)} tensors"))
    checks.append(_check_dtype(folder, tensors))
    if finished.healing is not None:
        checks.append(check_healing(folder, meta, finished.healing, origin_of(plan)))
    if plan.slicing is not None:
        return [*checks, *_check_sliced(plan, meta, tensors)]
    return [*checks, *_check_kept(tensors, stored_tensors(base), meta, finished)]


def _check_config(folder: Path, base: Path, plan: Plan) -> Check:
    raw = serial.read_json(folder / "config.json")
    wanted = rewrite_config(serial.read_json(base / "config.json"), plan.kept)
    if plan.hard:
        wanted |= patched_settings(plan)
    claimed = f"{len(plan.kept)} layers" if plan.slicing is None else f"width {plan.slicing.embed}"
    try:
        mine, theirs = config_of(raw).to_dict(), config_of(wanted).to_dict()
    except Exception as error:  # there is nothing that a stranger's config cannot make transformers raise
        return Check("config", "fail", claimed, reason=f"transformers refuses it: {str(error)[:200]}")
    passed_by = _NOT_COMPARED | (_SLICING_CHANGES if plan.slicing is not None else set())
    passed_by |= _CODE if plan.hard else set()
    # Also the file's own keys: what this version of transformers passes by may be what another one reads.
    added = {key: value for key, value in raw.items() if key not in mine}
    expected = {key: value for key, value in {**compatible(theirs), **wanted}.items() if key not in mine}
    removed = expected.keys() & wanted.keys()
    pairs = {key: (mine.get(key, ...), theirs.get(key, ...)) for key in mine.keys() | theirs.keys()}
    pairs |= {key: (added.get(key, ...), expected.get(key, ...)) for key in added.keys() | removed}
    problems = [
        f"'{key}' is {_short(found)}; base and plan give {_short(value)}"
        for key, (found, value) in sorted(pairs.items())
        if found != value and key not in passed_by
    ]
    if raw.get("quantization_config") != wanted.get("quantization_config"):
        problems.append("'quantization_config' is not the base's")
    return outcome("config", problems, f"{len(mine)} settings", claimed)


def _check_index(folder: Path) -> list[str]:
    """Every tensor lies once, and where the index says: of two of one name, loaders take the one or the other."""
    files = weight_files(folder)
    if not (folder / INDEX).is_file():
        return []
    if files == [folder / SINGLE]:
        return [f"{INDEX} lies beside {SINGLE}"]
    index, problems = serial.read_json(folder / INDEX)["weight_map"], []
    places = [(name, path) for path in files for name in read_header(path)]
    for name, path in places:
        if index.get(name) != path.relative_to(folder).as_posix():
            problems.append(f"'{name}' lies in {path.name}, the index says {_short(index.get(name, ...))}")
    problems += [f"the index names '{name}', which is nowhere" for name in index.keys() - {name for name, _ in places}]
    return sorted(problems)


def _check_dtype(folder: Path, tensors: dict[str, StoredTensor]) -> Check:
    raw = serial.read_json(folder / "config.json")
    stated = {str(raw[key]) for key in ("dtype", "torch_dtype") if raw.get(key) is not None}
    stored = {_DTYPES[t.dtype] for t in tensors.values() if t.dtype in _DTYPES}
    wrong = sorted(stated - stored)
    problems = [f"the config says {', '.join(wrong)}"] if wrong else []
    return outcome("dtype", problems, ", ".join(sorted(stored)), ", ".join(sorted(stated)))


def _check_kept(
    tensors: dict[str, StoredTensor], base: dict[str, StoredTensor], meta: PreTrainedModel, finished: Finished
) -> list[Check]:
    """Every tensor is to the bit what the plan makes of the base's, but for those that were healed or fitted."""
    plan, healing = finished.plan, finished.healing
    keep, leaf = plan.kept, decoder_of(meta).blocks_path.rpartition(".")[2]
    homes = {name: tensor.path for name, tensor in base.items()}
    merged = healing is not None and healing.output == "merged"
    healed = _healed(healing, decoder_of(meta), leaf, tensors) if merged and healing else None
    done = edited(plan, meta, list(tensors))
    silent = [name[name.index(f"{leaf}.") :] for name in quiet_modules(decoder_of(meta), plan.silenced)]
    problems, redone, trained, fitted = [], list(done.problems), _Free(), _Free()
    equal = size = changed = zeroed = 0
    loose: set[int | None] = set(done.blocks)
    for name, tensor in tensors.items():
        found = re.search(rf"(?:^|\.){re.escape(leaf)}\.(\d+)\.", name)
        block = None if found is None else int(found[1])
        if block in done.linear and _STAND_IN.search(name):
            fitted.count, fitted.changed = fitted.count + 1, fitted.changed + 1
            if healed is not None and healed.search(name):  # the base has nothing that it could be compared with
                trained.count, trained.changed = trained.count + 1, trained.changed + 1
            fitted.problems += _impossible(tensor, str(meta.dtype).removeprefix("torch."))
            continue
        outside = block is not None and block >= len(keep)
        original = None if outside else home(original_name(name, leaf, keep), homes, meta.base_model_prefix)
        if original is None:
            problems.append(f"'{name}' has no counterpart in the base")
            continue
        ways = done.of(name, block)
        way = next((edits for edits in ways if same(tensor, base[original], edits)), None)
        if healed is not None and healed.search(name) and not any(f".{quiet}." in f".{name}" for quiet in silent):
            trained.add(tensor, base[original], way is not None)
        elif way:
            changed += 1
            loose.discard(block)
        elif way is not None:
            equal, size = equal + 1, size + tensor.end - tensor.start
        elif block in done.masked and any(masked(tensor, base[original], edits) for edits in ways):
            zeroed += 1
        elif block in done.fitted:
            fitted.add(tensor, base[original], False)
            fitted.problems += _impossible(tensor, str(meta.dtype).removeprefix("torch."))
        elif any(ways):
            redone.append(f"'{name}' is not what the plan makes of '{original}' of the base")
        else:
            problems.append(f"'{name}' is not '{original}' of the base")
    if healed is None:
        redone += [f"no tensor of block {block} was changed as the plan says" for block in sorted(map(str, loose))]
    kept = equal + len(problems)
    checks = [
        outcome("kept tensors", problems, f"{equal} equal, {size:,} bytes", f"{kept} as in the base, to the bit")
    ]
    if done.exact or done.problems:
        kinds = " and ".join(kind for kind in ("scaled", "silenced") if kind in _kinds(plan))
        claimed = f"{changed + len(redone)} {kinds} by the plan, to the bit"
        checks.append(outcome("changed tensors", redone, f"{changed} equal", claimed))
    if done.masked:
        claimed = f"{zeroed} as in the base, but for zeros"
        checks.append(Check("masked tensors", "pass" if zeroed else "fail", claimed, f"{zeroed} hold zeros"))
        checks.append(_check_share(tensors, meta, plan))
    if done.fitted or done.linear:
        checks.append(_check_fitted(fitted, plan))
    if healed is not None:
        if not trained.changed:
            trained.problems.append("healing is claimed, and none of its tensors differs from the base's")
        claimed = f"{trained.count} trained, shapes of the base"
        checks.append(outcome("healed tensors", trained.problems, f"{trained.changed} changed", claimed))
    return checks


def _check_share(tensors: dict[str, StoredTensor], meta: PreTrainedModel, plan: Plan) -> Check:
    """As many weights of the blocks' linear maps are zero as the plan says, or more, where some were zero before."""
    decoder, name, claimed = decoder_of(meta), "share of zeros", f"at least {plan.sparsity or 0.0:.2%}"
    try:
        maps = linear_maps(decoder)
    except PruneError as error:
        return Check(name, "fail", claimed, reason=str(error))
    zeros = total = 0
    for each in maps:
        full = f"{decoder.blocks_path}.{each.layer}.{each.name}"
        tensor = tensors.get(full) or tensors.get(full.removeprefix(f"{meta.base_model_prefix}."))
        if tensor is None:
            return Check(name, "fail", claimed, reason=f"there is no '{full}'")
        values = load(tensor)
        zeros, total = zeros + int((values == 0).sum()), total + values.numel()
    # Of each map a share is rounded down to whole weights.
    enough = zeros + len(maps) >= (plan.sparsity or 0.0) * total
    return Check(name, "pass" if enough else "fail", claimed, f"{zeros / total:.2%} of {total:,} weights")


@dataclass
class _Free:
    """Tensors whose numbers nothing here tells: only what every tensor must be is looked at."""

    problems: list[str] = field(default_factory=list)
    count: int = 0
    changed: int = 0

    def add(self, tensor: StoredTensor, base: StoredTensor, same: bool) -> None:
        self.count, self.changed = self.count + 1, self.changed + (not same)
        if tensor.shape != base.shape:
            self.problems.append(f"'{tensor.name}' is {list(tensor.shape)}, the base's {list(base.shape)}")


def _impossible(tensor: StoredTensor, dtype: str) -> list[str]:
    """What no fitted tensor is."""
    if _DTYPES.get(tensor.dtype) != dtype:
        return [f"'{tensor.name}' is {_DTYPES.get(tensor.dtype, tensor.dtype)}, the model {dtype}"]
    return [] if torch.isfinite(load(tensor)).all() else [f"'{tensor.name}' holds numbers that are not finite"]


def _kinds(plan: Plan) -> set[str]:
    return {{"scale": "scaled", "silence": "silenced"}.get(operation.kind, "") for operation in plan.operations}


def _check_fitted(fitted: _Free, plan: Plan) -> Check:
    """Nothing of the base says what was fitted; that it is numbers in the base's shapes is all that can be seen."""
    layers = ranges(
        tuple(i for op in plan.operations if op.kind in ("replace", "linearize", "patch") for i in op.layers)
    )
    measured, name = f"{fitted.count} differ from the base's", "fitted tensors"
    if fitted.problems:
        return outcome(name, fitted.problems, measured, f"in layers {layers}")
    reason = (
        f"{fitted.count} tensors of layers {layers} were fitted to text when the model was made; the file that they "
        "come from is not shipped, so that their numbers cannot be checked, only shapes, dtypes and that they are "
        "finite. The evaluations tell the rest"
    )
    return Check(name, "shown", f"in layers {layers}", measured, reason=reason)


def _healed(healing: Healing, decoder: Decoder, leaf: str, stored: Collection[str]) -> re.Pattern[str]:
    """Names of the tensors that healing wrote into: those that carried adapters, or those that were trained."""
    if healing.kind == "adapters":
        modules = "|".join(map(re.escape, healing.target_modules))
        return re.compile(rf"(?:^|\.){re.escape(leaf)}\.\d+\.(?:{modules})\.weight$")
    return re.compile(rf"^(?:{'|'.join(map(re.escape, sources_of(decoder, healing.target_modules, stored)))})$")


def _check_sliced(plan: Plan, meta: PreTrainedModel, tensors: dict[str, StoredTensor]) -> list[Check]:
    cut, config = plan.slicing, meta.config
    assert cut is not None
    wanted: dict[str, Any] = {"embed": cut.embed, "attn_out": list(cut.attn_out), "mlp_out": list(cut.mlp_out)}
    if cut.plain:
        found, wanted = {"hidden_size": config.hidden_size}, {"hidden_size": cut.embed}
    else:
        dims = getattr(config, "slice_dims", None) or {}
        found = {key: list(v) if isinstance(v, list | tuple) else v for key, v in dims.items() if key in wanted}
        wanted = {key: value for key, value in wanted.items() if key in found or value}
    problems = [
        f"'{key}' is {_short(found.get(key))}; the plan says {_short(value)}"
        for key, value in wanted.items()
        if found.get(key) != value
    ]
    count = sum(_numbers(t.shape) for t in tensors.values())
    wrong = [] if count == cut.parameters else ["the plan counts others"]
    return [
        outcome("widths", problems, f"{len(cut.widths)} layers", f"{min(cut.widths)}–{max(cut.widths)}"),
        outcome("parameters", wrong, f"{count:,}", f"{cut.parameters:,}"),
        Check(
            "kept tensors",
            "skipped",
            reason="sliced weights are rotated and do not compare with the base's; shapes and counts were checked, "
            "and the evaluations tell the rest",
        ),
    ]


def _numbers(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _short(value: Any) -> str:
    text = "not there" if value is ... else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
