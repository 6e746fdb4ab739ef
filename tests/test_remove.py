"""Parts that are taken out: the model computes what silencing them does, is smaller, and brings its own code."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.hooks import ModelHook, add_hook_to_module
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from hf_prune.architecture import check_prunable, decoder_of
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.patching.modeling import PATCHABLE
from hf_prune.records import ModelRef, Operation, Plan
from hf_prune.surgery import apply_plan
from hf_prune.surgery.remove import remove
from hf_prune.surgery.silence import silence
from hf_prune.units import Part

from .making import logits
from .tiny import DEPTH, tiny_model, tokens

CUT: tuple[tuple[Part, tuple[int, ...]], ...] = (("attention", (0, 1, 3, 7)), ("mlp", (2, 3)))
HYBRID = {
    "layer_types": ["full_attention", "sliding_attention"] * (DEPTH // 2),
    "use_sliding_window": True,
    "sliding_window": 8,
}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    **{model_type: (model_type, {}) for model_type in PATCHABLE},
    "qwen2-hybrid": ("qwen2", HYBRID),
    "llama-tied": ("llama", {"tie_word_embeddings": True}),
}
GREEDY: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}


def made(case: str, do: Any = remove) -> PreTrainedModel:
    """A tiny model, cut."""
    model_type, fields = CASES[case]
    model = tiny_model(model_type, **fields)
    for part, layers in CUT:
        do(decoder_of(model), layers, part=part)
    return model


def plan_of(*operations: Operation) -> Plan:
    return Plan(ModelRef("org/model", None, "llama", DEPTH, "d" * 64), "m", "p", operations, "why")


@pytest.mark.parametrize("case", CASES)
def test_it_computes_what_silencing_does(case: str) -> None:
    hard, soft, ids = made(case), made(case, silence), tokens(2, 14)
    torch.testing.assert_close(logits(hard, ids), logits(soft, ids), rtol=0, atol=1e-6)
    whole = tiny_model(CASES[case][0], **CASES[case][1])
    assert not torch.allclose(logits(hard, ids), logits(whole, ids), atol=1e-2)
    wanted = soft.generate(ids, **GREEDY)
    for settings in ({}, {"use_cache": False}, {"cache_implementation": "static"}):
        assert torch.equal(hard.generate(ids, **GREEDY, **settings), wanted), settings
    assert torch.equal(hard.generate(ids, num_beams=3, **GREEDY), soft.generate(ids, num_beams=3, **GREEDY))


@pytest.mark.parametrize("case", CASES)
def test_padded_rows_come_out_alike(case: str) -> None:
    hard, soft = made(case), made(case, silence)
    ids, mask = tokens(2, 14), torch.ones(2, 14, dtype=torch.long)
    mask[0, :5] = 0
    assert torch.equal(*(model.generate(ids, attention_mask=mask, **GREEDY) for model in (hard, soft)))


def test_what_goes_is_gone_with_its_norm() -> None:
    whole, hard = tiny_model("llama"), made("llama")
    gone = set(dict(whole.named_parameters())) - set(dict(hard.named_parameters()))
    heads = {"attention": ("self_attn.", "input_layernorm."), "mlp": ("mlp.", "post_attention_layernorm.")}
    assert gone == {
        name
        for name, _ in whole.named_parameters()
        for part, layers in CUT
        for layer in layers
        if name.removeprefix(f"model.layers.{layer}.").startswith(heads[part])
    }
    sizes = dict(whole.named_parameters())
    assert hard.num_parameters() == whole.num_parameters() - sum(sizes[name].numel() for name in gone)
    assert all(torch.equal(p, sizes[name]) for name, p in hard.named_parameters())


def test_a_cache_keeps_two_numbers_a_token_of_such_a_layer() -> None:
    model = made("llama")
    with torch.inference_mode():
        cache = model(tokens(2, 14), use_cache=True).past_key_values
    shapes = [tuple(layer.keys.shape) for layer in cache.layers]
    assert [shape[1:] for shape in shapes] == [(1, 14, 1) if i in (0, 1, 3, 7) else (2, 14, 8) for i in range(DEPTH)]
    assert cache.get_seq_length() == 14


READER = """
import sys
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

settings = dict(max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0)
for folder in sys.argv[1:]:
    wanted = load_file(folder + "/wanted.safetensors")
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    assert not any(info.values()), (folder, info)
    assert "hf_prune" not in sys.modules and type(model).__module__.startswith("transformers_modules."), type(model)
    assert model.num_parameters() == int(wanted["parameters"])
    with torch.inference_mode():
        out = model.eval()(input_ids=wanted["ids"], use_cache=False).logits
    assert torch.equal(out, wanted["logits"]), folder
    for cached in (True, False):
        assert torch.equal(model.generate(wanted["ids"], use_cache=cached, **settings), wanted["greedy"]), folder
    model.save_pretrained(folder + "/again")
    again = AutoModelForCausalLM.from_pretrained(folder + "/again", trust_remote_code=True).eval()
    with torch.inference_mode():
        assert torch.equal(again(input_ids=wanted["ids"], use_cache=False).logits, out), folder
