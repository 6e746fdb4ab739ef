"""The stock model without its weights: the dtypes, buffers and refusals of loading, and no weight read."""

import json
import os
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from hf_prune.architecture import FAMILIES
from hf_prune.checkpoint import SINGLE, checkpoint_entries
from hf_prune.errors import ArchitectureError, CheckpointError
from hf_prune.loading import Source, load_model
from hf_prune.skeleton import Filling, skeleton
from tests.making import edit_json, reference
from tests.tiny import DEPTH, tiny_config, tiny_model

EVERY_THIRD = [model_type for family in FAMILIES for model_type in family.model_types][::3]


def source_of(folder: Path) -> Source:
    return Source(reference(DEPTH), folder, False)


def edit_weights(folder: Path, **changes: torch.Tensor | None) -> None:
    tensors = load_file(folder / SINGLE) | changes
    save_file({name: t for name, t in tensors.items() if t is not None}, folder / SINGLE, {"format": "pt"})


@pytest.mark.parametrize("dtype", ["auto", "float16"])
@pytest.mark.parametrize("model_type", [*EVERY_THIRD, "deepseek_v3", "qwen3_next", "gemma3_text"])
def test_filled_it_is_the_loaded_model(model_type: str, dtype: str, tmp_path: Path) -> None:
    tiny_model(model_type).bfloat16().save_pretrained(tmp_path)
    loaded = load_model(source_of(tmp_path), dtype=dtype)
    decoder = skeleton(source_of(tmp_path), dtype=dtype)
    wanted = dict(loaded.named_parameters(remove_duplicate=False))
    empty = dict(decoder.model.named_parameters(remove_duplicate=False))
    assert {k: (p.dtype, p.shape, p.requires_grad) for k, p in empty.items()} == {
        k: (p.dtype, p.shape, p.requires_grad) for k, p in wanted.items()
    }
    assert all(parameter.is_meta for parameter in empty.values())
    assert decoder.model.dtype == loaded.dtype and not decoder.model.training

    filling = Filling(decoder, checkpoint_entries(tmp_path))
    pieces = [piece for block in filling.blocks for piece in block] + filling.around + filling.head
    names = filling.put(pieces, load_file(tmp_path / SINGLE))
    for (name, found), (_, expected) in zip(everything(decoder.model), everything(loaded), strict=True):
        assert found.dtype == expected.dtype and torch.equal(found, expected), name
    filling.take_out(names)
    assert all(decoder.model.get_parameter(name) is parameter for name, parameter in empty.items())


def everything(model: torch.nn.Module) -> list[tuple[str, torch.Tensor]]:
    return [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]


def test_modules_kept_in_float32_are(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    kept = "input_layernorm"
    cls = AutoModelForCausalLM._model_mapping[type(tiny_config("llama"))]
    before, cls._keep_in_fp32_modules_strict = cls._keep_in_fp32_modules_strict, {kept}
    try:
        decoder = skeleton(source_of(tmp_path), dtype="bfloat16")
    finally:
        cls._keep_in_fp32_modules_strict = before
    assert {name.split(".")[-2] for name, p in decoder.model.named_parameters() if p.dtype == torch.float32} == {kept}


def test_tied_weights_are_one(tmp_path: Path) -> None:
    tiny_model("gpt2").save_pretrained(tmp_path)
    decoder = skeleton(source_of(tmp_path))
    filling = Filling(decoder, checkpoint_entries(tmp_path))
    assert filling.head == []
    model = decoder.model
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    filling.put(filling.around, load_file(tmp_path / SINGLE))
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert not model.get_output_embeddings().weight.is_meta


def test_weights_saved_without_the_prefix_of_the_base_model(tmp_path: Path) -> None:
    model = tiny_model("gpt2")
    model.transformer.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", architectures=None)
    decoder = skeleton(source_of(tmp_path))
    filling = Filling(decoder, checkpoint_entries(tmp_path))
    filling.put(filling.blocks[3], load_file(tmp_path / SINGLE))
    for name, found in decoder.blocks[3].named_parameters():
        assert torch.equal(found, model.transformer.h[3].get_parameter(name))
    assert all(parameter.is_meta for parameter in decoder.blocks[4].parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.layers.4.mlp.up_proj.weight": None}, r"do not fit its config: missing: model.layers.4.mlp.up_proj"),
        ({"model.layers.4.mlp.up_proj.weight": torch.ones(3, 3)}, r"mismatched: .*model.layers.4.mlp.up_proj"),
    ],
)
def test_weights_that_do_not_fit_are_refused_as_when_loading(changes: dict, message: str, tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    edit_weights(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message) as streamed:
        skeleton(source_of(tmp_path))
    with pytest.raises(CheckpointError) as loaded:
        load_model(source_of(tmp_path))
    assert str(streamed.value) == str(loaded.value)


def test_missing_expert_is_refused(tmp_path: Path) -> None:
    tiny_model("mixtral").save_pretrained(tmp_path)
    names = [
        name for name in load_file(tmp_path / SINGLE) if name.startswith("model.layers.2.") and ".experts." in name
    ]
    edit_weights(tmp_path, **dict.fromkeys(names))
    with pytest.raises(CheckpointError, match="missing: model.layers.2"):
        skeleton(source_of(tmp_path))


def test_tensors_of_no_use_are_never_asked_for(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    edit_weights(tmp_path, **{"model.layers.2.self_attn.rotary_emb.inv_freq": torch.ones(4)})
    filling = Filling(skeleton(source_of(tmp_path)), checkpoint_entries(tmp_path))
    assert not any("inv_freq" in name for piece in filling.blocks[2] for name, _ in piece.sources)


def test_quantized_checkpoints_are_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="is quantized .*load it whole"):
        skeleton(source_of(tmp_path))


def test_model_that_cannot_lose_blocks_is_refused(tmp_path: Path) -> None:
    tiny_model("jamba").save_pretrained(tmp_path)
    with pytest.raises(ArchitectureError, match="attn_layer_period"):
        skeleton(source_of(tmp_path))


def test_no_weight_is_read(tmp_path: Path) -> None:
    """Forty gigabytes of holes: who read them would take longer, or more memory than there is."""
    config = tiny_config("llama", hidden_size=8192, intermediate_size=28672, num_attention_heads=64, head_dim=128,
                         num_key_value_heads=8)  # fmt: skip
    config.save_pretrained(tmp_path)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    header, end = {}, 0
    for name, tensor in model.state_dict().items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    raw = json.dumps(header).encode()
    (tmp_path / SINGLE).write_bytes(len(raw).to_bytes(8, "little") + raw)
    os.truncate(tmp_path / SINGLE, 8 + len(raw) + end)
    assert end > 2e10
    started = time.perf_counter()
    decoder = skeleton(source_of(tmp_path))
    assert time.perf_counter() - started < 5
    assert all(parameter.is_meta for parameter in decoder.model.parameters())
