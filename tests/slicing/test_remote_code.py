"""Other processes: with hf_prune imported before or after transformers, and without it, by the code in the folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hf_prune.slicing.modeling import SLICEABLE

from ..making import logits
from ..tiny import tokens
from .support import TIED, base, mixed, sliced_by

SAVED = (*SLICEABLE, "llama-tied")

READER = """
import sys
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

ids = load_file(sys.argv[1])["ids"]
for folder in sys.argv[2:]:
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), (folder, info)
    assert "hf_prune" not in sys.modules and type(model).__module__.startswith("transformers_modules."), type(model)
    with torch.inference_mode():
        out = model.eval()(input_ids=ids, use_cache=False).logits.contiguous()
    greedy = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
    save_file({"logits": out, "greedy": greedy.contiguous()}, folder + "/answer.safetensors")
model.save_pretrained(folder + "/again")
again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True).eval()
with torch.inference_mode():
    assert torch.equal(again(input_ids=ids, use_cache=False).logits, out), folder
"""


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Every family, sliced and saved, with what it answers beside it."""
    root, ids = tmp_path_factory.mktemp("saved"), tokens(2, 14)
    save_file({"ids": ids}, root / "ids.safetensors")
    for case in SAVED:
        decoder = base(case, dtype=torch.float32)
        model = sliced_by(decoder, mixed(decoder), tied=case in TIED)
        model.save_pretrained(root / case)
        greedy = model.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)
        save_file({"logits": logits(model, ids), "greedy": greedy}, root / case / "wanted.safetensors")
    return {case: root / case for case in SAVED}


def run(code: str, *arguments: object, cache: Path, isolated: bool) -> None:
    """A child in an empty folder; isolated from what PYTHONPATH says, and from modules of other tests."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(cache / "modules")}
    environment.pop("PYTHONPATH", None)
    command = [sys.executable, *(["-I"] if isolated else []), "-W", "error", "-c", code, *map(str, arguments)]
    child = subprocess.run(
        command, env=environment, cwd=cache, capture_output=True, text=True, check=False, timeout=280
    )
    assert child.returncode == 0, child.stderr[-3000:]


def test_code_in_the_folder_is_enough(folders: dict[str, Path], tmp_path: Path) -> None:
    ids = next(iter(folders.values())).parent / "ids.safetensors"
    run(READER, ids, *folders.values(), cache=tmp_path, isolated=True)
    for case, folder in folders.items():
        found, wanted = load_file(folder / "answer.safetensors"), load_file(folder / "wanted.safetensors")
        for key in wanted:
            assert torch.equal(found[key], wanted[key]), (case, key)


def test_the_code_needs_torch_and_transformers_alone(folders: dict[str, Path]) -> None:
    for folder in folders.values():
        for path in folder.glob("*.py"):
            imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
            roots = {line.split()[1].partition(".")[0] for line in imports}
            assert roots <= {"", "dataclasses", "typing", "torch", "transformers"}, (path.name, roots)
        named = json.loads((folder / "config.json").read_text())["auto_map"]
        assert set(named) == {"AutoConfig", "AutoModelForCausalLM"}
        assert all((folder / f"{value.partition('.')[0]}.py").is_file() for value in named.values())


LOADS = """
import sys
{imports}
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

for folder in sys.argv[2:]:
    config = AutoConfig.from_pretrained(folder)
    assert type(config).__module__.startswith("hf_prune.slicing.modeling."), type(config)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert type(model).__module__.startswith("hf_prune.slicing.modeling."), type(model)
    with torch.inference_mode():
        out = model(input_ids=load_file(sys.argv[1])["ids"], use_cache=False).logits
    assert torch.equal(out, load_file(folder + "/wanted.safetensors")["logits"]), folder
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    "imports",
    [
        "import hf_prune",
        "import transformers\nimport hf_prune",
        "from transformers import AutoModelForCausalLM\nimport hf_prune",
        "from transformers import AutoConfig\nimport hf_prune",
        "from transformers import PreTrainedModel\nimport hf_prune",
        "import hf_prune\nfrom transformers import PreTrainedModel",
        "import hf_prune\nfrom transformers import AutoTokenizer",
        "import hf_prune\nfrom transformers import GPT2LMHeadModel, LlamaForCausalLM",
        "import hf_prune\nimport transformers.models.falcon.modeling_falcon",
        "from transformers.models.opt import modeling_opt\nimport hf_prune",
    ],
)
def test_importing_hf_prune_is_enough(folders: dict[str, Path], imports: str, tmp_path: Path) -> None:
    ids = next(iter(folders.values())).parent / "ids.safetensors"
    run(LOADS.format(imports=imports), ids, *folders.values(), cache=tmp_path, isolated=False)


def test_importing_hf_prune_alone_loads_neither(tmp_path: Path) -> None:
    run("import hf_prune, sys; assert not {'torch', 'transformers'} & set(sys.modules)", cache=tmp_path, isolated=True)


@pytest.mark.slow
def test_transformers_keeps_working_behind_the_finder(folders: dict[str, Path], tmp_path: Path) -> None:
    """`import hf_prune` first: stock models load as ever, and the finder is gone once it has done its work."""
    before = """
import hf_prune
from transformers import AutoConfig, AutoModelForCausalLM
assert not [finder for finder in sys.meta_path if "hf_prune" in type(finder).__module__], sys.meta_path
config = AutoConfig.for_model("llama", hidden_size=16, intermediate_size=16, num_hidden_layers=1, vocab_size=9,
                              num_attention_heads=2)
assert type(AutoModelForCausalLM.from_config(config)).__name__ == "LlamaForCausalLM"
"""
    some = [folders[case] for case in ("llama", "gpt2")]
    run(LOADS.format(imports=before), some[0].parent / "ids.safetensors", *some, cache=tmp_path, isolated=False)
