"""Self-data distillation: the original answers the prompts of a dataset, and its answers are learned."""

import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from hf_prune import self_distill
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.errors import DataError
from hf_prune.output import Finished
from hf_prune.pruner import Pruner
from hf_prune.run_folder import RunFolder
from hf_prune.samples import Samples, digest, hash_ids
from hf_prune.saving import RECORDS
from hf_prune.self_distill import Answers
from hf_prune.texts import Texts

from .chats import CHAT_VOCAB, chat_tokenizer, turns, written
from .cli.support import fast, recipe
from .tiny import tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", 2, vocab_size=CHAT_VOCAB)


@pytest.fixture(scope="module")
def tokenizer():
    return chat_tokenizer()


def prompts(*lengths: int, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(5, CHAT_VOCAB, (n,), generator=generator) for n in lengths]


def answered(model, tokenizer, asked, samples=100, tokens=None, **options):
    answers = Answers(model, tokenizer, **{"max_length": 24, "seed": 3, **options})
    return list(answers.to(iter(asked), samples=samples, tokens=tokens)), answers


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "bloom", "mixtral", "lfm2"])
def test_answers_invert_the_models_own_distribution(family, tokenizer):
    """Every token of every answer, from plain forward passes; prompts of all lengths share batches."""
    model = tiny_model(family, 4, vocab_size=CHAT_VOCAB)
    asked = prompts(3, 9, 4, 4, 12, 7)
    found, answers = answered(model, tokenizer, asked, batch_size=4)
    assert len(found) + answers.empty + answers.stuck == answers.asked == 6 and len(found) > 3
    uniform = torch.rand(6, 24, generator=torch.Generator().manual_seed(3))
    ends, widths = {tokenizer.eos_token_id, model.generation_config.eos_token_id}, []
    for ids, mask in found:
        [draws] = [row for prompt, row in zip(asked, uniform, strict=True) if torch.equal(ids[~mask], prompt)]
        prompt = ids[~mask]
        assert mask[len(prompt) :].all() and (len(ids) == 24 or int(ids[-1]) in ends)
        assert not ends & set(ids[mask][:-1].tolist())
        with torch.no_grad():
            sums = model(input_ids=ids[None], use_cache=False).logits[0].softmax(-1).cumsum(-1)
        for at in range(len(prompt), len(ids)):
            token = int(ids[at])
            below = float(sums[at - 1, token - 1]) if token else 0.0
            assert below - 1e-4 <= float(draws[at]) <= float(sums[at - 1, token]) + 1e-4
            widths.append(float(sums[at - 1, token]) - below)
    assert torch.tensor(widths).median() > 5e-4


def test_neither_batch_size_nor_number_change_an_answer(model, tokenizer):
    asked = prompts(*range(3, 15))
    whole, _ = answered(model, tokenizer, asked, batch_size=12)
    for options in ({"batch_size": 1}, {"batch_size": 5}, {"batch_size": 2, "tokens": 60}, {"samples": 4}):
        some, _ = answered(model, tokenizer, asked, **options)
        count = min(len(some), 4)
        assert count and all(torch.equal(a, b) for (a, _), (b, _) in zip(some[:count], whole, strict=False))


def test_no_more_prompts_are_answered_than_tokens_are_wanted(model, tokenizer):
    stream = iter(prompts(*[6] * 60))
    found = Answers(model, tokenizer, max_length=24, seed=3, batch_size=50).to(stream, samples=60, tokens=100)
    total = 0
    for ids, _ in found:
        total += len(ids)
        if total >= 100:
            break
    assert len(list(stream)) > 45


def test_answers_end_and_empty_ones_are_left_out(tokenizer):
    model = tiny_model("llama", 2, vocab_size=CHAT_VOCAB)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] *= 4
    found, answers = answered(model, tokenizer, prompts(*[5] * 40), max_length=40)
    assert answers.empty > 2 and len(found) + answers.empty + answers.stuck == 40
    assert sum(len(ids) < 40 for ids, _ in found) > 5
    assert all(int(ids[5]) != tokenizer.eos_token_id for ids, _ in found)