"""


def test_code_in_the_folder_is_enough(tmp_path: Path) -> None:
    folders = []
    for case in CASES:
        model, ids, folder = made(case), tokens(2, 14), tmp_path / case
        model.save_pretrained(folder)
        answer = {"ids": ids, "logits": logits(model, ids), "greedy": model.generate(ids, **GREEDY)}
        save_file({**answer, "parameters": torch.tensor(model.num_parameters())}, folder / "wanted.safetensors")
        folders.append(folder)
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")}
    environment.pop("PYTHONPATH", None)
    child = subprocess.run(
        [sys.executable, "-I", "-W", "error", "-c", READER, *map(str, folders)],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert child.returncode == 0, child.stderr[-3000:]
    for folder in folders:
        files = {path.name for path in folder.glob("*.py")}
        assert "patched.py" in files and len(files) == 3
        for path in folder.glob("*.py"):
            imports = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
            roots = {line.split()[1].partition(".")[0] for line in imports}
            assert roots <= {"", "typing", "torch", "transformers"}, (path.name, roots)
        config = json.loads((folder / "config.json").read_text())
        assert config["removed_parts"] == {part: list(layers) for part, layers in CUT}
        assert set(config["auto_map"]) == {"AutoConfig", "AutoModelForCausalLM"}


def test_with_this_package_nothing_from_the_folder_runs(tmp_path: Path) -> None:
    model = made("qwen3")
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert type(loaded) is type(model) and type(loaded).__module__.startswith("hf_prune.patching.")
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))


def test_with_blocks_that_go_in_one_plan(tmp_path: Path) -> None:
    model, soft = tiny_model("llama"), tiny_model("llama")
    apply_plan(
        decoder_of(soft), plan_of(Operation("silence", (0, 5), {"part": "attention"}), Operation("drop", (2, 4)))
    )
    apply_plan(
        decoder_of(model),
        plan_of(
            Operation("remove", (0,), {"part": "attention"}),
            Operation("drop", (2, 4)),
            Operation("remove", (5,), {"part": "attention"}),
        ),
    )
    assert model.config.removed_parts == {"attention": [0, 3], "mlp": []}
    torch.testing.assert_close(logits(model, tokens()), logits(soft, tokens()), rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    assert torch.equal(logits(loaded, tokens()), logits(model, tokens()))
    assert torch.equal(model.generate(tokens(), **GREEDY), soft.generate(tokens(), **GREEDY))


def test_hooks_that_place_blocks_stay() -> None:
    model = tiny_model("llama")
    seen = []

    class Seen(ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(type(module).__name__)
            return args, kwargs

    for block in model.model.layers:
        add_hook_to_module(block, Seen())
    remove(decoder_of(model), (1,), part="attention")
    plain = tiny_model("llama")
    remove(decoder_of(plain), (1,), part="attention")
    assert torch.equal(logits(model, tokens()), logits(plain, tokens()))
    assert seen == ["PatchedLlamaDecoderLayer"] * DEPTH


def test_refusals_leave_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    decoder, before = decoder_of(model), logits(model, tokens())
    with pytest.raises(ConfigError, match="part='block'; expected 'attention' or 'mlp'"):
        remove(decoder, (1,), part="block")
    with pytest.raises(ArchitectureError, match="attention of all 8 blocks .* would be taken out"):
        remove(decoder, tuple(range(DEPTH)), part="attention")
    with pytest.raises(ArchitectureError, match="'gpt2'.* is there for llama, mistral, qwen2, qwen3"):
        remove(decoder_of(tiny_model("gpt2")), (0,), part="mlp")

    class Own(type(model)):  # type: ignore[misc]
        pass

    model.__class__ = Own
    with pytest.raises(ArchitectureError, match="is a Own; parts can be taken out of a LlamaForCausalLM"):
        remove(decoder, (1,), part="attention")
    model.__class__ = Own.__base__
    assert model.config.model_type == "llama" and torch.equal(logits(model, tokens()), before)
    remove(decoder, (1,), part="attention")
    with pytest.raises(ArchitectureError, match=r"blocks \[1\] .* have no attention any more"):
        remove(decoder, (1, 2), part="attention")
    with pytest.raises(ArchitectureError, match="lacks parts of its blocks already"):
        check_prunable(model.config, "org/model")
