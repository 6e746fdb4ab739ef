import math

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation import scoring
from hf_prune.evaluation.fidelity import Reference, choose
from hf_prune.evaluation.perplexity import measure_text, perplexity
from hf_prune.evaluation.topk import Top, likeliest, top_kl
from hf_prune.precision import faster_dtype

from ..tiny import tiny_model
from .text import VOCAB, byte_tokenizer, poem

SETTINGS = {"name": "poem", "window": 16, "stride": 8, "batch_size": 3}


def model_of(seed=0, kind="llama", **overrides):
    return tiny_model(kind, 2, seed=seed, **{"vocab_size": VOCAB, **overrides})


def measured(model, samples=None, **more):
    return measure_text(model, byte_tokenizer(), samples or poem(), **{**SETTINGS, **more})


def log_probs_of(model, samples, window, stride):
    """(predicted tokens, vocabulary), window by window, without any machinery."""
    parts, owners = [], []
    for ids in samples.sequences:
        for span in scoring.windows(len(ids), window, stride):
            with torch.no_grad():
                logits = model(input_ids=ids[None, span.start : span.end]).logits[0]
            parts.append(logits[span.first - span.start :].double().log_softmax(-1))
            owners.append(len(parts[-1]))
    return torch.cat(parts), owners


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_agrees_with_itself(dtype):
    model = model_of().to(dtype)
    reference = measured(model, capture_bytes=2**30).reference
    found = measured(model, compare=reference).fidelity
    assert abs(found.kl) < 1e-9
    assert found.kl_standard_error < 1e-9
    assert found.top1_agreement == found.top5_agreement == 1.0
    assert found.tokens == len(reference.positions) == poem().tokens - len(poem().sequences)
    assert reference.logits.dtype == faster_dtype(model.device, dtype)


def test_equals_brute_force_over_the_whole_vocabulary():
    original, other, samples = model_of(0), model_of(1), poem()
    reference = measured(original, capture_bytes=2**30).reference
    both = measured(other, compare=reference)
    p, owners = log_probs_of(original, samples, 16, 8)
    q, _ = log_probs_of(other, samples, 16, 8)
    kl = (p.exp() * (p - q)).sum(-1)
    assert both.fidelity.kl == pytest.approx(float(kl.mean()), rel=1e-5)
    assert both.fidelity.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
    five = [set(a.tolist()) & set(b.tolist()) for a, b in zip(p.topk(5).indices, q.topk(5).indices, strict=True)]
    assert both.fidelity.top5_agreement == pytest.approx(sum(map(len, five)) / (5 * len(five)))
    assert 0 < both.fidelity.top5_agreement < 1
    sums = torch.stack([part.sum() for part in kl.split(owners)])
    spread = (sums - kl.mean() * torch.tensor(owners)).square().sum()
    error = (len(owners) / (len(owners) - 1) * spread).sqrt() / len(kl)
    assert both.fidelity.kl_standard_error == pytest.approx(float(error), rel=1e-4)
    assert both.perplexity == perplexity(other, byte_tokenizer(), samples, **SETTINGS)  # one pass, same figures


def binned(p, q, k):
    """KL of each row over the k likeliest of p and one bin for the others, in float64, without any machinery."""
    ids = p.topk(k).indices
    kl = (p.gather(-1, ids).exp() * (p.gather(-1, ids) - q.gather(-1, ids))).sum(-1)
    hide = torch.zeros_like(p).scatter_(-1, ids, float("-inf"))
    rest = [(t + hide).exp().sum(-1) for t in (p, q)]
    return kl + rest[0] * (rest[0] / rest[1]).log()


