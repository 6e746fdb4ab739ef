"""A run that is killed anywhere goes on with the same command and ends as one that was never stopped."""

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from hf_prune.evaluation import stage as evaluation_stage
from hf_prune.healing.keeper import Keeper
from hf_prune.output import Finished
from tests.cli.support import Called, call, done, fast, planted, recipe_file, tree

FILES_CHILD = """
import os, signal, sys
import hf_prune.file_to_file
from hf_prune.cli import main

hf_prune.file_to_file.check_streamed = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
main()
"""

CHILD = """
import os, signal, sys
import torch
import hf_prune.healing.job, hf_prune.reload, hf_prune.run, hf_prune.writers
from hf_prune.cli import main
from hf_prune.healing.keeper import Keeper
from hf_prune.run_folder import RunFolder
from tests.healing.support import SPEED

torch.set_num_threads(1)
hf_prune.healing.job.probe = lambda device, parameters: SPEED
hf_prune.reload.reload_level = lambda model: "streamed"
when, place = sys.argv[1].split(" ", 1)
sys.argv[1:2] = []

def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(function, hit):
    def call(*args, **kwargs):
        if hit(*args) and when == "before":
            die()
        function(*args, **kwargs)
        if hit(*args):
            die()
    return call

if place == "checkpoint":
    Keeper.on_save = dying(Keeper.on_save, lambda self, args, state, control: state.global_step == 1)
elif place == "the check of the output":
    hf_prune.writers.check_reload = die
elif place == "clearing away":
    hf_prune.run.remove = die
else:
    RunFolder.finish = dying(RunFolder.finish, lambda self, stage, inputs: stage == place)
main()
"""

STAGES = ("measure", "original", "pruned", "heal", "healed")
# Where it is killed, and what is left to do. Healing is always called: it puts its finished adapter on the weights.
KILLS: dict[str, tuple[str, ...]] = {
    "before calibration-text": STAGES,
    "after calibration-text": STAGES,
    "before measure": STAGES,
    "after measure": STAGES[1:],
    "after held-out-text": STAGES[1:],
    "before evaluation-original": STAGES[1:],
    "after evaluation-original": STAGES[2:],
    "after evaluation-pruned": STAGES[3:],
    "before pruned": STAGES[3:],
    "before checkpoint": STAGES[3:],
    "after checkpoint": STAGES[3:],
    "after evaluation-healed": ("heal",),
    "in the check of the output": ("heal",),
    "at clearing away": (),
}
QUICK = ("after checkpoint",)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


