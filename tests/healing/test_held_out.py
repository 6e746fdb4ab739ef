import pytest
import torch

from hf_prune.errors import MeasureError
from hf_prune.healing.held_out import held_out_loss, predicted_tokens
from tests.healing.support import text
from tests.tiny import tiny_model


def brute_force(model, samples):
    total = 0.0
    for ids in samples.sequences:
        with torch.no_grad():
            log_p = model(ids[None]).logits[0].double().log_softmax(-1)
        total -= sum(log_p[i, ids[i + 1]].item() for i in range(len(ids) - 1))
    return total / sum(len(ids) - 1 for ids in samples.sequences)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
def test_equals_brute_force_at_every_batch_size(model_type):
    model, samples = tiny_model(model_type, depth=2), text(7, seed=1)
    expected = brute_force(model, samples)
    for batch_size in (1, 3, 7):
        assert held_out_loss(model, samples, batch_size=batch_size) == pytest.approx(expected, abs=1e-5)


def test_predicted_tokens():
    samples = text(5, seed=2)
    assert predicted_tokens(samples) == sum(len(ids) for ids in samples.sequences) - 5


def test_mode_is_given_back_and_dropout_is_off():
    model, samples = tiny_model("gpt2", depth=2), text(3, seed=1)
    model.train()
    assert held_out_loss(model, samples) == held_out_loss(model, samples)
    assert model.training


def test_nan_is_refused():
    model = tiny_model("llama", depth=2)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(MeasureError, match="held-out loss is nan"):
        held_out_loss(model, text(3, seed=1))
