"""Config and weights of a pruned model are its base's minus the plan: tensor by tensor, no model in memory."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedModel

from hf_prune import serial
from hf_prune.architecture import decoder_of, rewrite_config
from hf_prune.architecture.layer_config import compatible, config_of
from hf_prune.checkpoint import INDEX, SINGLE, read_header, weight_files
from hf_prune.errors import PruneError
from hf_prune.names import home, original_name
from hf_prune.output import Finished
from hf_prune.records import Plan
from hf_prune.reload import load_meta
from hf_prune.verify_checks import Check, outcome
from hf_prune.verify_healing import check_healing

_CHUNK = 16 * 2**20
_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
# What is written anew with every save, and the dtype, which is held against the weights themselves.
_NOT_COMPARED = {"dtype", "torch_dtype", "transformers_version", "_name_or_path"}
_SLICING_CHANGES = {
    "architectures", "auto_map", "head_dim", "hidden_size", "model_type", "rms_norm_eps", "slice_dims",
    "slice_shortcuts", "tie_word_embeddings",
}  # fmt: skip


@dataclass(frozen=True)
class _Tensor:
    """A tensor in a file: its dtype and shape by the header, and where its bytes lie."""

    path: Path
    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


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
    tensors = _tensors(folder)
    checks.append(outcome("weights fit the config", _check_index(folder), f"{len(tensors)} tensors"))
    checks.append(_check_dtype(folder, tensors))
    if finished.healing is not None:
        checks.append(check_healing(folder, meta, finished.healing))
    if plan.slicing is not None:
        return [*checks, *_check_sliced(plan, meta, tensors)]
    return [*checks, *_check_kept(tensors, _tensors(base), meta, finished)]


def _check_config(folder: Path, base: Path, plan: Plan) -> Check:
    raw = serial.read_json(folder / "config.json")
    wanted = rewrite_config(serial.read_json(base / "config.json"), plan.kept)
    claimed = f"{len(plan.kept)} layers" if plan.slicing is None else f"width {plan.slicing.embed}"
    try:
        mine, theirs = config_of(raw).to_dict(), config_of(wanted).to_dict()
    except Exception as error:  # there is nothing that a stranger's config cannot make transformers raise
        return Check("config", "fail", claimed, reason=f"transformers refuses it: {str(error)[:200]}")
    passed_by = _NOT_COMPARED | (_SLICING_CHANGES if plan.slicing is not None else set())
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


def _check_dtype(folder: Path, tensors: dict[str, _Tensor]) -> Check:
    raw = serial.read_json(folder / "config.json")
    stated = {str(raw[key]) for key in ("dtype", "torch_dtype") if raw.get(key) is not None}
    stored = {_DTYPES[t.dtype] for t in tensors.values() if t.dtype in _DTYPES}
    wrong = sorted(stated - stored)
    problems = [f"the config says {', '.join(wrong)}"] if wrong else []
    return outcome("dtype", problems, ", ".join(sorted(stored)), ", ".join(sorted(stated)))


def _check_kept(
    tensors: dict[str, _Tensor], base: dict[str, _Tensor], meta: PreTrainedModel, finished: Finished
) -> list[Check]:
    """Every tensor but those that healing has changed is the base's, to the bit."""
    keep, leaf = finished.plan.kept, decoder_of(meta).blocks_path.rpartition(".")[2]
    homes = {name: tensor.path for name, tensor in base.items()}
    merged = finished.healing is not None and finished.healing.output == "merged"
    healed = _healed(finished.healing.target_modules, leaf) if merged and finished.healing else None
    problems, wrong_shapes, equal, size, changed, targeted = [], [], 0, 0, 0, 0
    for name, tensor in tensors.items():
        block = re.search(rf"(?:^|\.){re.escape(leaf)}\.(\d+)\.", name)
        outside = block is not None and int(block[1]) >= len(keep)
        original = None if outside else home(original_name(name, leaf, keep), homes, meta.base_model_prefix)
        if original is None:
            problems.append(f"'{name}' has no counterpart in the base")
            continue
        same = _same(tensor, base[original])
        if healed is not None and healed.search(name):
            targeted, changed = targeted + 1, changed + (not same)
            if tensor.shape != base[original].shape:
                wrong_shapes.append(f"'{name}' is {list(tensor.shape)}, the base's {list(base[original].shape)}")
        elif same:
            equal, size = equal + 1, size + tensor.end - tensor.start
        else:
            problems.append(f"'{name}' is not '{original}' of the base")
    kept = len(tensors) - targeted
    checks = [
        outcome("kept tensors", problems, f"{equal} equal, {size:,} bytes", f"{kept} as in the base, to the bit")
    ]
    if healed is not None:
        if not changed:
            wrong_shapes.append("healing is claimed, and none of its tensors differs from the base's")
        checks.append(
            outcome("healed tensors", wrong_shapes, f"{changed} changed", f"{targeted} trained, shapes of the base")
        )
    return checks


def _healed(targets: tuple[str, ...], leaf: str) -> re.Pattern[str]:
    """Names of the tensors into which adapters were merged."""
    modules = "|".join(map(re.escape, targets))
    return re.compile(rf"(?:^|\.){re.escape(leaf)}\.\d+\.(?:{modules})\.weight$")


def _check_sliced(plan: Plan, meta: PreTrainedModel, tensors: dict[str, _Tensor]) -> list[Check]:
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


def _tensors(folder: Path) -> dict[str, _Tensor]:
    found = {}
    for path in weight_files(folder):
        for name, entry in read_header(path).items():
            found[name] = _Tensor(path, name, entry.dtype, entry.shape, entry.start, entry.start + entry.size)
    return found


def _same(one: _Tensor, other: _Tensor) -> bool:
    """Whether two tensors are equal to the bit; one that was saved in another dtype, after that cast of the base."""
    if one.shape != other.shape:
        return False
    if one.dtype != other.dtype:
        mine = _load(one)
        pair = mine, _load(other).to(mine.dtype)
        return torch.equal(*(t.contiguous().reshape(-1).view(torch.uint8) for t in pair))
    with one.path.open("rb") as mine_file, other.path.open("rb") as other_file:
        mine_file.seek(one.start)
        other_file.seek(other.start)
        left = one.end - one.start
        while left > 0:
            size = min(left, _CHUNK)
            if mine_file.read(size) != other_file.read(size):
                return False
            left -= size
    return True


def _load(tensor: _Tensor) -> torch.Tensor:
    with safe_open(tensor.path, "pt") as file:
        return file.get_tensor(tensor.name)


def _numbers(shape: tuple[int, ...]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _short(value: Any) -> str:
    text = "not there" if value is ... else json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
