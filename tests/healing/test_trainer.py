"""What the settings say of the optimizer is what it does."""

import json
import math

import pytest
import torch

from hf_prune.healing import heal
from tests.healing.support import pruned_checkpoint, settings, split_text

pytestmark = pytest.mark.usefixtures("fixed_speed")

PEAK, WARM_UP, STEPS = 0.01, 2, 12


def cosine(done):
    return (1 + math.cos(math.pi * done)) / 2


def linear(done):
    return 1 - done


@pytest.mark.parametrize(
    ("schedule", "shape", "beta2"), [("cosine", cosine, 0.999), ("linear", linear, 0.95)], ids=["uidl", "slicegpt"]
)
def test_schedule_and_betas(tmp_path, schedule, shape, beta2):
    config = settings(learning_rate=PEAK, warmup_steps=WARM_UP, steps=STEPS, schedule=schedule, beta2=beta2)
    folder = pruned_checkpoint(tmp_path / "pruned")
    heal(folder, *split_text(), config, run_folder=tmp_path / "run", base_model="o/b", progress=False)

    last = tmp_path / "run" / "checkpoints" / f"checkpoint-{STEPS}"
    history = json.loads((last / "trainer_state.json").read_text())["log_history"]
    rates = {entry["step"]: entry["learning_rate"] for entry in history if "learning_rate" in entry}
    # What is logged with a step is the rate that the step was made with: the first one's is zero.
    expected = {
        step + 1: PEAK * (step / WARM_UP if step < WARM_UP else shape((step - WARM_UP) / (STEPS - WARM_UP)))
        for step in range(STEPS)
    }
    assert rates == pytest.approx(expected, abs=1e-9)
    groups = torch.load(last / "optimizer.pt", weights_only=True)["param_groups"]
    assert {tuple(group["betas"]) for group in groups} == {(0.9, beta2)}
    assert {group["weight_decay"] for group in groups} == {0.0}
