"""Chat as healing text: the assistant's tokens alone are learned, and everything else about it is said or refused."""

import json

import pyarrow.parquet
import pytest
import torch
from tokenizers.processors import TemplateProcessing

from hf_prune import calibration
from hf_prune.chat import Conversations
from hf_prune.config import HealingConfig, PrunerConfig
from hf_prune.errors import ConfigError, DataError
from hf_prune.healing.held_out import held_out_loss, predicted_tokens
from hf_prune.methods import METHODS
from hf_prune.run_folder import RunFolder
from hf_prune.samples import digest
from hf_prune.texts import Texts

from .chats import CHANGING, CHAT_VOCAB, CHATML, MARKED, STRICT, chat_tokenizer, turns, written
from .tiny import tiny_model

TALK = turns("hello", "hi there", "and now", "the end")
SYSTEM = turns("who?", "the bot", system="be kind")


def rendered(conversation, template=CHATML, room=1000, tokenizer=None):
    tokenizer = tokenizer or chat_tokenizer(template)
    found = list(Conversations(tokenizer, room, frozenset()).of([json.dumps(conversation)]))
    return [(tokenizer.decode(ids), tokenizer.decode(ids[mask])) for ids, mask in found]


def load(path, tokenizer=None, **fields):
    settings = {"max_length": 200, "messages_column": "messages", **fields}
    return calibration.load(
        HealingConfig(dataset=path, **settings),
        stage="healing",
        method=METHODS["uidl"],
        tokenizer=tokenizer or chat_tokenizer(),
        limit=10_000,
        samples=100,
        shared=False,
    )


@pytest.mark.parametrize("template", [CHATML, MARKED])
@pytest.mark.parametrize(
    ("conversation", "said"),
    [
        (TALK, "hi there<|im_end|>the end<|im_end|>"),
        (SYSTEM, "the bot<|im_end|>"),
        (turns("ask", "say", "ask again"), "say<|im_end|>"),  # the last question has no answer
    ],
)
def test_what_the_assistant_says_is_learned_with_its_end(template, conversation, said):
    [(whole, learned)] = rendered(conversation, template)
    assert learned == said
    expected = chat_tokenizer(template).apply_chat_template(conversation, tokenize=False)
    assert whole == expected


def test_an_answer_to_nothing_is_not_learned():
    first = [{"role": "assistant", "content": "welcome"}, *turns("hello", "hi")]
    assert rendered(first)[0][1] == "hi<|im_end|>"


def test_answers_without_a_word_are_not_learned():
    call = {"role": "assistant", "tool_calls": [{"name": "look"}]}
    talk = [TALK[0], call, {"role": "tool", "content": "42"}, {"role": "assistant", "content": "it is 42"}]
    for template in (CHATML, MARKED):
        assert rendered(talk, template)[0][1] == "it is 42<|im_end|>"
        assert rendered(turns("hello", " "), template) == []


def test_contents_in_parts_are_joined_where_all_are_text(tmp_path, caplog):
    parts = [{"type": "text", "text": "hi "}, {"type": "text", "text": "there"}]
    image = [{"type": "image", "url": "cat.png"}, {"type": "text", "text": "there"}]
    rows = [{"messages": [TALK[0], {"role": "assistant", "content": each}]} for each in (parts, image)]
    tokenizer = chat_tokenizer()
    samples = load(written(tmp_path / "chat.jsonl", rows), tokenizer)
    [ids], [mask] = samples.sequences, samples.learned
    assert tokenizer.decode(ids[mask]) == "hi there<|im_end|>"
    assert "of 2 conversations, 1 were left out, as the chat template does not take them (its content" in caplog.text


def test_a_token_across_the_border_of_a_turn_belongs_to_the_one_it_begins_in():
    """Without special tokens, "the" lies across the borders of "…t", "he", and "…t", "hen"."""
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }} t{% else %}{{ m.content }}{% endif %}"
        "{% endfor %}"
    )
    talk = turns("a", "he said t", "he end?", "so")
    assert rendered(talk, template) == [("a the said the end? tso", " said theso")]
    changing = template.replace("{{ m.content }}{% endif", "{% if loop.last %}!{% endif %}{{ m.content }}{% endif")
    with pytest.raises(DataError, match="otherwise when more follows"):
        rendered(talk, changing)


def test_a_tokenizer_that_ends_texts_does_not_end_prompts():
    tokenizer = chat_tokenizer(None)
    end = tokenizer.eos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"<s> $A {end}", special_tokens=[("<s>", 1), (end, tokenizer.eos_token_id)]
    )
    pair = ["What is it? ", "the sea"]
    assert rendered(pair, tokenizer=tokenizer) == [(f"<s>What is it? the sea{end}", f"the sea{end}")]
    [prompt] = Conversations(tokenizer, 100, frozenset()).prompts([json.dumps(pair)])
    assert tokenizer.decode(prompt) == "<s>What is it? "


