"""Model folders for tests of the Hub: the right files with tiny, meaningless contents."""

import json
from pathlib import Path

CARD = "---\nlicense: mit\ntags:\n- hf-prune\n---\n# A pruned model\n"
SHARDED = {
    "model-00001-of-00002.safetensors": b"\1" * 3000,
    "model-00002-of-00002.safetensors": b"\2" * 2000,
    "model.safetensors.index.json": json.dumps(
        {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    ).encode(),
}
COMMON = {"config.json": b"{}", "pruner_config.json": b"{}", "README.md": CARD.encode(), "tokenizer.json": b"{}"}


def write(folder: Path, files: dict[str, bytes]) -> Path:
    """Write files into a folder and return it."""
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder: path → content."""
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
