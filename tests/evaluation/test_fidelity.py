import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation import scoring
from hf_prune.evaluation.fidelity import Reference, choose
from hf_prune.evaluation.perplexity import measure_text, perplexity
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


def test_kl_has_its_direction():
    first, second = model_of(0), model_of(1)
    one = measured(second, compare=measured(first, capture_bytes=2**30).reference).fidelity.kl
    two = measured(first, compare=measured(second, capture_bytes=2**30).reference).fidelity.kl
    assert one > 0 and two > 0 and abs(one - two) > 1e-4


def test_the_budget_bounds_what_is_kept(monkeypatch):
    model, samples = model_of(0), poem()
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 4 * VOCAB * 7)  # chosen positions cross the borders of parts
    few = measured(model, capture_bytes=20 * VOCAB * 4 + 3, seed=1).reference
    assert few.logits.shape == (20, VOCAB)
    whole = measured(model, capture_bytes=2**30).reference
    assert torch.equal(few.logits, whole.logits[few.positions])
    total = samples.tokens - len(samples.sequences)
    stretches = [i for p in few.positions.tolist() for i in range(20) if i * total // 20 <= p < (i + 1) * total // 20]
    assert stretches == list(range(20))  # one in each stretch of the text
    other = model_of(1)
    p, _ = log_probs_of(model, samples, 16, 8)
    q, _ = log_probs_of(other, samples, 16, 8)
    found = measured(other, compare=few).fidelity
    kl = (p.exp() * (p - q)).sum(-1)[few.positions]
    assert found.tokens == 20
    assert found.kl == pytest.approx(float(kl.mean()), rel=1e-5)


def test_a_budget_below_one_position_keeps_one():
    assert len(measured(model_of(), capture_bytes=1).reference.positions) == 1


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
