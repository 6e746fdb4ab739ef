"""What the stages know of each other: what cannot be healed, and what healing is compared with."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from hf_prune import Pruner
from hf_prune.errors import CheckpointError
from hf_prune.run import run
from tests.cli.support import planted, recipe


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("models") / "tiny-base")


def test_quantized_base_is_refused_for_healing_before_any_work(base: Path, tmp_path: Path) -> None:
    quantized = shutil.copytree(base, tmp_path / "quantized")
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="'quantized' holds quantized weights.*unquantized"):
        run(quantized, recipe(layers=[2]), tmp_path / "out", heal=True, progress=False)
    assert not (tmp_path / "out").exists()


def test_healing_knows_the_loss_of_the_original(base: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("hf_prune.reload.reload_level", lambda model: "streamed")
    pruner = Pruner.from_pretrained(base, recipe(layers=[2, 5]), run_folder=tmp_path / "run", progress=False)
    pruner.prepare_healing()
    held_out = pruner.texts.held_out(pruner._resolve_healing())
    total, count = 0.0, 0
    with torch.inference_mode():
        for ids in held_out.sequences:
            output = pruner.model(input_ids=ids[None], labels=ids[None])
            total, count = total + output.loss.item() * (len(ids) - 1), count + len(ids) - 1
    record = pruner.heal()
    assert record.held_out.original is not None
    assert math.isclose(record.held_out.original, total / count, rel_tol=1e-5)


def test_sampled_healing_text_has_a_ceiling(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hf_prune.texts.MOST_SAMPLED", 64)
    pruner = Pruner.from_pretrained(base, recipe(layers=[2], healing={"tokens": 4096, "steps": 99}), progress=False)
    settings = pruner._resolve_healing()
    assert settings.tokens == 4096 and settings.max_length
    assert pruner.texts.healing(settings).tokens == -(-64 // settings.max_length) * settings.max_length
