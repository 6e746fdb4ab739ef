import pytest
import torch

from hf_prune.errors import MeasureError
from hf_prune.evaluation.weights import count_weights

from ..tiny import tiny_model


def test_counts_by_hand():
    model = tiny_model("llama", 2, tie_word_embeddings=False)
    block = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 48 + 2 * 32
    total = 2 * block + 2 * 96 * 32 + 32
    found = count_weights(model)
    assert (found.parameters, found.bytes, found.dtype) == (total, 4 * total, "float32")
    model.to(torch.bfloat16)
    assert (count_weights(model).bytes, count_weights(model).dtype) == (2 * total, "bfloat16")


def test_tied_weights_count_once():
    tied = count_weights(tiny_model("llama", 2, tie_word_embeddings=True))
    free = count_weights(tiny_model("llama", 2, tie_word_embeddings=False))
    assert free.parameters - tied.parameters == 96 * 32


def test_four_bit_weights_count_as_what_they_stand_for():
    import bitsandbytes as bnb

    linear = torch.nn.Linear(64, 96, bias=False)
    packed = bnb.nn.Linear4bit(64, 96, bias=False, quant_type="nf4", compress_statistics=False)
    packed.load_state_dict(linear.state_dict())
    packed = packed.to("cpu")
    assert packed.weight.numel() == 64 * 96 // 2
    found = count_weights(torch.nn.Sequential(packed, torch.nn.Linear(8, 8)))
    blocks = 64 * 96 // 64
    assert found.parameters == 64 * 96 + 72
    assert found.bytes == 64 * 96 // 2 + 4 * blocks + 4 * 16 + 4 * 72  # packed, scales, the 16 levels, the rest
    assert found.dtype == "nf4"


def test_packing_that_cannot_be_counted_is_refused():
    model = tiny_model("llama", 1)
    model.model.layers[0].mlp.register_buffer("qweight", torch.zeros(8, 8, dtype=torch.int32))
    assert count_weights(model).parameters == count_weights(tiny_model("llama", 1)).parameters
    model.config.quantization_config = {"quant_method": "gptq"}
    with pytest.raises(MeasureError, match=r"'model.layers.0.mlp.qweight' is torch.int32 packed by 'gptq'"):
        count_weights(model)
