"""Sliced models on the Hub: pushed with their code, loaded with this package and without it, nothing stale left."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hf_prune import Pruner
from hf_prune.hub_files import outgoing, stale
from hf_prune.slicing.modeling import SLICEABLE, model_class
from tests.cli.support import fast, recipe, tree
from tests.making import base_folder, logits
from tests.tiny import tokens

CODE = {"sliced.py", "configuration_sliced_llama.py", "modeling_sliced_llama.py"}
SLICED = {"method": "slicegpt", "sparsity": 0.25, "planner_kwargs": {"multiple": 4}}
STOCK = {**SLICED, "surgery_kwargs": {"basis": "global"}}

STRANGER = """
import sys
sys.modules["hf_prune"] = None  # whoever imports it fails
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

torch.set_num_threads(1)
name, ids, answer = sys.argv[1:]
try:
    AutoModelForCausalLM.from_pretrained(name)
    raise SystemExit("it loaded without its code")
except ValueError as refused:
    assert "trust_remote_code" in str(refused), refused
model, info = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
assert not any(info.values()), info
assert type(model).__module__.startswith("transformers_modules."), type(model)
ids = load_file(ids)["ids"]
with torch.inference_mode():
    out = model(input_ids=ids, use_cache=False).logits
greedy = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
assert AutoTokenizer.from_pretrained(name)("The sea")["input_ids"]
save_file({"logits": out.contiguous(), "greedy": greedy.contiguous()}, answer)
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return base_folder(tmp_path_factory.mktemp("models") / "tiny-base", depth=3)[1]


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    """See `fast`."""
    fast(monkeypatch)


def of(base: Path, **fields: Any) -> Pruner:
    return Pruner.from_pretrained(base, recipe(**fields), progress=False)


def greedily(model: Any, ids: torch.Tensor) -> torch.Tensor:
    return model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)


def test_pushed_and_pulled(hub, hub_token, new_repo_id, base: Path, tmp_path: Path) -> None:
    repo, pruner = new_repo_id(), of(base, **SLICED)
    folder = pruner.save_pretrained(tmp_path / "out")
    assert {path.name for path in folder.glob("*.py")} == CODE
    result = pruner.push_to_hub(repo)
    assert result.skipped == () and CODE <= set(result.additions)
    assert set(hub.files(repo)) - {".gitattributes"} == set(tree(folder))
    assert all(hub.files(repo)[name] == (folder / name).read_bytes() for name in CODE)
    wanted, ids = logits(pruner.model, tokens()), tokens()

    # With this package imported no code of the repo runs.
    found, info = AutoModelForCausalLM.from_pretrained(repo, output_loading_info=True)
    assert type(found) is model_class("llama") and not any(info.values())
    assert torch.equal(logits(found, ids), wanted)
    assert AutoConfig.from_pretrained(repo).slice_dims["embed"] == 24
    assert not [r for r in hub.requests if r.path.endswith(".py") and r.method == "GET"]

    # Without it the repo's code is all that is needed.
    save_file({"ids": ids}, tmp_path / "ids.safetensors")
    environment = os.environ | {"HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HOME": str(tmp_path / "home")}
    answer = tmp_path / "answer.safetensors"
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, repo, str(tmp_path / "ids.safetensors"), str(answer)],
        env=environment | {"OMP_NUM_THREADS": str(torch.get_num_threads())},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert stranger.returncode == 0, stranger.stderr
    answered = load_file(answer)
    torch.testing.assert_close(answered["logits"], wanted, rtol=1e-5, atol=1e-5)
    assert torch.equal(answered["greedy"], greedily(pruner.model, ids))
    asked = {r.path.rpartition("/")[2] for r in hub.requests}
    assert asked >= CODE, "it came from the Hub"
    assert not (asked & {"sliced_moe.py"})


def test_a_stock_model_takes_the_code_away(hub, hub_token, new_repo_id, base: Path, tmp_path: Path) -> None:
    repo = new_repo_id()
    of(base, **SLICED).push_to_hub(repo)
    assert set(hub.files(repo)) >= CODE
    stock = of(base, **STOCK)
    folder = stock.save_pretrained(tmp_path / "stock")
    result = stock.push_to_hub(repo)
    assert set(result.deletions) == CODE
    assert set(hub.files(repo)) - {".gitattributes"} == set(tree(folder))
    found = AutoModelForCausalLM.from_pretrained(repo)
    assert type(found) is LlamaForCausalLM and torch.equal(logits(found, tokens()), logits(stock.model, tokens()))


def test_a_sliced_model_takes_the_place_of_a_stock_one(hub, hub_token, new_repo_id, base: Path) -> None:
    repo, sliced = new_repo_id(), of(base, **SLICED)
    of(base, layers=[1]).push_to_hub(repo)
    sliced.push_to_hub(repo)
    found = AutoModelForCausalLM.from_pretrained(repo)
    assert type(found) is model_class("llama") and torch.equal(logits(found, tokens()), logits(sliced.model, tokens()))


@pytest.mark.parametrize("model_type", ["gpt2", "qwen2_moe"])
def test_the_code_of_every_kind_of_family_leaves(base: Path, tmp_path: Path, model_type: str) -> None:
    _, other = base_folder(tmp_path / model_type, model_type, depth=2)
    folder = of(other, **SLICED).save_pretrained(tmp_path / "out")
    files, stay = outgoing(folder)
    code = {"sliced.py", f"configuration_sliced_{model_type}.py", f"modeling_sliced_{model_type}.py"}
    code |= {"sliced_moe.py"} if model_type == "qwen2_moe" else set()
    assert {file.path for file in files if file.path.endswith(".py")} == code and stay == []
    assert set(tree(folder)) == {file.path for file in files}


def test_code_of_another_family_goes_stale() -> None:
    mine = ["config.json", "model.safetensors", "sliced.py", "modeling_sliced_llama.py"]
    theirs = [f"{kind}_sliced_{family}.py" for family in SLICEABLE for kind in ("modeling", "configuration")]
    remote = ["sliced.py", "sliced_moe.py", *theirs, "notes.md", "train.py", "config.json"]
    assert set(stale(remote, mine)) == {"sliced_moe.py", *theirs} - set(mine)


def test_a_tokenizer_is_there_too(hub, hub_token, new_repo_id, base: Path) -> None:
    repo = new_repo_id()
    of(base, **SLICED).push_to_hub(repo)
    assert (
        AutoTokenizer.from_pretrained(repo)("The sea")["input_ids"]
        == (AutoTokenizer.from_pretrained(base)("The sea")["input_ids"])
    )