def test_templates_that_rewrite_earlier_turns_are_refused():
    assert rendered(turns("a", "b"), CHANGING)[0][1] == "<think></think>b<|im_end|>"
    with pytest.raises(DataError, match=r"otherwise when more follows.*\{% generation %\}"):
        rendered(TALK, CHANGING)


def test_no_template_says_what_to_do(tmp_path):
    path = written(tmp_path / "chat.jsonl", [{"messages": TALK}])
    with pytest.raises(DataError, match="has no chat template.*chat_template.jinja.*prompt,completion"):
        load(path, chat_tokenizer(None))


def test_conversations_that_the_template_refuses_are_counted(tmp_path, caplog):
    wrong = [TALK[0], TALK[0]]
    rows = [{"messages": TALK}, {"messages": wrong}, {"messages": SYSTEM[1:]}]
    samples = load(written(tmp_path / "chat.jsonl", rows), chat_tokenizer(STRICT))
    assert samples.use.samples == 2
    assert "of 3 conversations, 1 were left out, as the chat template does not take them (roles must" in caplog.text
    with pytest.raises(
        DataError, match=r"none of the 1 conversations .* 1 are none that .* \(roles must take turns\)"
    ):
        load(written(tmp_path / "wrong.jsonl", [{"messages": wrong}]), chat_tokenizer(STRICT))


def test_long_conversations_are_cut_and_those_without_an_answer_left_out(tmp_path, caplog):
    long, late = turns("hi", "a" * 300), turns("q" * 300, "yes")
    rows = [{"messages": TALK}, {"messages": long}, {"messages": late}, {"messages": turns("alone")}]
    samples = load(written(tmp_path / "chat.jsonl", rows))
    assert sorted(map(len, samples.sequences))[-1] == 200 and samples.use.samples == 2
    assert all(bool(mask[1:].any()) and len(mask) == len(ids) for ids, mask in
               zip(samples.sequences, samples.learned, strict=True))  # fmt: skip
    assert "of 4 conversations, 2 were left out, as their first 200 tokens hold no answer" in caplog.text
    assert "of 4 conversations, 2 were cut off at 200 tokens" in caplog.text


def test_the_record_says_that_answers_alone_are_learned(tmp_path):
    samples = load(written(tmp_path / "chat.jsonl", [{"messages": TALK}, {"messages": SYSTEM}]))
    assert (samples.use.dataset, samples.use.answers) == ("chat.jsonl", "dataset")
    assert samples.use.sha256 == digest(samples.sequences, samples.learned) != digest(samples.sequences)


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
def test_local_files(tmp_path, ending):
    rows = [{"id": 1, "messages": TALK}, {"id": 2, "messages": SYSTEM}, {"id": 3, "messages": None}]
    path = tmp_path / f"chat.{ending}"
    if ending == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif ending == "json":
        path.write_text(json.dumps(rows))
    else:
        written(path, rows)
    tokenizer = chat_tokenizer()
    samples = load(str(path), tokenizer)
    said = {tokenizer.decode(ids[mask]) for ids, mask in zip(samples.sequences, samples.learned, strict=True)}
    assert said == {"hi there<|im_end|>the end<|im_end|>", "the bot<|im_end|>"}


def test_prompts_and_completions_of_text_need_no_template(tmp_path):
    path = written(tmp_path / "pairs.jsonl", [{"prompt": "What is it? ", "completion": "the sea"}])
    tokenizer = chat_tokenizer(None)
    samples = load(path, tokenizer, messages_column="prompt, completion")
    [ids], [mask] = samples.sequences, samples.learned
    assert (
        tokenizer.decode(ids) == "What is it? the sea<|im_end|>" and tokenizer.decode(ids[mask]) == "the sea<|im_end|>"
    )


def test_a_token_across_the_border_is_cut_in_two(tmp_path):
    """ "t" and "he" would be one token; whoever asks the model cuts the prompt alone."""
    tokenizer = chat_tokenizer(None)
    path = written(tmp_path / "pairs.jsonl", [{"prompt": "say t", "completion": "he"}])
    samples = load(path, tokenizer, messages_column="prompt,completion")
    [ids], [mask] = samples.sequences, samples.learned
    assert tokenizer.decode(ids[~mask]) == "say t" and tokenizer.decode(ids[mask]) == "he<|im_end|>"
    assert ids[~mask].tolist() == tokenizer("say t")["input_ids"]


