"""A model folder that appears whole or not at all, with the base's own files around new weights."""

import errno
import json
import logging
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from hf_prune import serial
from hf_prune.architecture import rewrite_config
from hf_prune.architecture.layer_config import compatible, config_of
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


_NO_ROOM = {
    errno.ENOSPC: "the disk is full while writing",
    errno.EDQUOT: "the disk quota is used up while writing",
    errno.EFBIG: "a file is too large for the file system, or for this process's limit (ulimit -f), while writing",
}


def check_output(folder: Path) -> None:
    """Refuse an output folder that holds something already, before any work.

    Raises:
        OutputError: it is a file or a mount point, is not empty, or its parent cannot be written.
    """
    target = folder.resolve()  # a link stays, and what it points to is made
    if target.is_dir() and any(target.iterdir()):
        raise OutputError(
            f"the output folder '{folder}' is not empty; expected a new or empty one. Choose another, or remove it"
        )
    if target.exists() and not target.is_dir():
        raise OutputError(f"the output '{folder}' is a file; expected a folder")
    if target.is_mount():  # the finished folder takes its place in one step, which a mount point does not allow
        raise OutputError(f"the output folder '{folder}' is a mount point; name a new folder in it")
    parent = target.parent
    while not parent.exists():
        parent = parent.parent
    if not parent.is_dir():
        raise OutputError(f"the output folder '{folder}' cannot be made: '{parent}' is a file")
    if not os.access(parent, os.W_OK):
        raise OutputError(f"the output folder '{folder}' cannot be made: '{parent}' is not writable")


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A folder beside the wanted one, renamed to it when the block ends well and removed when it doesn't.

    Raises:
        OutputError: the disk is full, the wanted folder is not empty, or cannot be written.
    """
    check_output(folder)
    target = folder.resolve()
    stage = target.parent / f".{target.name}.partial"
    made = [parent for parent in stage.parents if not parent.exists()]
    try:
        _make_empty(stage, folder)
        yield stage
        _sync(stage)
        check_output(folder)  # somebody else may have filled it meanwhile
        if target.is_dir():
            target.rmdir()
        os.replace(stage, target)
    except BaseException as error:
        shutil.rmtree(stage, ignore_errors=True)
        for parent in made:
            with suppress(OSError):  # somebody else may have put something there
                parent.rmdir()
        reason = no_room(error)
        if reason is not None:
            place = next(p for p in stage.parents if p.exists())
            raise OutputError(
                f"{reason} '{folder}' ({shutil.disk_usage(place).free / 1e6:.0f} MB free); nothing was left there. "
                "Free some space, or choose another disk"
            ) from error
        raise


def _make_empty(stage: Path, folder: Path) -> None:
    try:
        if stage.exists():
            shutil.rmtree(stage)  # left by a killed run
        stage.mkdir(parents=True)
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise
        raise OutputError(f"the output folder '{folder}' cannot be made: {error}") from error


def no_room(error: BaseException) -> str | None:
    """What to say if the operating system had no room for the data; None for any other error."""
    code = error.errno if isinstance(error, OSError) else None
    if code is None and (found := re.search(r"\(os error (\d+)\)", str(error))):  # safetensors gives it as text
        code = int(found[1])
    return _NO_ROOM.get(code) if code is not None else None


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
        _save_weights(model, folder, max_shard_size)
    finally:
        model.generation_config = own
    _finish(tokenizer, folder, source, keep)


def save_companions(
    folder: Path,
    *,
    model: PreTrainedModel,
    source: Path,
    keep: Sequence[int],
    tokenizer: Tokenizer | None = None,
) -> None:
    """Write everything but the weights: the very files that `save_model` writes around them.

    Args:
        folder: where the weights are, or will be.
        model: the cut model; it may be without its weights, on the meta device.
        source: the base model's folder.
        keep: base indices of the blocks that stayed.
        tokenizer: used where the base folder has none.
    """
    # What `save_pretrained` says of the weights.
    model.config.dtype = str(model.dtype).removeprefix("torch.")
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.can_generate() and not _has(source, "generation_config.json"):
        # As loading finds it where there is no such file.
        found = GenerationConfig.from_pretrained(source, "config.json", _from_model_config=True)
        found.save_pretrained(folder)
    _finish(tokenizer, folder, source, keep)


def _finish(tokenizer: Tokenizer | None, folder: Path, source: Path | None, keep: Sequence[int]) -> None:
    """Make the config that transformers wrote the base's own, and put the other files of the base beside it."""
    written = serial.read_json(folder / "config.json")
    serial.write_text(folder / "config.json", json.dumps(_config(written, source, keep), indent=2) + "\n")
    if tokenizer is not None and (source is None or not _has(source, "tokenizer*")):
        _save_tokenizer(tokenizer, folder)
    if source is not None:
        _carry(source, folder)


def _save_weights(model: PreTrainedModel, folder: Path, max_shard_size: str) -> None:
    try:
        model.save_pretrained(folder, max_shard_size=max_shard_size)
    except NotImplementedError:
        # Weights that were quantized when they were loaded: transformers has no way back to the tensors of the file,
        # and needs none, as it stores them the way they were stored.
        model.save_pretrained(folder, max_shard_size=max_shard_size, save_original_format=False)


def _save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    settings = serial.read_json(path) if path.is_file() else {}
    if settings.get("tokenizer_class") == "TokenizersBackend":
        # The same class by the name that transformers 4 knows too.
        settings["tokenizer_class"] = "PreTrainedTokenizerFast"
        serial.write_text(path, json.dumps(settings, indent=2, ensure_ascii=False) + "\n")


def licence_files(folder: Path) -> tuple[str, ...]:
    """Names of the licence files in a model folder."""
    return tuple(sorted({p.name for pattern in _LICENCES for p in folder.glob(pattern) if p.is_file()}))


def _config(written: dict[str, Any], source: Path | None, keep: Sequence[int]) -> dict[str, Any]:
    if source is None:
        return compatible(written)
    raw = rewrite_config(serial.read_json(source / "config.json"), keep)
    raw = _with_widths(raw, written)
    dtype = written.get("dtype")
    if dtype is not None:
        stated = [key for key in ("dtype", "torch_dtype") if key in raw]
        raw.update({key: dtype for key in stated or ["dtype"]})
    if "quantization_config" in written:
        raw.setdefault("quantization_config", written["quantization_config"])
    return raw


def _with_widths(raw: dict[str, Any], written: dict[str, Any]) -> dict[str, Any]:
    """The base's own file with what slicing has changed: class, code and widths, or a plain model's smaller ones."""
    sizes = ("model_type", "hidden_size", "tie_word_embeddings")
    before = config_of(raw).to_dict()
    if all(before.get(key) == written.get(key) for key in sizes) and "slice_dims" not in written:
        return raw
    changed = {k: v for k, v in written.items() if k not in _WRITTEN_BY and (k in _ALWAYS or before.get(k, ...) != v)}
    kept = {key: value for key, value in raw.items() if key != "auto_map"}
    return compatible({**kept, **changed})


_WRITTEN_BY = ("transformers_version", "dtype", "rope_parameters")
_ALWAYS = ("architectures", "auto_map", "head_dim")


def _has(folder: Path | None, pattern: str) -> bool:
    return folder is not None and any(folder.glob(pattern))


def _carry(source: Path, folder: Path) -> None:
    code = ("*.py",) if "auto_map" in serial.read_json(source / "config.json") else ()
    for path in sorted({p for pattern in (*_CARRIED, *code) for p in source.glob(pattern) if p.is_file()}):
        target = folder / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)  # follows links: a Hub cache is made of them
