"""Bytes from file to file: by the kernel where it can, and never from a file that changes meanwhile."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune import local_files
from hf_prune.errors import CheckpointError
from hf_prune.local_files import LocalFiles, copy_range, local_weights
from hf_prune.moving import Span

from .making import base_folder

WAYS = ("_in_kernel", "_sendfile", "_through_memory")
linux = pytest.mark.skipif(len(local_files._WAYS) == 1, reason="the kernel copies between files on Linux alone")


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "source", tmp_path / "target"
    source.write_bytes(os.urandom(3 * 2**20 + 7))
    target.write_bytes(bytes(4 * 2**20))
    return source, target


def copied(source: Path, start: int, size: int, target: Path, at: int) -> int:
    with source.open("rb") as one, target.open("r+b") as two:
        return copy_range(one.fileno(), start, size, two.fileno(), at)


def assert_moved(source: Path, start: int, size: int, target: Path, at: int) -> None:
    before, found = bytes(4 * 2**20), target.read_bytes()
    assert found == before[:at] + source.read_bytes()[start : start + size] + before[at + size :]


@linux
@pytest.mark.parametrize("code", [errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
@pytest.mark.parametrize("refused", [0, 1, 2])
def test_what_the_kernel_refuses_is_done_otherwise(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, refused: int, code: int
) -> None:
    def refuse(*_given: int) -> int:
        raise OSError(code, os.strerror(code))

    ways = tuple(refuse if i < refused else getattr(local_files, way) for i, way in enumerate(WAYS))
    monkeypatch.setattr(local_files, "_WAYS", ways)
    assert copied(pair[0], 5, 2**20 + 11, pair[1], 3) == 0
    assert_moved(pair[0], 5, 2**20 + 11, pair[1], 3)


@linux
def test_refused_in_the_middle(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    def once(source: int, start: int, size: int, target: int, at: int) -> int:
        if start >= 1000:
            raise OSError(errno.EXDEV, "")
        return os.copy_file_range(source, target, min(size, 1000), start, at)

    monkeypatch.setattr(local_files, "_WAYS", (once, local_files._through_memory))
    assert copied(pair[0], 0, 5000, pair[1], 1) == 0
    assert_moved(pair[0], 0, 5000, pair[1], 1)


@pytest.mark.parametrize("way", WAYS)
def test_other_errors_are_not_hidden(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def full(*_given: int) -> int:
        raise OSError(errno.ENOSPC, "no space")

    monkeypatch.setattr(local_files, "_WAYS", (full, local_files._through_memory))
    with pytest.raises(OSError, match="no space"):
        copied(pair[0], 0, 10, pair[1], 0)


@settings(max_examples=30)
@given(st.integers(0, 3 * 2**20), st.integers(0, 2**21), st.integers(0, 2**20))
def test_any_range(tmp_path_factory: pytest.TempPathFactory, start: int, size: int, at: int) -> None:
    folder = tmp_path_factory.mktemp("range")
    source, target = folder / "source", folder / "target"
    source.write_bytes(bytes(range(256)) * (3 * 2**12) + b"end")
    target.write_bytes(bytes(4 * 2**20))
    there = min(size, source.stat().st_size - start)
    assert copied(source, start, size, target, at) == size - there
    assert_moved(source, start, there, target, at)


def test_larger_than_one_call(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_files, "_MOST", 1000)
    assert copied(pair[0], 0, 5500, pair[1], 0) == 0
    assert_moved(pair[0], 0, 5500, pair[1], 0)


CHANGES: dict[str, Callable[[Path], object]] = {
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"x"),
    "shorter": lambda path: os.truncate(path, 100),
    "touched": lambda path: os.utime(path, ns=(1, 1)),
    "replaced": lambda path: (
        path.rename(path.with_name("old")),
        path.write_bytes(path.with_name("old").read_bytes()),
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_is_noticed(pair: tuple[Path, Path], change: str) -> None:
    files = LocalFiles({"source": pair[0]})
    span = Span("source", 50, 2000, "target", 0)
    seen: list[Span] = []
    files.move([span], pair[1].parent, seen.append)
    assert seen == [span] and files.read("source", 3, 4) == pair[0].read_bytes()[3:7]
    CHANGES[change](pair[0])
    for act in (lambda: files.move([span], pair[1].parent, seen.append), lambda: files.read("source", 50, 2000)):
        with pytest.raises(
            CheckpointError, match=r"source changed while it was read.*let whatever writes there finish"
        ):
            act()
    assert seen == [span]


def test_weights_of_a_folder(tmp_path: Path) -> None:
    model, base = base_folder(tmp_path / "base")
    weights = local_weights(base)
    assert weights.entries.keys() == model.state_dict().keys()
    entry = weights.entries["model.norm.weight"]
    raw = weights.mover.read(entry.file, entry.start, entry.size)
    assert raw == model.model.norm.weight.detach().numpy().tobytes()
    assert weights.identity == local_weights(base).identity
    os.utime(base / entry.file, ns=(1, 1))
    assert weights.identity != local_weights(base).identity
