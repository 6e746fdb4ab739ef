"""Text sampled from the model: what is drawn, from where, and what is refused."""

from types import SimpleNamespace

import pytest
import torch

from hf_prune import selftext
from hf_prune.errors import ConfigError, DataError, MeasureError
from hf_prune.samples import digest, hash_ids

from .evaluation.text import VOCAB, byte_tokenizer
from .tiny import tiny_config, tiny_model


@pytest.fixture(scope="module")
def model():
    # float64: a rounding error of cached against plain forward passes never turns a draw.
    return tiny_model("llama", 3, vocab_size=VOCAB).double()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def ids_of(samples):
    return [s.tolist() for s in samples.sequences]


def test_reproducible_and_seeded(model, tokenizer):
    one = selftext.generate(model, tokenizer, samples=5, max_length=20, batch_size=2, seed=3)
    again = selftext.generate(model, tokenizer, samples=5, max_length=20, batch_size=2, seed=3)
    other = selftext.generate(model, tokenizer, samples=5, max_length=20, batch_size=2, seed=4)
    assert ids_of(one) == ids_of(again) and one.use == again.use
    assert not one.hashes() & other.hashes()
    assert one.use.dataset is None and one.use.seed == 3 and one.use.max_length == 20
    assert one.use.samples == 5 and one.use.tokens == one.tokens == 100
    assert one.use.sha256 == digest(one.sequences)
    assert all(s.dtype == torch.int64 and s.shape == (20,) and s[0] == tokenizer.bos_token_id for s in one.sequences)
    assert len({s[1].item() for s in one.sequences}) > 1


def test_the_batch_size_changes_nothing(model, tokenizer):
    made = [
        ids_of(selftext.generate(model, tokenizer, samples=7, max_length=12, batch_size=size, seed=0))
        for size in (1, 3, None)
    ]
    assert made[0] == made[1] == made[2]