@pytest.mark.parametrize("k", [1, 3, 5, 40])
def test_the_likeliest_tokens_equal_brute_force(k):
    original, other, samples = model_of(0), model_of(1), poem()
    reference = measured(original, capture_bytes=2**30, top_k=k).reference
    found = measured(other, compare=reference).fidelity
    p, _ = log_probs_of(original, samples, 16, 8)
    q, _ = log_probs_of(other, samples, 16, 8)
    kl = binned(p, q, k)
    assert (found.top_k, found.top_k_tokens) == (k, len(kl))
    assert found.kl_top_k == pytest.approx(float(kl.mean()), rel=1e-5)
    lengths = [len(ids) - 1 for ids in samples.sequences]
    assert found.sequence_kl == pytest.approx([float(part.mean()) for part in kl.split(lengths)], rel=1e-4)
    assert found.kl_top_k < found.kl
    five = [set(a.tolist()) & set(b.tolist()) for a, b in zip(p.topk(5).indices, q.topk(5).indices, strict=True)]
    assert found.top5_agreement == pytest.approx(sum(map(len, five)) / (5 * len(five)))
    assert found.top1_agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))


@pytest.mark.parametrize("k", [VOCAB, VOCAB + 100])
def test_all_tokens_are_the_whole_vocabulary(k):
    reference = measured(model_of(0), capture_bytes=2**30, top_k=k).reference
    found = measured(model_of(1), compare=reference).fidelity
    assert found.top_k == VOCAB
    assert found.kl_top_k == pytest.approx(found.kl, rel=1e-12)


@settings(deadline=None)
@given(
    vocabulary=st.integers(2, 40), seed=st.integers(0, 10**6), scale=st.floats(0.0, 40.0), other=st.floats(0.0, 40.0)
)
@example(vocabulary=38, seed=281616, scale=27.5, other=27.25)
def test_fewer_bins_never_raise_the_kl(vocabulary, seed, scale, other):
    generator = torch.Generator().manual_seed(seed)
    p, q = ((torch.randn(3, vocabulary, generator=generator) * s).log_softmax(-1) for s in (scale, other))
    before = p.clone(), q.clone()
    whole = (p.double().exp() * (p.double() - q.double())).sum(-1)
    found = [top_kl(likeliest(p, k), q) for k in range(1, vocabulary + 1)]
    for fewer, more in zip(found, [*found[1:], whole], strict=True):
        assert (fewer <= more * (1 + 1e-5) + 1e-5).all()  # the terms are float32, and as large as the divergence
    assert (found[0] >= -1e-5).all()
    assert torch.equal(p, before[0]) and torch.equal(q, before[1])


def test_a_tail_beyond_the_digits_of_one_minus_the_sum():
    """Where the others have 1e-20 together, the sum of the likeliest is 1 in every precision that torch has."""
    p = torch.tensor([[0.0, -1.0, -2.0]]).log_softmax(-1)
    q = torch.tensor([[60.0, 0.0, 0.0]]).log_softmax(-1)
    rest = 1 - float(p[0, 0].exp())
    expected = float(p[0, 0].exp() * (p[0, 0] - q[0, 0])) + rest * (math.log(rest) - (math.log(2) - 60))
    assert float(top_kl(likeliest(p, 1), q)) == pytest.approx(expected, rel=1e-6)


def test_kl_has_its_direction():
    first, second = model_of(0), model_of(1)
    one = measured(second, compare=measured(first, capture_bytes=2**30).reference).fidelity.kl
    two = measured(first, compare=measured(second, capture_bytes=2**30).reference).fidelity.kl
    assert one > 0 and two > 0 and abs(one - two) > 1e-4


def test_the_budget_bounds_what_is_kept(monkeypatch):
    model, samples = model_of(0), poem()
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 4 * VOCAB * 7)  # chosen positions cross the borders of parts
    top = Top.bytes_each(64, VOCAB)
    few = measured(model, capture_bytes=20 * VOCAB * 4 + 13 * top + 3, seed=1).reference
    assert few.logits.shape == (20, VOCAB)
    assert len(few.top_positions) == 13  # within a quarter of the budget
    assert sum(t.numel() * t.element_size() for t in (few.top.log_probs, few.top.ids, few.top.tail)) == 13 * top
    whole = measured(model, capture_bytes=2**30).reference
    assert torch.equal(few.logits, whole.logits[few.positions])
    assert torch.equal(few.top.ids, whole.top.ids[few.top_positions])
    assert torch.equal(few.top.tail, whole.top.tail[few.top_positions])
    total = samples.tokens - len(samples.sequences)
    stretches = [i for p in few.positions.tolist() for i in range(20) if i * total // 20 <= p < (i + 1) * total // 20]
    assert stretches == list(range(20))  # one in each stretch of the text
    other = model_of(1)
    p, _ = log_probs_of(model, samples, 16, 8)
    q, _ = log_probs_of(other, samples, 16, 8)
    found = measured(other, compare=few).fidelity
    kl = (p.exp() * (p - q)).sum(-1)[few.positions]
    assert (found.tokens, found.top_k_tokens) == (20, 13)
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-5)
    same = (p.argmax(-1) == q.argmax(-1))[few.top_positions]
    assert found.top1_agreement == pytest.approx(float(same.double().mean()))


