"""From the Hub to a folder: which commit a model is at, and the files of it that we use."""

import glob
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import constants, get_cached_repo_tree, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError, RemoteEntryNotFoundError

from hf_prune.errors import CheckpointError, ConfigError, HubError
from hf_prune.hub_client import Token, client, hub_errors, retrying
from hf_prune.hub_files import INDEX, PICKLES, SINGLE, matches
from hf_prune.hub_listing import has_content, remote_files
from hf_prune.progress import hub_bars, tqdm

# Everything beside the weights that we read, or that has to travel on with them.
COMPANIONS = (
    "*.json",
    "*.jinja",
    "additional_chat_templates/*.jinja",
    "*.model",
    "*.tiktoken",
    "merges.txt",
    "vocab.txt",
    "README.md",
    "LICENSE*",
    "LICENCE*",
    "COPYING*",
    "NOTICE*",
    "USE_POLICY*",
)


@dataclass(frozen=True)
class ResolvedModel:
    """A model, pinned.

    Attributes:
        id: the Hub id, or the folder as it was given.
        commit: the commit's sha; None for a folder.
        folder: the folder; None for a model on the Hub.
    """

    id: str
    commit: str | None
    folder: Path | None = None


def resolve(model: str, revision: str | None = None, token: Token = None) -> ResolvedModel:
    """Find out which commit a model is at, and that its files may be read.

    Args:
        model: a folder, or a Hub id. A folder wins, as it does in Transformers.
        revision: a branch, tag or commit on the Hub; `main` when None.
        token: access token; None for the saved one.

    Returns:
        The model with its commit.

    Raises:
        HubError: no such repo or revision, no access to it, or the Hub is out of reach and nothing is cached.
        CheckpointError: there is no `config.json`.
        ConfigError: a revision of a folder.
    """
    folder = Path(model).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision={revision!r} of the folder '{model}': only models on the Hub have revisions")
        if not (folder / "config.json").is_file():
            raise CheckpointError(f"the folder '{model}' holds no config.json; expected a Transformers model")
        return ResolvedModel(id=model, commit=None, folder=folder)
    api = client(token)
    with hub_errors(f"open '{model}'", model, token=token, revision=revision):
        resolved = retrying(lambda: api.resolve_revision(model, revision=revision))
        try:
            # Only reading a file tells whether a gated repo lets us in, and whether a full sha exists at all.
            retrying(lambda: api.hf_hub_download(model, "config.json", revision=resolved))
        except RemoteEntryNotFoundError:
            raise CheckpointError(
                f"'{model}' at {resolved.resolved[:8]} holds no config.json; expected a Transformers model (of an "
                "adapter, merge it into its base model first)"
            ) from None
    return ResolvedModel(id=model, commit=resolved.resolved)


def download_file(repo_id: str, path: str, *, revision: str | None = None, token: Token = None) -> Path:
    """Download one file of a repo.

    Args:
        repo_id: repo on the Hub.
        path: path of the file in the repo.
        revision: branch, tag or commit; `main` when None.
        token: access token; None for the saved one.

    Returns:
        The file in the Hub's cache.

    Raises:
        HubError: the repo, the revision or the file is not there, or may not be read.
    """
    api = client(token)
    with hub_errors(f"download '{path}' of '{repo_id}'", repo_id, token=token, revision=revision):
        return Path(retrying(lambda: api.hf_hub_download(repo_id, path, revision=revision)))


def pull(
    repo_id: str, sha: str, token: Token = None, *, weights: bool = True, allow_patterns: Sequence[str] = ()
) -> Path:
    """Download a model at one commit: config, tokenizer, card, licence, and its safetensors weights, no more.

    A download that breaks off is taken up again. Where a repo holds both `model.safetensors` and a sharded copy, only
    the first comes, which is the one that Transformers reads.

    Args:
        repo_id: model on the Hub.
        sha: commit, from `resolve`.
        token: access token; None for the saved one.
        weights: whether the weights come too.
        allow_patterns: further files to download, such as `*.py` where the user trusts the repo's code.

    Returns:
        The folder in the Hub's cache.

    Raises:
        CheckpointError: the weights are pickles, or missing in part or whole.
        HubError: the download failed.
    """
    api = client(token)

    def fetch(names: Sequence[str]) -> Path:
        exact = [glob.escape(name) for name in names]
        bars = hub_bars()
        return Path(
            retrying(lambda: api.snapshot_download(repo_id, revision=sha, allow_patterns=exact, tqdm_class=bars))
        )

    with hub_errors(f"download '{repo_id}'", repo_id, token=token, revision=sha):
        folder = fetch(["config.json"])
        names = _listing(repo_id, sha, folder, weights=weights)
        if weights:
            require_safetensors(repo_id, names)
        companions = [name for name in names if is_companion(name) or _is_extra(name, allow_patterns)]
        fetch(companions)
        if weights:
            wanted = [SINGLE] if SINGLE in names else [INDEX]
            fetch(wanted)
            if wanted == [INDEX]:
                fetch(shards(repo_id, folder / INDEX, names))
    return folder


def check_weights(repo_id: str, sha: str, folder: Path, token: Token = None) -> None:
    """Refuse a repo without safetensors weights, or with a part of them, by the names of its files and its index.

    Args:
        repo_id: model on the Hub.
        sha: commit, from `resolve`.
        folder: what `pull` returned.
        token: access token; None for the saved one.

    Raises:
        CheckpointError: pickles only, no weights at all, or an index of shards that are not all there.
        HubError: offline, and it is not known which weights there are.
    """
    names = _listing(repo_id, sha, folder, weights=True)
    require_safetensors(repo_id, names)
    if SINGLE not in names:
        shards(repo_id, download_file(repo_id, INDEX, revision=sha, token=token), names)


