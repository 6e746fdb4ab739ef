"""Operations of a training step: by hand, and as torch counts them while a step is made."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hf_prune.architecture import decoder_of
from hf_prune.errors import ArchitectureError
from hf_prune.healing import cost as module
from hf_prune.healing.adapter import Adapters
from hf_prune.healing.cost import Cost, block_costs, training_cost
from hf_prune.healing.teacher import Resident
from hf_prune.healing.weights import Weights
from tests.healing.support import settings
from tests.tiny import tiny_model, tokens

ROWS, LENGTH, DEPTH = 3, 12, 3
# Of the tiny Llama: width 32, MLP 48, 4 heads of 8 over 2 of keys and values, 96 tokens.
ATTENTION, MLP, HEAD = 2 * 32 * 32 + 2 * 32 * 16, 3 * 32 * 48, 32 * 96
SCORES = 2 * 4 * 8 * 2  # products of each pair of tokens: queries with keys, weights with values


def model(model_type="llama", **options):
    return tiny_model(model_type, DEPTH, attn_implementation="eager", **options)


def counted(trainee, backward=True):
    """What torch counts in one real step."""
    counter = FlopCounterMode(display=False)
    with counter:
        logits = trainee(input_ids=tokens(ROWS, LENGTH), use_cache=False).logits
        if backward:
            logits.sum().backward()
    return counter.get_total_flops()


def everything(decoder):
    return Weights.of(decoder, [name for name, _ in decoder.model.named_parameters()])


def test_by_hand():
    decoder = decoder_of(model())
    chosen = Weights.of(decoder, ["model.layers.2.mlp.up_proj.weight"])
    trainee = chosen.begin(decoder.model, settings())
    block = ATTENTION + MLP
    share = 32 * 48 / block
    found = training_cost(decoder, trainee, chosen, length=LENGTH)
    forward, activations, weights = 3 * block + HEAD, block + HEAD, share * block
    assert found.step.linear == pytest.approx(2 * (forward + activations + weights))
    assert found.step.square == pytest.approx(SCORES * (3 + 2 * 1))
    assert found.of(2, 5) == pytest.approx(2 * (5 * found.step.linear + 25 * found.step.square))

    # activations are computed again in the last block, and two blocks of the prefix in the first pass alone
    less = training_cost(decoder, trainee, chosen, length=LENGTH, prefix=2, spared_from=1, recompute=True, before=7.0)
    assert less.step.linear == pytest.approx(found.step.linear - 2 * 2 * block + 2 * block)
    assert less.step.square == pytest.approx(found.step.square - 2 * SCORES + SCORES)
    assert less.before == 7.0
    prefix = 3 * (2 * 2 * block * 5 + 2 * SCORES * 25)
    assert less.of(3, 5, passes=0.9) - less.of(3, 5, passes=1.0) == pytest.approx(prefix)
    always = training_cost(decoder, trainee, chosen, length=LENGTH, prefix=2, spared_from=0, recompute=True)
    assert always.of(3, 5) == less.of(3, 5, passes=1.0)


def test_adapters_by_hand():
    decoder = decoder_of(model())
    plain = training_cost(decoder, decoder.model.requires_grad_(False), everything(decoder), length=LENGTH)
    chosen = Adapters.of(decoder, "mlp")
    trainee = chosen.begin(decoder.model, settings(rank=4))
    numbers = DEPTH * 3 * 4 * (32 + 48)
    found = training_cost(decoder, trainee, chosen, length=LENGTH)
    assert found.step.linear == pytest.approx(plain.step.linear + 6 * numbers)
    assert found.step.square == plain.step.square


def test_dora_meets_its_maps_once_more_behind_dropout():
    told, real = [], []
    for dropout in (0.0, 0.05):
        decoder = decoder_of(model())
        chosen = Adapters.of(decoder, "mlp")
        trainee = chosen.begin(decoder.model, settings(dropout=dropout, use_dora=True)).train()
        told.append(training_cost(decoder, trainee, chosen, length=LENGTH).of(ROWS, LENGTH))
        real.append(counted(trainee))
    assert told[1] - told[0] == ROWS * LENGTH * 4 * DEPTH * MLP
    below = 2 * 2 * 32 * 48  # the lowest block's first two maps pass no gradient on
    assert real[1] - real[0] == told[1] - told[0] - ROWS * LENGTH * below


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3", "gemma2", "opt"])
def test_as_torch_counts_it_when_all_is_trained(model_type):
    decoder = decoder_of(model(model_type))
    chosen = everything(decoder)
    trainee = chosen.begin(decoder.model, settings())
    found = training_cost(decoder, trainee, chosen, length=LENGTH).of(ROWS, LENGTH)
    assert found == pytest.approx(counted(trainee), rel=1e-6)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3"])
def test_as_torch_counts_it_but_for_the_lowest_block(model_type):
    decoder = decoder_of(model(model_type))
    chosen = Adapters.of(decoder, "mlp")
    trainee = chosen.begin(decoder.model, settings(dropout=0.0))
    found = training_cost(decoder, trainee, chosen, length=LENGTH).of(ROWS, LENGTH)
    real = counted(trainee)
    lowest = found - training_cost(decoder, trainee, shifted(chosen), length=LENGTH).of(ROWS, LENGTH)
    assert real <= found <= real + lowest


def shifted(chosen):
    """As if nothing were trained in the lowest block."""
    return Adapters(chosen.where, chosen.silent, chosen.names, chosen.lowest + 1)


def test_a_model_that_cannot_be_counted_counts_by_its_weights(monkeypatch):
    def refuse(*args):
        raise ArchitectureError("depends on the numbers")

    monkeypatch.setattr(module, "module_flops", refuse)
    decoder = decoder_of(model())
    found = module.forward_cost(decoder.model, ["", "model.layers.0"], LENGTH)
    assert found == {
        "": Cost(2 * (DEPTH * (ATTENTION + MLP) + HEAD), 0.0),
        "model.layers.0": Cost(2 * (ATTENTION + MLP), 0.0),
    }


def test_the_original_beside():
    decoder = decoder_of(model())
    chosen = everything(decoder)
    trainee = chosen.begin(decoder.model, settings())
    alone = training_cost(decoder, trainee, chosen, length=LENGTH)
    original = decoder_of(tiny_model("llama", 5, attn_implementation="eager"))
    blocks, head = block_costs(original, LENGTH)
    found = training_cost(decoder, trainee, chosen, length=LENGTH, beside=sum(blocks, head))
    with torch.no_grad():
        real = counted(original.model, backward=False)
    assert found.of(ROWS, LENGTH) - alone.of(ROWS, LENGTH) == pytest.approx(real)


@pytest.mark.parametrize("predictions", [True, False])
def test_of_an_original_that_stops_early_that_much_is_counted(predictions):
    original = decoder_of(tiny_model("llama", 5, attn_implementation="eager"))
    kept = (0, 3, 4)
    teacher = Resident(original, kept, (1,), predictions=predictions, device=torch.device("cpu"), owned=True)
    counter = FlopCounterMode(display=False)
    with counter:
        teacher.view({"input_ids": tokens(ROWS, LENGTH)})
    assert teacher.cost(LENGTH).of(ROWS, LENGTH) == pytest.approx(counter.get_total_flops())
