"""The Hub's cache on a Space: below its limit, by deleting what was not used for longest and is not in use."""

import dataclasses
import os
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
from huggingface_hub import HfApi, constants

from hf_prune.errors import ConfigError
from hf_prune.space import disk, settings
from hf_prune.space.asking import Repo, look
from tests.hub.server import LoopbackHub

from .conftest import NOBODY, ON_SPACE

SIZE = 100_000


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for each test."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path / "hub"


@pytest.fixture
def repo(hub: LoopbackHub, new_repo_id: Callable[..., str]) -> Callable[..., Repo]:
    """A function that makes a repo with files of so many bytes."""

    def make(size: int = SIZE, name: str | None = None) -> Repo:
        name = name or new_repo_id()
        hub.add_repo(name, {"model.safetensors": os.urandom(size)})
        found = look(name, NOBODY)
        return dataclasses.replace(found, files={"model.safetensors": found.files["model.safetensors"]})

    return make


def allow(size: int | None) -> None:
    settings.use(dataclasses.replace(ON_SPACE, disk_bytes=size))


def fetch(repo: Repo) -> Path:
    with disk.room(repo.name, repo.commit, repo.files):
        return Path(HfApi().snapshot_download(repo.name, revision=repo.commit, token=False))


def test_below_the_limit(repo: Callable[..., Repo], cache: Path) -> None:
    allow(3 * SIZE + 20_000)
    repos = [repo() for _ in range(5)]
    folders = [fetch(one) for one in repos[:3]]
    assert all(folder.is_dir() for folder in folders)
    fetch(repos[0])  # used again: the second is the oldest now
    folders += [fetch(one) for one in repos[3:]]
    assert [folder.is_dir() for folder in folders] == [True, False, False, True, True]
    assert disk.size_on_disk(cache) <= 3 * SIZE + 20_000
    assert fetch(repos[1]).is_dir()  # it comes again


def test_what_is_in_use_stays(repo: Callable[..., Repo]) -> None:
    allow(2 * SIZE + 20_000)
    one, other, third = repo(), repo(), repo()
    first = fetch(one)
    with disk.in_use(one.commit):
        second = fetch(other)
        fetch(third)
        assert first.is_dir() and not second.is_dir()
        with disk.in_use(third.commit), pytest.raises(ConfigError, match="others use them now"):
            fetch(repo())
        assert first.is_dir()
    for _ in range(2):
        fetch(repo())
    assert not first.is_dir()


def test_revisions_of_one_repo(repo: Callable[..., Repo]) -> None:
    allow(2 * SIZE + 20_000)
    old = repo()
    before = fetch(old)
    new = repo(name=old.name)
    with disk.in_use(new.commit):
        after = fetch(new)
        fetch(repo())
        assert not before.is_dir() and (after / "model.safetensors").is_file()


def test_what_cannot_fit_is_refused_before_it_starts(repo: Callable[..., Repo], hub: LoopbackHub) -> None:
    allow(2 * SIZE)
    kept, large = fetch(repo()), repo(3 * SIZE)
    hub.reset()
    with pytest.raises(ConfigError, match=rf"'{large.name}' needs 0\.00 GB of disk to be downloaded; 0\.00 GB of"):
        fetch(large)
    assert hub.requests == [] and kept.is_dir()


def test_what_is_there_needs_no_room(repo: Callable[..., Repo]) -> None:
    allow(SIZE + 20_000)
    one = repo()
    assert fetch(one) == fetch(one)


def test_two_downloads_at_once_share_the_room(repo: Callable[..., Repo]) -> None:
    allow(int(1.5 * SIZE))
    one, other = repo(), repo()
    with disk.room(one.name, one.commit, one.files), pytest.raises(ConfigError, match="of disk"):
        fetch(other)
    fetch(other)


def test_a_download_that_fails_gives_its_room_back(repo: Callable[..., Repo]) -> None:
    allow(int(1.5 * SIZE))
    one = repo()
    with pytest.raises(OSError), disk.room(one.name, one.commit, one.files):
        raise OSError("the connection broke")
    fetch(repo())


def test_what_is_left_of_broken_downloads(repo: Callable[..., Repo], cache: Path) -> None:
    allow(2 * SIZE + 20_000)
    fetch(repo())
    [blobs] = cache.glob("models--*/blobs")
    old, new = blobs / "old.incomplete", blobs / "new.incomplete"
    for path in (old, new):
        path.write_bytes(b"x" * 1000)
    os.utime(old, (time.time() - 7200,) * 2)
    fetch(repo())
    assert not old.exists() and new.exists()


def test_a_laptop_deletes_nothing(repo: Callable[..., Repo], cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    allow(None)
    folders = [fetch(repo()) for _ in range(3)]
    assert all(folder.is_dir() for folder in folders)
    usage = disk.shutil.disk_usage(cache.parent)
    # A boundary: a disk that is nearly full.
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=10**9 + SIZE // 2))
    with pytest.raises(ConfigError, match=r"0\.00 GB of the disk are free, and nothing is deleted"):
        fetch(repo())
    assert all(folder.is_dir() for folder in folders)
    assert fetch(repo(10)).is_dir()


def test_a_space_whose_disk_is_nearly_full(
    repo: Callable[..., Repo], cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    allow(100 * SIZE)
    first = fetch(repo())
    usage = disk.shutil.disk_usage(cache.parent)
    monkeypatch.setattr(disk.shutil, "disk_usage", lambda path: usage._replace(free=10**9 + SIZE // 2))
    fetch(repo())
    assert not first.is_dir()


def test_nested_use(repo: Callable[..., Repo]) -> None:
    allow(SIZE + 20_000)
    one = repo()
    with ExitStack() as stack:
        stack.enter_context(disk.in_use(one.commit))
        folder = fetch(one)
        with pytest.raises(ConfigError):
            fetch(repo())
        assert folder.is_dir()
