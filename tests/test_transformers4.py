"""Pruned models in the hands of people whose transformers is still 4: the same logits, not nonsense without a warning.

Installs transformers 4.57 beside the newer one, which needs a package index.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune import prune_layers
from hf_prune.saving import save_model

from .evaluation.text import VOCAB, byte_tokenizer
from .making import edit_json, logits
from .tiny import DEPTH, tiny_model, tokens

pytestmark = pytest.mark.slow

# Without their dependencies, of which torch is one, but for those that transformers 5 has no more use for.
PACKAGES = [
    "transformers==4.57.6", "huggingface_hub==0.36.0", "tokenizers==0.22.1", "requests==2.32.5", "urllib3==2.5.0",
    "charset-normalizer==3.4.4", "idna==3.11", "certifi==2025.11.12",
]  # fmt: skip
CUT, KEEP = [1, 4, 5], [0, 2, 3, 6, 7]
THETA = 250.0  # far from every default, so that a reader who misses it computes something else

READER = """
import json, sys
import torch, transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

assert transformers.__version__ == "4.57.6", transformers.__version__
torch.set_num_threads(1)
ids = load_file(sys.argv[1])["ids"]
for folder in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    wrong = {kind: list(keys) for kind, keys in info.items() if keys}
    assert not wrong, (folder, wrong)
    with torch.inference_mode():
        out = model.eval()(input_ids=ids).logits.float().contiguous()
    greedy = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    save_file({"logits": out, "greedy": greedy.contiguous()}, folder + "/answer.safetensors")
    theta = getattr(model.config, "rope_theta", None)
    words = AutoTokenizer.from_pretrained(folder)("The sea")["input_ids"]
    facts = {"dtype": str(model.dtype), "theta": theta, "layers": model.config.num_hidden_layers, "words": words}
    open(folder + "/facts.json", "w").write(json.dumps(facts))
"""


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with transformers 4 and what it needs other versions of."""
    folder = tmp_path_factory.mktemp("transformers4")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(folder), *PACKAGES]
    subprocess.run(command, check=True, timeout=280)
    return folder


OLD_CONFIG = {
    "hidden_act": "silu",
    "hidden_size": 32,
    "initializer_range": 0.02,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": DEPTH,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": THETA,
    "tie_word_embeddings": False,
    "torch_dtype": "float32",
    "transformers_version": "4.40.0",
    "use_cache": True,
    "vocab_size": VOCAB,
}
OLD = {
    "llama": {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "head_dim": 8,
        "rope_scaling": None,
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "qwen2": {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_window_layers": 6,
        "sliding_window": 8,
        "use_sliding_window": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
    },
}
DEFAULT = {"rope_type": "default", "rope_theta": THETA}
LINEAR = {"rope_type": "linear", "factor": 4.0, "rope_theta": THETA}
MEMORY = {
    "llama": ("llama", {"rope_parameters": DEFAULT}),
    "llama-linear": ("llama", {"rope_parameters": LINEAR}),
    "qwen2": ("qwen2", {"rope_parameters": DEFAULT}),
    "qwen3": ("qwen3", {"rope_parameters": DEFAULT}),
    "mistral": ("mistral", {"rope_parameters": DEFAULT}),
    "phi": ("phi", {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.25}}),
    "gpt_neox": ("gpt_neox", {"rope_parameters": DEFAULT | {"partial_rotary_factor": 0.5}}),
    "gemma3_text": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": LINEAR, "sliding_attention": DEFAULT | {"rope_theta": 99.0}}},
    ),
}


def expected(model: torch.nn.Module, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.generation_config.eos_token_id = None
    greedy = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)
    return {"logits": logits(model, ids), "greedy": greedy}


@pytest.fixture(scope="module")
def answers(older: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, torch.Tensor]]]:
    """Name of a case -> its folder, read by transformers 4, and what transformers 5 computed."""
    root = tmp_path_factory.mktemp("models")
    ids = tokens(2, 14)
    cases: dict[str, tuple[Path, dict[str, torch.Tensor]]] = {}
    for name, own in OLD.items():
        base, out = root / f"base-{name}", root / f"file-{name}"
        tiny_model(name, vocab_size=VOCAB).save_pretrained(base)
        byte_tokenizer().save_pretrained(base)
        (base / "config.json").write_text(json.dumps(own | OLD_CONFIG))
        edit_json(base / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
        (base / "generation_config.json").unlink()
        out.mkdir()
        model = prune_layers(AutoModelForCausalLM.from_pretrained(base), CUT)
        save_model(model, byte_tokenizer(), out, source=base, keep=KEEP)
        cases[f"file-{name}"] = (out, expected(model, ids))
    for name, (model_type, fields) in MEMORY.items():
        out = root / f"memory-{name}"
        out.mkdir()
        model = prune_layers(tiny_model(model_type, vocab_size=VOCAB, **fields), CUT)
        save_model(model, byte_tokenizer(), out, source=None, keep=KEEP)
        cases[f"memory-{name}"] = (out, expected(model, ids))

    save_file({"ids": ids}, root / "ids.safetensors")
    folders = [str(folder) for folder, _ in cases.values()]
    environment = {**os.environ, "PYTHONPATH": str(older), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", READER, str(root / "ids.safetensors"), *folders]
    child = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=280)
    assert child.returncode == 0, child.stderr[-3000:]
    return cases


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [*(f"file-{n}" for n in OLD), *(f"memory-{n}" for n in MEMORY)])
def test_same_logits_in_transformers_4(answers, name: str) -> None:
    folder, wanted = answers[name]
    found, facts = load_file(folder / "answer.safetensors"), json.loads((folder / "facts.json").read_text())
    assert wanted["logits"].std() > 0.1
    torch.testing.assert_close(found["logits"], wanted["logits"].float(), rtol=1e-5, atol=1e-5)
    assert torch.equal(found["greedy"], wanted["greedy"])
    assert facts["layers"] == len(KEEP) and facts["dtype"] == "torch.float32"
    assert facts["words"] == byte_tokenizer()("The sea")["input_ids"]
    if name.startswith("file"):
        assert facts["theta"] == THETA


def test_the_rotation_matters() -> None:
    """What the test above would see if a key got lost: other logits."""
    model = tiny_model("llama", rope_parameters=DEFAULT)
    other = tiny_model("llama", rope_parameters=DEFAULT | {"rope_theta": 10000.0})
    assert (logits(model, tokens(2, 14)) - logits(other, tokens(2, 14))).abs().max() > 0.01