@pytest.fixture(scope="module")
def words(base: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    recipe = recipe_file(tmp_path_factory.mktemp("recipe"))
    return ("run", str(base), "--config", recipe, "--heal", "--output", "out")


@pytest.fixture(scope="module", autouse=True)
def repeatable() -> Iterator[None]:
    """Nothing measured about this machine decides anything."""
    threads, patch = torch.get_num_threads(), pytest.MonkeyPatch()
    torch.set_num_threads(1)
    fast(patch)
    yield
    patch.undo()
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def unstopped(words: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unstopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        done(*words)
    return folder / "out"


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> Counter:
    """Counts the stages that are really done in this process."""
    counts: Counter = Counter()

    def counting(place: str, name) -> None:
        module, _, attribute = place.rpartition(".")
        function = getattr(sys.modules[module], attribute)

        def call(*args, **kwargs):
            counts[name(kwargs)] += 1
            return function(*args, **kwargs)

        monkeypatch.setattr(place, call)

    counting("hf_prune.choosing.measure_model", lambda kwargs: "measure")
    counting("hf_prune.evaluation.stage.evaluate_original", lambda kwargs: "original")
    counting("hf_prune.evaluation.stage.evaluate", lambda kwargs: kwargs["label"])
    counting("hf_prune.healing.heal", lambda kwargs: "heal")
    return counts


def child(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )


def assert_as_unstopped(unstopped: Path) -> None:
    """The output is the same, file by file, but for what tells how long something took; and nothing else is left."""
    found, wanted = tree(Path("out")), tree(unstopped)
    assert found.keys() == wanted.keys()
    timed = {"README.md"} | {f"pruning/{name}.json" for name in ("scores", "plan", "healing", "evaluation")}
    assert {path for path in found if found[path] != wanted[path]} <= timed
    assert Finished.load(Path("out")).healing.held_out == Finished.load(unstopped).healing.held_out
    assert sorted(path.name for path in Path().iterdir()) == ["out"]


@pytest.mark.parametrize("kill", [k if k in QUICK else pytest.param(k, marks=pytest.mark.slow) for k in KILLS])
def test_kill_9(
    words: tuple[str, ...],
    unstopped: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    worked: Counter,
    kill: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    killed = child(CHILD, kill, *words)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert Path("out.run").is_dir()
    assert Path("out").exists() == (kill == "at clearing away")  # there whole, or not at all

    again = done(*words)
    assert worked == dict.fromkeys(KILLS[kill], 1)
    assert ("continuing from checkpoint-1" in again.err) == (kill == "after checkpoint")
    assert ("nothing to do again" in again.err) == (kill == "at clearing away")
    assert_as_unstopped(unstopped)


def interrupted(words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> Called:
    """Press Ctrl-C while the first checkpoint is written."""
    saved = Keeper.on_save

    def on_save(self, args, state, control, **kwargs):
        saved(self, args, state, control, **kwargs)
        if state.global_step == 1:
            os.kill(os.getpid(), signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_save", on_save)
        return call(*words)


def test_ctrl_c_while_healing(
    words: tuple[str, ...], unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worked: Counter
) -> None:
    monkeypatch.chdir(tmp_path)
    stopped = interrupted(words, monkeypatch)
    assert stopped.code == 130 and stopped.out == "" and "Traceback" not in stopped.err
    assert "healing was interrupted; checkpoint-2 is kept in" in stopped.err
    assert stopped.err.endswith("Interrupted. Finished stages are kept; run the same command again to go on.\n")
    assert sorted(path.name for path in Path().iterdir()) == ["out.run"]
    assert (tmp_path / "out.run" / "healing" / "checkpoints" / "checkpoint-2" / "complete.json").is_file()

    worked.clear()
    again = done(*words)
    assert worked == {"heal": 1, "healed": 1} and "continuing from checkpoint-2" in again.err
    assert_as_unstopped(unstopped)


def test_ctrl_c_elsewhere(
    words: tuple[str, ...], unstopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worked: Counter
) -> None:
    monkeypatch.chdir(tmp_path)

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(evaluation_stage, "evaluate", interrupt)
        assert call(*words).code == 130
    with monkeypatch.context() as patch:
        patch.setattr("hf_prune.writers.check_reload", interrupt)
        assert call(*words).code == 130
    assert sorted(path.name for path in Path().iterdir()) == ["out.run"]
    worked.clear()
    done(*words)
    assert worked == {"heal": 1}
    assert_as_unstopped(unstopped)


def test_heal_alone_goes_on_too(
    base: Path, words: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done("prune", base, *words[2:4], "--output", "pruned")
    heal = ("heal", "pruned", "--original", str(base))
    assert interrupted(heal, monkeypatch).code == 130
    assert sorted(path.name for path in Path().iterdir()) == ["pruned", "pruned-healed.run"]
    assert "continuing from checkpoint-2" in done(*heal).err
    assert sorted(path.name for path in Path().iterdir()) == ["pruned", "pruned-healed"]


def test_kill_9_while_files_are_checked(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = ("prune", str(base), "--method", "simple", "--drop-layers", "3", "--output", "out")
    done(*words[:-1], "unstopped")
    killed = child(FILES_CHILD, *words)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("out").exists() and Path("out.run").is_dir()

    def never(*args, **kwargs) -> None:
        raise AssertionError("bytes were moved again")

    monkeypatch.setattr("hf_prune.local_files.copy_range", never)
    done(*words)
    assert tree(Path("out")) == tree(Path("unstopped"))
    assert sorted(path.name for path in Path().iterdir()) == ["out", "unstopped"]
    assert all(path.stat().st_nlink == 1 for path in Path("out").glob("*.*"))
