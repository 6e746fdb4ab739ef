"""The held-out text on the way: the curve, the best weights, stopping early, and going on as if nothing had been."""

import dataclasses
import json

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from hf_prune.errors import ConfigError
from hf_prune.healing import heal
from hf_prune.healing import judge as judge_module
from hf_prune.healing.keeper import Keeper, last_checkpoint
from hf_prune.healing.loop import HealingTrainer
from hf_prune.healing.registries import loss
from hf_prune.healing.step import Step
from hf_prune.records import Healing
from hf_prune.samples import Samples
from tests.healing.support import SPEED, pruned_checkpoint, settings, split_text
from tests.tiny import tokens

pytestmark = pytest.mark.usefixtures("fixed_speed")

# Noise, which can only be learned by heart: the held-out loss falls at first, as guesses grow more even, then rises.
OVERFITTING = settings(learning_rate=0.02, steps=30, eval_steps=3, dropout=0.0, target="all", rank=8, alpha=8)
PATIENT = dataclasses.replace(OVERFITTING, patience=2)


def noise(count, seed):
    sequences = tuple(tokens(count, 12, seed))
    return Samples(sequences, dataclasses.replace(split_text()[0].use, samples=count, tokens=12 * count))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return pruned_checkpoint(tmp_path_factory.mktemp("pruned"))


def go(pruned, run, config):
    data = (noise(8, 1), noise(8, 2)) if config.steps == OVERFITTING.steps else split_text()
    return heal(pruned, *data, config, run_folder=run, base_model="org/base", progress=False)


@pytest.fixture(scope="module")
def stopped(pruned, tmp_path_factory):
    run = tmp_path_factory.mktemp("stopped")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("hf_prune.healing.job.probe", lambda device, parameters: SPEED)
        return go(pruned, run, PATIENT), run


def test_the_curve_begins_with_the_untrained_model_and_ends_with_the_trained(pruned, tmp_path):
    result = go(pruned, tmp_path / "run", settings(output="adapter"))
    curve = result.record.curve
    assert [point.step for point in curve] == [0, 2, 4, 6, 8, 10, 12]  # at most ten in a run
    assert (curve[0].tokens, curve[0].flops) == (0, 0.0)
    assert curve[-1].tokens == result.record.tokens
    assert [p.flops for p in curve] == sorted({p.flops for p in curve})
    # In the middle of training products are rounded to bfloat16, as they are in training.
    assert curve[0].loss == pytest.approx(result.record.held_out.pruned, abs=0.02)
    assert curve[-1].loss == pytest.approx(result.record.held_out.adapter, abs=0.02)
    assert curve[-1].loss < curve[0].loss - 0.05
    assert (result.record.best_step, result.record.stopped) == (None, None)
    assert Healing.load(result.record.save(tmp_path)) == result.record


def test_measuring_changes_nothing(pruned, tmp_path):
    often = go(pruned, tmp_path / "often", settings(eval_steps=1))
    once = go(pruned, tmp_path / "once", settings(eval_steps=12))
    assert [p.step for p in often.record.curve] == list(range(13))
    assert [p.step for p in once.record.curve] == [0, 12]
    state = once.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in often.model.state_dict().items())
    assert often.record.curve[-1] == once.record.curve[-1]


def test_a_judge_that_draws_random_numbers_changes_nothing_either(pruned, tmp_path, monkeypatch):
    plain = go(pruned, tmp_path / "plain", settings(steps=4))
    real = judge_module.held_out_loss

    def drawing(*args, **options):
        torch.rand(7)
        return real(*args, **options)

    monkeypatch.setattr(judge_module, "held_out_loss", drawing)
    drawn = go(pruned, tmp_path / "drawn", settings(steps=4))
    state = plain.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in drawn.model.state_dict().items())


def test_patience_stops_and_takes_the_best(pruned, stopped):
    result, run = stopped
    record, curve = result.record, result.record.curve
    best = min(curve[1:], key=lambda point: point.loss)
    assert record.best_step == best.step
    assert record.steps == best.step + 2 * 3 < 30
    assert f"stopped at step {record.steps} of 30, and the weights of step {best.step} were taken" in record.stopped
    kept = load_file(run / "checkpoints" / f"checkpoint-{best.step}" / "trained.safetensors")
    shipped = load_file(result.adapter / "adapter_model.safetensors")
    assert all(torch.equal(kept[name], tensor) for name, tensor in shipped.items())
    assert record.held_out.adapter == pytest.approx(best.loss, abs=0.02)
    assert not any("over-fits" in warning for warning in record.warnings)
    assert any(f"The weights of step {best.step} were taken as the best" in warning for warning in record.warnings)
    # best, last, and the one before it
    assert len(list((run / "checkpoints").glob("checkpoint-*"))) <= 3