def test_a_budget_below_one_position_keeps_one():
    reference = measured(model_of(), capture_bytes=1).reference
    assert len(reference.positions) == len(reference.top_positions) == 1


@settings(deadline=None)
@given(total=st.integers(1, 500), count=st.integers(1, 600), seed=st.integers(0, 5))
def test_positions_are_distinct_even_and_seeded(total, count, seed):
    positions = choose(total, count, seed)
    assert len(positions) == min(count, total)
    assert len(set(positions.tolist())) == len(positions)
    assert positions.tolist() == sorted(positions.tolist())
    assert 0 <= int(positions[0]) and int(positions[-1]) < total
    assert torch.equal(positions, choose(total, count, seed))


def test_every_position_is_as_likely():
    counts = torch.zeros(10)
    for seed in range(2000):
        counts[choose(10, 3, seed)] += 1
    assert counts[0] / 2000 == pytest.approx(1 / 3, abs=0.05)
    assert counts[5] / 2000 == pytest.approx(1 / 3, abs=0.05)
    assert counts[9] / 2000 == pytest.approx(1 / 4, abs=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_survives_a_restart(tmp_path, dtype):
    reference = measured(model_of().to(dtype), capture_bytes=2**30).reference
    reference.save(tmp_path / "run" / "reference.safetensors")
    again = Reference.load(tmp_path / "run" / "reference.safetensors")
    assert torch.equal(again.logits, reference.logits) and again.logits.dtype == reference.logits.dtype
    assert torch.equal(again.positions, reference.positions)
    assert torch.equal(again.top_positions, reference.top_positions)
    assert again.top.vocabulary == VOCAB and again.top.ids.dtype == torch.int32
    assert (again.text, again.window, again.stride) == (reference.text, 16, 8)
    assert [f.name for f in (tmp_path / "run").iterdir()] == ["reference.safetensors"]
    other = model_of(1).to(dtype)
    assert measured(other, compare=again).fidelity == measured(other, compare=reference).fidelity


def test_saving_leaves_nothing_when_it_fails(tmp_path, monkeypatch):
    reference = measured(model_of(), capture_bytes=2**20).reference

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("hf_prune.evaluation.fidelity.save_file", full)
    with pytest.raises(OSError, match="No space"):
        reference.save(tmp_path / "reference.safetensors")
    assert not list(tmp_path.iterdir())


def test_damaged_files_are_named(tmp_path):
    path = tmp_path / "reference.safetensors"
    with pytest.raises(DataError, match="reference.safetensors does not hold"):
        Reference.load(path)
    measured(model_of(), capture_bytes=2**20).reference.save(path)
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match="evaluate the original again"):
        Reference.load(path)


@pytest.mark.parametrize("change", [{"window": 15}, {"stride": 4}, {"samples": poem(bos=False)}])
def test_other_tokens_or_windows_do_not_compare(change):
    model = model_of()
    reference = measured(model, capture_bytes=2**20).reference
    with pytest.raises(MeasureError, match="the original was measured on text"):
        measured(model, compare=reference, **change)


def test_another_vocabulary_does_not_compare():
    reference = measured(model_of(), capture_bytes=2**20).reference
    with pytest.raises(MeasureError, match=f"vocabulary of {VOCAB}, this model one of {VOCAB + 8}"):
        measured(model_of(vocab_size=VOCAB + 8), compare=reference)
