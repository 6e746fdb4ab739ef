"""Attention and MLP apart: what stands between them against the norms that read it, and blocks of known parts."""

import math
from typing import Any

import numpy
import pytest
import torch
from transformers import PreTrainedModel

from hf_prune import prune_layers
from hf_prune.architecture import decoder_of
from hf_prune.measure import measure_model
from hf_prune.planners.order import top_k
from hf_prune.planners.problem import Problem
from hf_prune.samples import Samples
from hf_prune.units import Unit

from ..making import TEXT, logits, reference
from ..tiny import DEPTH, every_type, tiny_model
from .walking import SEQUENCES, captured, measured, write_nothing

# The module of a block that reads what attention has left, where MLP comes behind it.
READERS = {
    "llama": "post_attention_layernorm", "qwen3_moe": "post_attention_layernorm",
    "gemma2": "pre_feedforward_layernorm", "gpt2": "ln_2", "gpt_neo": "ln_2", "opt": "final_layer_norm",
    "bloom": "post_attention_layernorm", "mpt": "norm_2", "olmo2": "mlp", "granite": "post_attention_layernorm",
    "lfm2": "ffn_norm", "qwen3_next": "post_attention_layernorm", "glm4": "post_attention_layernorm",
}  # fmt: skip
# Blocks whose parts both read the block's input, and the module that adds to it.
PARALLEL = {"gptj": "mlp", "gpt_neox": "mlp", "phi": "mlp", "cohere": "mlp", "falcon": "mlp"}


def between(model: PreTrainedModel, model_type: str, ids: torch.Tensor) -> list[torch.Tensor]:
    """What the MLP's norm reads (or, of parallel blocks, what the MLP adds), by layer, float64."""
    found: list[torch.Tensor] = []
    name = READERS.get(model_type) or PARALLEL[model_type]

    def see(_module: object, args: tuple, kwargs: dict, output: Any) -> None:
        given = args[0] if args else kwargs["hidden_states"]
        seen = given if model_type in READERS else output
        found.append(seen.reshape(1, len(ids), -1)[0].double())

    handles = [
        block.get_submodule(name).register_forward_hook(see, with_kwargs=True) for block in decoder_of(model).blocks
    ]
    logits(model, ids[None])
    for handle in handles:
        handle.remove()
    return found


def turned(u: torch.Tensor, v: torch.Tensor) -> numpy.ndarray:
    return (1 - (u * v).sum(-1) / (u.norm(dim=-1) * v.norm(dim=-1))).numpy()


@pytest.mark.parametrize("model_type", [*READERS, *PARALLEL])
def test_parts_are_measured_where_they_add(model_type: str) -> None:
    model = tiny_model(model_type)
    rows: dict[str, list[Any]] = {"attention": [], "mlp": []}
    for ids in SEQUENCES:
        h, inner = captured(model, ids), between(model, model_type, ids)
        for part, list_ in rows.items():
            if model_type in READERS:
                pairs = [(h[k], inner[k]) if part == "attention" else (inner[k], h[k + 1]) for k in range(DEPTH)]
            else:
                writes = [inner[k] if part == "mlp" else h[k + 1] - h[k] - inner[k] for k in range(DEPTH)]
                pairs = [(h[k], h[k] + write) for k, write in enumerate(writes)]
            list_.append([turned(u, v) for u, v in pairs])
    for batch_size, tolerance in ((1, 2e-6), (4, 2e-5)):
        found = measured(model, "sublayer_cosine", batch_size=batch_size)
        for part, table in rows.items():
            mean = numpy.array([numpy.concatenate([s[k] for s in table]).mean() for k in range(DEPTH)])
            means = numpy.array([[s[k].mean() for k in range(DEPTH)] for s in table])
            error = means.std(0, ddof=1) / math.sqrt(len(table))
            assert numpy.ptp(mean) > 0.01, "nothing to tell apart"
            numpy.testing.assert_allclose(found["importances"][part], mean, rtol=0, atol=tolerance)
            numpy.testing.assert_allclose(found["importance_errors"][part], error, rtol=0, atol=10 * tolerance)
    assert found["forwards"] == (2.5 if model_type in READERS else 3)  # two batches; the first tells which it is


