"""Measuring in several processes, as torchrun starts them: the same numbers as in one."""

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch

from hf_prune.architecture import decoder_of
from hf_prune.distributed import ALONE, Group, processes
from hf_prune.errors import ConfigError
from hf_prune.measure import measure_model
from hf_prune.records import Scores
from hf_prune.registry import measure
from hf_prune.samples import Samples

from .cli.support import planted, recipe_file, tree
from .making import TEXT, reference
from .tiny import DEPTH, tiny_model, tokens

ROOT = Path(__file__).parent.parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
LENGTHS = (5, 12, 3, 9, 12, 2, 7, 11, 6, 4, 12)
"""Eleven samples; in batches of two the processes get 3 batches each, and 6 and 5 samples."""

CHILD = """
import sys
from tests.test_distributed import measured
from hf_prune.distributed import processes

with processes() as group:
    assert group.size == 2
    for name in sys.argv[2:]:
        scores = measured(name, group)
        if group.leads:
            scores.save(sys.argv[1] + "/" + name)
    assert group.share(lambda: {"rank": group.rank}) == {"rank": 0}
"""


def measured(name: str, group: Group, batch_size: int = 2) -> Scores:
    samples = Samples(tuple(tokens(1, length, seed)[0] for seed, length in enumerate(LENGTHS)), TEXT)
    decoder = decoder_of(tiny_model("llama"))
    return measure_model(decoder, samples, model=reference(DEPTH), name=name, batch_size=batch_size, group=group)


def started(*words: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    """Run a program in two processes."""
    environment = {key: value for key, value in os.environ.items() if key not in ("RANK", "WORLD_SIZE")}
    done = subprocess.run(
        [*TORCHRUN, *map(str, words)],
        capture_output=True,
        text=True,
        env=environment | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"},
        timeout=120,
    )
    assert done.returncode == code, done.stderr
    return done


def errors(done: subprocess.CompletedProcess[str]) -> list[str]:
    """What the processes themselves said was wrong; torchrun adds a word of its own."""
    return [line for line in done.stderr.splitlines() if line.startswith("Error:")]


def assert_same(found: Scores, expected: Scores) -> None:
    for field in ("distances", "standard_errors", "layers", "layer_standard_errors"):
        ours, theirs = numpy.array(getattr(found, field)), numpy.array(getattr(expected, field))
        assert ours.shape == theirs.shape
        numpy.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12)
    for name in ("importances", "importance_errors"):
        ours, theirs = getattr(found, name), getattr(expected, name)
        assert ours.keys() == theirs.keys()
        for part, row in theirs.items():
            numpy.testing.assert_allclose(numpy.array(ours[part]), numpy.array(row), rtol=0, atol=1e-9)
    assert (found.model, found.data, found.options) == (expected.model, expected.data, expected.options)


