"""The original beside the healed model through the public API: from a folder, and handed over in memory."""

from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from hf_prune import Pruner
from tests.cli.support import fast, planted, recipe

HEALING = {"loss": "kl", "quantize": "none", "target": "mlp", "steps": 6, "learning_rate": 0.02}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base", (3, 4))


def made(base: Path, in_memory: bool, **healing) -> Pruner:
    config = recipe(layers=[2, 5], healing=HEALING | healing)
    if in_memory:
        model = AutoModelForCausalLM.from_pretrained(base)
        return Pruner(model, AutoTokenizer.from_pretrained(base), config, progress=False)
    return Pruner.from_pretrained(base, config, progress=False)


@pytest.mark.parametrize(("in_memory", "teacher"), [(False, "stored"), (True, "resident")], ids=["folder", "memory"])
def test_healing_against_the_original(base: Path, in_memory: bool, teacher: str, monkeypatch) -> None:
    fast(monkeypatch)
    pruner = made(base, in_memory, teacher=teacher)
    record = pruner.heal()
    kls = [point.kl for point in record.curve]
    assert all(kl is not None and kl > 0 for kl in kls)
    assert kls[-1] < kls[0]
    assert record.settings["teacher"] == teacher
    if teacher == "stored":
        assert record.reused is not None
        assert "ran once over the text" in record.reused