def test_without_patience_the_last_are_taken_and_over_fitting_is_told(pruned, stopped, tmp_path):
    result = go(pruned, tmp_path / "run", OVERFITTING)
    assert (result.record.steps, result.record.best_step, result.record.stopped) == (30, None, None)
    note = next(warning for warning in result.record.warnings if "over-fits" in warning)
    lowest = min(result.record.curve, key=lambda point: point.loss)
    assert f"from {lowest.loss:.4f} at step {lowest.step} to {result.record.curve[-1].loss:.4f} at step 30" in note
    # until it stopped, the other run was this one
    both = len(stopped[0].record.curve)
    assert [p.loss for p in result.record.curve[:both]] == [p.loss for p in stopped[0].record.curve]


@pytest.mark.parametrize("measurements", [1, 2])
def test_a_run_that_is_killed_keeps_its_patience_and_its_best(pruned, stopped, tmp_path, monkeypatch, measurements):
    """Boundary fault: the process ends before a checkpoint is whole, so many measurements behind the best."""
    expected = stopped[0]
    saved, at = Keeper.on_save, expected.record.best_step + 3 * measurements

    def dying(self, args, state, control, **kwargs):
        if state.global_step == at:
            raise OSError("the machine has gone")
        return saved(self, args, state, control, **kwargs)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Keeper, "on_save", dying)
        with pytest.raises(OSError, match="has gone"):
            go(pruned, run, PATIENT)
    assert last_checkpoint(run / "checkpoints").name == f"checkpoint-{at - 3}"
    assert_same(go(pruned, run, PATIENT), expected)


def test_a_run_that_has_stopped_is_not_trained_again(pruned, stopped):
    result, run = stopped
    assert_same(go(pruned, run, PATIENT), result)


def test_a_run_folder_may_be_moved(pruned, stopped, tmp_path):
    result, run = stopped
    run.rename(tmp_path / "moved")
    try:
        assert_same(go(pruned, tmp_path / "moved", PATIENT), result)
    finally:
        (tmp_path / "moved").rename(run)


def assert_same(result, expected):
    state = expected.model.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in result.model.state_dict().items())
    one, two = result.record.to_dict(), expected.record.to_dict()
    assert one.pop("seconds") > 0
    two.pop("seconds")
    assert one == two


def test_stopping_by_a_divergence_that_nobody_knows(pruned, tmp_path):
    with pytest.raises(ConfigError, match="stop_on"):
        go(pruned, tmp_path / "run", settings(stop_on="kl", patience=1))


def test_checkpoints_that_were_cut_off_are_removed(pruned, tmp_path):
    run = tmp_path / "run"
    go(pruned, run, settings(steps=4))
    (run / "checkpoints" / "checkpoint-99").mkdir()
    go(pruned, run, settings(steps=4))
    assert not (run / "checkpoints" / "checkpoint-99").exists()


def test_several_terms_are_logged_each(pruned, tmp_path):
    try:

        @loss("test_half", title="Half of it", url="https://example.com", needs="nothing")
        def half(view):
            return loss.get("next_token").function(view) / 2

        config = settings(steps=4, loss="next_token=1,test_half=0.5")
        go(pruned, tmp_path / "run", config)
    finally:
        loss._entries.pop("test_half", None)
    last = last_checkpoint(tmp_path / "run" / "checkpoints")
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    logs = [entry for entry in history if "loss" in entry]
    assert len(logs) == 4
    for entry in logs:
        assert entry["loss_test_half"] == pytest.approx(entry["loss_next_token"] / 2)
        assert entry["loss"] == pytest.approx(1.25 * entry["loss_next_token"], rel=1e-5)


class Reads(TorchDispatchMode):
    """Counts how often a number is read off a tensor, for which a GPU would have to be waited for."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **kwargs or {})


def test_between_two_logs_no_number_is_read(pruned, tmp_path, monkeypatch):
    reads, inside = Reads(), Reads()

    def watched(owner, name, mode):
        real = getattr(owner, name)

        def run(*args, **kwargs):
            with mode:
                return real(*args, **kwargs)

        monkeypatch.setattr(owner, name, run)

    watched(HealingTrainer, "compute_loss", reads)
    watched(HealingTrainer, "_track_num_input_tokens", reads)
    watched(Step, "view", inside)  # models look at their masks
    result = go(pruned, tmp_path / "run", settings(steps=4))
    assert reads.count == inside.count
    assert result.record.tokens == result.record.curve[-1].tokens > 0


def test_the_bar_shows_both_perplexities(pruned, tmp_path, capsys):
    heal(pruned, *split_text(), settings(steps=4), run_folder=tmp_path / "run", base_model="o/b", progress=True)
    last = capsys.readouterr().err.splitlines()[-1].rpartition("\r")[2]
    point = json.loads((tmp_path / "run/checkpoints/checkpoint-4/trainer_state.json").read_text())["log_history"][-1]
    assert "healing: 100%" in last and "loss=" in last and " ppl=" in last
    assert f"held-out ppl={torch.tensor(point['eval_loss'], dtype=torch.float64).exp():.4g}" in last
