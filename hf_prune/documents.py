"""Where text comes from: a Hub dataset or local files, read as a stream of documents."""

import logging
import os
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import pyarrow
from datasets import IterableDataset, load_dataset
from datasets.exceptions import DatasetNotFoundError, DatasetsError
from huggingface_hub import constants
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from hf_prune import chat
from hf_prune.errors import DataError, HubError
from hf_prune.hub_client import client, hub_errors
from hf_prune.registry import did_you_mean

logger = logging.getLogger(__name__)

Token = str | bool | None

_TEXT: tuple[str, dict[str, Any]] = ("text", {"sample_by": "document"})
_JSON: tuple[str, dict[str, Any]] = ("json", {})
# Parquet compresses itself; datasets reads none that is compressed again.
_FORMATS = {
    ".txt": _TEXT,
    ".jsonl": _JSON,
    ".json": _JSON,
    ".txt.gz": _TEXT,
    ".jsonl.gz": _JSON,
    ".json.gz": _JSON,
    ".parquet": ("parquet", {}),
}
# What datasets raises while it reads: no network, a wrong config or split, a loading script, and files that are no
# JSON, Parquet, gzip or UTF-8, or end too early.
_READ_ERRORS = (
    DatasetsError,
    httpx2.HTTPError,
    pyarrow.ArrowException,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


@dataclass(frozen=True)
class Source:
    """One text source.

    Attributes:
        dataset: Hub id, local file or folder.
        config: config name of a Hub dataset.
        split: split of a Hub dataset ("train" when None), or the files of a folder whose names start so (all when
            None).
        column: column that holds the text; of a chat, the one that holds messages, or two with a comma between.
        chat: whether rows are conversations.
    """

    dataset: str
    config: str | None = None
    split: str | None = None
    column: str = "text"
    chat: bool = False

    @property
    def path(self) -> Path | None:
        """The local file or folder; None for a dataset on the Hub.

        Raises:
            DataError: it looks like a path, and nothing is there.
        """
        path = Path(self.dataset).expanduser()
        if path.exists():
            return path
        if self.dataset.startswith((".", "/", "~")) or self.dataset.count("/") > 1 or _suffix(path):
            raise DataError(
                f"no file or folder '{self.dataset}'; expected a Hub dataset id or a local path (--dataset)"
            )
        return None

    def check_there(self) -> None:
        """Refuse a file that is not there; nothing is asked of the Hub.

        Raises:
            DataError: it looks like a path, and nothing is there.
        """
        _ = self.path

    @property
    def read_split(self) -> str | None:
        """The split that is read."""
        return self.split or ("train" if self.path is None else None)

    def overlaps(self, other: "Source") -> bool:
        """Whether both may hold the same documents; splits that only differ in name do not."""
        if (self.dataset, self.column) != (other.dataset, other.column):
            return False
        if self.config and other.config and self.config != other.config:
            return False
        mine, others = self.read_split, other.read_split
        plain = mine is not None and others is not None and mine.isidentifier() and others.isidentifier()
        return mine == others or not plain or "all" in (mine, others)

    @property
    def name(self) -> str:
        """What records call it: the Hub id, or the bare name of a file or folder, never a path."""
        path = self.path
        return self.dataset if path is None else Path(os.path.abspath(path)).name


def open_stream(source: Source, *, seed: int, token: Token = None) -> tuple[Iterator[str], str | None]:
    """Open a source as a stream of documents that is read as far as it is used.

    Args:
        source: what to read.
        seed: of the order of a Hub dataset's files; the documents of a file come as they lie there.
        token: of the Hub; None takes the stored one.

    Returns:
        The documents (of a chat, conversations as `chat.document` writes them), blank ones left out, and the Hub
        commit they are read from (None for local files).

    Raises:
        DataError: not there, not reachable, not readable, empty, or without the text column (also while reading).
    """
    path = source.path
    if path is not None:
        return _documents(source, _local_rows(source, path)), None
    revision = _commit(source, token)
    with _reading(source):
        rows = load_dataset(
            source.dataset,
            source.config,
            split=source.read_split,
            streaming=True,
            token=token,
            revision=revision,
        )
    assert isinstance(rows, IterableDataset)
    # A buffer of one row: this shuffles the files. The passages are shuffled later, whatever the source.
    return _documents(source, iter(rows.shuffle(seed=seed, buffer_size=1))), revision


def _commit(source: Source, token: Token) -> str | None:
    """The commit of a Hub dataset, so that all that is read comes from it and the record can name it."""
    if constants.is_offline_mode():
        return None
    try:
        with hub_errors(f"read the dataset '{source.dataset}'", source.dataset, token=token):
            try:
                return client(token).dataset_info(source.dataset).sha
            except GatedRepoError as error:
                raise DataError(
                    f"the dataset '{source.dataset}' is gated and this account was not let in; ask for access on its "
                    "page on the Hub and log in with `hf auth login`, or name another (--dataset)"
                ) from error
            except RepositoryNotFoundError as error:
                raise DataError(
                    f"there is no dataset '{source.dataset}' on the Hub, nor a file or folder of this name, or it is "
                    "private; check the spelling, log in with `hf auth login`, or name another (--dataset)"
                ) from error
    except HubError as error:
        raise DataError(f"{error}. Or name another dataset, or a local file (--dataset)") from error


@contextmanager
def _reading(source: Source) -> Iterator[None]:
    """Turn whatever reading raises into one `DataError`."""
    try:
        yield
    except DataError:
        raise
    except _READ_ERRORS as error:
        raise DataError(_explain(source, error)) from error


def _explain(source: Source, error: BaseException) -> str:
    said = " ".join(str(error).split())
    name = f"the dataset '{source.dataset}'"
    split = f"{name} has no split '{source.read_split}'"
    if said.startswith("Bad split"):
        return f"{split}: {said.rpartition('. ')[2]}. Name one of them (--split)"
    if said.startswith("Unknown split"):
        return f"{split}: {said.rpartition('. ')[2]} Name one of them (--split)"
    if said.startswith("Config name is missing"):
        known = said.partition("configs: ")[2].partition("]")[0]
        return f"{name} has several configs: {known}]. Name one of them (--dataset-config)"
    if said.startswith("BuilderConfig"):
        known = said.partition("Available: ")[2]
        return f"{name} has no config {source.config!r}; it has {known}. Name one of them (--dataset-config)"
    if isinstance(error, DatasetNotFoundError):
        return f"cannot read {name}: {said} Log in with `hf auth login`, or name another dataset (--dataset)"
    if isinstance(error, ConnectionError | httpx2.HTTPError):
        return f"cannot read {name}: {said}. Check the network, or name another dataset or a local file (--dataset)"
    return f"cannot read {name}: {type(error).__name__}: {said}"


def _suffix(path: Path) -> str | None:
    """The known ending of a file name; None for another."""
    return next((suffix for suffix in _FORMATS if path.name.lower().endswith(suffix)), None)


def _local_rows(source: Source, path: Path) -> Iterator[dict[str, Any]]:
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file() and _suffix(p))
    if path.is_file() and _suffix(path) is None:
        raise DataError(f"cannot tell what '{path.name}' holds; expected a file that ends in {', '.join(_FORMATS)}")
    if not files:
        raise DataError(f"no text in the folder '{path.name}'; expected files that end in {', '.join(_FORMATS)}")
    if source.split is not None and path.is_dir():
        named = [file for file in files if file.name.startswith(source.split)]
        if not named:
            raise DataError(
                f"no file of the folder '{path.name}' starts with '{source.split}'; it has: "
                f"{', '.join(file.name for file in files[:20])}. Name another split (--split), or none for all files"
            )
        files = named
    return (row for file in files for row in _rows_of(file))


