"""Sliced models in the hands of people whose transformers is still 4: by the code that travels with them.

Installs transformers 4.57 beside the newer one, which needs a package index.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_prune.architecture import decoder_of
from hf_prune.saving import save_model
from hf_prune.slicing.export import export_plain

from ..evaluation.text import VOCAB, byte_tokenizer
from ..making import base_folder, edit_json, logits
from ..tiny import tokens
from .support import DEPTH, full, mixed, sliced_by

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

THETA = {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}
# name -> (family, its config, how it is sliced, whether it is saved beside a base that transformers 4 wrote)
MODELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], bool]] = {
    "llama": ("llama", THETA, {}, True),
    "llama-tied": ("llama", {**THETA, "tie_word_embeddings": True}, {"tied": True}, True),
    "llama-untied": ("llama", {**THETA, "tie_word_embeddings": True}, {"tied": False}, True),
    "llama-global": ("llama", THETA, {"basis": "global"}, True),
    "llama-plain": ("llama", THETA, {"basis": "global"}, True),
    "llama-memory": ("llama", THETA, {}, False),
    "mistral": ("mistral", THETA, {}, False),
    "qwen2": ("qwen2", THETA, {}, False),
    "qwen3": ("qwen3", THETA, {}, False),
    "gemma": ("gemma", THETA, {"tied": True}, False),
    "phi3": ("phi3", THETA, {}, False),
    "phi": ("phi", {}, {}, False),
    "opt": ("opt", {"init_std": 0.3}, {}, False),
    "gpt_neox": ("gpt_neox", {}, {}, False),
    "falcon": ("falcon", {}, {}, False),
}

READER = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

assert transformers.__version__ == "4.57.6", transformers.__version__
ids = load_file(sys.argv[1])["ids"]
for folder in sys.argv[2:]:
    try:
        model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
        with torch.inference_mode():
            out = model.eval()(input_ids=ids, use_cache=False).logits.contiguous()
        greedy = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        save_file({"logits": out, "greedy": greedy.contiguous()}, folder + "/answer.safetensors")
        facts = {"wrong": {kind: list(keys) for kind, keys in info.items() if keys}, "class": type(model).__name__}
        model.save_pretrained(folder + "/again")
        again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True).eval()
        with torch.inference_mode():
            facts["again"] = torch.equal(again(input_ids=ids, use_cache=False).logits, out)
    except Exception as error:
        facts = {"error": f"{type(error).__name__}: {error}"}
    open(folder + "/facts.json", "w").write(json.dumps(facts))
assert "hf_prune" not in sys.modules
"""


@pytest.fixture(scope="module")
def answers(older: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """Name -> folder, read by transformers 4, and what transformers 5 computed."""
    root, ids = tmp_path_factory.mktemp("models"), tokens(2, 14)
    found: dict[str, tuple[Path, dict[str, torch.Tensor]]] = {}
    for name, (family, fields, settings, beside) in MODELS.items():
        model, folder = base_folder(root / f"base-{name}", family, depth=DEPTH, **fields)
        edit_json(folder / "config.json", rope_parameters=None, rope_theta=5e5)
        decoder, out = decoder_of(model), root / name
        widths = mixed(decoder) if "basis" not in settings else full(decoder)
        sliced = sliced_by(decoder, widths, **settings)
        sliced = export_plain(sliced) if name == "llama-plain" else sliced
        out.mkdir()
        save_model(sliced, byte_tokenizer(), out, source=folder if beside else None, keep=range(DEPTH))
        greedy = sliced.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        found[name] = out, {"logits": logits(sliced, ids), "greedy": greedy}
    save_file({"ids": ids}, root / "ids.safetensors")
    environment = {
        **os.environ,
        "PYTHONPATH": str(older),
        "HF_HUB_OFFLINE": "1",
        "HF_MODULES_CACHE": str(root / "code"),
    }
    command = [sys.executable, "-c", READER, str(root / "ids.safetensors"), *(str(out) for out, _ in found.values())]
    child = subprocess.run(
        command, env=environment, cwd=root, capture_output=True, text=True, check=False, timeout=280
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return found


@pytest.mark.parametrize("name", MODELS)
def test_same_logits_in_transformers_4(answers, name: str) -> None:
    folder, wanted = answers[name]
    facts = json.loads((folder / "facts.json").read_text())
    assert "error" not in facts, facts
    assert not facts["wrong"] and facts["again"], facts
    raw = json.loads((folder / "config.json").read_text())
    assert MODELS[name][1] is not THETA or raw["rope_theta"] == 5e5
    assert facts["class"].startswith("Sliced") != (name == "llama-plain")
    found = load_file(folder / "answer.safetensors")
    assert wanted["logits"].std() > 0.1 and wanted["logits"].shape[-1] == VOCAB
    torch.testing.assert_close(found["logits"], wanted["logits"], rtol=1e-5, atol=1e-5)
    assert torch.equal(found["greedy"], wanted["greedy"])