def pull_verified(repo_id: str, sha: str, token: Token = None, *, allow_patterns: Sequence[str] = ()) -> Path:
    """Download a model as `pull` does, and hold each weight file against the hash that the Hub has of it.

    Args:
        repo_id: model on the Hub.
        sha: commit, from `resolve`.
        token: access token; None for the saved one.
        allow_patterns: further files to download.

    Returns:
        The folder in the Hub's cache.

    Raises:
        CheckpointError: the weights are pickles, or missing in part or whole.
        HubError: the download failed, or a file is not what the Hub says it is.
    """
    folder = pull(repo_id, sha, token, allow_patterns=allow_patterns)
    names = [SINGLE] if (folder / SINGLE).is_file() else _present_shards(repo_id, folder)
    listed = remote_files(repo_id, sha, token)
    for name in tqdm(names, desc="checking hashes", unit="file"):
        path = (folder / name).resolve()
        if not has_content(path, listed[name]):
            raise HubError(
                f"'{name}' of '{repo_id}' at {sha[:8]} is not what the Hub has under this name: its hash is another "
                f"than {listed[name].etag[:12]}. Delete '{path}' and download it again"
            )
    return folder


def cached_weights(repo_id: str, sha: str) -> Path | None:
    """The folder of a model in the Hub's cache, if all of its weights are there: nothing has to be downloaded then.

    Args:
        repo_id: model on the Hub.
        sha: commit, from `resolve`.
    """
    if isinstance(single := try_to_load_from_cache(repo_id, SINGLE, revision=sha), str):
        return Path(single).parent
    index = try_to_load_from_cache(repo_id, INDEX, revision=sha)
    if not isinstance(index, str):
        return None
    try:
        _present_shards(repo_id, Path(index).parent)
    except CheckpointError:  # not whole: who downloads it is told what is wrong, if it is the repo itself
        return None
    return Path(index).parent


def is_restricted(repo_id: str, token: Token = None) -> bool:
    """Whether a repo is gated or private, so that what is made of it should not be public by default.

    Args:
        repo_id: model on the Hub.
        token: access token; None for the saved one.

    Returns:
        True for a gated or private repo.

    Raises:
        HubError: there is no such repo, or the Hub is out of reach.
    """
    api = client(token)
    with hub_errors(f"look at '{repo_id}'", repo_id, token=token):
        info = retrying(lambda: api.model_info(repo_id))
    return bool(info.private) or bool(info.gated)


def _listing(repo_id: str, sha: str, folder: Path, *, weights: bool) -> list[str]:
    """The paths in the repo at this commit, as the cache knows them since the first download.

    Raises:
        HubError: the cache does not know, and holds no weights either where they are asked for.
    """
    try:
        entries = get_cached_repo_tree(repo_id, revision=sha, cache_dir=constants.HF_HUB_CACHE)
    except CachedRepoTreeNotFoundError as error:
        # Offline, with a cache that was filled file by file: what is there is what there is.
        if weights and cached_weights(repo_id, sha) is None:
            raise HubError(
                f"the weights of '{repo_id}' at {sha[:8]} are not, or not all, in the cache, and the Hub cannot be "
                "asked: unset HF_HUB_OFFLINE, or download the repo once while online"
            ) from error
        return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())
    return sorted(entry.path for entry in entries)


def is_companion(name: str) -> bool:
    """Whether `pull` takes a file beside the weights."""
    shallow = "/" not in name or name.startswith("additional_chat_templates/")
    return shallow and matches(name, COMPANIONS) and not matches(name, ("*.index.json",))


def _is_extra(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns) and not matches(name, PICKLES)


def require_safetensors(repo_id: str, names: Collection[str]) -> None:
    """Refuse repos without safetensors weights that Transformers would read, before the first large download.

    Args:
        repo_id: model on the Hub.
        names: paths of its files.

    Raises:
        CheckpointError: pickles only, or no weights at all.
    """
    if SINGLE in names or INDEX in names:
        return
    root = [name for name in names if "/" not in name]
    pickles = [name for name in root if matches(name, PICKLES) and not name.startswith("training_args")]
    if pickles:
        raise CheckpointError(
            f"'{repo_id}' holds its weights only as pickles ({', '.join(pickles[:3])}), which can run code when they "
            "are read; expected safetensors: convert it with the Space safetensors/convert, or load it where you "
            "trust it and call model.save_pretrained(folder), then prune that folder"
        )
    others = [name for name in names if name.endswith((".safetensors", ".gguf", ".onnx", ".h5"))]
    found = f"only {', '.join(others[:3])}" if others else "no weights at all"
    raise CheckpointError(f"'{repo_id}' holds {found}; expected {SINGLE} or {INDEX}")


def shards(repo_id: str, index: Path, names: Collection[str]) -> list[str]:
    """The shards that an index names, all of which the repo has to hold.

    Args:
        repo_id: model on the Hub.
        index: the index, downloaded.
        names: paths of the repo's files.

    Raises:
        CheckpointError: it is no index, or names files that are not there.
    """
    try:
        shards = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{INDEX} of '{repo_id}' is not an index of shards: {error!r}") from error
    missing = [shard for shard in shards if shard not in names]
    if missing or not shards:
        raise CheckpointError(
            f"{INDEX} of '{repo_id}' names {len(shards)} shards; not there: {', '.join(missing) or 'all'}: "
            "its upload was broken off; ask its owner, or take another revision"
        )
    return shards


def _present_shards(repo_id: str, folder: Path) -> list[str]:
    """The shards that the index in a folder names, all of which have to be there."""
    return shards(repo_id, folder / INDEX, [path.name for path in folder.iterdir() if path.is_file()])
