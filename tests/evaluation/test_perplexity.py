import dataclasses
import math

import pytest
import torch

from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation import scoring
from hf_prune.evaluation.perplexity import measure_text, perplexity, predicted_bytes

from ..tiny import tiny_model, tokens
from .text import POEM, VOCAB, byte_tokenizer, poem, samples_of


def model_of(kind="llama", limit=64, **overrides):
    extra = {"n_positions": limit} if kind == "gpt2" else {}
    return tiny_model(kind, 2, vocab_size=VOCAB, max_position_embeddings=limit, **extra, **overrides)


def brute_force(model, samples, window, stride):
    """Token by token: each is predicted in a forward pass of its own, from the context its window allows."""
    per_window = []
    for ids in samples.sequences:
        ends = [min(window, len(ids) - 1)]
        while ends[-1] < len(ids) - 1:
            ends.append(min(ends[-1] + stride, len(ids) - 1))
        for previous, end in zip([0, *ends], ends, strict=False):
            losses = []
            for position in range(previous, end):
                context = ids[max(0, end - window) : position + 1][None]
                with torch.no_grad():
                    log_probs = model(input_ids=context).logits[0, -1].double().log_softmax(-1)
                losses.append(-float(log_probs[ids[position + 1]]))
            per_window.append(losses)
    total, count = sum(map(sum, per_window)), sum(map(len, per_window))
    spread = sum((sum(w) - total / count * len(w)) ** 2 for w in per_window)
    error = math.sqrt(len(per_window) / (len(per_window) - 1) * spread) / count
    return total / count, error, count


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gemma2"])
@pytest.mark.parametrize("window, stride", [(16, 8), (16, 16), (7, 3), (500, None), (5, 1)])
def test_equals_brute_force(kind, window, stride):
    model, samples = model_of(kind), poem()
    found = perplexity(model, byte_tokenizer(), samples, name="poem", window=window, stride=stride, batch_size=3)
    used = min(window, 64), min(window, 64) // 2 if stride is None else stride
    nll, error, count = brute_force(model, samples, *used)
    assert (found.window, found.stride) == used
    assert found.tokens == count == samples.tokens - len(samples.sequences)
    assert found.nll == pytest.approx(nll, abs=1e-6)
    assert found.standard_error == pytest.approx(error, abs=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nll), rel=1e-6)
    size = sum(len(line.encode()) for line in POEM)
    assert found.bytes == size
    assert found.bits_per_byte == pytest.approx(nll * count / math.log(2) / size, rel=1e-6)
    assert found.name == "poem" and found.data == samples.use


def test_a_uniform_model_has_the_vocabulary_as_perplexity():
    model = model_of()
    for weight in model.lm_head.parameters():
        weight.data.zero_()
    found = perplexity(model, byte_tokenizer(), poem(), name="poem", window=16, stride=8, batch_size=2)
    assert found.nll == pytest.approx(math.log(VOCAB), abs=1e-6)
    assert found.perplexity == pytest.approx(VOCAB, rel=1e-6)
    assert found.standard_error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "opt", "bloom"])
def test_padding_and_batches_change_nothing(kind):
    extra = {"pad_token_id": 0}
    model, samples = model_of(kind, **extra), poem()
    one, many = (
        perplexity(model, byte_tokenizer(), samples, name="poem", window=40, stride=20, batch_size=size)
        for size in (1, 50)
    )
    assert one.nll == pytest.approx(many.nll, abs=1e-6)
    assert one.tokens == many.tokens


def test_parts_of_the_head_change_nothing(monkeypatch):
    model, samples = model_of(), poem()
    whole = perplexity(model, byte_tokenizer(), samples, name="poem", window=16, batch_size=3)
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 4 * VOCAB * 3)
    parts = perplexity(model, byte_tokenizer(), samples, name="poem", window=16, batch_size=3)
    assert parts.nll == pytest.approx(whole.nll, abs=1e-7)
    assert parts.tokens == whole.tokens


def test_bfloat16_logits_are_upcast_before_the_softmax():
    model, samples = model_of().to(torch.bfloat16), poem()
    found = perplexity(model, byte_tokenizer(), samples, name="poem", window=64, stride=64, batch_size=1)
    total = 0.0
    for ids in samples.sequences:
        spans = list(scoring.windows(len(ids), 64, 64))
        for span in spans:
            with torch.no_grad():
                logits = model(input_ids=ids[None, span.start : span.end]).logits[0, span.first - span.start :]
            log_probs = logits.double().log_softmax(-1)
            total -= float(log_probs.gather(-1, ids[span.first + 1 : span.end + 1, None]).sum())
    assert found.nll == pytest.approx(total / found.tokens, rel=1e-3)


