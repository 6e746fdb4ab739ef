import copy
import logging

import pytest
import torch
import transformers
from transformers import GenerationConfig

from hf_prune.errors import DataError
from hf_prune.evaluation.generation import completions, sampled_completions
from hf_prune.records import Completion

from ..tiny import tiny_model
from .text import VOCAB, byte_tokenizer

PROMPTS = ("The sea is", "in the café")


def model_of(kind="llama", limit=64, **overrides):
    extra = {"n_positions": limit} if kind == "gpt2" else {}
    ids = {"eos_token_id": None, "pad_token_id": None}
    return tiny_model(kind, 2, vocab_size=VOCAB, max_position_embeddings=limit, **ids, **extra, **overrides)


def by_hand(model, ids, new_tokens):
    """Greedy without a cache: one whole forward pass a token."""
    ids = list(ids)
    for _ in range(new_tokens):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_greedy_by_hand(kind):
    model, tokenizer = model_of(kind), byte_tokenizer(eos=False)
    for completion, prompt in zip(completions(model, tokenizer, PROMPTS, 7), PROMPTS, strict=True):
        ids = tokenizer(prompt)["input_ids"]
        expected = by_hand(model, ids, 7)[len(ids) :]
        assert completion == Completion(prompt, tokenizer.decode(expected, skip_special_tokens=True), tuple(expected))


@pytest.mark.parametrize("pad, eos", [(True, True), (False, True), (False, False)])
def test_sampling_settings_do_not_count_and_stay(pad, eos, caplog):
    model, tokenizer = model_of(), byte_tokenizer(pad=pad, eos=eos)
    plain = completions(model, tokenizer, PROMPTS, 6)
    model.generation_config = own = GenerationConfig(
        do_sample=True, temperature=1.7, top_k=3, repetition_penalty=5.0, max_length=4, min_length=3
    )
    before = copy.deepcopy(own.to_dict())
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        assert completions(model, tokenizer, PROMPTS, 6) == plain
    transformers.logging.disable_propagation()
    assert not caplog.records
    assert model.generation_config is own
    assert own.to_dict() == before


def test_ends_where_the_model_ends():
    model, tokenizer = model_of(), byte_tokenizer(eos=False)
    ids = tokenizer(PROMPTS[0])["input_ids"]
    written = by_hand(model, ids, 6)[len(ids) :]
    assert written[0] != written[1]
    model.generation_config.eos_token_id = [written[1], 5]
    assert completions(model, tokenizer, PROMPTS[:1], 6)[0].text == tokenizer.decode(written[:2])


def test_special_tokens_are_left_out():
    model, tokenizer = model_of(), byte_tokenizer()
    model.generation_config.eos_token_id = None
    tokenizer.eos_token = None
    model.lm_head.register_forward_hook(
        lambda _, __, out: torch.zeros_like(out).index_fill(-1, torch.tensor([1]), 1.0)
    )
    assert completions(model, tokenizer, PROMPTS[:1], 4)[0].text == ""  # "<s>" four times


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_stops_at_the_limit_of_the_model(kind):
    model, tokenizer = model_of(kind, limit=12), byte_tokenizer(eos=False)
    ids = tokenizer(PROMPTS[0])["input_ids"]
    expected = by_hand(model, ids, 12 - len(ids))[len(ids) :]
    assert completions(model, tokenizer, PROMPTS[:1], 40)[0].text == tokenizer.decode(expected)


def test_prompts_that_do_not_fit_are_refused_before_any_work():
    model = model_of(limit=12)
    calls = []
    model.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(DataError, match=r"'The sea is calm to-night.* the model sees 12"):
        completions(model, byte_tokenizer(), ("in", "The sea is calm to-night"), 4)
    with pytest.raises(DataError, match="the prompt '' has no tokens"):
        completions(model, byte_tokenizer(), ("in", ""), 4)
    assert not calls


def test_modes_are_restored_when_generation_fails():
    model = model_of().train()
    own = model.generation_config

    def stop(*_):
        raise RuntimeError("out of memory")

    handle = model.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="out of memory"):
        completions(model, byte_tokenizer(), PROMPTS, 4)
    handle.remove()
    assert model.training and model.generation_config is own


def drawn(model, tokenizer, prompts=PROMPTS, new_tokens=7, **changes):
    settings = {"temperature": 0.7, "top_p": 0.8, "seed": 5} | changes
    return sampled_completions(model, tokenizer, prompts, new_tokens, **settings)


def by_hand_drawn(model, ids, new_tokens, temperature, top_p, seed):
    """One whole forward pass a token; the smallest set of likeliest tokens that has `top_p` is drawn from."""
    ids = list(ids)
    torch.manual_seed(seed)
    for _ in range(new_tokens):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1]
        probabilities = (logits / temperature).softmax(-1)
        values, order = probabilities.sort(descending=True)
        kept = order[: int((values.cumsum(-1) < top_p).sum()) + 1]
        left = torch.zeros_like(probabilities).index_put((kept,), probabilities[kept])
        ids.append(int(torch.multinomial(left / left.sum(), 1)))
    return ids


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("temperature, top_p", [(0.7, 0.8), (1.5, 1.0)])
def test_draws_by_hand(kind, temperature, top_p):
    model, tokenizer = model_of(kind), byte_tokenizer(eos=False)
    found = drawn(model, tokenizer, temperature=temperature, top_p=top_p)
    for number, (completion, prompt) in enumerate(zip(found, PROMPTS, strict=True)):
        ids = tokenizer(prompt)["input_ids"]
        expected = by_hand_drawn(model, ids, 7, temperature, top_p, 5 + number)[len(ids) :]
        text = tokenizer.decode(expected, skip_special_tokens=True)
        assert completion == Completion(prompt, text, tuple(expected), "sampled", 5 + number)


def test_draws_repeat_and_leave_the_callers_generator_alone():
    model, tokenizer = model_of(), byte_tokenizer(eos=False)
    torch.manual_seed(77)
    before = torch.get_rng_state()
    first = drawn(model, tokenizer)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(78)
    assert drawn(model, tokenizer) == first
    assert drawn(model, tokenizer, seed=6)[0].tokens == drawn(model, tokenizer, prompts=("x", PROMPTS[0]))[1].tokens
    assert drawn(model, tokenizer, seed=6)[0].tokens != first[0].tokens


def test_gpus_that_the_model_is_not_on_are_not_seeded(monkeypatch):
    def seed_all(seed):
        raise AssertionError(f"the GPUs' generators are seeded with {seed}")

    model = model_of()
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seed_all)
    drawn(model, byte_tokenizer())


def test_the_generator_is_restored_when_generation_fails():
    model = model_of()
    before = torch.get_rng_state()

    def stop(*_):
        raise RuntimeError("out of memory")

    model.register_forward_pre_hook(stop)
    with pytest.raises(RuntimeError, match="out of memory"):
        drawn(model, byte_tokenizer())
    assert torch.equal(torch.get_rng_state(), before)


def test_next_to_no_temperature_is_greedy():
    model, tokenizer = model_of(), byte_tokenizer(eos=False)
    greedy = completions(model, tokenizer, PROMPTS, 7)
    assert [c.tokens for c in drawn(model, tokenizer, temperature=1e-4)] == [c.tokens for c in greedy]
    assert [c.tokens for c in drawn(model, tokenizer, top_p=1e-9)] == [c.tokens for c in greedy]
