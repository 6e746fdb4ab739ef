"""The files of a repo: nothing that runs or hides, and what came from the base is the base's to the byte."""

import dataclasses
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from hf_prune.checkpoint import INDEX, weight_files
from hf_prune.healing.adapter import WEIGHTS
from hf_prune.hub_files import PICKLES, RECIPE, matches
from hf_prune.output import ADAPTER
from hf_prune.patching import modeling as patched
from hf_prune.saving import RECORDS
from hf_prune.slicing import modeling as sliced
from hf_prune.verify_checks import Check, outcome

_WEIGHTS = ("*.safetensors", "*.gguf", "*.onnx", "*.onnx_data", "*.h5", "*.msgpack", "*.ot", "*.tflite", "*.npz")
# What nothing runs and no loader takes for weights. Licences and such have no suffix.
_INERT = (
    "", ".json", ".md", ".txt", ".csv", ".png", ".svg", ".jpg", ".pdf", ".jinja", ".model", ".tiktoken", ".yaml",
    ".yml", ".gitattributes", ".gitignore",
)  # fmt: skip
_FROM_BASE = (
    "tokenizer*", "special_tokens_map.json", "added_tokens.json", "vocab.*", "merges.txt", "*.model", "*.tiktoken",
    "chat_template*", "additional_chat_templates/*", "generation_config.json",
)  # fmt: skip
_OURS = ("config.json", RECIPE, INDEX, "README.md")


def check_files(names: Iterable[str], folder: Path, base: Path, pinned: bool) -> list[Check]:
    """Look at every file of a repo.

    Args:
        names: paths in the repo, whether they were downloaded or not.
        folder: the downloaded files.
        base: the base model's folder.
        pinned: whether these are certainly the files of the base that was pruned. A model that was handed over in
            memory has no files, and its tokenizer is written anew: differences are shown then.
    """
    names = sorted(names)
    carried = _carried(names, folder, base)
    if carried.status == "fail" and not pinned:
        carried = dataclasses.replace(carried, status="shown")
    return [_nothing_else(names, folder, base), carried]


def _nothing_else(names: list[str], folder: Path, base: Path) -> Check:
    weights = {path.name for path in weight_files(folder)} | {f"{ADAPTER}/{WEIGHTS}"}
    problems = []
    for name in names:
        path = PurePosixPath(name)
        tokens = path.parent.name == RECORDS and path.name.endswith("_tokens.safetensors")
        if name.endswith("/"):
            problems.append(f"'{name}' is a link to another folder")
        elif matches(name, PICKLES):
            problems.append(f"'{name}' is a pickle, which can run code when it is loaded")
        elif path.suffix == ".py":
            if not _known_code(folder / name, base / name):
                problems.append(f"'{name}' is code that hf_prune does not ship, or not like this")
        elif matches(name, _WEIGHTS):
            if name not in weights and not tokens:
                problems.append(f"'{name}' holds weights that are not the model's")
        elif path.suffix not in _INERT and path.name not in _INERT and not matches(name, _FROM_BASE):
            problems.append(f"'{name}' is of a kind that does not belong there")
    return outcome("files", problems, f"{len(names)} files")


def _known_code(file: Path, base: Path) -> bool:
    ours = [Path(str(code.__file__)).parent / file.name for code in (sliced, patched)]
    if not file.is_file() or file.name == "__init__.py":
        return False
    content = file.read_bytes()
    return any(known.is_file() and known.read_bytes() == content for known in (*ours, base))


def _carried(names: list[str], folder: Path, base: Path) -> Check:
    """Tokenizer, chat template, generation config and licences."""
    has_tokenizer = any(base.glob("tokenizer*"))
    problems, looked = [], 0
    for name in names:
        if name in _OURS or matches(name, _WEIGHTS) or name.startswith((f"{RECORDS}/", f"{ADAPTER}/")):
            continue
        mine, theirs = folder / name, base / name
        if theirs.is_file():
            looked += 1
            if not mine.is_file() or mine.read_bytes() != theirs.read_bytes():
                problems.append(f"'{name}' differs from the base's")
        elif matches(name, _FROM_BASE) and has_tokenizer:
            problems.append(f"the base has no '{name}'")
    return outcome("tokenizer and other files of the base", problems, f"{looked} files")
