"""Repos and trees as the Hub's API describes them."""

import json
import re
from pathlib import PurePosixPath
from typing import Any

import yaml

from .store import Commit, Repo, Store

SDKS = ("gradio", "docker", "static")
COLORS = ("red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray")
SHORT = 60


def tree_rows(commit: Commit) -> list[dict[str, Any]]:
    """Every file and folder of a commit, in the order of their paths."""
    rows = []
    folders = {str(folder) for path in commit.files for folder in PurePosixPath(path).parents} - {"."}
    for folder in folders:
        rows.append({"type": "directory", "path": folder, "oid": commit.sha, "size": 0})
    for path, entry in commit.files.items():
        row: dict[str, Any] = {"type": "file", "path": path, "oid": entry.oid, "size": entry.size}
        if entry.large:
            row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": 134}
        rows.append(row)
    return sorted(rows, key=lambda row: row["path"])


def describe(store: Store, repo: Repo, commit: Commit, blobs: bool = False) -> dict[str, Any]:
    """A repo as the Hub's API describes it."""
    card = _card(store, commit)
    config = _config(store, commit)
    library = card.get("library_name") or ("transformers" if "model_type" in config else None)
    tags = [tag for tag in (library, card.get("pipeline_tag"), config.get("model_type")) if isinstance(tag, str)]
    tags += card.get("tags") or []
    tags += ["safetensors"] if any(path.endswith(".safetensors") for path in commit.files) else []
    bases = card.get("base_model") or []
    tags += [f"base_model:{base}" for base in (bases if isinstance(bases, list) else [bases])]
    tags += [f"license:{card['license']}"] if card.get("license") else []
    siblings: list[dict[str, Any]] = [{"rfilename": path} for path in commit.files]
    if blobs:
        for row, entry in zip(siblings, commit.files.values(), strict=True):
            row |= {"size": entry.size, "blobId": entry.oid}
            row |= {"lfs": {"sha256": entry.sha256, "size": entry.size, "pointerSize": 134}} if entry.large else {}
    of_space = {"sdk": repo.sdk, "runtime": runtime(repo)} if repo.type == "space" else {}
    return of_space | {
        "_id": commit.sha[:24],
        "id": repo.id,
        "modelId": repo.id,
        "author": repo.namespace,
        "sha": commit.sha,
        "private": repo.private,
        "gated": "manual" if repo.gated else False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "tags": list(dict.fromkeys(tags)),
        "pipeline_tag": card.get("pipeline_tag"),
        "library_name": library,
        "cardData": card,
        "config": {key: config[key] for key in ("architectures", "model_type") if key in config},
        "createdAt": repo.created,
        "lastModified": commit.date,
        "siblings": siblings,
    }


def runtime(repo: Repo) -> dict[str, Any]:
    """What a Space runs on, as the Hub's API describes it."""
    return {"stage": "BUILDING", "hardware": {"current": None, "requested": repo.hardware}, "gcTimeout": 172800}


def space_errors(metadata: dict[str, Any]) -> list[str]:
    """What the Hub refuses in a Space's front matter, one message each."""
    found = [] if metadata.get("sdk") in SDKS else [f'"sdk" must be one of [{", ".join(SDKS)}]']
    for key in ("colorFrom", "colorTo"):
        if metadata.get(key, COLORS[0]) not in COLORS:
            found.append(f'"{key}" must be one of [{", ".join(COLORS)}]')
    if len(str(metadata.get("short_description", ""))) > SHORT:
        found.append(f'"short_description" length must be less than or equal to {SHORT} characters long')
    return found


def front_matter(text: str) -> dict[str, Any]:
    """The YAML block at the top of a card."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    loaded = yaml.safe_load(match[1]) if match else None
    return loaded if isinstance(loaded, dict) else {}


def _card(store: Store, commit: Commit) -> dict[str, Any]:
    entry = commit.files.get("README.md")
    try:
        return front_matter(store.blob(entry.sha256).read_text(encoding="utf-8")) if entry else {}
    except yaml.YAMLError:
        return {}


def _config(store: Store, commit: Commit) -> dict[str, Any]:
    entry = commit.files.get("config.json")
    try:
        found = json.loads(store.blob(entry.sha256).read_bytes()) if entry else {}
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
