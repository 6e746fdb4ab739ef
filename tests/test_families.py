"""Every family in the table: cut, save, load with stock transformers, and nothing has changed."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from hf_prune import prune_layers
from hf_prune.architecture import FAMILIES, decoder_of, rewrite_config
from hf_prune.architecture.layer_config import config_of
from hf_prune.errors import ArchitectureError, ConfigError
from hf_prune.runner import Walker
from hf_prune.samples import Batch
from tests.tiny import DEPTH, tiny_config, tiny_model, tokens

MODEL_TYPES = [model_type for family in FAMILIES for model_type in family.model_types]
CUT = [0, 3, 4]  # neither contiguous nor in step with any attention pattern
KEEP = [1, 2, 5, 6, 7]


def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return model(input_ids=ids).logits


def masked_logits(model: torch.nn.Module, ids: torch.Tensor, dropped: list[int]) -> torch.Tensor:
    """The whole model with dropped blocks turned into identities by hooks: the reference for surgery."""
    blocks = decoder_of(model).blocks

    def skip(_module, args, kwargs, output):
        hidden = kwargs["hidden_states"] if not args else args[0]
        return (hidden, *output[1:]) if isinstance(output, tuple) else hidden

    handles = [blocks[i].register_forward_hook(skip, with_kwargs=True) for i in dropped]
    result = logits(model, ids)
    for handle in handles:
        handle.remove()
    return result


@pytest.fixture(params=MODEL_TYPES)
def model_type(request) -> str:
    return request.param


def test_cut_model_is_a_stock_model(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    ids = tokens()
    expected = masked_logits(model, ids, CUT)
    tied = model.config.get_text_config().tie_word_embeddings
    kernel = model.config._attn_implementation

    assert prune_layers(model, CUT) is model
    cut = logits(model, ids)
    assert torch.equal(cut, expected), "surgery differs from skipping the blocks"
    assert model.config._attn_implementation == kernel

    model.save_pretrained(tmp_path)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    loaded.eval()
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert decoder_of(loaded).num_layers == len(KEEP)
    assert torch.equal(logits(loaded, ids), cut)
    assert loaded.config.get_text_config().tie_word_embeddings == tied
    if tied:
        assert loaded.get_input_embeddings().weight is loaded.get_output_embeddings().weight

    cached = loaded.generate(ids, max_new_tokens=6, do_sample=False)
    assert torch.equal(cached, loaded.generate(ids, max_new_tokens=6, do_sample=False, use_cache=False))

    changed = ids.clone()
    changed[:, -1] = (changed[:, -1] + 1) % 90 + 3
    assert torch.equal(logits(model, changed)[:, :-1], cut[:, :-1]), "a later token reached an earlier position"


def test_config_file_is_edited_not_rewritten(model_type: str, tmp_path: Path) -> None:
    model = tiny_model(model_type)
    model.save_pretrained(tmp_path)
    raw = json.loads((tmp_path / "config.json").read_text())
    for key in [k for k, v in raw.items() if isinstance(v, list) and len(v) == DEPTH]:
        if key not in ("attention_layers", "mlp_only_layers", "full_attn_idxs"):
            del raw[key]  # older files leave such lists to the config class
    prune_layers(model, CUT)
    wanted = model.config.to_dict()
    rewritten = config_of(rewrite_config(raw, KEEP)).to_dict()
    ignored = {"transformers_version", "dtype", "_name_or_path", "architectures"}
    assert {k: v for k, v in rewritten.items() if k not in ignored} == {
        k: v for k, v in wanted.items() if k not in ignored
    }


def test_walking_equals_the_forward(model_type: str) -> None:
    model = tiny_model(model_type)
    ids = tokens()
    outputs: list[torch.Tensor] = []
    decoder = decoder_of(model)
    handles = [
        block.register_forward_hook(lambda _m, _a, out: outputs.append(out[0] if isinstance(out, tuple) else out))
        for block in decoder.blocks
    ]
    logits(model, ids)
    for handle in handles:
        handle.remove()
    walker = Walker(decoder)
    with torch.inference_mode():
        steps = list(walker.steps(Batch(ids, torch.ones_like(ids))))
    assert [layer for layer, *_ in steps] == list(range(DEPTH))
    for (_, _, walked, _), expected in zip(steps, outputs, strict=True):
        assert torch.equal(walked, expected)


@pytest.mark.parametrize(
    ("model_type", "overrides", "key"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before"),
        ("jamba", {}, "attn_layer_period"),
        ("recurrent_gemma", {}, "block_types"),
        ("diffllama", {}, "lambda_init"),
        ("gemma3n_text", {}, "num_kv_shared_layers"),
        ("gemma4_text", {}, "per_layer_config"),
        ("zamba2", {}, "hybrid_layer_ids"),
        ("minimax", {}, "layer_types"),
        ("bert", {}, "is_decoder"),
        ("bart", {}, "is_encoder_decoder"),
        ("t5", {}, "is_encoder_decoder"),
        ("gemma3", {}, "text_config"),
        ("qwen2_5_vl", {}, "text_config"),
        ("vit", {}, "no causal language model class"),
    ],
)
def test_refused_before_work_naming_the_key(model_type: str, overrides: dict, key: str) -> None:
    from transformers import AutoConfig

    from hf_prune.architecture import check_prunable

    config = tiny_config(model_type, **overrides) if overrides else AutoConfig.for_model(model_type)
    with pytest.raises(ArchitectureError, match=key):
        check_prunable(config, "org/model")


def test_refusal_leaves_the_model_untouched() -> None:
    model = tiny_model("llama")
    before = logits(model, tokens())
    for layers in ([8], [-1], [], [1, 1], [True], [1.0], "12", list(range(8))):
        with pytest.raises(ConfigError):
            prune_layers(model, layers)
    assert model.config.num_hidden_layers == DEPTH
    assert torch.equal(logits(model, tokens()), before)


def test_no_plain_causal_model() -> None:
    model = tiny_model("llama")
    with pytest.raises(ArchitectureError, match="without a language modelling head"):
        prune_layers(model.model, [1])
    with pytest.raises(ArchitectureError, match="Linear"):
        prune_layers(torch.nn.Linear(2, 2), [1])
    model.config.num_hidden_layers = 7
    with pytest.raises(ArchitectureError, match="num_hidden_layers=7.*8 at 'model.layers'"):
        prune_layers(model, [1])


def test_cutting_twice_equals_cutting_once() -> None:
    once, twice = tiny_model("qwen3"), tiny_model("qwen3")
    prune_layers(once, [1, 3, 6])
    prune_layers(prune_layers(twice, [3]), [1, 5])
    assert torch.equal(logits(once, tokens()), logits(twice, tokens()))
    assert once.config.layer_types == twice.config.layer_types


def test_readme_shows_the_table() -> None:
    readme = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
    for family in FAMILIES:
        kinds = ", ".join(f"`{model_type}`" for model_type in family.model_types)
        assert f"| {family.title} | {kinds} | {family.note} |" in readme