def test_the_models_own_end_tokens_end_answers(model, tokenizer):
    ends = tiny_model("llama", 2, vocab_size=CHAT_VOCAB)
    ends.generation_config.eos_token_id = list(range(0, CHAT_VOCAB, 2))
    found, _ = answered(ends, tokenizer, prompts(*[5] * 10))
    assert found and all(int(ids[-1]) % 2 == 0 or len(ids) == 24 for ids, _ in found)
    assert all((ids[mask][:-1] % 2 == 1).all() for ids, mask in found)


def test_a_model_that_never_answers_is_given_up(tokenizer, monkeypatch):
    monkeypatch.setattr(self_distill, "_HOPELESS", 8)
    silent = tiny_model("llama", 1, vocab_size=CHAT_VOCAB)
    silent.generation_config.eos_token_id = list(range(CHAT_VOCAB))
    endless = (torch.tensor([5, 5 + number % 200, 5 + number // 200]) for number in itertools.count())
    found, answers = answered(silent, tokenizer, itertools.islice(endless, 40), samples=2)
    assert not found and answers.empty == answers.asked == 8


def test_stuck_answers_and_repeated_prompts_are_left_out(model, tokenizer, monkeypatch):
    asked = prompts(4, 5, 6, 7)
    monkeypatch.setattr(self_distill.selftext, "is_degenerate", lambda ids: len(ids) == 24 - 6)
    found, answers = answered(model, tokenizer, [*asked, asked[0]])
    assert (answers.asked, answers.stuck, answers.repeated) == (4, 1, 1)
    assert [int((~mask).sum()) for _, mask in found] == [4, 5, 7]


def texts(path, run, original, tokenizer, **fields):
    settings = {"steps": 8, "batch_size": 2, "max_length": 60, "tokens": 10**5, "held_out_samples": 3, **fields}
    healing = HealingConfig(dataset=path, self_distill=True, **settings)
    config = PrunerConfig(drop_layers=1, healing=healing)
    return Texts(config, tokenizer, 64, "digest", RunFolder(run), original, progress=False), healing


@pytest.fixture
def chats(tmp_path):
    rows = [{"messages": turns(f"number {i}?", "first", f"and {i}?", "the dataset's own answer")} for i in range(14)]
    return written(tmp_path / "chat.jsonl", rows)


def asked_in(samples: Samples, tokenizer) -> set[str]:
    return {tokenizer.decode(ids[~mask]) for ids, mask in zip(samples.sequences, samples.learned, strict=True)}


def test_the_last_question_is_answered_anew(chats, tmp_path, model, tokenizer):
    made, healing = texts(chats, tmp_path / "run", lambda: model, tokenizer, messages_column="messages", max_length=64)
    with pytest.raises(DataError, match="none of the 14 conversations"):
        made.held_out(healing)  # prompts of more than three quarters of the length leave no room
    short = written(tmp_path / "short.jsonl", [{"messages": turns(f"n {i}", "own")} for i in range(14)])
    made, healing = texts(short, tmp_path / "run", lambda: model, tokenizer, messages_column="messages")
    held_out, trained = made.held_out(healing), made.healing(healing)
    assert (held_out.use.answers, trained.use.answers, trained.use.dataset) == ("original", "original", "short.jsonl")
    expected = {
        tokenizer.apply_chat_template(turns(f"n {i}"), tokenize=False, add_generation_prompt=True) for i in range(14)
    }
    asked = asked_in(trained, tokenizer)
    assert asked < expected and asked_in(held_out, tokenizer) < expected and len(held_out.sequences) == 3
    assert not asked & asked_in(held_out, tokenizer) and len(asked) == 11
    assert trained.use.sha256 == digest(trained.sequences, trained.learned)
    assert set(made.sampled_files()) == {made._run.tokens("held-out"), made._run.tokens("healing")}

    def never():
        raise AssertionError("the answers lie in the run folder")

    again, _ = texts(short, tmp_path / "run", never, tokenizer, messages_column="messages")
    assert again.healing(healing).use == trained.use


def test_the_original_goes_on_with_the_first_half_of_a_text(tmp_path, model, tokenizer):
    path = tmp_path / "text.jsonl"
    path.write_text("".join(json.dumps({"text": f"{i:03} " * 40}) + "\n" for i in range(200)))
    made, healing = texts(str(path), tmp_path / "run", lambda: model, tokenizer, max_length=40)
    trained = made.healing(healing)
    assert trained.use.samples == 16 and trained.use.answers == "original"
    for ids, mask in zip(trained.sequences, trained.learned, strict=True):
        assert int((~mask).sum()) == 20 and len(ids) <= 40
        assert tokenizer.decode(ids[~mask]).split()[0].isdigit()
    assert not made.held_out(healing).prompts() & trained.prompts()


def test_a_model_that_answers_nothing_is_named(chats, tmp_path, tokenizer):
    silent = tiny_model("llama", 1, vocab_size=CHAT_VOCAB)
    silent.generation_config.eos_token_id = list(range(CHAT_VOCAB))
    short = written(tmp_path / "short.jsonl", [{"messages": turns(f"n {i}")} for i in range(5)])
    made, healing = texts(short, tmp_path / "run", lambda: silent, tokenizer, messages_column="messages")
    with pytest.raises(DataError, match=r"answered 5 prompts .* none of them usably \(5 answers are empty"):
        made.healing(healing)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "chat-base"
    tiny_model("llama", 4, vocab_size=CHAT_VOCAB).save_pretrained(folder)
    chat_tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.parametrize("distilled", [False, True])
def test_from_a_file_of_chats_to_a_healed_model(base, tmp_path, monkeypatch, distilled):
    fast(monkeypatch)
    rows = [{"messages": turns(f"n {i}", f"it is {'i' * (i % 9)}")} for i in range(30)]
    path = written(tmp_path / "chat.jsonl", rows)
    healing = {
        "dataset": path, "messages_column": "messages", "self_distill": distilled, "packing": not distilled,
        "max_length": 60, "held_out_samples": 5,
    }  # fmt: skip
    pruner = Pruner.from_pretrained(base, recipe(layers=[1], healing=healing), progress=False)
    record = pruner.heal()
    held_out, trained = pruner.texts.held_out(pruner.config.healing), pruner.texts.healing(pruner.config.healing)
    answers = "original" if distilled else "dataset"
    assert (record.data.dataset, record.data.answers, record.held_out_data.answers) == ("chat.jsonl", answers, answers)
    assert record.settings["messages_column"] == "messages" and record.settings["packing"] is not distilled
    assert record.held_out.tokens == sum(int(mask.sum()) for mask in held_out.learned) < held_out.tokens
    assert record.data.samples == len(trained.sequences) and math.isfinite(record.held_out.merged)
    assert not trained.hashes() & held_out.hashes()
    folder = pruner.save_pretrained(tmp_path / "out")
    finished = Finished.load(folder)
    assert finished.healing.data == record.data and "chat.jsonl" in (folder / "README.md").read_text()
    shipped = (folder / RECORDS / "healing_tokens.safetensors").is_file()
    assert shipped is distilled  # what the model wrote nobody can look up elsewhere
    if distilled:
        again = Samples.load(folder / RECORDS / "healing_tokens.safetensors", record.data)
        assert digest(again.sequences, again.learned) == record.data.sha256
        assert hash_ids(again.sequences[0]) == hash_ids(trained.sequences[0])
    assert AutoTokenizer.from_pretrained(folder).chat_template
