import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_prune.architecture import FAMILIES
from hf_prune.errors import DataError, MeasureError
from hf_prune.evaluation import scoring
from hf_prune.evaluation.scoring import Window, cut, max_positions, score, windows
from hf_prune.runner import evaluating

from ..tiny import tiny_model, tokens

TYPES = sorted({t for f in FAMILIES for t in f.model_types})


@settings(deadline=None)
@given(length=st.integers(0, 200), window=st.integers(1, 60), data=st.data())
def test_every_token_but_the_first_is_predicted_once_with_all_the_context_there_is(length, window, data):
    stride = data.draw(st.integers(1, window))
    found = list(windows(length, window, stride, 7))
    assert [t + 1 for w in found for t in range(w.first, w.end)] == list(range(1, length))
    for number, span in enumerate(found):
        assert span.sequence == 7
        assert 0 <= span.start <= span.first < span.end <= length - 1
        assert span.end - span.start == min(window, span.end)  # reaches as far back as the window allows
        assert span.end - span.first <= (stride if number else window)


def test_windows_by_hand():
    assert list(windows(11, 4, 2)) == [
        Window(0, 0, 0, 4),
        Window(0, 2, 4, 6),
        Window(0, 4, 6, 8),
        Window(0, 6, 8, 10),
    ]
    assert list(windows(8, 4, 4)) == [Window(0, 0, 0, 4), Window(0, 3, 4, 7)]  # the last one reaches back
    assert list(windows(2, 4, 4)) == [Window(0, 0, 0, 1)]
    assert list(windows(1, 4, 4)) == []


@pytest.mark.parametrize("window, stride", [(4, 5), (0, 1), (4, 0)])
def test_window_and_stride_that_skip_tokens_are_refused(window, stride):
    with pytest.raises(DataError, match="stride"):
        cut(tiny_model("llama", 1), [torch.arange(9)], window, stride, "poem")


@pytest.mark.parametrize("sequences", [[], [torch.tensor([5])], [torch.tensor([5, 6])]])
def test_too_little_text_is_refused(sequences):
    with pytest.raises(DataError, match="text 'poem' has"):
        cut(tiny_model("llama", 1), sequences, 4, 2, "poem")


def test_the_window_is_clipped_to_what_the_model_can_see():
    model = tiny_model("gpt2", 1, n_positions=10, max_position_embeddings=10)
    assert max_positions(model) == 10
    assert cut(model, [torch.arange(30)], 512, None, "poem")[1:] == (10, 5)
    assert cut(model, [torch.arange(30)], 512, 400, "poem")[1:] == (10, 10)
    assert cut(model, [torch.arange(30)], 8, None, "poem")[1:] == (8, 4)


def collect(model, sequences, spans, batch_size=3):
    with torch.inference_mode(), evaluating(model):
        rows = list(score(model, sequences, spans, batch_size, "poem"))
    offsets = [r.offset for r in rows]
    assert offsets == [sum(len(r.logits) for r in rows[:i]) for i in range(len(rows))]
    return (
        torch.cat([r.logits for r in rows]),
        torch.cat([r.targets for r in rows]),
        torch.cat([r.window for r in rows]),
    )


@pytest.mark.parametrize("kind", TYPES)
def test_logits_in_parts_are_the_models_own(kind, monkeypatch):
    """Heads, scalings and soft caps included, whatever the architecture does after its blocks."""
    model = tiny_model(kind)
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 4 * model.config.get_text_config().vocab_size * 5)
    sequences = [tokens(1, n, seed=n)[0] for n in (13, 7, 2)]
    spans, _, _ = cut(model, sequences, 6, 4, "poem")
    logits, targets, window = collect(model, sequences, spans)
    with torch.inference_mode():
        expected = [
            model(input_ids=sequences[w.sequence][None, w.start : w.end], use_cache=False).logits[
                0, w.first - w.start :
            ]
            for w in spans
        ]
    assert targets.tolist() == [int(t) for s in sequences for t in s[1:]]
    assert window.tolist() == [i for i, w in enumerate(spans) for _ in range(w.first, w.end)]
    torch.testing.assert_close(logits, torch.cat(expected), atol=2e-4, rtol=1e-3)


def test_pieces_for_a_processor_are_the_same_rows(monkeypatch):
    model = tiny_model("llama", 2)
    sequences = [tokens(1, n, seed=n)[0] for n in (13, 7, 2)]
    spans, _, _ = cut(model, sequences, 6, 4, "poem")
    expected = collect(model, sequences, spans)
    monkeypatch.setattr(scoring, "_PIECE_BYTES", 4 * model.config.vocab_size * 2)
    assert all(torch.equal(a, b) for a, b in zip(collect(model, sequences, spans), expected, strict=True))
    with torch.inference_mode():
        sizes = [[len(r.logits) for r in score(model, sequences, spans, 9, "poem", whole=w)] for w in (False, True)]
    assert sizes == [[2] * 9 + [1], [19]]


def test_a_model_whose_body_is_unknown_is_scored_too():
    model = tiny_model("llama", 2)
    sequences = [tokens(1, 13)[0]]
    spans, _, _ = cut(model, sequences, 6, 4, "poem")
    expected, _, _ = collect(model, sequences, spans)
    model.get_decoder = lambda: torch.nn.Identity()
    logits, _, _ = collect(model, sequences, spans)
    torch.testing.assert_close(logits, expected)


def test_no_more_logits_at_once_than_the_budget(monkeypatch):
    model = tiny_model("llama", 2)
    sizes = []
    model.lm_head.register_forward_hook(lambda _, __, out: sizes.append(out.shape[:-1].numel()))
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 4 * 96 * 5)
    sequences = [tokens(1, 41)[0]]
    spans, _, _ = cut(model, sequences, 20, 20, "poem")
    collect(model, sequences, spans, batch_size=2)
    assert max(sizes) == 5
    assert sum(sizes) == 40 + 2  # and no position twice, but for one a row that shows the vocabulary


def test_the_model_is_left_as_it_was():
    model = tiny_model("llama", 2)
    model.train()
    model.model.layers[1].eval()
    before = [m.training for m in model.modules()]
    model.model.forward = own = model.model.forward  # as accelerate leaves it
    collect(model, [tokens(1, 9)[0]], list(windows(9, 4, 2)))
    assert [m.training for m in model.modules()] == before
    assert model.model.__dict__["forward"] is own
    assert not model.model._forward_hooks
    del model.model.forward
    collect(model, [tokens(1, 9)[0]], list(windows(9, 4, 2)))
    assert "forward" not in model.model.__dict__


def test_broken_logits_name_text_and_window():
    model = tiny_model("llama", 2, tie_word_embeddings=False)
    sequences = [torch.tensor([3, 4, 5]), torch.tensor([6, 7, 8, 9, 10, 50, 11])]
    model.get_input_embeddings().weight.data[50] = float("nan")
    with pytest.raises(MeasureError, match=r"text 'poem': the logits hold NaN .* sequence 1, tokens 2–5"):
        collect(model, sequences, cut(model, sequences, 4, 2, "poem")[0], batch_size=2)


@pytest.mark.parametrize("value", [float("inf"), float("-inf")])
def test_a_single_infinite_logit_is_noticed(value):
    model = tiny_model("llama", 2)
    model.lm_head.register_forward_hook(lambda _, __, out: out.index_fill(-1, torch.tensor([9]), value))
    with pytest.raises(MeasureError, match="tokens 0–3"):
        collect(model, [tokens(1, 9)[0]], list(windows(9, 4, 2)))
