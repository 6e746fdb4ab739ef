"""Two models in one pass, against one after the other."""

import dataclasses

import pytest
import torch

from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation import scoring
from hf_prune.evaluation.pair import measure_pair, same_tokenizer
from hf_prune.evaluation.perplexity import measure_text

from ..tiny import tiny_model
from .text import VOCAB, byte_tokenizer, poem

SETTINGS = {"name": "poem", "window": 16, "stride": 8, "batch_size": 3}


def model_of(seed=0, kind="llama", **overrides):
    return tiny_model(kind, 2, seed=seed, **{"vocab_size": VOCAB, **overrides})


def one_after_the_other(original, model, **more):
    first = measure_text(original, byte_tokenizer(), poem(), capture_bytes=2**30, **SETTINGS, **more)
    second = measure_text(model, byte_tokenizer(), poem(), compare=first.reference, **SETTINGS)
    return first.perplexity, second.perplexity, second.fidelity


@pytest.mark.parametrize("k", [3, 64, VOCAB])
@pytest.mark.parametrize("chunk", [7, 10**6])
def test_equals_one_after_the_other(k, chunk, monkeypatch):
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 4 * VOCAB * chunk)
    original, model = model_of(0), model_of(1, num_attention_heads=2)
    first, second = measure_pair(original, model, byte_tokenizer(), poem(), top_k=k, **SETTINGS)
    assert first.fidelity is None and first.reference is None and second.reference is None
    assert (first.perplexity, second.perplexity, second.fidelity) == one_after_the_other(original, model, top_k=k)
    assert second.fidelity.tokens == second.fidelity.top_k_tokens == first.perplexity.tokens


def test_half_precision_equals_one_after_the_other():
    original, model = model_of(0).to(torch.bfloat16), model_of(1).to(torch.bfloat16)
    _, second = measure_pair(original, model, byte_tokenizer(), poem(), **SETTINGS)
    _, _, fidelity = one_after_the_other(original, model)
    found, wanted = dataclasses.asdict(second.fidelity), dataclasses.asdict(fidelity)
    assert found.pop("sequence_kl") == pytest.approx(wanted.pop("sequence_kl"), rel=1e-6)
    assert found == pytest.approx(wanted, rel=1e-6)


def test_a_model_beside_itself():
    model = model_of().train()
    _, found = measure_pair(model, model, byte_tokenizer(), poem(), **SETTINGS)
    assert found.fidelity.kl == found.fidelity.kl_top_k == 0
    assert found.fidelity.top1_agreement == found.fidelity.top5_agreement == 1
    assert model.training


def test_windows_fit_both_models():
    wide, narrow = model_of(0, max_position_embeddings=64), model_of(1, max_position_embeddings=10)
    for pair in ((wide, narrow), (narrow, wide)):
        for found in measure_pair(*pair, byte_tokenizer(), poem(), name="poem", window=32, stride=16):
            assert (found.perplexity.window, found.perplexity.stride) == (10, 10)


def test_other_vocabularies_are_refused_and_bits_per_byte_offered():
    with pytest.raises(MeasureError, match=f"vocabulary of {VOCAB}, this model one of {VOCAB + 8}.*bits per byte"):
        measure_pair(model_of(), model_of(vocab_size=VOCAB + 8), byte_tokenizer(), poem(), **SETTINGS)


def test_broken_weights_and_no_text_are_refused():
    broken = model_of()
    broken.lm_head.weight.data[5, 5] = float("nan")
    with pytest.raises(MeasureError, match="text 'poem': the logits hold NaN"):
        measure_pair(model_of(), broken, byte_tokenizer(), poem(), **SETTINGS)
    with pytest.raises(DataError, match="text 'poem' has 0 sequences"):
        measure_pair(model_of(), model_of(), byte_tokenizer(), empty(), **SETTINGS)


def empty():
    return dataclasses.replace(poem(), sequences=())


def test_tokenizers():
    assert same_tokenizer(byte_tokenizer(), byte_tokenizer()) is None
    more = byte_tokenizer()
    more.add_tokens(["<extra>"])
    assert same_tokenizer(byte_tokenizer(), more) == f"token '<extra>' is missing in one and {VOCAB} in the other"
    assert same_tokenizer(more, byte_tokenizer()) == f"token '<extra>' is {VOCAB} in one and missing in the other"
    whole = byte_tokenizer()
    whole._tokenizer.pre_tokenizer.add_prefix_space = True  # the same vocabulary, another text
    assert "cut one text in two ways" in same_tokenizer(byte_tokenizer(), whole)
