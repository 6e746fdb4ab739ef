"""A killed run goes on and ends as one that was never stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hf_prune.healing import heal
from hf_prune.healing.keeper import Keeper, last_checkpoint
from tests.healing.support import SPEED, pruned_checkpoint, settings, split_text

CHILD = """
import os, signal, sys
from pathlib import Path
from transformers import Trainer
import hf_prune.healing.job as job
from hf_prune.healing import heal
from hf_prune.healing.keeper import Keeper
from tests.healing.support import SPEED, settings, split_text
import torch

torch.set_num_threads(1)
job.probe = lambda device, parameters: SPEED
where, step = sys.argv[3], int(sys.argv[4])

def die(self):
    if self.state.global_step == step:
        os.kill(os.getpid(), signal.SIGKILL)

if where == "training":
    kept = Keeper.on_step_end
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return kept(self, args, state, control, **kwargs)
    Keeper.on_step_end = on_step_end
else:
    saving = Trainer._save_rng_state
    def _save_rng_state(self, folder):
        die(self)
        saving(self, folder)
    Trainer._save_rng_state = _save_rng_state

heal(Path(sys.argv[1]), *split_text(), settings(), run_folder=Path(sys.argv[2]), base_model="org/base",
          progress=False)
"""


@pytest.fixture(autouse=True)
def one_thread(fixed_speed):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return pruned_checkpoint(tmp_path_factory.mktemp("pruned"))


def go(pruned, run, **kwargs):
    return heal(pruned, *split_text(), settings(**kwargs), run_folder=run, base_model="org/base", progress=False)


@pytest.fixture(scope="module")
def unstopped(pruned, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr("hf_prune.healing.job.probe", lambda device, parameters: SPEED)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    result = go(pruned, tmp_path_factory.mktemp("unstopped"))
    torch.set_num_threads(threads)
    patch.undo()
    return result


def assert_same(result, expected):
    state = expected.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())
    one, two = result.record.to_dict(), expected.record.to_dict()
    assert one.pop("seconds") > 0
    two.pop("seconds")
    assert one == two


# With five steps a pass, step 4 lies in the first pass over the text and step 8 in the second.
@pytest.mark.parametrize(
    ("where", "step", "left"), [("training", 9, 8), pytest.param("saving", 6, 4, marks=pytest.mark.slow)]
)
def test_kill_9_then_the_same_call_again(pruned, unstopped, tmp_path, where, step, left):
    run = tmp_path / "run"
    child = subprocess.run(
        [sys.executable, "-c", CHILD, str(pruned), str(run), where, str(step)],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert last_checkpoint(run / "checkpoints").name == f"checkpoint-{left}"
    # the half-written checkpoint is there, and not used
    assert (run / "checkpoints" / "checkpoint-6").exists() == (where == "saving" or step == 9)
    assert_same(go(pruned, run), unstopped)


def test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on(pruned, unstopped, tmp_path, monkeypatch, caplog):
    kept = Keeper.on_step_end

    def interrupting(self, args, state, control, **kwargs):
        if state.global_step == 3:
            signal.raise_signal(signal.SIGINT)
        return kept(self, args, state, control, **kwargs)

    before = signal.getsignal(signal.SIGINT)
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_step_end", interrupting)
        with pytest.raises(KeyboardInterrupt):
            go(pruned, run)
    assert signal.getsignal(signal.SIGINT) is before
    assert last_checkpoint(run / "checkpoints").name == "checkpoint-3"  # between the regular ones, at 2 and 4
    assert "checkpoint-3 is kept" in caplog.text
    assert "Run the same command again to go on" in caplog.text
    assert_same(go(pruned, run), unstopped)


def test_a_second_ctrl_c_stops_at_once(pruned, tmp_path, monkeypatch, caplog):
    def impatient(self, args, state, control, **kwargs):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        pytest.fail("went on")

    monkeypatch.setattr(Keeper, "on_step_end", impatient)
    with pytest.raises(KeyboardInterrupt):
        go(pruned, tmp_path / "run")
    assert "no checkpoint was written yet" in caplog.text