@pytest.mark.parametrize("model_type", every_type(without=["mamba"]))
def test_every_family_has_both_parts(model_type: str) -> None:
    model = tiny_model(model_type)
    before = logits(model, SEQUENCES[0][None])
    found = measured(model, "sublayer_cosine", SEQUENCES[:2])
    for part in ("attention", "mlp"):
        assert all(value is not None and 0 < value < 2 for value in found["importances"][part])
    assert torch.equal(logits(model, SEQUENCES[0][None]), before)
    assert not any(m._forward_hooks or m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


def test_blocks_that_are_no_two_parts_have_no_scores() -> None:
    found = measured(tiny_model("mamba"), "sublayer_cosine", SEQUENCES[:2])
    assert found["importances"] == {"attention": (None,) * DEPTH, "mlp": (None,) * DEPTH}


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
@pytest.mark.parametrize(("gone", "left"), [("attention", "mlp"), ("mlp", "attention")])
def test_equals_block_influence_where_the_other_part_is_zero(model_type: str, gone: Any, left: str) -> None:
    model = tiny_model(model_type)
    for block in decoder_of(model).blocks:
        if model_type == "llama":
            write_nothing(block, gone)
        else:
            writer: Any = block.attention.dense if gone == "attention" else block.mlp.dense_4h_to_h
            torch.nn.init.zeros_(writer.weight)
            torch.nn.init.zeros_(writer.bias)
    found, influence = measured(model, "sublayer_cosine"), measured(model, "block_influence")
    assert found["importances"][left] == influence["importances"]["block"]
    assert found["importance_errors"][left] == influence["importance_errors"]["block"]
    assert found["importances"][gone] == (0.0,) * DEPTH


def test_parts_that_write_nothing_go_first() -> None:
    model = tiny_model("llama")
    write_nothing(model.model.layers[2], "attention")
    write_nothing(model.model.layers[5], "mlp")
    samples = Samples(tuple(SEQUENCES), TEXT)
    record = measure_model(decoder_of(model), samples, model=reference(DEPTH), name="sublayer_cosine")
    assert record.forwards == 3, "one batch: the block alone, and without each part"
    joint = tuple(Unit(i, part) for i in range(DEPTH) for part in ("attention", "mlp"))  # type: ignore[arg-type]
    assert set(top_k(Problem("m", DEPTH, joint, 2, record)).units) == {Unit(2, "attention"), Unit(5, "mlp")}
    alone = tuple(Unit(i, "mlp") for i in range(DEPTH))
    assert top_k(Problem("m", DEPTH, alone, 1, record)).units == (Unit(5, "mlp"),)


def test_a_batch_in_which_attention_writes_nothing_does_not_tell_how_a_block_is_made() -> None:
    model = tiny_model("llama")
    silent, other = SEQUENCES[3], SEQUENCES[1]
    model.model.layers[2].self_attn.register_forward_hook(
        lambda _module, _given, output: (output[0] * (output[0].shape[1] != len(silent)), *output[1:])
    )
    alone = [measured(model, "sublayer_cosine", [ids])["importances"] for ids in (silent, other)]
    assert alone[0]["attention"][2] == 0 != alone[1]["attention"][2]
    both = measured(model, "sublayer_cosine", [silent, other])["importances"]
    mean = (len(silent) * alone[0]["mlp"][2] + len(other) * alone[1]["mlp"][2]) / (len(silent) + len(other))
    assert both["mlp"][2] == pytest.approx(mean, abs=1e-12)


@pytest.mark.parametrize("name", ["sublayer_cosine", "sublayer_entropy"])
def test_blocks_that_are_gone_are_not_there(name: str) -> None:
    gone = {0, 3, 7}
    found = measured(tiny_model("llama"), name, batch_size=3, seen=gone)
    cut = measured(prune_layers(tiny_model("llama"), sorted(gone)), name, batch_size=3)
    kept = [k for k in range(DEPTH) if k not in gone]
    for part in ("attention", "mlp"):
        assert [found["importances"][part][k] for k in sorted(gone)] == [None] * 3
        assert [found["importances"][part][k] for k in kept] == list(cut["importances"][part])


@pytest.mark.parametrize("model_type", ["llama", "gpt_neox"])
def test_parts_that_are_gone_write_nothing(model_type: str) -> None:
    gone = {Unit(2, "attention"), Unit(4, "mlp"), Unit(5, "attention"), Unit(5, "mlp")}
    found = measured(tiny_model(model_type), "sublayer_cosine", seen=gone)["importances"]
    whole = measured(tiny_model(model_type), "sublayer_cosine")["importances"]
    for unit in gone:
        assert found[unit.part][unit.layer] == 0
    for unit in (Unit(3, "mlp"), Unit(4, "attention"), Unit(6, "mlp")):
        assert found[unit.part][unit.layer] not in (0, whole[unit.part][unit.layer])
    assert found["mlp"][1] == whole["mlp"][1]
