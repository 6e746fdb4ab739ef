"""Which tensors a model on the Hub has, and where they lie: by the headers of its files alone, in a few requests."""

import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from huggingface_hub import constants

from hf_prune import hub_pull
from hf_prune.checkpoint import add_shard, check_index
from hf_prune.errors import CheckpointError, RangeError
from hf_prune.hub_client import Token
from hf_prune.hub_files import INDEX, SINGLE
from hf_prune.hub_listing import remote_files
from hf_prune.hub_ranges import WORKERS, HubRanges
from hf_prune.moving import SourceWeights
from hf_prune.tensors import LONGEST_HEADER, TensorEntry, header_length, parse_header

FIRST = 32 * 2**10
"""Bytes of a file that are asked for first: most headers are shorter."""

_SAMPLE = 64


def hub_weights(repo_id: str, commit: str, token: Token = None) -> SourceWeights:
    """The weights of a model on the Hub, to be fetched by ranges; only headers are fetched here.

    Args:
        repo_id: model on the Hub.
        commit: the full sha, from `hub_pull.resolve`.
        token: access token; None for the saved one.

    Returns:
        Its tensors, and who moves them.

    Raises:
        RangeError: parts of files can't be had, so that whole files have to be downloaded.
        CheckpointError: pickles, missing shards, headers that lie, an index that disagrees with them.
        HubError: no access, no such commit, offline.
    """
    listed = remote_files(repo_id, commit, token)
    hub_pull.require_safetensors(repo_id, listed)
    names, weight_map = [SINGLE], None
    if SINGLE not in listed:
        index = hub_pull.download_file(repo_id, INDEX, revision=commit, token=token)
        names = hub_pull.shards(repo_id, index, listed)
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
    files = {name: listed[name] for name in names}
    for file in files.values():
        if file.size > constants.MAX_HTTP_DOWNLOAD_SIZE:
            raise RangeError(
                f"'{file.name}' of '{repo_id}' has {file.size} bytes; parts of files are served up to "
                f"{constants.MAX_HTTP_DOWNLOAD_SIZE}: download whole files instead (--verify-hash)"
            )
    mover = HubRanges(repo_id, commit, files, token)
    entries = _entries(mover, names)
    if weight_map is not None:
        check_index(weight_map, entries)
    contents = "\n".join(f"{file.name} {file.size} {file.etag}" for file in files.values())
    identity = f"{repo_id}@{commit} {hashlib.sha256(contents.encode()).hexdigest()}"
    return SourceWeights(entries, mover, identity)


def _entries(mover: HubRanges, names: Sequence[str]) -> dict[str, TensorEntry]:
    """All tensors, by the headers of all files."""
    sizes = {name: mover.files[name].size for name in names}
    called = {name: f"{name} of '{mover.repo_id}'" for name in names}
    with ThreadPoolExecutor(WORKERS) as pool:
        starts = list(pool.map(lambda name: mover.read(name, 0, min(FIRST, sizes[name])), names))
        lengths = {
            name: header_length(start[:8], sizes[name], called[name])
            for name, start in zip(names, starts, strict=True)
        }
        if sum(lengths.values()) > LONGEST_HEADER:
            raise CheckpointError(
                f"the headers of '{mover.repo_id}' have {sum(lengths.values())} bytes by their own word; expected at "
                f"most {LONGEST_HEADER} in all. Is this a language model?"
            )
        raws = list(pool.map(lambda name, start: _header(mover, name, start, lengths[name]), names, starts))
    _check_ranges(mover, names[0], raws[0])
    found: dict[str, TensorEntry] = {}
    for name, raw in zip(names, raws, strict=True):
        add_shard(found, parse_header(raw, sizes[name], called[name], name))
    return found


def _header(mover: HubRanges, name: str, start: bytes, length: int) -> bytes:
    """A header, as far as the first bytes of its file don't hold it already fetched by a second request."""
    have = start[8 : 8 + length]
    return have + mover.read(name, 8 + len(have), length - len(have)) if len(have) < length else have


def _check_ranges(mover: HubRanges, name: str, header: bytes) -> None:
    """Ask for bytes that are known, from where they lie: they come from there only if parts are served in earnest."""
    start = len(header) // 2
    sample = header[start : start + _SAMPLE]
    if sample and mover.read(name, 8 + start, len(sample)) != sample:
        raise RangeError(
            f"the server of '{name}' of '{mover.repo_id}' sends other bytes for a part than for the whole; "
            "download whole files instead (--verify-hash)"
        )
