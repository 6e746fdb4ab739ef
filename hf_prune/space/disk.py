"""The Hub's cache on a Space stays within its share of the disk; elsewhere it belongs to the user and only grows."""

import logging
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, scan_cache_dir, try_to_load_from_cache

from hf_prune.errors import ConfigError
from hf_prune.space import settings

logger = logging.getLogger(__name__)

_SPARE = 10**9
"""Bytes of a disk that stay free."""

_ABANDONED = 3600.0
"""Seconds after which what is left of a download that broke off is deleted."""

_lock = threading.Lock()
_open: Counter[str] = Counter()
_used: dict[str, float] = {}
_promised: Counter[str] = Counter()


@contextmanager
def in_use(commit: str) -> Iterator[None]:
    """Files of a commit are not deleted while the block runs.

    Args:
        commit: sha.
    """
    with _lock:
        _open[commit] += 1
    try:
        yield
    finally:
        with _lock:
            _open[commit] -= 1
            _used[commit] = time.time()


@contextmanager
def room(name: str, commit: str, files: dict[str, int]) -> Iterator[None]:
    """Make room for a download, which runs in the block; its files are not deleted meanwhile.

    Args:
        name: Hub id.
        commit: sha.
        files: path → bytes of what is to be downloaded.

    Raises:
        ConfigError: it cannot fit; nothing was downloaded or deleted.
    """
    with in_use(commit):
        needed = missing(name, commit, files)
        with _lock:
            _make_room(name, needed)
            _promised[commit] += needed
        try:
            yield
        finally:
            with _lock:
                _promised[commit] -= needed


def missing(name: str, commit: str, files: dict[str, int]) -> int:
    """Bytes of these files that are not on this machine yet."""
    there = (file for file in files if isinstance(try_to_load_from_cache(name, file, revision=commit), str))
    return sum(files.values()) - sum(files[file] for file in there)


def _make_room(name: str, needed: int) -> None:
    """Delete what was not used for longest until `needed` bytes fit; the lock is held."""
    cache, limit = Path(constants.HF_HUB_CACHE), settings.current().disk_bytes
    promised = needed + sum(_promised.values())
    free = shutil.disk_usage(_existing(cache)).free - _SPARE
    if limit is None:
        if needed and promised > free:
            raise _too_large(name, needed, f"{max(free, 0) / 1e9:.2f} GB of the disk are free, and nothing is deleted")
        return
    _sweep(cache)
    taken = size_on_disk(cache)
    excess = max(taken + promised - limit, promised - free)
    if excess <= 0:
        return
    if not cache.is_dir():
        raise _too_large(name, needed, f"{limit / 1e9:.2f} GB of the disk are for models")
    found = scan_cache_dir(cache)
    idle = sorted(
        (_used.get(revision.commit_hash, repo.last_accessed), revision.commit_hash)
        for repo in found.repos
        for revision in repo.revisions
        if not _open[revision.commit_hash]
    )
    for count in range(1, len(idle) + 1):
        plan = found.delete_revisions(*(commit for _, commit in idle[:count]))
        if plan.expected_freed_size >= excess:
            logger.info("The Hub's cache is full: %d revisions go, %s", count, plan.expected_freed_size_str)
            plan.execute()
            for _, commit in idle[:count]:
                _used.pop(commit, None)
            return
    raise _too_large(name, needed, f"{limit / 1e9:.2f} GB of the disk are for models, and others use them now")


def size_on_disk(cache: Path) -> int:
    """Bytes of all files below a folder; links are not followed, and what goes meanwhile is not counted."""
    total = 0
    for path in cache.rglob("*"):
        try:
            if path.is_file() and not path.is_symlink():
                total += path.stat().st_size
        except OSError:
            continue
    return total


def _sweep(cache: Path) -> None:
    """Delete what is left of downloads that broke off."""
    for path in cache.glob("*/blobs/*.incomplete"):
        try:
            if time.time() - path.stat().st_mtime > _ABANDONED:
                path.unlink()
        except OSError:
            continue


def _existing(path: Path) -> Path:
    while not path.exists():
        path = path.parent
    return path


def _too_large(name: str, needed: int, why: str) -> ConfigError:
    return ConfigError(
        f"'{name}' needs {needed / 1e9:.2f} GB of disk to be downloaded; {why}. Pick a smaller model, or try again "
        "when fewer visitors are here"
    )
