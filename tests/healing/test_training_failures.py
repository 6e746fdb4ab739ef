"""What goes wrong while training: said with step and remedy, and the checkpoints stay."""

import pytest
import torch
from safetensors.torch import load_file

from hf_prune.errors import ConfigError, MeasureError, MissingExtraError, PruneError
from hf_prune.healing import heal
from hf_prune.healing.keeper import TRAINED, Keeper, last_checkpoint
from hf_prune.healing.loop import HealingTrainer
from hf_prune.healing.optimizer import check_optimizer, optimizer_names
from tests.healing.support import pruned_checkpoint, settings, split_text

pytestmark = pytest.mark.usefixtures("fixed_speed")

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory):
    return pruned_checkpoint(tmp_path_factory.mktemp("pruned"))


def go(pruned, run, **changes):
    return heal(pruned, *split_text(), settings(**changes), run_folder=run, base_model="org/base", progress=False)


def poisoned(monkeypatch, step):
    """Boundary fault: a number overflows in the optimizer at a step."""
    kept = Keeper.on_step_end

    def poisoning(self, args, state, control, model=None, **kwargs):
        if state.global_step == step:
            next(p for p in model.parameters() if p.requires_grad).data[0, 0] = float("nan")
        return kept(self, args, state, control, **kwargs)

    monkeypatch.setattr(Keeper, "on_step_end", poisoning)


@pytest.mark.parametrize(
    ("step", "said"),
    [(5, "at step 6 of 12 .*the training loss is nan"), (6, "at step 6 of 12 .*1 trained tensors hold numbers")],
    ids=["noticed in the loss", "noticed in the checkpoint"],
)
def test_numbers_that_are_not_finite_leave_the_last_good_checkpoint(pruned, tmp_path, monkeypatch, step, said):
    poisoned(monkeypatch, step)
    with pytest.raises(MeasureError, match=said) as found:
        go(pruned, tmp_path / "run", eval_steps=12)
    assert "at its peak 0.01" in str(found.value)
    assert "Lower healing.learning_rate, with which training starts anew; checkpoint-4 is kept" in str(found.value)
    assert "the same settings would go on from there and most likely come to the same" in str(found.value)
    assert last_checkpoint(tmp_path / "run" / "checkpoints").name == "checkpoint-4"


def test_a_held_out_loss_that_is_not_finite_is_told_with_its_step(pruned, tmp_path, monkeypatch):
    poisoned(monkeypatch, 4)
    with pytest.raises(MeasureError, match="at step 4 of 12 .*the held-out loss is nan"):
        go(pruned, tmp_path / "run")


def test_training_that_diverges_stops(pruned, tmp_path):
    # Weights that have something to lose, at a learning rate that no recipe has.
    once = go(pruned, tmp_path / "once", target="full", steps=40, eval_steps=40)
    assert once.record.curve[-1].loss < 4
    once.model.save_pretrained(tmp_path / "good")
    with pytest.raises(MeasureError, match="at step .* of 20 .*training diverges. Lower healing.learning_rate"):
        go(tmp_path / "good", tmp_path / "run", target="full", learning_rate=0.9, warmup_steps=0, steps=20)
    kept = last_checkpoint(tmp_path / "run" / "checkpoints")
    assert all(bool(tensor.isfinite().all()) for tensor in load_file(kept / TRAINED).values())


def no_cuda_memory():
    """As torch says it on a GPU."""
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.")


def no_memory():
    """The CPU's own: nobody has an exabyte."""
    torch.empty(2**60, dtype=torch.uint8)


@pytest.mark.parametrize("lacking", [no_cuda_memory, no_memory])
def test_out_of_memory_names_what_to_lower_and_the_same_call_goes_on(pruned, tmp_path, monkeypatch, lacking):
    """Boundary fault: memory runs out in a forward of step 6."""
    computed = HealingTrainer.compute_loss

    def failing(self, *given, **options):
        if self.state.global_step == 5:
            lacking()
        return computed(self, *given, **options)

    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(HealingTrainer, "compute_loss", failing)
        with pytest.raises(PruneError, match="at step 5 of 12: out of memory") as found:
            go(pruned, run)
    said = str(found.value)
    for remedy in (
        "lower healing.micro_batch_size (2)",
        "lower healing.max_length (16)",
        "set healing.recompute",
        "set healing.quantize='nf4'",
        "Checkpoint-4 is kept",
    ):
        assert remedy in said
    assert last_checkpoint(run / "checkpoints").name == "checkpoint-4"
    assert go(pruned, run).record.steps == 12


def test_other_errors_are_let_through(pruned, tmp_path, monkeypatch):
    def failing(self, *given, **options):
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(HealingTrainer, "compute_loss", failing)
    with pytest.raises(RuntimeError, match="^shapes do not match$"):
        go(pruned, tmp_path / "run")


def test_unknown_optimizers_are_refused_before_any_work(pruned, tmp_path):
    with pytest.raises(
        ConfigError, match="healing.optimizer='adamw_8bits'; expected one of: .*Did you mean 'adamw_8bit'"
    ):
        go(pruned, tmp_path / "run", optimizer="adamw_8bits")
    assert not (tmp_path / "run").exists()
    assert "galore_adamw" not in optimizer_names()


def test_an_optimizer_whose_package_is_missing_says_so(monkeypatch):
    """Boundary fault: bitsandbytes is not there."""
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(ConfigError, match="'adamw_8bit' does not run on cpu: .*bitsandbytes.*Take 'adamw_torch'"):
        check_optimizer("adamw_8bit", CPU)


@pytest.mark.parametrize("optimizer", ["adafactor", "adamw_8bit"])
def test_optimizers(pruned, tmp_path, optimizer):
    record = go(pruned, tmp_path / "run", optimizer=optimizer, rank=16).record
    assert record.curve[-1].loss < record.curve[0].loss
    assert record.settings["optimizer"] == optimizer


def test_recomputing_gives_the_same(pruned, tmp_path):
    plain = go(pruned, tmp_path / "plain", steps=4, dropout=0.0)
    again = go(pruned, tmp_path / "again", steps=4, dropout=0.0, recompute=True)
    state = plain.model.state_dict()
    for name, tensor in again.model.state_dict().items():
        torch.testing.assert_close(tensor, state[name], rtol=0.02, atol=1e-3)
    assert again.record.curve[-1].flops > 1.2 * plain.record.curve[-1].flops


def test_loggers_are_checked_before_any_work(pruned, tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="report_to='tensorbord'.*Did you mean 'tensorboard'"):
        go(pruned, tmp_path / "run", report_to=("tensorbord",))
    monkeypatch.setattr("hf_prune.healing.reporting.extras.available", lambda module: module != "wandb")
    with pytest.raises(MissingExtraError, match="'wandb', which is not installed. Install it with: pip install wandb"):
        go(pruned, tmp_path / "run", report_to=("wandb",))
    assert not (tmp_path / "run").exists()


def test_tensorboard_logs_into_the_run_folder(pruned, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    go(pruned, tmp_path / "run", report_to=("tensorboard",))
    events = EventAccumulator(str(tmp_path / "run" / "logs")).Reload()
    assert [event.step for event in events.Scalars("eval/loss")] == [0, 2, 4, 6, 8, 10, 12]
    assert len(events.Scalars("train/loss")) == 12
