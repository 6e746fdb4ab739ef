"""A model folder that appears whole or not at all, with the base's own files around new weights."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import serial
from hf_prune.architecture import rewrite_config
from hf_prune.architecture.layer_config import compatible
from hf_prune.errors import OutputError

logger = logging.getLogger(__name__)

RECORDS = "pruning"
"""Sub-folder of a saved model that holds its records."""

_CARRIED = (
    "generation_config.json", "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt",
    "*.model", "*.tiktoken", "chat_template*", "additional_chat_templates/*", "LICENSE*", "LICENCE*", "COPYING*",
    "NOTICE*", "USE_POLICY*",
)  # fmt: skip
_LICENCES = ("LICENSE*", "LICENCE*", "COPYING*", "NOTICE*", "USE_POLICY*")


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds something already, before any work.

    Raises:
        OutputError: it is a file, is not empty, or its parent cannot be written.
    """
    if folder.is_dir() and any(folder.iterdir()):
        raise OutputError(
            f"the output folder '{folder}' is not empty; expected a new or empty one. Choose another, or remove it"
        )
    if folder.exists() and not folder.is_dir():
        raise OutputError(f"the output '{folder}' is a file; expected a folder")
    parent = folder.absolute().parent
    while not parent.exists():
        parent = parent.parent
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the output folder '{folder}' cannot be made: '{parent}' is not writable")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, renamed to it when the block ends well and removed when it doesn't.

    Raises:
        OutputError: the disk is full, the wanted folder is not empty, or cannot be written.
    """
    check_output(folder)
    stage = folder.absolute().parent / f".{folder.name}.partial"
    try:
        if stage.exists():
            shutil.rmtree(stage)  # left by a killed run
        stage.mkdir(parents=True)
        yield stage
        _sync(stage)
        if folder.is_dir():
            folder.rmdir()
        os.replace(stage, folder)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        if _is_disk_full(error):
            free = shutil.disk_usage(folder.absolute().parent if folder.absolute().parent.exists() else ".").free
            raise OutputError(
                f"the disk is full while writing '{folder}' ({free / 1e6:.0f} MB free); nothing was left there. Free "
                "some space, or choose another disk"
            ) from error
        raise


def _is_disk_full(error: BaseException) -> bool:
    # safetensors reports the operating system's error as text.
    return (isinstance(error, OSError) and error.errno == errno.ENOSPC) or "No space left on device" in str(error)


def _sync(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def save_model(
    model: PreTrainedModel,
    tokenizer: Tokenizer,
    folder: Path,
    *,
    source: Path | None,
    keep: Sequence[int],
    max_shard_size: str = "5GB",
) -> None:
    """Write weights, config, generation config, tokenizer and licence files.

    The config is the base's own file, edited; everything else of the base is copied byte for byte. Without a base
    folder the config is written from memory, with the keys that readers on transformers 4 need beside the new ones.

    Args:
        model: the cut model.
        tokenizer: used where the base folder is not there.
        folder: an empty folder.
        source: the base model's folder.
        keep: base indices of the blocks that stayed.
        max_shard_size: as in `save_pretrained`.
    """
    own = model.generation_config
    # Some bases carry generation settings that transformers refuses to write; the file is copied instead.
    model.generation_config = GenerationConfig() if _has(source, "generation_config.json") else own
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    finally:
        model.generation_config = own
    written = serial.read_json(folder / "config.json")
    serial.write_text(folder / "config.json", json.dumps(_config(written, source, keep), indent=2) + "\n")
    if source is None or not _has(source, "tokenizer*"):
        tokenizer.save_pretrained(folder)
    if source is not None:
        _carry(source, folder)


def licence_files(folder: Path) -> tuple[str, ...]:
    """Names of the licence files in a model folder."""
    return tuple(sorted({p.name for pattern in _LICENCES for p in folder.glob(pattern) if p.is_file()}))


def _config(written: dict[str, Any], source: Path | None, keep: Sequence[int]) -> dict[str, Any]:
    if source is None:
        return compatible(written)
    raw = rewrite_config(serial.read_json(source / "config.json"), keep)
    dtype = written.get("dtype")
    if dtype is not None:
        stated = [key for key in ("dtype", "torch_dtype") if key in raw]
        raw.update({key: dtype for key in stated or ["dtype"]})
    if "quantization_config" in written:
        raw.setdefault("quantization_config", written["quantization_config"])
    return raw


def _has(folder: Path | None, pattern: str) -> bool:
    return folder is not None and any(folder.glob(pattern))


def _carry(source: Path, folder: Path) -> None:
    code = ("*.py",) if "auto_map" in serial.read_json(source / "config.json") else ()
    for path in sorted({p for pattern in (*_CARRIED, *code) for p in source.glob(pattern) if p.is_file()}):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)  # follows links: a Hub cache is made of them