def test_two_processes_give_the_scores_of_one(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text(CHILD)
    names = [entry.name for entry in measure if entry.needs == "pass"]
    started(tmp_path / "child.py", tmp_path, *names)
    for name in names:
        found = Scores.load(tmp_path / name)
        assert_same(found, measured(name, ALONE))
        assert found.environment.hardware.startswith("2 processes, process 0 on ")


@pytest.mark.parametrize("size", [1, 2, 3, 4, 11])
def test_each_batch_is_one_process_s(size: int) -> None:
    shares = [Group(rank, size).part(range(11)) for rank in range(size)]
    assert sorted(sum(shares, [])) == list(range(11))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


@pytest.mark.parametrize("size", [2, 4, 5, 11])
def test_batches_are_small_enough_for_every_process_to_have_one(size: int, monkeypatch) -> None:
    monkeypatch.setattr(Group, "add", lambda self, sums: None)  # the others are not there
    seen = [measured("redundancy", Group(rank, size), batch_size=8) for rank in range(size)]
    assert all(len(scores.layers) == DEPTH for scores in seen)


def test_more_processes_than_samples() -> None:
    with pytest.raises(ConfigError, match="12 processes share 11 calibration samples; expected a sample at least"):
        measured("angular", Group(0, 12))


def test_without_torchrun_nothing_is_set_up(monkeypatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with processes() as group:
        assert group == ALONE and group.leads and group.device() is None
        assert not torch.distributed.is_initialized()
        sums = torch.ones(2)
        group.add([sums])
        group.agree("model", object())
        assert sums.tolist() == [1, 1] and group.share(lambda: 3) == 3


def test_half_an_environment_is_refused(monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(ConfigError, match="WORLD_SIZE=2 .* RANK, MASTER_PORT is not set; expected what torchrun sets"):
        with processes():
            pass


@pytest.mark.slow
def test_command_measures_in_two_processes(tmp_path: Path) -> None:
    planted(tmp_path / "base")
    recipe = recipe_file(tmp_path / "recipe", calibration={"samples": 7})
    command = ("-m", "hf_prune.cli", "measure", tmp_path / "base", "--config", recipe, "--output")
    alone = subprocess.run(
        [sys.executable, *map(str, command), str(tmp_path / "one"), "--json"], capture_output=True, text=True, cwd=ROOT
    )
    assert alone.returncode == 0, alone.stderr
    done = started(*command, tmp_path / "two", "--json")
    found, expected = Scores.load(tmp_path / "two"), Scores.load(tmp_path / "one")
    assert_same(found, expected)
    assert tree(tmp_path / "two").keys() == tree(tmp_path / "one").keys(), "what one process alone writes"
    said = json.loads(done.stdout)
    assert said["samples"] == 7 and said["seconds"] == round(found.seconds, 2)
    assert done.stderr.count("Warning: 'base' is a folder") == 1, "one process speaks"
    before = tree(tmp_path / "two")
    again = started(*command, tmp_path / "two")
    assert again.stdout.count("✓ Measured base") == 1 and tree(tmp_path / "two") == before, "measured already"


@pytest.mark.slow
def test_what_is_wrong_everywhere_is_said_once(tmp_path: Path) -> None:
    planted(tmp_path / "base")
    command = ("-m", "hf_prune.cli", "measure", tmp_path / "base", "--config", recipe_file(tmp_path / "recipe"))
    (said,) = errors(started(*command, "--samples", 1, "--output", tmp_path / "two", code=1))
    assert re.search("2 processes share 1 calibration samples; expected a sample at least for each", said)
    (said,) = errors(started(*command, "--drop-layers", 9, "--output", tmp_path / "two", code=1))
    assert "drop_layers=9 leaves" in said
    assert not (tmp_path / "two" / Scores.FILE).exists()


FAILING = """
import sys
from hf_prune.cli import main
from hf_prune.distributed import Group
from hf_prune.errors import MeasureError

failing, part = int(sys.argv.pop(1)), Group.part

def take(group, items):
    if group.rank == failing:
        raise MeasureError("bad numbers")
    return part(group, items)

Group.part = take
main()
"""


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_one_that_fails_ends_all(rank: int, tmp_path: Path) -> None:
    planted(tmp_path / "base")
    (tmp_path / "child.py").write_text(FAILING)
    words = ("measure", tmp_path / "base", "--config", recipe_file(tmp_path / "recipe"), "--output", tmp_path / "two")
    done = started(tmp_path / "child.py", rank, *words, code=1)
    assert errors(done) == ["Error: process 1 of 2: bad numbers" if rank else "Error: bad numbers"]
    assert "✓" not in done.stdout and not (tmp_path / "two" / Scores.FILE).exists()


LEFT_ALONE = """
import os
import sys
import torch
from hf_prune.cli import main
from hf_prune.distributed import processes
import hf_prune.cli

def work():
    with processes() as group:
        group.share(lambda: None)
        if not group.leads:
            os.kill(os.getpid(), 9)
        group.add([torch.zeros(1)])

hf_prune.cli.app = work
sys.argv = ["hf-prune", "measure"]
main()
"""


@pytest.mark.slow
def test_one_that_is_killed_is_missed_at_once(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = [
        subprocess.Popen(
            [sys.executable, "-c", LEFT_ALONE],
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [1, -9], said
    (line,) = [line for line in said[0].splitlines() if line.startswith("Error:")]
    assert re.match(
        r"Error: another of the 2 processes has gone \(.+\); all of them are needed\. See what it said", line
    )