def test_the_caller_is_left_alone(tokenizer):
    model = tiny_model("llama", 2, vocab_size=VOCAB, attention_dropout=0.5).train()
    model.generation_config.update(top_k=1, temperature=0.1, repetition_penalty=2.0, eos_token_id=5, max_length=4)
    generation, state = model.generation_config.to_dict(), torch.get_rng_state()
    made = selftext.generate(model, tokenizer, samples=4, max_length=12, batch_size=4, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.generation_config.to_dict() == generation and model.training
    assert not any(tensor.is_inference() for tensor in (*made.sequences, *model.parameters(), *model.buffers()))
    plain = tiny_model("llama", 2, vocab_size=VOCAB)
    assert ids_of(made) == ids_of(selftext.generate(plain, tokenizer, samples=4, max_length=12, batch_size=4, seed=0))


@pytest.mark.parametrize(
    "family",
    ["llama", "gpt2", "gemma2", "gemma3_text", "opt", "bloom", "mixtral", "gpt_neox", "falcon", "lfm2", "qwen3_next"],
)
def test_draws_invert_the_models_own_distribution(family, tokenizer, monkeypatch):
    """Every token, from plain forward passes over the whole sequence, past EOS and past sliding windows."""
    monkeypatch.setattr(selftext, "is_degenerate", lambda ids: False)
    model = tiny_model(family, 4, vocab_size=VOCAB)
    samples, length = 6, 30
    made = selftext.generate(model, tokenizer, samples=samples, max_length=length, batch_size=3, seed=1)
    ids = torch.stack(made.sequences)
    uniform = torch.rand(samples, length, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        sums = model(input_ids=ids, use_cache=False).logits.softmax(-1).cumsum(-1)[:, :-1]
    below = torch.nn.functional.pad(sums, (1, 0)).gather(2, ids[:, 1:, None])[..., 0]
    above = sums.gather(2, ids[:, 1:, None])[..., 0]
    slack = 1e-4  # float32 rounding of cached against plain passes; most tokens have 1e-3 and more
    assert bool((below - slack <= uniform[:, 1:]).all()) and bool((uniform[:, 1:] <= above + slack).all())
    assert (above - below).median() > 5 * slack


def test_frequencies_are_those_of_the_model(tokenizer):
    model = tiny_model("llama", 1, vocab_size=VOCAB)
    made = selftext.generate(model, tokenizer, samples=200, max_length=3, batch_size=200, seed=0)
    uniform = torch.rand(20_000, 2, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        drawn = selftext._sample(model, torch.tensor([1]), VOCAB, uniform, lambda count: None)
        p = model(input_ids=torch.tensor([[1]])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.stack(drawn)[:, 1], minlength=VOCAB)
    # Chi-squared over all tokens: mean VOCAB - 1, standard deviation about sqrt(2 VOCAB).
    chi = ((counts - 20_000 * p) ** 2 / (20_000 * p)).sum()
    assert chi < VOCAB + 5 * (2 * VOCAB) ** 0.5
    assert len(made.sequences) == 200


def test_text_goes_on_after_the_end_of_a_document(tokenizer):
    model = tiny_model("llama", 2, vocab_size=VOCAB)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 3
    made = selftext.generate(model, tokenizer, samples=30, max_length=40, batch_size=30, seed=0)
    ended = [s for s in made.sequences if tokenizer.eos_token_id in s[:-10].tolist()]
    assert len(ended) > 5
    assert all(len(set(s[-10:].tolist())) > 5 for s in ended)


def test_start_without_bos_is_eos(model):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    made = selftext.generate(model, tokenizer, samples=3, max_length=5, batch_size=3, seed=0)
    assert {s[0].item() for s in made.sequences} == {tokenizer.eos_token_id}


def test_start_without_bos_and_eos_is_random_and_not_special(model):
    tokenizer = byte_tokenizer(eos=False)
    tokenizer.bos_token = None
    made = selftext.generate(model, tokenizer, samples=60, max_length=4, batch_size=60, seed=0)
    starts = [s[0].item() for s in made.sequences]
    assert len(set(starts)) > 40 and not set(starts) & set(tokenizer.all_special_ids)
    again = selftext.generate(model, tokenizer, samples=60, max_length=4, batch_size=7, seed=0)
    assert [s[0].item() for s in again.sequences] == starts


def test_padding_rows_of_the_vocabulary_are_never_drawn(tokenizer):
    model = tiny_model("llama", 1, vocab_size=VOCAB + 200)
    made = selftext.generate(model, tokenizer, samples=20, max_length=30, batch_size=20, seed=0)
    assert max(s.max().item() for s in made.sequences) < VOCAB


@pytest.mark.parametrize(
    ("ids", "stuck"),
    [
        (list(range(40)), False),
        ([7] * 40, True),
        ([7] * 21 + list(range(100, 119)), True),
        ([7] * 20 + list(range(100, 120)), False),
        (list(range(10)) * 4, True),
        (list(range(11)) * 4, True),  # period 11 of 44, a quarter
        (list(range(12)) * 4, True),
        (list(range(13)) * 3, False),  # a period above a quarter of the length
        (list(range(20)) + [1, 2, 3, 4] * 5, False),  # 16 of 40 tokens repeat
        (list(range(100, 115)) + [1, 2, 3, 4] * 6 + [1], True),  # 21 of 40 do
        ([7] * 15, False),  # too short to tell
    ],
)
def test_degenerate_sequences(ids, stuck):
    assert selftext.is_degenerate(torch.tensor(ids)) is stuck


def test_degenerate_sequences_are_sampled_anew(model, tokenizer, monkeypatch):
    plain = ids_of(selftext.generate(model, tokenizer, samples=20, max_length=10, batch_size=20, seed=0))
    monkeypatch.setattr(selftext, "is_degenerate", lambda ids: bool(ids[1] % 2))
    made = selftext.generate(model, tokenizer, samples=5, max_length=10, batch_size=2, seed=0)
    assert ids_of(made) == [ids for ids in plain if ids[1] % 2 == 0][:5]
    assert made.use.samples == 5


def test_excluded_sequences_do_not_come_up(model, tokenizer):
    plain = selftext.generate(model, tokenizer, samples=6, max_length=10, batch_size=6, seed=0)
    barred = frozenset({hash_ids(plain.sequences[0]), hash_ids(plain.sequences[3])})
    made = selftext.generate(model, tokenizer, samples=4, max_length=10, batch_size=4, seed=0, exclude=barred)
    assert ids_of(made) == [ids_of(plain)[i] for i in (1, 2, 4, 5)]


def test_a_stuck_model_is_given_up(tokenizer):
    model = tiny_model("llama", 2, vocab_size=VOCAB)
    with torch.no_grad():
        model.lm_head.weight.mul_(1e4)
    with pytest.raises(DataError, match=r"only \d of 5 sequences of 40 tokens .* after 20 tries.*--dataset"):
        selftext.generate(model, tokenizer, samples=5, max_length=40, batch_size=2, seed=0)


def test_length_is_clipped_to_the_model(model, tokenizer):
    made = selftext.generate(model, tokenizer, samples=1, max_length=1000, batch_size=1, seed=0)
    assert len(made.sequences[0]) == made.use.max_length == 64


def test_one_token_is_no_sequence(model, tokenizer):
    with pytest.raises(ConfigError, match="max_length=1 .*at least 2"):
        selftext.generate(model, tokenizer, samples=1, max_length=1, batch_size=1, seed=0)


def test_a_tokenizer_of_another_model(tokenizer):
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = "é" * 3
    tokenizer.add_tokens(["é" * 3])
    model = tiny_model("llama", 1, vocab_size=100)
    with pytest.raises(ConfigError, match=r"id 264, but the model has only 100 tokens"):
        selftext.generate(model, tokenizer, samples=1, max_length=5, batch_size=1, seed=0)


def test_a_model_without_a_key_value_cache(tokenizer):
    model = tiny_model("mamba", 2, vocab_size=VOCAB)
    with pytest.raises(DataError, match="'mamba'.*--dataset"):
        selftext.generate(model, tokenizer, samples=1, max_length=5, batch_size=1, seed=0)


@pytest.mark.parametrize(("where", "named"), [(1, "layer 1"), (None, "embeddings")])
def test_nan_names_the_layer(tokenizer, where, named):
    model = tiny_model("llama", 3, vocab_size=VOCAB)
    with torch.no_grad():
        part = model.model.embed_tokens if where is None else model.model.layers[where].mlp.down_proj
        part.weight[...] = float("nan")
    with pytest.raises(MeasureError, match=rf"out of the model's {named} .*float32"):
        selftext.generate(model, tokenizer, samples=1, max_length=5, batch_size=1, seed=0)


def test_batch_fits_the_memory(model):
    assert selftext.fitting_batch_size(model, 64) == 128
    big = SimpleNamespace(
        config=tiny_config(
            "llama",
            80,
            hidden_size=8192,
            num_attention_heads=64,
            num_key_value_heads=8,
            head_dim=128,
            vocab_size=32000,
        ),
        dtype=torch.bfloat16,
    )
    # 2 x 80 layers x 8 heads x 128 x 2 bytes = 320 KiB a token, 640 MiB a sequence of 2048.
    assert selftext.fitting_batch_size(big, 2048) == 3
    assert selftext.fitting_batch_size(big, 131_072) == 1


@pytest.mark.parametrize(
    ("family", "limit"), [("llama", 64), ("gpt2", 64), ("opt", 64), ("mpt", 64), ("bloom", 2048), ("mamba", 2048)]
)
def test_model_limit(family, limit):
    assert selftext.model_limit(tiny_config(family, 2)) == limit


def test_model_limit_of_the_text_part():
    from transformers import Gemma3Config

    config = Gemma3Config(text_config={"max_position_embeddings": 77, "num_hidden_layers": 2})
    assert selftext.model_limit(config) == 77