def test_bytes_count_whole_characters_however_tokens_split_them():
    tokenizer = byte_tokenizer()
    text = "naïve “thé” 🎻"
    ids = torch.tensor([tokenizer.bos_token_id, *tokenizer(text)["input_ids"], tokenizer.eos_token_id])
    assert predicted_bytes(tokenizer, [ids], "t") == len(text.encode())  # special tokens have none
    assert predicted_bytes(tokenizer, [ids[1:]], "t") == len(text.encode()) - 1  # the first token is not predicted


def test_how_many_sequences_begin_with_bos():
    mixed = samples_of([*poem().sequences[:3], *poem(bos=False).sequences[2:]])
    for samples, expected in ((poem(), 4), (poem(bos=False), 0), (mixed, 3)):
        assert measured(samples).bos_sequences == expected
    tokenizer = byte_tokenizer()
    tokenizer.bos_token = None
    assert perplexity(model_of(), tokenizer, poem(), name="poem", window=16).bos_sequences == 0


def test_bos_is_context_and_never_predicted():
    with_bos, without = measured(poem()), measured(poem(bos=False))
    assert with_bos.tokens == without.tokens + 4  # the first token of the text itself is predicted after BOS
    assert with_bos.bytes == without.bytes + len("TCinN")


def test_less_text_than_one_window():
    short = samples_of([tokens(1, 5)[0]])
    found = measured(short, window=60, stride=30)
    assert (found.tokens, found.window, found.stride) == (4, 60, 30)
    assert found.nll == pytest.approx(alone(model_of(), short.sequences[0]), abs=1e-6)


def alone(model, ids):
    """One forward pass over one sequence."""
    with torch.no_grad():
        log_probs = model(input_ids=ids[None]).logits[0, :-1].double().log_softmax(-1)
    return -float(log_probs.gather(-1, ids[1:, None]).mean())


@pytest.mark.parametrize("sequences", [[], [[5, 6]]])
def test_empty_text_is_refused(sequences):
    samples = dataclasses.replace(poem(), sequences=tuple(torch.tensor(ids) for ids in sequences))
    with pytest.raises(DataError, match=f"text 'poem' has {len(sequences)} sequences with {len(sequences)} tokens"):
        measured(samples)


def test_a_text_shorter_than_one_window_is_told(caplog):
    samples = poem()
    tokens = samples.tokens - len(samples.sequences)
    model = model_of(limit=tokens + 1)
    with caplog.at_level("WARNING", logger="hf_prune"):
        perplexity(model, byte_tokenizer(), samples, name="poem", window=tokens)
        assert not caplog.records
        found = perplexity(model, byte_tokenizer(), samples, name="poem", window=tokens + 1)
    assert [r.getMessage() for r in caplog.records] == [
        f"text 'poem' has {tokens} tokens to predict, fewer than one window of {tokens + 1}: its figures rest on "
        "little"
    ]
    assert (found.tokens, found.window) == (tokens, tokens + 1)


def test_a_window_beyond_the_model_is_clipped_and_told_once(caplog):
    with caplog.at_level("WARNING", logger="hf_prune"):
        found = measured(poem(), window=500, stride=None)
    assert (found.window, found.stride) == (64, 32)
    assert [r.getMessage() for r in caplog.records] == [
        "text 'poem': the model sees 64 tokens at once, so windows have that many, not 500"
    ]


def measured(samples, window=16, stride=8):
    return perplexity(model_of(), byte_tokenizer(), samples, name="poem", window=window, stride=stride)


def test_text_of_special_tokens_only_is_refused():
    samples = samples_of([torch.tensor([1, 2, 2, 2])])
    with pytest.raises(DataError, match="text 'marks'.*decode to no text"):
        perplexity(model_of(), byte_tokenizer(), samples, name="marks", window=8)


def test_a_model_that_is_no_model_is_refused():
    model = model_of()
    model.lm_head.weight.data.mul_(1e6)
    with pytest.raises(MeasureError, match="beyond float64"):
        perplexity(model, byte_tokenizer(), poem(), name="poem", window=8)


def test_figures_do_not_depend_on_training_mode_and_leave_no_trace():
    model = model_of("gpt2", resid_pdrop=0.5).train()
    sequence = samples_of([tokens(1, 40)[0]])
    first, second = (perplexity(model, byte_tokenizer(), sequence, name="t", window=16).nll for _ in range(2))
    assert first == second
    assert model.training
    assert measure_text(model, byte_tokenizer(), sequence, name="t", window=16).reference is None
