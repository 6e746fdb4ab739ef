"""Which files of a folder leave for the Hub, which stay behind, which must never be there, and which go stale."""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from hf_prune.errors import CheckpointError, OutputError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
RECIPE = "pruner_config.json"

PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.dill")
_LEAVE = (
    *("*.safetensors", "*.json", "*.jsonl", "*.jinja", "*.model", "*.tiktoken", "*.md", "*.txt", "*.csv"),
    *("*.png", "*.svg", "modeling_*.py", "configuration_*.py", "tokenization_*.py"),
    *("sliced.py", "sliced_moe.py", "patched.py"),  # what the modeling code of such models has in common
    *("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*"),
)
_TRAINER = (
    *("optimizer.*", "scheduler.*", "scaler.pt", "rng_state*", "training_args.*", "trainer_state.json"),
    *("global_step*", "zero_to_fp32.py", "pytorch_model_fsdp*", "*.distcp"),
)
_SECRETS = (
    *("token", "tokens", "*.token", "stored_tokens", "hf_token*", ".env", ".env.*", "*.env", ".netrc", "_netrc"),
    *(".git-credentials", "credentials", "credentials.*", "id_rsa*", "id_ed25519*", "*.pem", "*.key", "*.p12"),
)
_SECRET_TEXT = re.compile(rb"\bhf_[A-Za-z0-9]{30,}\b")
_SECRET_TEXT_BYTES = 1 << 20
_WORK_FOLDERS = ("*.run", "checkpoint-[0-9]*")

_STALE_WEIGHTS = (
    *("*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "*.pt", "*.pth", "*.ckpt", "*.gguf"),
    *("*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.ot", "*.tflite", "adapter_*"),
)
# A record or a generation config that the folder lacks tells of the weights that were there before.
_STALE_RECORDS = (
    *("generation_config.json", RECIPE, "scores.json", "plan.json", "healing.json", "evaluation.json", "export.json"),
    *(".eval_results/*", "sliced.py", "sliced_moe.py", "modeling_sliced_*.py", "configuration_sliced_*.py"),
    *("patched.py", "modeling_patched_*.py", "configuration_patched_*.py"),
)
_TOKENIZER = (
    *("tokenizer*.json", "tokenizer.model", "special_tokens_map.json", "added_tokens.json", "vocab.json"),
    *("vocab.txt", "merges.txt", "spiece.model", "*.tiktoken", "chat_template.*", "additional_chat_templates/*"),
)


@dataclass(frozen=True)
class LocalFile:
    """A file that leaves: its path in the repo, where it lies, and its size in bytes."""

    path: str
    source: Path
    size: int


def matches(path: str, patterns: Iterable[str]) -> bool:
    """Whether a path in a repo, or its last part, matches one of the patterns."""
    name = PurePosixPath(path).name
    return any(fnmatchcase(path if "/" in pattern else name, pattern) for pattern in patterns)


def outgoing(folder: Path) -> tuple[list[LocalFile], list[str]]:
    """Sort a folder's files into those that leave and those that stay behind.

    Args:
        folder: a finished model folder.

    Returns:
        The files that leave, and the paths of those that stay (caches, hidden files, unknown kinds).

    Raises:
        OutputError: it is no folder, a working folder, or holds what must never be pushed.
        CheckpointError: the model in it is not whole.
    """
    if not folder.is_dir():
        raise OutputError(f"'{folder}' is not a folder; expected the folder of a finished model")
    if any(fnmatchcase(folder.resolve().name, pattern) for pattern in _WORK_FOLDERS):
        raise OutputError(f"'{folder}' is a working folder; expected the folder of a finished model")
    files, stay, never = [], [], []
    for source in sorted(folder.rglob("*")):
        path = source.relative_to(folder).as_posix()
        if source.is_dir() or _is_cache(path):
            continue
        if _must_not_leave(path, source):
            never.append(path)
        elif source.is_file() and _is_known(path):
            files.append(LocalFile(path, source, source.stat().st_size))
        else:
            stay.append(path)
    if never:
        raise OutputError(
            f"'{folder}' holds files that must not be pushed: {', '.join(never[:8])}"
            f"{f' and {len(never) - 8} more' if len(never) > 8 else ''}; expected no pickles, trainer states, working "
            "folders or secrets: move them elsewhere, or push a folder that holds the finished model alone"
        )
    _require_whole(folder, {file.path for file in files})
    return files, stay


def stale(remote: Collection[str], local: Collection[str]) -> list[str]:
    """The files of a repo that a push of these local files makes wrong: weights, adapters, records of other weights.

    A tokenizer counts as stale only where the folder brings its own.
    """
    patterns = [*_STALE_WEIGHTS, *_STALE_RECORDS]
    if any(matches(path, _TOKENIZER) for path in local):
        patterns += _TOKENIZER
    return sorted(path for path in remote if path not in local and matches(path, patterns))


def holds_model(remote: Iterable[str]) -> bool:
    """Whether a repo holds a model already."""
    return any(path == "config.json" or matches(path, _STALE_WEIGHTS) for path in remote)


def is_secret(path: str, content: bytes) -> bool:
    """Whether a file is called like one that holds secrets, or an access token stands in it."""
    if matches(path.lower(), _SECRETS):
        return True
    text = len(content) <= _SECRET_TEXT_BYTES and not path.endswith(".safetensors")
    return text and _SECRET_TEXT.search(content) is not None


def _is_cache(path: str) -> bool:
    parents = PurePosixPath(path).parts[:-1]
    return any((part.startswith(".") and part != ".eval_results") or part == "__pycache__" for part in parents)


def _is_known(path: str) -> bool:
    if matches(path, (".eval_results/*.yaml",)):
        return True
    return not PurePosixPath(path).name.startswith(".") and matches(path, _LEAVE)


def _must_not_leave(path: str, source: Path) -> bool:
    parents = PurePosixPath(path).parts[:-1]
    if any(fnmatchcase(part, pattern) for part in parents for pattern in _WORK_FOLDERS):
        return True
    if matches(path, PICKLES) or matches(path, _TRAINER):
        return True
    small = source.is_file() and source.stat().st_size <= _SECRET_TEXT_BYTES
    return is_secret(path, source.read_bytes() if small else b"")


def _require_whole(folder: Path, paths: set[str]) -> None:
    """Refuse a folder that a loader could not read, or would read something else from."""
    if not paths & {"config.json", "adapter_config.json"}:
        raise CheckpointError(f"'{folder}' holds neither config.json nor adapter_config.json; expected a model")
    if not paths & {SINGLE, INDEX, "adapter_model.safetensors"}:
        raise CheckpointError(f"'{folder}' holds no weights; expected {SINGLE}, or {INDEX} and its shards")
    if INDEX not in paths:
        return
    if SINGLE in paths:
        raise CheckpointError(
            f"'{folder}' holds both {SINGLE} and {INDEX}, of which loaders read the first: remove the older of the two"
        )
    try:
        shards = set(json.loads((folder / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{INDEX} in '{folder}' is not an index of shards: {error!r}") from error
    if missing := sorted(shards - paths):
        raise CheckpointError(f"{INDEX} in '{folder}' names shards that are not there: {', '.join(missing)}")
