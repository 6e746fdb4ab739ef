"""What can go wrong around a cut from file to file: the base changes, the check fails, sizes are none."""

import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from hf_prune import Pruner, PrunerConfig, file_to_file
from hf_prune.checkpoint import SINGLE, checkpoint_entries
from hf_prune.errors import CheckpointError, OutputError
from hf_prune.surgery.checkpoint import write_weights
from tests.cli.support import call, done, tree

from .making import base_folder
from .test_reload_streamed import in_process  # noqa: F401 (a fixture)

SIMPLE = PrunerConfig(method="simple", drop_layers=3)
WORDS = ("--method", "simple", "--drop-layers", "3", "--output", "out")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "tiny-base")[1]


def _with_another_bit(weights: Any, origin: Path, plan: Any, folder: Path, **kwargs: Any) -> Any:
    """Write, and change the lowest bit of a number that the fixed inputs of the check don't touch."""
    cut = write_weights(weights, origin, plan, folder, **kwargs)
    entry = checkpoint_entries(folder)["model.embed_tokens.weight"]
    written = bytearray((folder / entry.file).read_bytes())
    written[entry.start + entry.size - 4] ^= 1
    (folder / entry.file).write_bytes(written)
    return cut


@pytest.mark.usefixtures("in_process")
def test_a_check_that_fails_leaves_nothing_that_would_fail_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(file_to_file, "write_weights", _with_another_bit)
    error = call("prune", base, *WORDS).failed()
    assert "'model.embed_tokens.weight' differs from" in error and "The output was not kept" in error
    assert [path.name for path in tmp_path.iterdir()] == ["out.run"]
    monkeypatch.setattr(file_to_file, "write_weights", write_weights)
    done("prune", base, *WORDS)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_check_that_is_killed_need_not_be_written_for_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "hf_prune.reload.subprocess.run",
        lambda command, **_kwargs: subprocess.CompletedProcess(command, -signal.SIGKILL, "", ""),
    )
    pruner = Pruner.from_pretrained(base, SIMPLE, progress=False, run_folder=tmp_path / "run")
    with pytest.raises(OutputError, match=r"could not be checked: .* was killed \(signal 9\).*Free some memory"):
        pruner.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists() and (tmp_path / "run/weights" / SINGLE).is_file()


def test_a_base_that_changes_before_it_is_cut(base: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(base, tmp_path / "mine")
    pruner = Pruner.from_pretrained(mine, SIMPLE, progress=False)
    pruner.plan()
    os.utime(mine / SINGLE, (1, 1))
    with pytest.raises(CheckpointError, match="mine' is no longer the checkpoint that was looked at first"):
        pruner.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [("prune",), ("run", "--no-evaluate"), ("run", "--dry-run")], ids=" ".join)
def test_a_size_that_is_none_is_told_before_any_work(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    error = call(words[0], base, *words[1:], *WORDS, "--max-shard-size", "lots").failed()
    assert error == "max_shard_size='lots'; expected a size such as 5GB, 500MB or 700KB"
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("in_process")
def test_an_output_that_is_a_link(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("out").symlink_to("far/deep")
    done("prune", base, *WORDS)
    assert Path("out").is_symlink() and "config.json" in tree(Path("far/deep"))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["far", "out"]