def test_prompts_and_completions_of_messages_are_one_conversation(tmp_path):
    path = written(tmp_path / "pairs.jsonl", [{"prompt": TALK[:3], "completion": TALK[3:]}])
    whole = load(written(tmp_path / "chat.jsonl", [{"messages": TALK}]))
    assert load(path, messages_column="prompt,completion").use.sha256 == whole.use.sha256


@pytest.mark.parametrize(
    ("row", "column", "match"),
    [
        (
            {"conversation": TALK},
            "conversations",
            "no column 'conversations'.*Did you mean 'conversation'.*--heal-messages-",
        ),
        ({"messages": "hello"}, "messages", "column 'messages' .* holds str; expected one column of lists"),
        ({"a": TALK, "b": "hi"}, "a,b", "columns 'a' and 'b' .* hold list and str"),
        ({"messages": [{"from": "human", "value": "hi"}]}, "messages", "keys from, value; expected 'role'"),
        ({"messages": ["hi"]}, "messages", "a message in column 'messages' .* has str"),
    ],
)
def test_what_is_no_chat_is_refused(tmp_path, row, column, match):
    with pytest.raises(DataError, match=match):
        load(written(tmp_path / "chat.jsonl", [row]), messages_column=column)


@pytest.mark.parametrize(
    ("fields", "match"),
    [
        ({"messages_column": "messages", "dataset": None}, "messages_column='messages' needs a dataset"),
        ({"messages_column": "messages"}, "messages_column='messages' needs a dataset"),  # the calibration's: none
        ({"self_distill": True}, "self_distill needs a dataset"),
        ({"messages_column": "messages", "dataset": "paper"}, "holds text and no messages"),
    ],
)
def test_chat_from_nowhere_is_refused_at_once(fields, match):
    config = PrunerConfig(drop_layers=1, healing=HealingConfig(**fields))
    with pytest.raises(ConfigError, match=match):
        calibration.shares(config, "healing")


def test_held_out_loss_counts_answers_alone(tmp_path):
    model = tiny_model("llama", 2, vocab_size=CHAT_VOCAB, max_position_embeddings=256)
    samples = load(written(tmp_path / "chat.jsonl", [{"messages": TALK}, {"messages": SYSTEM}]))
    total = count = 0
    for ids, mask in zip(samples.sequences, samples.learned, strict=True):
        with torch.no_grad():
            chances = model(input_ids=ids[None]).logits[0].log_softmax(-1)
        for at in range(1, len(ids)):
            if mask[at]:
                total, count = total - float(chances[at - 1, ids[at]]), count + 1
    assert predicted_tokens(samples) == count < samples.tokens - 2
    assert held_out_loss(model, samples, batch_size=2) == pytest.approx(total / count, rel=1e-6)


def texts(path, run, tokenizer=None, **fields):
    healing = HealingConfig(
        dataset=path, messages_column="messages", steps=50, batch_size=2, max_length=100, held_out_samples=4,
        **{"tokens": 10**6, **fields},
    )  # fmt: skip
    config = PrunerConfig(drop_layers=1, healing=healing)
    made = Texts(config, tokenizer or chat_tokenizer(), 1000, "digest", RunFolder(run), lambda: None, progress=False)
    return made, healing


@pytest.fixture
def chats(tmp_path):
    return written(
        tmp_path / "chat.jsonl", [{"messages": turns(f"number {i}?", "it is " + "i" * i)} for i in range(30)]
    )


def test_held_out_chat_is_never_trained_on(chats, tmp_path):
    made, healing = texts(chats, tmp_path / "run")
    held_out, trained = made.held_out(healing), made.healing(healing)
    assert (held_out.use.samples, trained.use.samples) == (4, 26) and held_out.learned is not None
    assert not held_out.hashes() & trained.hashes()
    again, _ = texts(chats, tmp_path / "run", chat_tokenizer(MARKED))  # what lies in the run folder is not read again
    assert again.healing(healing).use == trained.use
    assert [m.tolist() for m in again.healing(healing).learned] == [m.tolist() for m in trained.learned]


@pytest.mark.parametrize("packing", [False, True])
def test_reading_stops_one_batch_behind_the_token_budget(tmp_path, packing):
    text = tmp_path / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"{i:04} " * 20}) + "\n" for i in range(400)))
    read = {}
    for budget in (1600, 10**6):
        healing = HealingConfig(
            dataset=str(text), steps=100, batch_size=4, max_length=100, tokens=budget, held_out_samples=4,
            packing=packing,
        )  # fmt: skip
        config = PrunerConfig(drop_layers=1, healing=healing)
        made = Texts(
            config, chat_tokenizer(), 1000, "digest", RunFolder(tmp_path / "run"), lambda: None, progress=False
        )
        read[budget] = made.healing(healing)
    assert 1600 + 400 <= read[1600].tokens < 1600 + 500
    assert read[10**6].use.samples == 396  # all but what is held out
