"""Where two answers part, against brute force over whole logits."""

import dataclasses
import math

import pytest
import torch
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_prune.errors import MeasureError
from hf_prune.evaluation import scoring
from hf_prune.space import parting
from hf_prune.space.frames import Sampling, Token
from hf_prune.space.pair import Loaded
from hf_prune.space.parting import divergence, part, spoken
from hf_prune.space.prompts import Asked

from ..evaluation.text import VOCAB, byte_tokenizer
from ..slicing.support import base, mixed, sliced_by
from ..tiny import tiny_model

TOKENIZER = byte_tokenizer()
PROMPT = tuple(TOKENIZER("the sea")["input_ids"])
ASKED = Asked(PROMPT, PROMPT, Sampling(), ())
ONE = tuple(TOKENIZER("the thin é in")["input_ids"])
TWO = tuple(TOKENIZER("the wind")["input_ids"])


def pair(model_type: str = "llama", other: int = 1, **overrides: object) -> Loaded:
    models = (tiny_model(model_type, seed=seed, vocab_size=VOCAB, **overrides) for seed in (0, other))
    return Loaded(*models, TOKENIZER, TOKENIZER)


def brute(loaded: Loaded, answer: tuple[int, ...]) -> tuple[list[float], list[list[int]]]:
    ids = torch.tensor([PROMPT + answer])
    logs = []
    with torch.no_grad():
        for model in (loaded.original, loaded.pruned):
            logs.append(model(ids, use_cache=False).logits[0, len(PROMPT) - 1 : -1].double().log_softmax(-1))
    kl = (logs[0].exp() * (logs[0] - logs[1])).sum(-1)
    return kl.tolist(), [log.argmax(-1).tolist() for log in logs]


def check(found: tuple[Token, ...], loaded: Loaded, answer: tuple[int, ...], own: int) -> None:
    kls, likeliest = brute(loaded, answer)
    assert [token.kl for token in found] == pytest.approx(kls, rel=1e-4, abs=1e-7)
    assert [token.agrees for token in found] == [a == b for a, b in zip(*likeliest, strict=True)]
    texts = [TOKENIZER.decode([token]) for token in likeliest[1 - own]]
    assert [token.other for token in found] == texts
    assert "".join(token.text for token in found) == TOKENIZER.decode(answer, skip_special_tokens=True)


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "mamba", "gemma3_text", "bloom"])
def test_brute_force(model_type: str) -> None:
    loaded = pair(model_type)
    found = part(loaded, ASKED, ONE, TWO)
    check(found.original, loaded, ONE, 0)
    check(found.pruned, loaded, TWO, 1)
    assert found.at == next(i for i, (a, b) in enumerate(zip(ONE, TWO, strict=False)) if a != b)
    assert not all(token.agrees for token in found.original)


def test_sliced_against_its_base() -> None:
    decoder = base("llama", dtype=torch.float32, vocab_size=VOCAB)
    whole = tiny_model("llama", vocab_size=VOCAB)
    loaded = Loaded(whole, sliced_by(decoder, mixed(decoder)), TOKENIZER, TOKENIZER)
    found = part(loaded, ASKED, ONE, TWO)
    check(found.original, loaded, ONE, 0)
    check(found.pruned, loaded, TWO, 1)


def test_equal_models_do_not_part() -> None:
    loaded = pair(other=0)
    found = part(loaded, ASKED, ONE, ONE)
    assert found.at is None and found.original == found.pruned
    assert {token.kl for token in found.original} == {0.0} and all(token.agrees for token in found.original)


def test_one_answer_is_the_beginning_of_the_other() -> None:
    loaded = pair()
    assert part(loaded, ASKED, ONE, ONE[:3]).at == 3
    assert part(loaded, ASKED, (), ONE[:3]).at == 0
    nothing = part(loaded, ASKED, (), ())
    assert nothing.at is None and nothing.original == nothing.pruned == ()


