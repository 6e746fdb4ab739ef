"""What a model is, whether it can be pruned, and what was done to it; no weight is loaded."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hf_prune import hub_pull, loading
from hf_prune.architecture import check_prunable
from hf_prune.checkpoint import read_header, weight_files
from hf_prune.config import PrunerConfig
from hf_prune.errors import ArchitectureError, CheckpointError
from hf_prune.records import Plan
from hf_prune.saving import RECORDS


def describe(model_id: str, *, revision: str | None = None, token: str | bool | None = None) -> dict[str, Any]:
    """Facts of a model of the Hub or a folder, for people and JSON.

    Raises:
        HubError: it cannot be reached.
        CheckpointError: it has no config.
        ArchitectureError: transformers does not know its architecture.
    """
    resolved = hub_pull.resolve(model_id, revision, token)
    folder = resolved.folder
    if folder is None:
        assert resolved.commit is not None
        folder = hub_pull.pull(
            resolved.id, resolved.commit, token, weights=False, allow_patterns=(f"{RECORDS}/*.json",)
        )
    name = loading.bare_name(model_id)
    config = loading.read_config(folder, name)
    text = config.get_text_config(decoder=True)
    facts: dict[str, Any] = {
        "model": name,
        "commit": resolved.commit,
        "architecture": ", ".join(config.architectures or []) or config.model_type,
        "model_type": text.model_type,
        "layers": getattr(text, "num_hidden_layers", None),
        "hidden size": getattr(text, "hidden_size", None),
        "vocabulary": getattr(text, "vocab_size", None),
        "positions": getattr(text, "max_position_embeddings", None),
        **_weights(folder),
        **_pruning(folder),
    }
    try:
        check_prunable(config, name)
        facts["can be pruned"] = "yes"
    except ArchitectureError as error:
        facts["can be pruned"] = f"no: {error}"
    return facts


def _weights(folder: Path) -> dict[str, Any]:
    try:
        files = weight_files(folder)
        headers = [read_header(path) for path in files]
    except CheckpointError as error:
        return {"weights": str(error) if list(folder.glob("*.bin")) else None}
    tensors = [tensor for header in headers for tensor in header.values()]
    count = sum(_product(t.shape) for t in tensors)
    dtypes = sorted({t.dtype for t in tensors})
    size = sum(path.stat().st_size for path in files)
    return {"parameters stored": count, "bytes": size, "dtype": ", ".join(dtypes), "weight files": len(files)}


def _product(shape: Iterable[int]) -> int:
    total = 1
    for length in shape:
        total *= length
    return total


def _pruning(folder: Path) -> dict[str, Any]:
    if not (folder / PrunerConfig.CONFIG_NAME).is_file():
        return {}
    config = PrunerConfig.from_pretrained(folder)
    facts: dict[str, Any] = {
        "pruned from": config.base_model,
        "base commit": config.base_revision,
        "method": config.method,
    }
    if (folder / RECORDS / Plan.FILE).is_file():
        facts["pruning"] = Plan.load(folder / RECORDS).describe()
    facts["healed"] = "yes" if (folder / RECORDS / "healing.json").is_file() else "no"
    return facts
