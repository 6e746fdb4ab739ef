"""Several processes that heal together do what one does."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from hf_prune.distributed import Group
from hf_prune.errors import ConfigError
from hf_prune.healing.teaching import Asked
from hf_prune.healing.together import check_shared, forwards_per_step
from hf_prune.records import Healing
from tests.cli.support import planted, recipe_file
from tests.cli.test_commands import TEXT
from tests.healing.support import pruned_checkpoint, settings

CHILD = """
import json, sys
from pathlib import Path
import torch
import hf_prune.healing.job as job
from hf_prune.healing import heal
from hf_prune.distributed import processes
from hf_prune.healing.budget import Throughput
from tests.healing.support import settings, split_text

torch.set_num_threads(1)
# Whole numbers of float32: sums of bfloat16 would differ by how they are shared.
job.probe = lambda device, parameters: Throughput(flops=1e12, dtype="float32")
folder, run, out = map(Path, sys.argv[1:4])
changes, fault = json.loads(sys.argv[4]), sys.argv[5]

with processes() as group:
    if fault == "memory" and group.rank == 1:
        from hf_prune.healing.loop import HealingTrainer
        real = HealingTrainer.compute_loss
        def failing(self, *given, **options):
            if self.state.global_step == 5:
                raise MemoryError("not enough")
            return real(self, *given, **options)
        HealingTrainer.compute_loss = failing
    result = heal(folder, *split_text(), settings(**changes), run_folder=run, base_model="o/b",
                           device="cpu", progress=False, group=group)
    if group.leads:
        out.mkdir()
        (out / "record.json").write_text(json.dumps(result.record.to_dict()))
"""
CHANGES = {"dropout": 0.0, "micro_batch_size": 1, "steps": 8, "loss": "next_token"}


def run(count, tmp_path, name, fault="none"):
    launcher = [] if count == 1 else ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    folders = [str(tmp_path / each) for each in ("pruned", f"{name}-run", name)]
    root = Path(__file__).parents[2]
    return subprocess.run(
        [sys.executable, *launcher, str(script), *folders, json.dumps(CHANGES), fault],
        cwd=root,
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=280,
    )


def results(tmp_path, name):
    state = load_file(tmp_path / f"{name}-run" / "adapter" / "adapter_model.safetensors")
    return state, json.loads((tmp_path / name / "record.json").read_text())


@pytest.mark.slow
def test_two_processes_are_as_one(tmp_path):
    pruned_checkpoint(tmp_path / "pruned")
    for count, name in ((1, "one"), (2, "two")):
        done = run(count, tmp_path, name)
        assert done.returncode == 0, done.stderr[-3000:]
    (state, record), (others, other) = results(tmp_path, "one"), results(tmp_path, "two")
    for name, tensor in state.items():
        torch.testing.assert_close(others[name], tensor, rtol=0, atol=1e-5)
    for mine, theirs in zip(record["curve"], other["curve"], strict=True):
        assert theirs["loss"] == pytest.approx(mine["loss"], abs=1e-5)
        assert (theirs["step"], theirs["tokens"], theirs["flops"]) == (mine["step"], mine["tokens"], mine["flops"])
    assert other["train_loss"] == pytest.approx(record["train_loss"], abs=1e-5)
    assert (other["steps"], other["tokens"]) == (record["steps"], record["tokens"])
    assert record["curve"][-1]["loss"] < record["curve"][0]["loss"] - 0.05


@pytest.mark.slow
def test_what_fails_in_one_ends_all_and_all_go_on_together(tmp_path):
    """Boundary fault: the memory of the second process runs out in step 6."""
    pruned_checkpoint(tmp_path / "pruned")
    failed = run(2, tmp_path, "two", fault="memory")
    assert failed.returncode != 0
    assert "process 1 of 2: healing stopped at step 5 of 8: out of memory while training (not enough)" in failed.stderr
    assert "process 0 of 2" not in failed.stderr
    again = run(2, tmp_path, "two")
    assert again.returncode == 0, again.stderr[-3000:]
    unstopped = run(2, tmp_path, "unstopped")
    assert unstopped.returncode == 0, unstopped.stderr[-3000:]
    (state, record), (others, other) = results(tmp_path, "two"), results(tmp_path, "unstopped")
    assert all(torch.equal(tensor, others[name]) for name, tensor in state.items())
    del record["seconds"], other["seconds"]
    assert record == other


@pytest.mark.parametrize(("count", "micro", "expected"), [(1, 2, 2), (2, 1, 2), (2, 2, 1), (4, 1, 1)])
def test_a_batch_is_as_large_however_many_share_it(count, micro, expected):
    assert forwards_per_step(settings(batch_size=4, micro_batch_size=micro), Group(0, count)) == expected


def test_batches_that_cannot_be_shared():
    with pytest.raises(ConfigError, match="3 processes cannot share batches of 10 .*healing.batch_size .* such as 9$"):
        forwards_per_step(settings(batch_size=10, micro_batch_size=1), Group(0, 3))
    with pytest.raises(ConfigError, match="in forwards of 4 .*healing.micro_batch_size of 1 or 3$"):
        forwards_per_step(settings(batch_size=12, micro_batch_size=4), Group(0, 4))


def test_stores_are_refused():
    pair = Group(0, 2)
    with pytest.raises(ConfigError, match="prefix='store' writes one store, and 2 processes would"):
        check_shared(settings(prefix="store", micro_batch_size=1), None, pair)
    asked = Asked((), True, "stored", True)
    with pytest.raises(ConfigError, match="teacher='stored' writes one store"):
        check_shared(settings(teacher="stored", micro_batch_size=1), asked, pair)
    check_shared(settings(teacher="resident", micro_batch_size=1), Asked((), True, "resident", True), pair)


@pytest.mark.slow
def test_the_command_heals_in_two_processes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    planted(Path("base"))
    recipe_file(Path("recipe"), layers=(3, 4), healing={"micro_batch_size": 2, "dataset": "text.txt"})
    Path("text.txt").write_text("".join(f"{TEXT}{i}. " for i in range(300)))
    command = ("-m", "hf_prune.cli")
    root = Path(__file__).parents[2]
    options = {
        "env": os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"},
        "capture_output": True, "text": True, "timeout": 280,
    }  # fmt: skip
    made = subprocess.run(
        [sys.executable, *command, "prune", "base", "--config", "recipe", "--output", "cut"], **options
    )
    assert made.returncode == 0, made.stderr[-3000:]
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
    healed = subprocess.run([sys.executable, *launcher, *command, "heal", "cut", "--output", "out"], **options)
    assert healed.returncode == 0, healed.stderr[-3000:]
    assert healed.stdout.count("✓ Healed cut") == 1
    record = Healing.load(Path("out/pruning"))
    assert record.steps == 3 and record.tokens == sum(record.data.max_length for _ in range(12))
    assert record.held_out.merged < record.held_out.pruned
    assert not Path("out.run").exists()