def test_an_end_token_adds_no_text_but_is_named() -> None:
    loaded = pair()
    end = TOKENIZER.eos_token_id

    def always_end(_: object, __: object, output: ModelOutput) -> None:
        output.logits[..., end] = 99.0

    for model in (loaded.original, loaded.pruned):
        model.register_forward_hook(always_end)
    found = part(loaded, ASKED, (*ONE, end), (*ONE, end))
    assert found.original[-1].text == "" and found.original[-1].other == "</s>"


def test_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Others write with the same modules meanwhile, which must never answer with what is put in for a moment."""
    loaded = pair()
    ours = {module for model in (loaded.original, loaded.pruned) for module in model.modules()}
    states = [dict(model.named_parameters()) for model in (loaded.original, loaded.pruned)]
    touched: list[torch.nn.Module] = []
    plain = scoring._answering

    def spying(module: torch.nn.Module, answer: object) -> object:
        touched.append(module)
        assert not any(module._forward_hooks for module in ours)
        return plain(module, answer)

    monkeypatch.setattr(scoring, "_answering", spying)
    part(loaded, ASKED, ONE, TWO)
    assert touched and not ours & set(touched)
    for model, before in zip((loaded.original, loaded.pruned), states, strict=True):
        assert all(before[name] is parameter for name, parameter in model.named_parameters())


def test_large_vocabularies_go_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = pair()
    whole = part(loaded, ASKED, ONE, TWO)
    monkeypatch.setattr(scoring, "_CHUNK_BYTES", 3 * 4 * VOCAB)
    rows: list[int] = []
    plain = parting.divergence

    def spying(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        rows.append(len(one))
        return plain(one, other)

    monkeypatch.setattr(parting, "divergence", spying)
    found = part(loaded, ASKED, ONE, TWO)
    assert max(rows) == 3 and sum(rows) == len(ONE) + len(TWO)
    assert [t.kl for t in found.original] == pytest.approx([t.kl for t in whole.original], rel=1e-4, abs=1e-7)


def test_divergence_in_pieces_and_at_extremes() -> None:
    one, other = torch.randn(40, 9) * 30, torch.randn(40, 9) * 30
    p, q = one.double().log_softmax(-1), other.double().log_softmax(-1)
    assert torch.allclose(divergence(one, other), (p.exp() * (p - q)).sum(-1))
    sure = divergence(torch.tensor([[500.0, 0.0]]), torch.tensor([[0.0, 500.0]]))
    assert sure.item() == pytest.approx(500.0)
    assert divergence(one[:1], one[:1]).item() == 0.0
    assert math.isfinite(divergence(one.bfloat16(), other.bfloat16()).sum())


def test_another_size_of_vocabulary_has_no_kl() -> None:
    loaded = pair()
    loaded = dataclasses.replace(loaded, pruned=tiny_model("llama", vocab_size=VOCAB + 8))
    found = part(loaded, ASKED, ONE, TWO)
    assert {token.kl for token in found.original + found.pruned} == {None}
    assert found.at == 2
    assert "".join(token.text for token in found.original) == "the thin é in"


def test_other_tokens_part_by_text() -> None:
    loaded = pair()
    other = byte_tokenizer(pad=False)
    other.add_tokens(["thin"])
    loaded = dataclasses.replace(loaded, pruned_tokenizer=other)
    theirs = tuple(other("the thin wind")["input_ids"])
    found = part(loaded, ASKED, ONE, theirs)
    assert "".join(token.text for token in found.pruned) == "the thin wind"
    shared = "".join(token.text for token in found.original[: found.at])
    assert "the thin wind".startswith(shared) and len(shared) >= len("the thin ")
    assert {token.kl for token in found.original} == {None}
    same = tuple(other("the thin é in")["input_ids"])
    assert same != ONE and part(loaded, ASKED, ONE, same).at is None


def test_a_character_of_several_tokens_comes_with_its_last() -> None:
    ids = tuple(TOKENIZER("a🙂b")["input_ids"])
    assert spoken(TOKENIZER, ids) == ["a", "", "", "", "🙂", "b"]


def test_broken_weights_are_told() -> None:
    loaded = pair()
    broken: PreTrainedModel = loaded.pruned
    broken.lm_head.weight.data[3] = torch.nan
    with pytest.raises(MeasureError, match="NaN or infinity"):
        part(loaded, ASKED, ONE, TWO)
