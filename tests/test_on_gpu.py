"""The whole job on a GPU (`pytest -m gpu`): what fits no processor's bits is compared within a tolerance."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import demo
from hf_prune.config import CalibrationConfig, PrunerConfig
from hf_prune.pruner import Pruner
from hf_prune.run import run
from tests.cli.support import recipe
from tests.making import base_folder
from tests.tiny import tokens

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")]


def test_the_whole_job(tmp_path: Path) -> None:
    """Evaluated and timed in turns, healed, saved, loaded again in another process, and loaded here on the CPU."""
    base_folder(tmp_path / "base", depth=8)
    speed = {"speed": True, "speed_rounds": 1}
    made = run(tmp_path / "base", recipe(evaluation=speed), tmp_path / "out", heal=True, progress=False)
    models = made.evaluation.models
    assert [m.label for m in models] == ["original", "pruned", "healed"]
    assert models[1].flops_per_token < models[0].flops_per_token
    assert models[0].peak_memory > models[1].peak_memory > 0
    assert made.evaluation.environment.device == "cuda"
    assert made.finished.reload_level == "full"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.config.num_hidden_layers == 6
    here = loaded(tokens()).logits
    there = loaded.to("cuda")(tokens().to("cuda")).logits.cpu()
    torch.testing.assert_close(here, there, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("quantize", ["nf4", "none"])
def test_healing(tmp_path: Path, quantize: str) -> None:
    """Real four-bit training, on widths that its kernels take without a warning."""
    wide = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
    base_folder(tmp_path / "base", depth=8, **wide)
    pruner = Pruner.from_pretrained(tmp_path / "base", recipe(healing={"quantize": quantize}), progress=False)
    record = pruner.heal()
    assert (record.quantization is None) == (quantize == "none")
    losses = record.held_out
    if quantize == "nf4":  # what is trained is the quantized model; merged into the whole one, few steps can be worse
        assert losses.adapter_quantized < losses.quantized
    else:
        assert losses.merged < losses.pruned
    folder = pruner.save_pretrained(tmp_path / "out")
    assert not hasattr(AutoModelForCausalLM.from_pretrained(folder).config, "quantization_config")


def test_scores_are_the_processor_s() -> None:
    """Angles of the embedded model in float32, measured here and there on the same text."""
    config = PrunerConfig(drop_layers=4, calibration=CalibrationConfig(samples=8, max_length=64))

    def pruner(device: str) -> Pruner:
        return Pruner.from_pretrained(demo.model_folder(), config, dtype="float32", device_map=device, progress=False)

    here, there = pruner("cpu"), pruner("cuda")
    text = here.texts.calibration()
    there.texts.take("calibration", text)
    expected, found = (torch.tensor(one.measure().distances) for one in (here, there))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)