def _rows_of(file: Path) -> Iterator[dict[str, Any]]:
    suffix = _suffix(file)
    assert suffix is not None
    builder, options = _FORMATS[suffix]
    try:
        rows = load_dataset(builder, data_files=str(file), split="train", streaming=True, **options)
    except StopIteration:
        # What datasets says to an empty JSON file.
        return
    yield from rows


def _documents(source: Source, rows: Iterator[dict[str, Any]]) -> Iterator[str]:
    while True:
        with _reading(source):
            row = next(rows, None)
        if row is None:
            return
        text = _text(source, row)
        if text and not text.isspace():
            yield text


def _text(source: Source, row: dict[str, Any]) -> str | None:
    columns = [name.strip() for name in source.column.split(",")] if source.chat else [source.column]
    for column in columns:
        if column not in row:
            wanted = "messages (--heal-messages-column)" if source.chat else "text (--text-column)"
            raise DataError(
                f"the dataset '{source.dataset}' has no column '{column}'; it has: {', '.join(row)}."
                f"{did_you_mean(column, list(row))} Name the one that holds the {wanted}"
            )
    if source.chat:
        return chat.document([row[column] for column in columns], columns, source.dataset)
    text = row[source.column]
    if text is not None and not isinstance(text, str):
        raise DataError(
            f"column '{source.column}' of the dataset '{source.dataset}' holds {type(text).__name__}; expected text. "
            "Name the column that holds it (--text-column)"
        )
    return text
